from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError
from galscan.stats.graded import Stratum
from galscan.vetting import batches
from galscan.vetting.gradebook import PLAN, GradeBook, create
from tests.vetting.test_gradebook import change

STRATA = [Stratum("1-100", 100, 1, 100), Stratum("101-400", 300, 101, 400), Stratum("not ranked", 5000)]


def planned(path, size=60, batch=20, **change):
    """Write a book of 400 candidates; the model expects half of the first 100 to be targets, and a tenth of others."""
    rng = np.random.default_rng(0)
    rows = []
    for s, n in zip(STRATA, (60, 60, 12), strict=True):
        order = rng.permutation(s.population)[:n] + s.first
        rows += [
            {"store": "sky", "row": int(k) + 10_000 * (not s.last), "stratum": s.name, "kind": "survey",
             "rank": int(k) if s.last else 0}
            for k in order
        ]  # fmt: skip
    rows += [{"store": "", "row": -1, "stratum": "", "kind": "blank", "rank": 0} for _ in range(4)]
    rows += [{"store": "sky", "row": 20_000 + k, "stratum": "", "kind": "positive", "rank": 0} for k in range(6)]
    queue = pd.DataFrame(rows).assign(ra=1.0, dec=2.0)
    queue["id"] = [f"g{row.row}" if row.store else f"blank-{row.Index}" for row in queue.itertuples()]
    prior = {s.name: list(np.full(50, p)) for s, p in zip(STRATA, (0.5, 0.1, 1e-4), strict=True)}
    plan = {"size": size, "batch": batch, "rank": 400, "entire": [], "prior": prior} | change
    items = queue[["store", "row", "id", "ra", "dec", "stratum", "kind", "rank"]]
    create(path, items[:0], STRATA, {"fingerprint": "f", "seed": "3", PLAN: json.dumps(plan)}, items)
    return path


def grade(book, targets=lambda rank: rank and rank % 3 == 0, grader="ann"):
    """Grade what is in the sample and not graded yet."""
    done = set(book.current()["item"])
    for row in book.items().itertuples():
        if row.item not in done:
            book.record(f"{grader}-{row.item:06d}", row.item, grader, "A" if targets(row.rank) else "not")


@pytest.fixture
def path(tmp_path):
    return planned(tmp_path / "grades.sqlite")


def drawn(book):
    items = book.items()
    return items[items["kind"] == "survey"].groupby("stratum").size().to_dict()


def check_order(book):
    """Check that the sample of each stratum is the first part of its random order."""
    queue, items = book.queue(), book.items()
    for stratum, n in drawn(book).items():
        order = list(queue.loc[queue["stratum"] == stratum, "id"])
        assert set(items.loc[items["stratum"] == stratum, "id"]) == set(order[:n])


def test_batches_follow_until_the_size_is_reached(path):
    with GradeBook(path, "f") as book:
        assert batches.total_size(book) == 70 and book.items().empty
        sizes = []
        while more := batches.extend(book):
            assert batches.extend(book) == 0  # nothing of it is graded
            assert len(set(book.items()["rank"].diff().dropna())) > 2  # mixed
            sizes.append(more)
            grade(book)
        assert sizes == [20, 20, 20] and batches.total_size(book) == len(book.items()) == 70
        assert all(n >= 3 for n in drawn(book).values()) and sum(drawn(book).values()) == 60
        items = book.items()
        assert not items.duplicated(["store", "id"]).any() and (items["kind"] == "blank").sum() == 4
        controls = items["kind"].ne("survey").to_numpy()
        assert [controls[:20].any(), controls[30:50].any(), controls[50:].any()] == [True] * 3
        check_order(book)


def test_next_batch_depends_on_the_grades(tmp_path):
    allocated = []
    for name, targets in (("all", lambda rank: 0 < rank <= 100), ("some", lambda rank: rank > 100 and rank % 2)):
        with GradeBook(planned(tmp_path / name), "f") as book:
            while batches.extend(book):
                grade(book, targets)
            allocated.append(drawn(book))
    assert allocated[0] != allocated[1] and allocated[1]["101-400"] > allocated[0]["101-400"] - 10
    assert min(allocated[0].values()) >= 3


def test_interrupted_grading_is_resumed_with_the_same_result(path, tmp_path):
    copy = shutil.copy(path, tmp_path / "copy.sqlite")
    with GradeBook(path, "f") as book:
        while batches.extend(book):
            grade(book)
        whole = book.items()
    for _ in range(9):  # opened again before each step
        with GradeBook(copy, "f") as book:
            batches.extend(book)
        with GradeBook(copy, "f") as book:
            done = set(book.current()["item"])
            for item in [i for i in book.items()["item"] if i not in done][:13]:
                rank = int(book.items().set_index("item").loc[item, "rank"])
                book.record(f"ann-{item:06d}", int(item), "ann", "A" if rank and rank % 3 == 0 else "not")
    with GradeBook(copy, "f") as book:
        pd.testing.assert_frame_equal(book.items(), whole)


def test_batch_is_complete_when_each_object_is_graded_by_anybody(path):
    with GradeBook(path, "f") as book:
        batches.extend(book)
        items = [int(i) for i in book.items()["item"]]
        for k, item in enumerate(items[:-1]):
            book.record(f"key-{item:06d}", item, "ann" if k % 2 else "bob", "not")
        assert book.ungraded() == 1 and batches.extend(book) == 0
        book.record("key-last", items[-1], "eve", "not")
        assert batches.extend(book) == 20
        book.undo("eve")
        assert book.ungraded() == 21 + len(book.items()) - len(items) - 20


def test_book_without_queue_and_plan_has_its_whole_sample(path):
    with GradeBook(path, "f") as book:
        batches.extend(book)
    change(path, "DROP TABLE queue")
    change(path, "DELETE FROM meta WHERE name = 'plan'")
    with GradeBook(path, "f") as book:
        count = len(book.items())
        book.record("key-00001", 1, "ann", "A")
        assert batches.extend(book) == 0 and batches.total_size(book) == count
        grade(book)
        assert batches.extend(book) == 0 and len(book.verdicts()) == count and book.queue().empty


def test_import_from_another_copy_extends_the_sample_in_order(path, tmp_path):
    """Two people grade copies of one sample in different batches: the union is a random sample, too."""
    other = shutil.copy(path, tmp_path / "other.sqlite")
    with GradeBook(other, "f") as book:
        while batches.extend(book):
            grade(book, lambda rank: rank > 100, "bob")
        book.write_csv(tmp_path / "bob.csv")
        theirs = drawn(book)
    with GradeBook(path, "f") as book:
        batches.extend(book)
        grade(book)
        mine = drawn(book)
        new, known = book.read_csv(tmp_path / "bob.csv")
        assert (new, known) == (70, 0) and book.read_csv(tmp_path / "bob.csv") == (0, 70)
        assert drawn(book) == {name: max(mine[name], theirs[name]) for name in mine}
        check_order(book)
        batches.extend(book)


@pytest.mark.parametrize(
    "plan",
    ["{", "[]", '{"size": 1}', {"size": 0}, {"batch": True}, {"rank": "1"}, {"prior": {}}, {"entire": None}, {"prior": {
        s.name: [2.0] for s in STRATA}}],
)  # fmt: skip
def test_damaged_plan_is_refused(tmp_path, plan):
    path = planned(tmp_path / "grades.sqlite", **(plan if isinstance(plan, dict) else {}))
    if isinstance(plan, str):
        change(path, f"UPDATE meta SET value = '{plan}' WHERE name = 'plan'")
    with GradeBook(path, "f") as book, pytest.raises(InputError, match="damaged plan"):
        batches.extend(book)


def test_changed_queue_is_refused(path):
    change(path, "UPDATE queue SET rank = 900 WHERE number = 1")
    with pytest.raises(InputError, match="rank"):
        GradeBook(path, "f")
