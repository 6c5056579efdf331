"""The grade book: nothing lost, nothing doubled, nobody else's, and nothing strange let in."""

from __future__ import annotations

import csv
import sqlite3

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import ConflictError, InputError, NotFoundError
from galscan.stats.graded import Stratum
from galscan.vetting.gradebook import GRADES, GradeBook, create, summary_lines

STRATA = [Stratum("best", 6, 1, 6), Stratum("not ranked", 100), Stratum("discarded", 1000, discarded=True)]


def made(path, ids=None):
    n = 10
    items = pd.DataFrame({
        "store": ["sky"] * 8 + [""] * 2, "row": np.arange(n), "id": ids or [f"g{k}" for k in range(n)],
        "ra": [1.5] * 8 + [np.nan] * 2, "dec": 0.5, "stratum": ["best"] * 4 + ["not ranked"] * 3 + [""] * 3,
        "kind": ["survey"] * 7 + ["positive"] + ["blank"] * 2, "rank": [1, 2, 3, 4] + [0] * 6,
    })  # fmt: skip
    create(path, items, STRATA, {"fingerprint": "f", "seed": "0"})
    return path


@pytest.fixture
def book(tmp_path):
    with GradeBook(made(tmp_path / "grades.sqlite"), "f") as book:
        yield book


def give(book, item, grade, grader="ann", key=None, **more):
    give.count = getattr(give, "count", 0) + 1
    return book.record(key or f"key-{give.count:08d}", item, grader, grade, **more)


def test_the_sample_comes_back_as_it_was_drawn(book):
    assert book.strata() == STRATA
    items = book.items()
    assert list(items["item"]) == list(range(1, 11)) and items["ra"].isna().sum() == 2


def test_the_last_word_counts_and_undo_takes_it_back(book):
    assert give(book, 1, "A") and give(book, 2, "not") and give(book, 1, "C", comment="hm")
    assert book.current().set_index("item")["grade"].to_dict() == {1: "C", 2: "not"}
    assert book.undo("ann") == 1 and book.current().set_index("item")["grade"].to_dict() == {1: "A", 2: "not"}
    assert book.undo("ann") == 2 and book.undo("ann") == 1 and book.undo("ann") is None and book.undo("bob") is None
    assert book.current().empty


def test_a_grade_sent_twice_is_there_once(book):
    assert give(book, 1, "A", key="the same key")
    assert not give(book, 1, "A", key="the same key")
    assert len(book.current()) == 1
    with pytest.raises(InputError, match="belongs to another grade"):
        give(book, 2, "A", key="the same key")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": 11}, "no item 11"),
        ({"item": "1"}, "no item '1'"),
        ({"grade": "D"}, "unknown grade 'D'"),
        ({"grade": 7}, "grade is 7; it must be a string"),
        ({"grader": ""}, "not a valid grader name"),
        ({"grader": " ann"}, "not a valid grader name"),
        ({"grader": "a\nb"}, "not a valid grader name"),
        ({"grader": "x" * 65}, "not a valid grader name"),
        ({"artefact": "seam"}, "not a kind of artefact"),
        ({"grade": "artefact", "artefact": "dragon"}, "not a kind of artefact"),
        ({"comment": "x" * 1001}, "at most 1,000"),
        ({"key": "short"}, "the key of a grade"),
        ({"key": None}, "the key of a grade"),
    ],
)
def test_what_is_no_grade_is_refused(book, change, message):
    good = {"key": "key-00000000", "item": 1, "grader": "ann", "grade": "A"}
    with pytest.raises(InputError, match=message):
        book.record(**(good | change))
    assert book.current().empty


def test_verdicts_are_of_the_majority_and_a_tie_is_none(book):
    for grader, grade in (("ann", "A"), ("bob", "B"), ("eve", "not")):
        give(book, 1, grade, grader)
    give(book, 2, "A", "ann")
    give(book, 2, "not", "bob")
    told = book.verdicts().set_index("item")
    assert told["target"].to_dict() == {1: True, 2: False} and told["votes"].to_dict() == {1: 3, 2: 2}
    assert told.loc[1, "grade"] == "B" and told.loc[1, "agreed"] == pytest.approx(2 / 3)
    assert book.verdicts(["A"]).set_index("item")["target"].to_dict() == {1: False, 2: False}
    with pytest.raises(InputError, match="unknown grade 'Z'"):
        book.verdicts(["Z"])


def test_graders_are_measured_by_the_controls_and_against_each_other(book):
    for item in (1, 2, 8, 9):
        give(book, item, "A", "ann")
    for item, grade in ((1, "A"), (2, "not"), (8, "C")):
        give(book, item, grade, "bob")
    graders = book.graders()
    assert graders["ann"] == {"graded": 4, "of": 10, "known_found": 1, "known": 1, "blank_taken": 1, "blank": 1}
    assert graders["bob"]["known_found"] == 0
    (pair,) = book.agreement()  # of the survey's objects: the known target, on which they differ, is not among them
    assert pair == {"graders": ["ann", "bob"], "items": 2, "same": 0.5, "kappa": pytest.approx(0.0)}
    assert summary_lines(graders, [pair]) == [
        "ann graded 4 of 10: found 1 of 1 known targets, took 1 of 1 blank frames for one",
        "bob graded 3 of 10: found 0 of 1 known targets, took 0 of 0 blank frames for one",
        "ann and bob agree on 50% of 2 objects, Cohen's kappa 0.00",
    ]


def test_more_than_two_graders_agree_as_fleiss_says(book):
    """Three graders, four objects: votes 3, 2, 1, 0 for a target."""
    for item, votes in ((1, "AAA"), (2, "AAn"), (3, "nnA"), (4, "nnn")):
        for grader, vote in zip(("ann", "bob", "eve"), votes, strict=True):
            give(book, item, "A" if vote == "A" else "not", grader)
    give(book, 5, "A", "ann")  # graded by one alone
    *pairs, together = book.agreement()
    assert [p["graders"] for p in pairs] == [["ann", "bob"], ["ann", "eve"], ["bob", "eve"]]
    # (1 + 1/3 + 1/3 + 1) / 4 agree, 1/2 would by chance.
    assert together == {"graders": ["ann", "bob", "eve"], "items": 4, "same": 0.5, "kappa": pytest.approx(1 / 3)}
    assert summary_lines({}, [together]) == ["ann, bob and eve agree on 50% of 4 objects, Fleiss' kappa 0.33"]


@pytest.mark.parametrize("word", ["A", "not"])
def test_where_all_said_the_same_of_everything_there_is_no_kappa(book, word):
    for grader in ("ann", "bob", "eve"):
        give(book, 1, word, grader)
    assert {p["kappa"] for p in book.agreement()} == {None}
    assert summary_lines({}, book.agreement())[0] == "ann and bob agree on 100% of 1 object"


def test_csv_out_and_in_gives_the_same_grades(book, tmp_path):
    give(book, 1, "A", comment='=HYPERLINK("x")')
    give(book, 2, "artefact", artefact="seam", comment='with, "quotes"\nand lines')
    give(book, 2, "not", "bob", comment="'quoted")
    assert book.write_csv(tmp_path / "g.csv") == 3
    text = (tmp_path / "g.csv").read_text()
    assert "'=HYPERLINK" in text and '"=HYPER' not in text and ",=HYPER" not in text
    with GradeBook(made(tmp_path / "again.sqlite"), "f") as other:
        assert other.read_csv(tmp_path / "g.csv") == (3, 0)
        assert other.read_csv(tmp_path / "g.csv") == (0, 3)
        pd.testing.assert_frame_equal(other.current(), book.current())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,grader\ng1,ann\n", "no column 'grade'"),
        ("", "no column 'id'"),
        ("id,grader,grade\ng1,ann,A\nnobody,ann,A\n", "line 3: object 'nobody' is not in this sample"),
        ("id,grader,grade\ng1,ann,A\ng1,ann,not\n", "line 3: ann grades object 'g1' not, and A in line 2"),
        ("id,grader,grade\ng1,ann,Q\n", "line 2: unknown grade 'Q'"),
        ("id,grader,grade\ng1,ann\n", "line 2: the number of columns differs"),
        ("id,grader,grade\ng1,ann,A,more\n", "line 2: the number of columns differs"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_whole(book, tmp_path, text, message):
    (tmp_path / "g.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        book.read_csv(tmp_path / "g.csv")
    assert book.current().empty


def test_a_table_cut_off_in_the_middle_is_refused(book, tmp_path):
    for item in range(1, 8):
        give(book, item, "A")
    book.write_csv(tmp_path / "g.csv")
    whole = (tmp_path / "g.csv").read_bytes()
    (tmp_path / "g.csv").write_bytes(whole[: len(whole) - 60])
    with GradeBook(made(tmp_path / "again.sqlite"), "f") as other:
        with pytest.raises(InputError, match="truncated"):
            other.read_csv(tmp_path / "g.csv")
        assert other.current().empty
    (tmp_path / "g.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a CSV table"):
        book.read_csv(tmp_path / "g.csv")
    with pytest.raises(NotFoundError, match="does not exist"):
        book.read_csv(tmp_path / "none.csv")


def test_a_book_of_another_run_a_damaged_one_and_none_are_refused(tmp_path):
    path = made(tmp_path / "grades.sqlite")
    with pytest.raises(ConflictError, match="another run"):
        GradeBook(path, "another")
    with pytest.raises(ConflictError, match="already exists"):
        made(path)
    with pytest.raises(NotFoundError, match="galscan vet"):
        GradeBook(tmp_path / "none.sqlite", "f")
    whole = path.read_bytes()
    for number, damaged in enumerate((b"nothing", whole[: len(whole) // 2], whole[:4096] + b"x" * 4096 + whole[8192:])):
        bad = tmp_path / f"bad{number}.sqlite"
        bad.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            GradeBook(bad, "f")
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE items")
    with pytest.raises(InputError, match="damaged"):
        GradeBook(path, "f")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE grades SET grade = 'AAA'", "an unknown grade"),
        ("UPDATE grades SET grader = x'ff'", "an unknown grade"),
        ("UPDATE grades SET item = 99", "a grade of an unknown object"),
        ("UPDATE items SET kind = 'dragon' WHERE item = 1", "an object of unknown kind"),
        ("UPDATE items SET stratum = 'nowhere' WHERE item = 1", "an object of unknown stratum"),
        ("DELETE FROM strata", "an object of unknown stratum"),
        ("UPDATE items SET rank = 9 WHERE item = 1", "an object whose rank is outside its stratum"),
        ("UPDATE items SET rank = 5 WHERE item = 6", "an object whose rank is outside its stratum"),
        ("UPDATE items SET rank = 'one' WHERE item = 1", "an object whose rank is outside its stratum"),
        (
            "UPDATE items SET row = '../../etc/passwd' WHERE item = 1",
            "an object with invalid store, row, id or position",
        ),
        ("UPDATE items SET ra = 'east' WHERE item = 1", "an object with invalid store, row, id or position"),
    ],
)
def test_a_book_that_another_program_changed_is_refused(tmp_path, change, message):
    path = made(tmp_path / "grades.sqlite")
    with GradeBook(path, "f") as book:
        give(book, 1, "A")
    with sqlite3.connect(path) as db:
        db.execute(change)
    with pytest.raises(InputError, match=f"changed by another program: it holds .*{message}"):
        GradeBook(path, "f")


def test_a_book_of_another_format_is_refused(tmp_path):
    path = made(tmp_path / "grades.sqlite")
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET value = '2' WHERE name = 'format'")
    with pytest.raises(InputError, match="not a grade book of format 1; use the galscan version that wrote it"):
        GradeBook(path, "f")


HOSTILE = [
    "=1+1", "+1", "-1", "@SUM(A1)", "'quoted", "../../etc/passwd", "</script><script>alert(1)", 'a"b,c', "g8", "g9",
]  # fmt: skip


def test_hostile_ids_and_graders_go_out_and_in_and_no_spreadsheet_runs_them(tmp_path):
    with GradeBook(made(tmp_path / "a.sqlite", ids=HOSTILE), "f") as book:
        for item in range(1, 9):
            give(book, item, "A", "=cmd|' /C calc'!A0", comment="@=1")
        book.write_csv(tmp_path / "g.csv")
        for row in csv.reader((tmp_path / "g.csv").open(newline="")):
            assert not [cell for cell in row if cell[:1] in ("=", "+", "-", "@")]
        with GradeBook(made(tmp_path / "b.sqlite", ids=HOSTILE), "f") as other:
            assert other.read_csv(tmp_path / "g.csv") == (8, 0)
            pd.testing.assert_frame_equal(other.current(), book.current())


def test_every_grade_has_words_for_it():
    assert set(GRADES) == {"A", "B", "C", "not", "artefact"} and all(GRADES.values())
