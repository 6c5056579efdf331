"""Ingest plans: comparison and description of differences."""

from __future__ import annotations

from pathlib import Path

import pytest

from galscan.core.errors import ConflictError, Interrupted
from galscan.core.files import write_json
from galscan.store.build import ingest_survey
from galscan.store.manifest import marker_path
from galscan.store.plan import can_resume, content_hash, differences, plan_of, read_plan, write_plan
from tests.store.test_build import Sky


def test_resume_with_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        ingest_survey(Sky(stop_at=600), tmp_path / "s.zarr", workers=1)
    with pytest.raises(ConflictError, match=r"begun with other settings: seed was 0, is 1; remove it"):
        ingest_survey(Sky(seed=1), tmp_path / "s.zarr", workers=1)
    with pytest.raises(ConflictError, match="count was 700, is 800"):
        ingest_survey(Sky(count=800), tmp_path / "s.zarr", workers=1)


def test_differences_are_told_by_name() -> None:
    old = {"count": 5, "survey": {"objects": 5, "catalog": "a.csv", "sha": "a" * 64, "framing": {"radii": 8.48}}}
    new = {"count": 5, "survey": {"objects": 5, "catalog": "b.csv", "sha": "b" * 64, "framing": {"pixel_scale": 0.4}}}
    assert differences(old, old) == ""
    assert differences(old, new) == (
        'catalog was "a.csv", is "b.csv"; framing.pixel_scale was null, is 0.4; framing.radii was 8.48, is null; '
        f"sha was {'a' * 12}..., is {'b' * 12}..."
    )
    more = {name: 1 for name in "abcdef"}
    assert differences({}, more).endswith("d was null, is 1; ...") and "x" * 80 not in differences({}, {"a": "x" * 90})


def test_the_content_hash_follows_the_shards_and_their_order(tmp_path: Path) -> None:
    for folder, digests in (("a", "xyz"), ("b", "pq")):
        for k, digest in enumerate(digests):
            write_json(marker_path(tmp_path / folder, k), {"sha256": digest})
    a, b = tmp_path / "a", tmp_path / "b"
    whole = content_hash(a, range(3))
    assert content_hash(a, range(2), a, range(2, 3)) == whole == content_hash(a, range(0), a, range(3))
    assert (
        len({whole, content_hash(a, range(2)), content_hash(a, range(1), b, range(1, 2)), content_hash(b, range(2))})
        == 4
    )


def test_a_plan_is_gone_on_with_or_refused(tmp_path: Path) -> None:
    plan = plan_of(Sky(text=True))
    assert not can_resume(tmp_path, plan)
    write_plan(tmp_path, plan)
    assert can_resume(tmp_path, plan) and read_plan(tmp_path) == plan
    with pytest.raises(ConflictError, match="was begun with other settings: count was 700, is 701"):
        can_resume(tmp_path, plan_of(Sky(count=701, text=True)))
