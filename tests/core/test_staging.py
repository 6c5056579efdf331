from __future__ import annotations

import os
from pathlib import Path

import pytest

from galscan.core.errors import ConflictError, Interrupted, StorageError
from galscan.core.files import read_json, write_json
from galscan.core.staging import atomic_folder, finished, locked, partial, publish, recover, staging_folder

REQUEST = {"seed": 0, "recipe": "a"}


def test_the_same_request_is_resumed_and_another_refused(tmp_path, capsys):
    out = tmp_path / "model"
    with staging_folder(out, REQUEST, "training") as work:
        assert work == partial(out) == tmp_path / "model.partial"
        (work / "stage").write_text("done")
    assert capsys.readouterr().err == ""
    with staging_folder(out, REQUEST, "training") as work:
        assert (work / "stage").read_text() == "done"
    assert "resuming" in capsys.readouterr().err
    other = REQUEST | {"seed": 1}
    with (
        pytest.raises(ConflictError, match="an unfinished training with other seed;"),
        staging_folder(out, other, "training"),
    ):
        pass
    assert (work / "stage").is_file()
    with staging_folder(out, other, "training", overwrite=True):
        assert [p.name for p in work.iterdir()] == ["request.json"] and read_json(work / "request.json") == other


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_left_alone(tmp_path, overwrite):
    work = tmp_path / "out.partial"
    work.mkdir()
    with staging_folder(tmp_path / "out", REQUEST, "training"):
        pass  # an empty folder is nobody's
    (work / "request.json").unlink()
    (work / "thesis.tex").write_text("x")
    (tmp_path / "file.partial").write_text("x")
    for name in ("out", "file"):
        with (
            pytest.raises(ConflictError, match=rf"{name}\.partial exists and is not an unfinished training"),
            staging_folder(tmp_path / name, REQUEST, "training", overwrite=overwrite),
        ):
            pass
    assert [p.name for p in work.iterdir()] == ["thesis.tex"] and (tmp_path / "file.partial").read_text() == "x"


def test_ctrl_c_keeps_finished_work(tmp_path):
    with (
        pytest.raises(Interrupted, match="same command again"),
        staging_folder(tmp_path / "out", REQUEST, "training") as work,
    ):
        (work / "stage").write_text("done")
        raise KeyboardInterrupt
    assert (work / "stage").is_file()


def test_a_locked_folder_is_not_locked_again(tmp_path):
    with locked(tmp_path), pytest.raises(ConflictError, match=tmp_path.name), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_place_that_cannot_be_written_is_named():
    with pytest.raises(StorageError, match="cannot write /proc/galscan"), locked(Path("/proc/galscan")):
        pass


def test_finished_work_is_returned_and_other_work_refused(tmp_path, capsys):
    out = tmp_path / "out"
    result_of = lambda request, **options: finished(out, "done.json", request, "evaluation", **options)  # noqa: E731
    assert result_of(REQUEST) is None
    with staging_folder(out, REQUEST, "evaluation") as work:
        write_json(work / "done.json", {"request": REQUEST, "found": 3})
        publish(work, out)
    assert result_of(REQUEST) == {"request": REQUEST, "found": 3}
    assert "is already the result of this evaluation; nothing to do" in capsys.readouterr().err
    assert result_of(REQUEST, overwrite=True) is None
    with pytest.raises(ConflictError, match="holds another evaluation"):
        result_of({"seed": 7})
    assert result_of({"seed": 7}, overwrite=True) is None
    (out / "done.json").unlink()
    for overwrite in (False, True):  # a folder of somebody else's is never overwritten
        with pytest.raises(ConflictError, match="is not a finished evaluation"):
            result_of(REQUEST, overwrite=overwrite)
    assert out.is_dir()


def test_publish_replaces_the_folder(tmp_path):
    work, out = tmp_path / "out.partial", tmp_path / "out"
    for folder, name in ((work, "new"), (out, "old")):
        folder.mkdir()
        (folder / name).touch()
    publish(work, out)
    assert [p.name for p in out.iterdir()] == ["new"] and not work.exists()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "new" / "catalogue"
    with atomic_folder(out, "marker") as work:
        (work / "marker").write_text("1")
        (work / "deep").mkdir()
        assert not out.exists()
    assert (out / "marker").read_text() == "1" and [*out.parent.iterdir()] == [out]
    with pytest.raises(RuntimeError), atomic_folder(out, "marker") as work:
        (work / "marker").write_text("2")
        raise RuntimeError
    assert (out / "marker").read_text() == "1" and (out / "deep").is_dir() and [*out.parent.iterdir()] == [out]
    with atomic_folder(out, "marker") as work:
        (work / "marker").write_text("3")
    assert (out / "marker").read_text() == "3" and not (out / "deep").exists() and [*out.parent.iterdir()] == [out]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "x").touch()
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with pytest.raises(ConflictError, match="no marker in it"), atomic_folder(tmp_path / name, "marker"):
            pass
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty", "marker"):
        pass
    with pytest.raises(StorageError, match="cannot write /proc/x"), atomic_folder(Path("/proc/x"), "marker"):
        pass


def test_a_folder_of_the_users_beside_it_is_left_alone(tmp_path):
    """Names of folders that are removed belong to galscan alone."""
    for name in ("out.replaced", "out.partial.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    for content in ("old", "new"):
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / content).touch()
        publish(tmp_path / "work", tmp_path / "out")
    recover(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]
    assert (tmp_path / "out.replaced" / "mine").exists() and len(list(tmp_path.iterdir())) == 3


def test_the_old_is_there_until_the_new_is(tmp_path, monkeypatch):
    """Killed at any rename, one of both can be recovered."""
    for at in (0, 1):
        out, work = tmp_path / f"out{at}", tmp_path / f"work{at}"
        for folder, content in ((out, "old"), (work, "new")):
            folder.mkdir()
            (folder / content).touch()
        real, calls = os.replace, []

        def replace(*given, real=real, calls=calls, at=at):
            if len(calls) == at:
                raise KeyboardInterrupt
            calls.append(given)
            real(*given)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            publish(work, out)
        monkeypatch.setattr(os, "replace", real)
        recover(out)
        assert [p.name for p in out.iterdir()] == ["old"] and (work / "new").exists()
