"""The grade book: one SQLite file a run, in which every grade is on disk before the page moves on.

Nothing is ever changed or removed in it: a grader who thinks again adds a grade, an undone one is marked. Every grade
has a key that whoever gave it chose, so that one sent twice, because a server died between writing and answering, is
there once.

Of a sample that is graded in batches the book also holds the queue (the objects of each stratum in their random order,
of which every batch takes the next ones: `galscan.vetting.batches`) and the plan (how many in all, for the purity at
which rank, and what the model expected). A book without them has its whole sample from the start.
"""

from __future__ import annotations

import csv
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import ConflictError, InputError, NotFoundError
from galscan.core.files import atomic_path, digest
from galscan.stats.agreement import agreements
from galscan.stats.graded import Stratum
from galscan.vetting.csv_rows import harmless, read_rows
from galscan.vetting.sampling import KINDS, POSITIVE, SURVEY

FILE = "grades.sqlite"
FORMAT = "1"
GRADES = {"A": "certain", "B": "likely", "C": "possible", "not": "no target", "artefact": "not a galaxy's light"}
ARTEFACTS = ("seam", "star", "trail", "ghost", "other")
TARGET = ("A", "B")  # what counts as a target unless somebody says otherwise
COMMENT = 1000  # characters
_GRADER = re.compile(r"[^\x00-\x1f\x7f]{1,64}")
_COLUMNS = ["store", "id", "grader", "grade", "artefact", "comment", "at", "key"]
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE strata (name TEXT PRIMARY KEY, population INTEGER, first INTEGER, last INTEGER, discarded INTEGER);
CREATE TABLE items (item INTEGER PRIMARY KEY, store TEXT, row INTEGER, id TEXT, ra REAL, dec REAL, stratum TEXT,
                    kind TEXT, rank INTEGER);
CREATE TABLE grades (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, item INTEGER NOT NULL REFERENCES items,
                     grader TEXT NOT NULL, grade TEXT NOT NULL, artefact TEXT NOT NULL, comment TEXT NOT NULL,
                     at TEXT NOT NULL, undone INTEGER NOT NULL DEFAULT 0);
CREATE TABLE queue (number INTEGER PRIMARY KEY, store TEXT, row INTEGER, id TEXT, ra REAL, dec REAL, stratum TEXT,
                    kind TEXT, rank INTEGER);
"""
PLAN = "plan"  # in meta, as JSON


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)


_IMPOSSIBLE = {  # what no galscan wrote, looked for when a book is opened
    "a grade that there is not": f"grades WHERE grade NOT IN ({_listed(GRADES)}) OR typeof(grader) <> 'text'",
    "a grade of no object": "grades WHERE item NOT IN (SELECT item FROM items)",
    "an object of no kind": f"{{items}} WHERE kind NOT IN ({_listed(KINDS)})",
    "an object of no stratum": f"{{items}} WHERE kind = '{SURVEY}' AND stratum NOT IN (SELECT name FROM strata)",
    "an object of another rank than its stratum's": "{items} LEFT JOIN strata ON stratum = name WHERE typeof(rank)"
    " <> 'integer' OR rank NOT BETWEEN coalesce(first, 0) AND coalesce(last, 0)",
    "an object without a place": "{items} WHERE typeof(row) <> 'integer' OR typeof(store) <> 'text' OR"
    " typeof(id) <> 'text' OR typeof(ra) NOT IN ('real', 'null') OR typeof(dec) NOT IN ('real', 'null')",
}


class GradeBook:
    """A grade book, opened; close it when done (it is a context manager).

    Raises
    ------
    NotFoundError
        If there is none.
    InputError
        If it is damaged, or no grade book of this version.
    ConflictError
        If it belongs to another run.
    """

    def __init__(self, path: Path, fingerprint: str):
        if not path.is_file():
            raise NotFoundError(f"no grades at {path}; draw the sample and grade it with: galscan vet RUN")
        self.path = path
        try:
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None)
            sound = self._db.execute("PRAGMA quick_check").fetchone()[0] == "ok"
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
            meta = dict(self._db.execute("SELECT name, value FROM meta"))
            for table in ("strata", "items", "grades"):
                self._db.execute(f"SELECT * FROM {table} LIMIT 1")
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path} is damaged ({error}); restore it from a copy, or from an exported CSV") from error
        if not sound:
            raise InputError(f"{path} is damaged; restore it from a copy, or from an exported CSV")
        if meta.get("format") != FORMAT:
            raise InputError(f"{path} is not a grade book of format {FORMAT}; grade with the version that made it")
        if meta.get("fingerprint") != fingerprint:
            raise ConflictError(f"{path} belongs to another run than the one beside it; put it back where it was")
        self.meta = meta
        tables = ["items", "queue"] if self._has_queue() else ["items"]
        for what, query in _IMPOSSIBLE.items():
            for table in tables:
                if self._db.execute(f"SELECT 1 FROM {query.format(items=table)} LIMIT 1").fetchone():
                    raise InputError(f"{path} was changed by another program: it holds {what}; restore it from a copy")

    def __enter__(self) -> GradeBook:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    # -- the sample ------------------------------------------------------------------------------

    def items(self) -> pd.DataFrame:
        """Return the sample in the order of its numbers: item, store, row, id, ra, dec, stratum, kind, rank."""
        return pd.read_sql_query("SELECT * FROM items ORDER BY item", self._db)

    def strata(self) -> list[Stratum]:
        rows = self._db.execute("SELECT name, population, first, last, discarded FROM strata ORDER BY rowid")
        return [Stratum(name, n, first, last, bool(discarded)) for name, n, first, last, discarded in rows]

    def _has_queue(self) -> bool:
        return bool(self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'queue'").fetchone())

    def queue(self) -> pd.DataFrame:
        """Return the objects of all strata, each in its random order, and the controls: the columns of `items`, number.

        Those that are in the sample already are in it, too; of a book that has none it is empty.
        """
        if self._has_queue():
            return pd.read_sql_query("SELECT * FROM queue ORDER BY number", self._db)
        return self.items().iloc[:0].rename(columns={"item": "number"})

    def add(self, numbers: Iterable[int]) -> None:
        """Take objects of the queue into the sample, in this order; all of them or none."""
        self._db.execute("SAVEPOINT adding")
        try:
            for number in numbers:
                self._db.execute(
                    "INSERT INTO items (store, row, id, ra, dec, stratum, kind, rank)"
                    " SELECT store, row, id, ra, dec, stratum, kind, rank FROM queue WHERE number = ?", (int(number),)
                )  # fmt: skip
        except BaseException:
            self._db.execute("ROLLBACK TO adding")
            raise
        finally:
            self._db.execute("RELEASE adding")

    def ungraded(self) -> int:
        """Return how many of the sample nobody has graded."""
        query = "SELECT count(*) FROM items WHERE item NOT IN (SELECT item FROM grades WHERE undone = 0)"
        return int(self._db.execute(query).fetchone()[0])

    # -- grading ---------------------------------------------------------------------------------

    def record(
        self, key: str, item: int, grader: str, grade: str, artefact: str = "", comment: str = "", at: str = ""
    ) -> bool:
        """Write a grade; return False if one with this key is there already.

        Raises
        ------
        InputError
            If there is no such item or grade, a name or comment is too long, or the key was used for another grade.
        """
        _check_grade(grader, grade, artefact, comment)
        _check_key(key)
        if type(item) is not int or not self._db.execute("SELECT 1 FROM items WHERE item = ?", (item,)).fetchone():
            raise InputError(f"there is no item {item!r} in this sample")
        before = self._db.execute("SELECT item, grader, grade FROM grades WHERE key = ?", (key,)).fetchone()
        if before is not None and before != (item, grader, grade):
            raise InputError(f"the key {key} belongs to another grade")
        cursor = self._db.execute(
            "INSERT INTO grades (key, item, grader, grade, artefact, comment, at) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO NOTHING",
            (key, item, grader, grade, artefact, comment, at or datetime.now(UTC).isoformat(timespec="seconds")),
        )
        return cursor.rowcount == 1

    def undo(self, grader: str) -> int | None:
        """Mark the last grade of a grader as undone; return its item, None if there is none."""
        row = self._db.execute(
            "UPDATE grades SET undone = 1 WHERE number ="
            " (SELECT max(number) FROM grades WHERE grader = ? AND undone = 0) RETURNING item", (grader,)
        ).fetchall()  # fmt: skip
        return int(row[0][0]) if row else None

    def current(self) -> pd.DataFrame:
        """Return the last word of every grader on every item: item, grader, grade, artefact, comment, at, key."""
        return pd.read_sql_query(
            "SELECT item, grader, grade, artefact, comment, at, key FROM grades WHERE number IN"
            " (SELECT max(number) FROM grades WHERE undone = 0 GROUP BY item, grader) ORDER BY item, grader", self._db
        )  # fmt: skip

    # -- what came of it -------------------------------------------------------------------------

    def verdicts(self, target: Sequence[str] = TARGET) -> pd.DataFrame:
        """Return the items somebody graded, with votes, the share that says target, and the majority's verdict.

        Of a tie the verdict is that it is none. Columns of `items`, then votes, agreed, target, grade, comment.
        """
        if strange := set(target) - set(GRADES):
            raise InputError(f"unknown grade '{sorted(strange)[0]}'; there are {', '.join(GRADES)}")
        current = self.current().assign(says=lambda t: t["grade"].isin(target))
        by_item = current.groupby("item")
        told = pd.DataFrame({
            "votes": by_item.size(), "agreed": by_item["says"].mean(),
            "grade": by_item["grade"].agg(lambda g: sorted(g, key=list(GRADES).index)[len(g) // 2]),
            "comment": by_item["comment"].agg(lambda c: "; ".join(filter(None, c))),
        })  # fmt: skip
        return self.items().merge(told.assign(target=told["agreed"] > 0.5), left_on="item", right_index=True)

    def graders(self) -> dict[str, dict[str, Any]]:
        """Return for each grader how much is done, and what became of the known targets and the blank frames."""
        items, current = self.items().set_index("item"), self.current()
        told = {}
        for name, given in current.groupby("grader"):
            kind = items.loc[given["item"], "kind"].to_numpy()
            says = given["grade"].isin(TARGET).to_numpy()
            told[str(name)] = {
                "graded": len(given), "of": len(items),
                "known_found": int(says[kind == POSITIVE].sum()), "known": int((kind == POSITIVE).sum()),
                "blank_taken": int(says[~np.isin(kind, (POSITIVE, SURVEY))].sum()),
                "blank": int((~np.isin(kind, (POSITIVE, SURVEY))).sum()),
            }  # fmt: skip
        return told

    def agreement(self) -> list[dict[str, Any]]:
        """Return for each two graders, and for all of them if there are more, on what share they agree, and kappa.

        Of the survey's objects that all of them graded: controls are easy and would flatter. Of two graders it is
        Cohen's kappa (1960, Educ. Psych. Meas. 20, 37), of more Fleiss' (1971, Psych. Bull. 76, 378); None where all
        said the same of everything, and chance alone would have agreed.
        """
        items = self.items()
        current = self.current()
        current = current[current["item"].isin(items.loc[items["kind"] == SURVEY, "item"])]
        says = current.assign(says=current["grade"].isin(TARGET)).pivot(index="item", columns="grader", values="says")
        return agreements(says)

    # -- in and out ------------------------------------------------------------------------------

    def write_csv(self, path: Path) -> int:
        """Write everybody's last words as CSV; return how many. What a spreadsheet would run is quoted."""
        table = self.current().merge(self.items()[["item", "store", "id"]], on="item")[_COLUMNS]
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows([harmless(str(value)) for value in row] for row in table.itertuples(index=False))
        return len(table)

    def read_csv(self, path: Path) -> tuple[int, int]:
        """Take in grades that `write_csv` wrote, or a table with at least id, grader and grade; all of it or nothing.

        Returns
        -------
        new, known : int
            Grades added, and those that were there already.

        Raises
        ------
        InputError
            If the file is not such a table, an object is not in the sample, or one grader contradicts himself in it.
        """
        rows = read_rows(path, _COLUMNS)
        queue = self.queue()
        places = {*self._places(), *_identities(queue)}
        by_id: dict[str, list[str]] = {}
        for store, name in places:
            by_id.setdefault(name, []).append(store)
        wanted: list[tuple[tuple[str, str], dict[str, str]]] = []
        said: dict[tuple[str, str, str], tuple[int, str]] = {}
        for line, row in enumerate(rows, 2):
            where = f"{path}, line {line}"
            stores = [row["store"]] if (row["store"], row["id"]) in places else (
                by_id.get(row["id"], []) if not row["store"] else [])  # fmt: skip
            if len(stores) != 1:
                raise InputError(f"{where}: object '{row['id']:.60}' is not in this sample (or in several stores)")
            try:
                _check_grade(row["grader"], row["grade"], row["artefact"], row["comment"])
                _check_key(row["key"] or "made of the rest")
                datetime.fromisoformat(row["at"] or "2000-01-01")
            except ValueError as error:
                raise InputError(f"{where}: {error}") from None
            before = said.setdefault((stores[0], row["id"], row["grader"]), (line, row["grade"]))
            if before[1] != row["grade"]:
                raise InputError(
                    f"{where}: {row['grader']} grades object '{row['id']:.60}' {row['grade']}, and {before[1]} in line "
                    f"{before[0]}; keep one of the two"
                )
            wanted.append(((stores[0], row["id"]), row))
        self._db.execute("BEGIN IMMEDIATE")
        try:
            number = self._reach({place for place, _ in wanted}, queue)
            new = 0
            for place, row in wanted:
                key = row["key"] or digest([number[place], row["grader"], row["grade"]])[:40]
                given = (row[name] for name in ("grader", "grade", "artefact", "comment", "at"))
                new += self.record(key, number[place], *given)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return new, len(wanted) - new

    def _reach(self, places: set[tuple[str, str]], queue: pd.DataFrame) -> dict[tuple[str, str], int]:
        """Take what is to come into the sample as far as some objects need it; return the items of all places.

        Whoever graded another copy of the sample may be further in a stratum: what lies before comes along, so that the
        sample stays the first ones of a random order.
        """
        items = self._places()
        waiting = queue.iloc[[k for k, place in enumerate(_identities(queue)) if place not in items]]
        for _, some in waiting.groupby(["stratum", "kind"], sort=False):
            wanted = [place in places for place in _identities(some)]
            self.add(some["number"][: int(np.flatnonzero(wanted).max(initial=-1)) + 1])
        return self._places()

    def _places(self) -> dict[tuple[str, str], int]:
        items = self.items()
        return dict(zip(_identities(items), map(int, items["item"]), strict=True))


def create(
    path: Path, items: pd.DataFrame, strata: Sequence[Stratum], meta: Mapping[str, str],
    queue: pd.DataFrame | None = None,
) -> None:  # fmt: skip
    """Write a new grade book, atomically.

    Parameters
    ----------
    items, strata
        The sample, in the order in which it is shown, and the strata it is of.
    meta : mapping
        Of text; ``fingerprint`` is the run's.
    queue : DataFrame, optional
        As `galscan.vetting.sampling.draw` gives it, where more is to come.

    Raises
    ------
    ConflictError
        If there is one.
    """
    if path.exists():
        raise ConflictError(f"{path} is there already; a sample is drawn once, so that grades keep their meaning")
    with atomic_path(path) as temporary, closing(sqlite3.connect(temporary)) as db:
        db.executescript(_TABLES)
        db.executemany("INSERT INTO meta VALUES (?, ?)", [("format", FORMAT), *meta.items()])
        db.executemany("INSERT INTO strata VALUES (:name, :population, :first, :last, :discarded)", map(asdict, strata))
        for table, rows in (("items", items), ("queue", items[:0] if queue is None else queue)):
            db.executemany(
                f"INSERT INTO {table} VALUES (:number, :store, :row, :id, :ra, :dec, :stratum, :kind, :rank)",
                [
                    {k: None if v != v else v for k, v in row.items()}
                    for row in rows.assign(number=np.arange(1, len(rows) + 1)).to_dict("records")
                ],
            )
        db.commit()


def in_words(graders: Mapping[str, Mapping[str, Any]], agreement: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line a grader (how much, and what became of the controls), and one for each group that can agree."""
    lines = [
        f"{name} graded {g['graded']:,} of {g['of']:,}: found {g['known_found']} of {g['known']} known targets, "
        f"took {g['blank_taken']} of {g['blank']} blank frames for one"
        for name, g in graders.items()
    ]
    for group in agreement:
        *most, last = group["graders"]
        name = "Cohen's" if len(most) == 1 else "Fleiss'"
        kappa = "" if group["kappa"] is None else f", {name} kappa {group['kappa']:.2f}"
        noun = "object" if group["items"] == 1 else "objects"
        lines.append(f"{', '.join(most)} and {last} agree on {group['same']:.0%} of {group['items']:,} {noun}{kappa}")
    return lines


def _identities(table: pd.DataFrame) -> list[tuple[str, str]]:
    return [(str(store), str(name)) for store, name in zip(table["store"], table["id"], strict=True)]


def _check_grade(grader: str, grade: str, artefact: str, comment: str) -> None:
    for what, value in (("grader", grader), ("grade", grade), ("artefact", artefact), ("comment", comment)):
        if not isinstance(value, str):
            raise InputError(f"{what} is {value!r:.60}, not text")
    if not _GRADER.fullmatch(grader) or grader != grader.strip():
        raise InputError(f"'{grader:.70}' is no name for a grader: give 1 to 64 characters, without line breaks")
    if grade not in GRADES:
        raise InputError(f"unknown grade '{grade:.20}'; there are {', '.join(GRADES)}")
    if artefact and (grade != "artefact" or artefact not in ARTEFACTS):
        raise InputError(f"'{artefact:.20}' is no kind of artefact ({', '.join(ARTEFACTS)}), or the grade is another")
    if len(comment) > COMMENT or "\x00" in comment:
        raise InputError(f"a comment of {len(comment):,} characters; {COMMENT:,} at most")


def _check_key(key: str) -> None:
    if not (isinstance(key, str) and 8 <= len(key) <= 64):
        raise InputError("a grade needs a key of 8 to 64 characters")
