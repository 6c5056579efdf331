from __future__ import annotations

import csv
import sqlite3
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import ConflictError, InputError, NotFoundError
from galscan.stats.graded import Stratum
from galscan.vetting.gradebook import GradeBook, create, summary_lines

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
def path(tmp_path):
    return made(tmp_path / "grades.sqlite")


@pytest.fixture
def book(path):
    with GradeBook(path, "f") as book:
        yield book


def change(path, statement):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)


def give(book, item, grade, grader="ann", key=None, **more):
    give.count = getattr(give, "count", 0) + 1
    return book.record(key or f"key-{give.count:08d}", item, grader, grade, **more)


def test_sample_is_read_back_as_written(book):
    assert book.strata() == STRATA
    items = book.items()
    assert list(items["item"]) == list(range(1, 11)) and items["ra"].isna().sum() == 2


def test_latest_grade_counts_and_undo_restores_the_one_before(book):
    assert give(book, 1, "A") and give(book, 2, "not") and give(book, 1, "C", comment="hm")
    assert book.current().set_index("item")["grade"].to_dict() == {1: "C", 2: "not"}
    assert book.undo("ann") == 1 and book.current().set_index("item")["grade"].to_dict() == {1: "A", 2: "not"}
    assert [book.undo(grader) for grader in ("ann", "ann", "ann", "bob")] == [2, 1, None, None]
    assert book.current().empty


def test_grade_sent_twice_is_stored_once(book):
    assert [give(book, 1, "A", key="the same key") for _ in range(2)] == [True, False]
    assert len(book.current()) == 1
    with pytest.raises(InputError, match="the same key"):
        give(book, 2, "A", key="the same key")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("item", 11, "11"), ("item", "1", "'1'"), ("grade", "D", "'D'"), ("grade", 7, "7"), ("grader", "", "grader"),
        ("grader", " ann", "' ann'"), ("grader", "a\nb", "grader"), ("grader", "x" * 65, "xxx"),
        ("artefact", "seam", "'seam'"), ("comment", "x" * 1001, "1,001"), ("key", "short", "key"), ("key", None, "key"),
    ],
)  # fmt: skip
def test_invalid_grade_is_refused(book, field, value, message):
    good = {"key": "key-00000000", "item": 1, "grader": "ann", "grade": "A"}
    with pytest.raises(InputError, match=message):
        book.record(**(good | {field: value}))
    with pytest.raises(InputError, match="dragon"):
        book.record(**(good | {"grade": "artefact", "artefact": "dragon"}))
    assert book.current().empty


def test_majority_decides_and_a_tie_is_no_target(book):
    for item, grades in ((1, ("A", "B", "not")), (2, ("A", "not"))):
        for grader, grade in zip(("ann", "bob", "eve"), grades, strict=False):
            give(book, item, grade, grader)
    verdicts = book.verdicts().set_index("item")
    assert verdicts["target"].to_dict() == {1: True, 2: False} and verdicts["votes"].to_dict() == {1: 3, 2: 2}
    assert verdicts.loc[1, "grade"] == "B" and verdicts.loc[1, "agreed"] == pytest.approx(2 / 3)
    assert book.verdicts(["A"]).set_index("item")["target"].to_dict() == {1: False, 2: False}
    with pytest.raises(InputError, match="'Z'"):
        book.verdicts(["Z"])


def test_controls_measure_graders_and_survey_objects_their_agreement(book):
    for item in (1, 2, 8, 9):
        give(book, item, "A", "ann")
    for item, grade in ((1, "A"), (2, "not"), (8, "C")):
        give(book, item, grade, "bob")
    graders = book.graders()
    assert graders["ann"] == {"graded": 4, "of": 10, "known_found": 1, "known": 1, "blank_taken": 1, "blank": 1}
    assert graders["bob"]["known_found"] == 0
    (pair,) = book.agreement()  # the known target, on which they differ, does not count
    assert pair == {"graders": ["ann", "bob"], "items": 2, "same": 0.5, "kappa": pytest.approx(0.0)}
    assert summary_lines(graders, [pair]) == [
        "ann graded 4 of 10: found 1 of 1 known targets, took 1 of 1 blank frames for one",
        "bob graded 3 of 10: found 0 of 1 known targets, took 0 of 0 blank frames for one",
        "ann and bob agree on 50% of 2 objects, Cohen's kappa 0.00",
    ]


def test_more_than_two_graders_agree_by_pairs_and_together(book):
    """Three graders, four objects: votes 3, 2, 1, 0 for a target."""
    for item, votes in enumerate(("AAA", "AAn", "nnA", "nnn"), 1):
        for grader, vote in zip(("ann", "bob", "eve"), votes, strict=True):
            give(book, item, "A" if vote == "A" else "not", grader)
    give(book, 5, "A", "ann")  # graded by one alone
    *pairs, together = book.agreement()
    assert [p["graders"] for p in pairs] == [["ann", "bob"], ["ann", "eve"], ["bob", "eve"]]
    # (1 + 1/3 + 1/3 + 1) / 4 agree, 1/2 would by chance.
    assert together == {"graders": ["ann", "bob", "eve"], "items": 4, "same": 0.5, "kappa": pytest.approx(1 / 3)}
    assert summary_lines({}, [together]) == ["ann, bob and eve agree on 50% of 4 objects, Fleiss' kappa 0.33"]
    alike = pairs[0] | {"items": 1, "same": 1.0, "kappa": None}
    assert summary_lines({}, [alike]) == ["ann and bob agree on 100% of 1 object"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,grader\ng1,ann\n", "'grade'"), ("", "'id'"), ("id,grader,grade\ng1,ann,A\nnobody,ann,A\n", "nobody"),
        ("id,grader,grade\ng1,ann,A\ng1,ann,not\n", "line 3: ann"), ("id,grader,grade\ng1,ann,Q\n", "'Q'"),
        ("id,grader,grade\ng1,ann,A,more\n", "line 2"),
    ],
)  # fmt: skip
def test_table_that_does_not_fit_is_refused_as_a_whole(book, tmp_path, text, message):
    (tmp_path / "g.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        book.read_csv(tmp_path / "g.csv")
    assert book.current().empty


HOSTILE = [
    "=1+1", "+1", "-1", "@SUM(A1)", "'quoted", "../../etc/passwd", "</script><script>alert(1)", 'a"b,c', "g8", "g9",
]  # fmt: skip


def test_tables_are_read_back_as_written_without_formulas_and_refused_if_truncated(tmp_path):
    with GradeBook(made(tmp_path / "a.sqlite", ids=HOSTILE), "f") as book:
        for item in range(1, 9):
            give(book, item, "A", "=cmd|' /C calc'!A0", comment="@=1")
        give(book, 2, "artefact", artefact="seam", comment='with, "quotes"\nand lines')
        give(book, 2, "not", "bob", comment="'quoted")
        assert book.write_csv(tmp_path / "g.csv") == 10
        with (tmp_path / "g.csv").open(newline="") as table:
            assert not [cell for row in csv.reader(table) for cell in row if cell[:1] in ("=", "+", "-", "@")]
        with GradeBook(made(tmp_path / "b.sqlite", ids=HOSTILE), "f") as other:
            (tmp_path / "cut.csv").write_bytes((tmp_path / "g.csv").read_bytes()[:-60])
            with pytest.raises(InputError, match=r"cut\.csv"):
                other.read_csv(tmp_path / "cut.csv")
            assert other.current().empty
            assert [other.read_csv(tmp_path / "g.csv") for _ in range(2)] == [(10, 0), (0, 10)]
            pd.testing.assert_frame_equal(other.current(), book.current())


def test_missing_and_foreign_and_damaged_books_are_refused(path, tmp_path):
    with pytest.raises(ConflictError, match=r"grades\.sqlite"):
        GradeBook(path, "another")
    with pytest.raises(ConflictError, match=r"grades\.sqlite"):
        made(path)
    with pytest.raises(NotFoundError):
        GradeBook(tmp_path / "none.sqlite", "f")
    whole = path.read_bytes()
    for damaged in (b"nothing", whole[: len(whole) // 2], whole[:4096] + b"x" * 4096 + whole[8192:]):
        (tmp_path / "bad.sqlite").write_bytes(damaged)
        with pytest.raises(InputError, match=r"bad\.sqlite is damaged"):
            GradeBook(tmp_path / "bad.sqlite", "f")
    change(path, "DROP TABLE items")
    with pytest.raises(InputError, match="damaged"):
        GradeBook(path, "f")


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE grades SET grade = 'AAA'", "an unknown grade"),
        ("UPDATE grades SET grader = x'ff'", "an unknown grade"),
        ("UPDATE grades SET item = 99", "unknown object"),
        ("UPDATE items SET kind = 'dragon' WHERE item = 1", "unknown kind"),
        ("UPDATE items SET stratum = 'nowhere' WHERE item = 1", "unknown stratum"),
        ("DELETE FROM strata", "unknown stratum"),
        ("UPDATE items SET rank = 9 WHERE item = 1", "rank"),
        ("UPDATE items SET rank = 5 WHERE item = 6", "rank"),
        ("UPDATE items SET rank = 'one' WHERE item = 1", "rank"),
        ("UPDATE items SET row = '../../etc/passwd' WHERE item = 1", "position"),
        ("UPDATE items SET ra = 'east' WHERE item = 1", "position"),
        ("UPDATE meta SET value = '2' WHERE name = 'format'", "format 1"),
    ],
)
def test_book_changed_by_another_program_is_refused(path, statement, problem):
    with GradeBook(path, "f") as book:
        give(book, 1, "A")
    change(path, statement)
    with pytest.raises(InputError, match=problem):
        GradeBook(path, "f")
