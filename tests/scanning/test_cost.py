"""What a scan needs is known before it begins, and said."""

from __future__ import annotations

import pytest

from galscan.core.errors import InputError
from galscan.scanning import cost
from galscan.scanning import plan as plans
from tests.scanning.test_plan import bundle, fake_store


def test_what_cannot_fit_is_refused_with_what_would():
    plan = plans.make_plan([fake_store("a", 10_000_000)], [bundle()], out="/out/run")
    each, needed = cost.worker_memory(plan), cost.output_bytes(plan)
    cost.check_fit(plan, 4, 4 * each, needed)
    with pytest.raises(InputError, match="use --workers 3"):
        cost.check_fit(plan, 4, 4 * each - 1, needed)
    with pytest.raises(InputError, match="use another machine"):
        cost.check_fit(plan, 1, each - 1, needed)
    cost.check_fit(plan, None, 0, needed)  # others do the work
    with pytest.raises(InputError, match=r"/out/run needs .* --limit ([\d,]+)") as error:
        cost.check_fit(plan, 1, each, needed // 10)
    limit = int(str(error.value).rpartition(" ")[2].replace(",", ""))
    assert 0.2 < limit / plan.objects < 0.4


def test_the_rate_that_was_measured_gives_the_time():
    plan = plans.make_plan([fake_store("a", 900_000)], [bundle()], cascade=False)
    assert "about 15 min at 1,000 objects/s" in cost.describe(plan, "2 processes", 1000.0)


def test_the_description_says_what_a_person_needs_to_decide():
    plan = plans.make_plan([fake_store("a", 10_000)], [bundle()], device="cpu", out="/out/run")
    text = cost.describe(plan, "2 processes on this machine")
    for words in (
        "10,000 cutouts of 32 px",
        "30.7 MB",
        "cpu, bf16",
        "2 processes",
        "/out/run",
        "top 1,000",
        "unknown until",
    ):
        assert words in text


def test_memory_and_output_grow_with_what_they_depend_on():
    small = plans.make_plan([fake_store("a", 10_000)], [bundle()])
    large = plans.make_plan([fake_store("a", 1_000_000)], [bundle()])
    assert cost.worker_memory(small) == cost.worker_memory(large)  # the promise of bounded memory
    assert cost.worker_memory(small) < cost.worker_memory(plans.make_plan([fake_store("a", 9, 128)], [bundle(128)]))
    assert cost.output_bytes(large) > 50 * cost.output_bytes(small) / 3


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (3.2e12, "3.2 TB"), (4e15, "4,000 TB")]
)
def test_sizes_in_words(count, text):
    assert cost.size_text(count) == text
