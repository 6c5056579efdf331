"""The run folder: one scan, one process at a time, nothing of anybody else's touched."""

from __future__ import annotations

import json

import pytest

from galscan.core.errors import ConflictError, InputError
from galscan.scanning import run_info as runs
from galscan.scanning.plan import make_plan
from galscan.scanning.run import open_run
from tests.scanning.test_plan import bundle, fake_store


def planned(out, **options):
    return make_plan([fake_store("a", 600)], [bundle()], out=out, **options)


def leave(plan, status="running"):
    info = {"status": status, "fingerprint": plan.fingerprint, "identity": plan.identity}
    plan.out.mkdir(parents=True, exist_ok=True)
    (plan.out / runs.INFO).write_text(json.dumps(info))
    return info


def test_a_new_folder_is_made(tmp_path):
    plan = planned(tmp_path / "deep" / "run")
    with runs.claim(plan) as before:
        assert before is None
        assert plan.out.is_dir()


def test_the_same_scan_is_found_again(tmp_path):
    plan = planned(tmp_path / "run")
    info = leave(plan)
    with runs.claim(plan) as before:
        assert before.to_dict() == info


def test_a_scan_killed_before_its_first_word_leaves_nothing_in_the_way(tmp_path):
    plan = planned(tmp_path / "run")
    plan.out.mkdir()
    (plan.out / ".run.json.12ab.tmp").write_text("{")
    with runs.claim(plan) as before:
        assert before is None


@pytest.mark.parametrize(
    ("options", "words"),
    [({"top": 7}, "top was 1000, now 7"), ({"precision": "fp32"}, "precision was bf16, now fp32")],
)
def test_another_scan_in_the_folder_is_a_conflict_that_says_what_differs(tmp_path, options, words):
    leave(planned(tmp_path / "run"))
    with (
        pytest.raises(ConflictError, match=f"{words}; choose another --out"),
        runs.claim(planned(tmp_path / "run", **options)),
    ):
        pass


def test_differences_name_models_and_stores_in_short():
    old = {"model": "a" * 64, "stores": [["sdss", "b" * 64]], "version": "1"}
    new = {"model": "c" * 64, "stores": [["sdss", "d" * 64], ["efigi", "e" * 64]], "version": "1"}
    text = runs.differences(old, new)
    assert (
        text
        == f"model was {'a' * 12}, now {'c' * 12}; stores was sdss {'b' * 12}, now sdss {'d' * 12}+efigi {'e' * 12}"
    )


def test_two_processes_cannot_have_one_folder(tmp_path):
    plan = planned(tmp_path / "run")
    with runs.claim(plan):  # noqa: SIM117 - the first claim is to outlive the second
        with pytest.raises(ConflictError, match="another galscan process is working"), runs.claim(plan):
            pass
    with runs.claim(plan):  # let go when the first is through
        pass


def test_a_folder_of_something_else_is_left_as_it_was(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("...")
    with (
        pytest.raises(ConflictError, match=r"not the folder of a scan \(it holds chapter\.tex\)"),
        runs.claim(planned(tmp_path / "thesis")),
    ):
        pass
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ConflictError, match="is a file"), runs.claim(planned(tmp_path / "run")):
        pass


@pytest.mark.parametrize(
    "text", ["[]", '{"status": "done"}', "{", "3", '{"status": "odd", "fingerprint": "f", "identity": {}}']
)
def test_a_run_json_of_somebody_else_is_refused(tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(InputError), runs.claim(planned(tmp_path / "run")):
        pass
    with pytest.raises(InputError):
        open_run(tmp_path / "run")
