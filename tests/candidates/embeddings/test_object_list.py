"""Tables of ids, as they are saved from a map, exported, or made by other software; and their objects in a scan."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

from galscan.candidates.embeddings import object_list
from galscan.core.errors import InputError, NotFoundError
from tests.candidates.embeddings.test_similar import wanted, write


def test_tables_of_ids(tmp_path):
    path = tmp_path / "selection.csv"
    path.write_text(
        "id,store,ra,dec,score\n'-5,sky,1.5,-2,0.1\n0104,,,,\n0104,,,,\n'=A(1),sky,0,0,\n", encoding="utf-8-sig"
    )
    found = object_list.read_object_list(path)
    assert found.to_numpy().tolist() == [["-5", "sky"], ["0104", ""], ["=A(1)", "sky"]]
    big = 1237648720693690487  # not the same as a float
    for name, form in (("subset.fits", "fits"), ("subset.vot", "votable")):
        Table({"objid": [big, 7], "score": [0.5, 0.1]}).write(tmp_path / name, format=form)
        assert list(object_list.read_object_list(tmp_path / name)["id"]) == [str(big), "7"]


@pytest.mark.parametrize(
    ("content", "word"),
    [("ra,dec\n1,2\n", "no column of ids"), ("id,ra\n,1\n", "no ids"), ("id,ra\n", "no rows")],
)
def test_tables_without_ids(content, word, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=word):
        object_list.read_object_list(path)
    with pytest.raises(NotFoundError, match=r"gone\.csv"):
        object_list.read_object_list(tmp_path / "gone.csv")


def test_a_table_is_a_file_with_its_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("57", "a.csv", "b.FITS"):
        (tmp_path / name).write_text("id\n1\n")
    given = ["57", "a.csv", "b.FITS", "c.csv", "NGC 1"]
    assert [object_list.is_object_list(text) for text in given] == [False, True, True, False, False]


def test_objects_are_located_by_id_and_store(tmp_path):
    parts = [np.eye(5) for _ in range(4)]
    names = [f"NGC {k % 10}" for k in range(20)]
    run = write(tmp_path, parts, ids=names, stores=["one", "one", "two", "two"]).run
    both = object_list.locate(run, wanted("NGC 3"), "--like")
    assert list(both["store"]) == ["one", "two"]
    one = object_list.locate(run, pd.DataFrame({"id": ["NGC 3", "NGC 9"], "store": ["two", ""]}), "--like")
    assert list(zip(one["store"], one["id"], strict=True)) == [("one", "NGC 9"), ("two", "NGC 3"), ("two", "NGC 9")]
    with pytest.raises(InputError, match="--objects NGC 3"):
        object_list.locate(run, pd.DataFrame({"id": ["NGC 3"], "store": ["three"]}), "--objects")
    rows = object_list.rows(run, one.iloc[::-1], ["id", "store", "score"])
    assert list(rows["id"]) == ["NGC 9", "NGC 3", "NGC 9"] and list(rows["score"]) == [-19, -13, -9]
