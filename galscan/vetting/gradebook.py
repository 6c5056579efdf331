"""Grade book: an SQLite file per run with its graded sample.

Every grade is on disk before the page shows the next object. Grades are never changed or removed: a grader who
corrects one adds another, and an undone grade is marked. Each grade has a key chosen by the client, so that a grade
sent twice, because the server died before it responded, is stored once.

For a sample that is graded in batches the book also holds the queue (the objects of each stratum in random order, from
which each batch takes the next: `galscan.vetting.batches`) and the plan (sample size, rank at which purity is wanted,
and the model's expectation). A book without them has its whole sample from the start.
"""

from __future__ import annotations

import json
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
from galscan.vetting.csv_rows import escape_formula, read_rows
from galscan.vetting.sampling import BLANK, KINDS, POSITIVE, SURVEY

FILE = "grades.sqlite"
FORMAT = "1"
GRADES = {"A": "certain", "B": "likely", "C": "possible", "not": "no target", "artefact": "not a galaxy's light"}
ARTEFACTS = ("seam", "star", "trail", "ghost", "other")
TARGET = ("A", "B")  # grades that count as a target by default
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


def _sql_list(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


_INCONSISTENT = {  # checks when a book is opened, with queries for rows that galscan never writes
    "an unknown grade": f"grades WHERE grade NOT IN ({_sql_list(GRADES)}) OR typeof(grader) <> 'text'",
    "a grade of an unknown object": "grades WHERE item NOT IN (SELECT item FROM items)",
    "an object of unknown kind": f"{{items}} WHERE kind NOT IN ({_sql_list(KINDS)})",
    "an object of unknown stratum": f"{{items}} WHERE kind = '{SURVEY}' AND stratum NOT IN (SELECT name FROM strata)",
    "an object whose rank is outside its stratum": "{items} LEFT JOIN strata ON stratum = name WHERE typeof(rank)"
    " <> 'integer' OR rank NOT BETWEEN coalesce(first, 0) AND coalesce(last, 0)",
    "an object with invalid store, row, id or position": "{items} WHERE typeof(row) <> 'integer' OR"
    " typeof(store) <> 'text' OR typeof(id) <> 'text' OR typeof(ra) NOT IN ('real', 'null') OR typeof(dec) NOT IN"
    " ('real', 'null')",
}


class GradeBook:
    """An open grade book; a context manager that closes it.

    Raises
    ------
    NotFoundError, InputError, ConflictError
        If the file does not exist, is damaged or not a grade book of this format, or belongs to another run.
    """

    def __init__(self, path: Path, fingerprint: str):
        if not path.is_file():
            raise NotFoundError(f"no grades at {path}; grade a sample with: galscan vet RUN")
        self.path = path
        try:
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None)
            (check,) = self._db.execute("PRAGMA quick_check").fetchone()
            if check != "ok":
                raise sqlite3.DatabaseError(check)
            for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                self._db.execute(f"PRAGMA {setting}")
            self.meta = dict(self._db.execute("SELECT name, value FROM meta"))
            for table in ("strata", "items", "grades"):
                self._db.execute(f"SELECT * FROM {table} LIMIT 1")
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path} is damaged ({error}); restore it from a copy, or from an exported CSV") from error
        if self.meta.get("format") != FORMAT:
            raise InputError(f"{path} is not a grade book of format {FORMAT}; use the galscan version that wrote it")
        if self.meta.get("fingerprint") != fingerprint:
            raise ConflictError(f"{path} belongs to another run; move it back to that run's folder")
        for problem, query in _INCONSISTENT.items():
            for table in ("items", "queue") if self._has_queue() else ("items",):
                if self._db.execute(f"SELECT 1 FROM {query.format(items=table)} LIMIT 1").fetchone():
                    raise InputError(f"{path} was changed by another program: it holds {problem}; restore a copy")

    def __enter__(self) -> GradeBook:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def items(self) -> pd.DataFrame:
        """Return the sample ordered by item: item, store, row, id, ra, dec, stratum, kind, rank."""
        return pd.read_sql_query("SELECT * FROM items ORDER BY item", self._db)

    def strata(self) -> list[Stratum]:
        rows = self._db.execute("SELECT name, population, first, last, discarded FROM strata ORDER BY rowid")
        return [Stratum(name, n, first, last, bool(discarded)) for name, n, first, last, discarded in rows]

    def _has_queue(self) -> bool:
        return bool(self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'queue'").fetchone())

    def queue(self) -> pd.DataFrame:
        """Return the objects of all strata in random order, and the controls; columns of `items`, with number for item.

        It includes the objects already in the sample, and is empty for a book without a queue.
        """
        if self._has_queue():
            return pd.read_sql_query("SELECT * FROM queue ORDER BY number", self._db)
        return self.items().iloc[:0].rename(columns={"item": "number"})

    def add(self, numbers: Iterable[int]) -> None:
        """Add objects of the queue to the sample in this order, at once."""
        columns = "store, row, id, ra, dec, stratum, kind, rank"
        self._db.execute(
            f"INSERT INTO items ({columns}) SELECT {columns} FROM queue JOIN (SELECT key, value FROM json_each(?))"
            " ON number = value ORDER BY key", (json.dumps([int(number) for number in numbers]),),
        )  # fmt: skip

    def ungraded(self) -> int:
        """Return the number of sample objects without a grade."""
        query = "SELECT count(*) FROM items WHERE item NOT IN (SELECT item FROM grades WHERE undone = 0)"
        return int(self._db.execute(query).fetchone()[0])

    def record(
        self, key: str, item: int, grader: str, grade: str, artefact: str = "", comment: str = "", at: str = ""
    ) -> bool:
        """Write a grade; return False if one with this key is already stored.

        Raises
        ------
        InputError
            If item or grade is unknown, a name or comment is too long, or the key was used for another grade.
        """
        _check_grade(grader, grade, artefact, comment)
        _check_key(key)
        if type(item) is not int or not self._db.execute("SELECT 1 FROM items WHERE item = ?", (item,)).fetchone():
            raise InputError(f"no item {item!r} in this sample")
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
        """Return the latest grade by each grader of each item: item, grader, grade, artefact, comment, at, key."""
        return pd.read_sql_query(
            "SELECT item, grader, grade, artefact, comment, at, key FROM grades WHERE number IN"
            " (SELECT max(number) FROM grades WHERE undone = 0 GROUP BY item, grader) ORDER BY item, grader", self._db
        )  # fmt: skip

    def verdicts(self, target: Sequence[str] = TARGET) -> pd.DataFrame:
        """Return the graded items with the number of votes, the fraction for target, and the majority's verdict.

        A tie counts as no target. Columns of `items`, then votes, agreed, target, grade, comment.
        """
        if unknown := set(target) - set(GRADES):
            raise InputError(f"unknown grade '{sorted(unknown)[0]}'; grades are {', '.join(GRADES)}")
        current = self.current().assign(is_target=lambda t: t["grade"].isin(target))
        by_item = current.groupby("item")
        votes = pd.DataFrame({
            "votes": by_item.size(), "agreed": by_item["is_target"].mean(),
            "grade": by_item["grade"].agg(lambda g: sorted(g, key=list(GRADES).index)[len(g) // 2]),
            "comment": by_item["comment"].agg(lambda c: "; ".join(filter(None, c))),
        })  # fmt: skip
        return self.items().merge(votes.assign(target=votes["agreed"] > 0.5), left_on="item", right_index=True)

    def graders(self) -> dict[str, dict[str, Any]]:
        """Return for each grader the progress, and the results on the controls (known targets and blank frames)."""
        items, current = self.items().set_index("item"), self.current()
        summary = {}
        for name, grades in current.groupby("grader"):
            kind = items.loc[grades["item"], "kind"].to_numpy()
            is_target, known, blank = grades["grade"].isin(TARGET).to_numpy(), kind == POSITIVE, kind == BLANK
            summary[str(name)] = {
                "graded": len(grades), "of": len(items),
                "known_found": int(is_target[known].sum()), "known": int(known.sum()),
                "blank_taken": int(is_target[blank].sum()), "blank": int(blank.sum()),
            }  # fmt: skip
        return summary

    def agreement(self) -> list[dict[str, Any]]:
        """Return the fraction of agreement and kappa of each pair of graders, and of all graders if there are more.

        Only survey objects graded by all of the group count, as controls are too easy. Kappa is Cohen's (1960, Educ.
        Psych. Meas. 20, 37) for two graders and Fleiss' (1971, Psych. Bull. 76, 378) for more; None where it is
        undefined because all grades are equal.
        """
        items = self.items()
        current = self.current()
        current = current[current["item"].isin(items.loc[items["kind"] == SURVEY, "item"])]
        current = current.assign(is_target=current["grade"].isin(TARGET))
        return agreements(current.pivot(index="item", columns="grader", values="is_target"))

    def write_csv(self, path: Path) -> int:
        """Write the latest grades of all graders as CSV, with formulas escaped; return their number."""
        table = self.current().merge(self.items()[["item", "store", "id"]], on="item")[_COLUMNS]
        with atomic_path(path) as temporary:
            table.astype(str).map(escape_formula).to_csv(temporary, index=False, lineterminator="\n")
        return len(table)

    def read_csv(self, path: Path) -> tuple[int, int]:
        """Import grades from `write_csv`, or a table with at least id, grader and grade: all of them, or none.

        Returns
        -------
        new, known : int
            Grades added, and grades that were already stored.

        Raises
        ------
        InputError
            If the file is not such a table, an object is not in the sample, or a grader has conflicting grades in it.
        """
        queue = self.queue()
        objects = {*self._item_numbers(), *_identities(queue)}
        by_id: dict[str, list[str]] = {}
        for store, name in objects:
            by_id.setdefault(name, []).append(store)
        imported: list[tuple[tuple[str, str], dict[str, str]]] = []
        grades: dict[tuple[str, str, str], tuple[int, str]] = {}
        for line, row in enumerate(read_rows(path, _COLUMNS), 2):
            where, name, grader = f"{path}, line {line}", row["id"], row["grader"]
            exact = (row["store"], name) in objects
            stores = [row["store"]] if exact else [] if row["store"] else by_id.get(name, [])
            if len(stores) != 1:
                raise InputError(f"{where}: object '{name:.60}' is not in this sample (or in several stores)")
            try:
                _check_grade(grader, row["grade"], row["artefact"], row["comment"])
                _check_key(row["key"] or "made of the rest")
                datetime.fromisoformat(row["at"] or "2000-01-01")
            except ValueError as error:
                raise InputError(f"{where}: {error}") from None
            first_line, grade = grades.setdefault((stores[0], name, grader), (line, row["grade"]))
            if grade != row["grade"]:
                raise InputError(
                    f"{where}: {grader} grades object '{name:.60}' {row['grade']}, and {grade} in line {first_line}; "
                    "keep one of the two"
                )
            imported.append(((stores[0], name), row))
        new = 0
        with self._db:  # commits, or rolls back
            self._db.execute("BEGIN IMMEDIATE")
            number = self._extend_to({identity for identity, _ in imported}, queue)
            for identity, row in imported:
                key = row["key"] or digest([number[identity], row["grader"], row["grade"]])[:40]
                values = (row[name] for name in ("grader", "grade", "artefact", "comment", "at"))
                new += self.record(key, number[identity], *values)
        return new, len(imported) - new

    def _extend_to(self, objects: set[tuple[str, str]], queue: pd.DataFrame) -> dict[tuple[str, str], int]:
        """Extend the sample along the queue until it has all `objects`; return the items of all sample objects.

        Grades of another copy of the sample may reach further down a stratum. The objects before are added as well, so
        that the sample remains the first part of a random order.
        """
        items = self._item_numbers()
        waiting = queue.iloc[[k for k, identity in enumerate(_identities(queue)) if identity not in items]]
        for _, group in waiting.groupby(["stratum", "kind"], sort=False):
            needed = [identity in objects for identity in _identities(group)]
            self.add(group["number"][: int(np.flatnonzero(needed).max(initial=-1)) + 1])
        return self._item_numbers()

    def _item_numbers(self) -> dict[tuple[str, str], int]:
        items = self.items()
        return dict(zip(_identities(items), map(int, items["item"]), strict=True))


def create(
    path: Path, items: pd.DataFrame, strata: Sequence[Stratum], meta: Mapping[str, str],
    queue: pd.DataFrame | None = None,
) -> None:  # fmt: skip
    """Write a new grade book, atomically; raise `ConflictError` if the file exists.

    Parameters
    ----------
    items, strata
        The sample in display order, and its strata.
    meta : mapping
        Text values; ``fingerprint`` is the run's.
    queue : DataFrame, optional
        Objects for further batches, as from `galscan.vetting.sampling.draw`.
    """
    if path.exists():
        raise ConflictError(f"{path} already exists, and its sample must not change; move it away to draw another")
    with atomic_path(path) as temporary, closing(sqlite3.connect(temporary)) as db:
        db.executescript(_TABLES)
        db.executemany("INSERT INTO meta VALUES (?, ?)", [("format", FORMAT), *meta.items()])
        db.executemany("INSERT INTO strata VALUES (:name, :population, :first, :last, :discarded)", map(asdict, strata))
        for table, rows in (("items", items), ("queue", items[:0] if queue is None else queue)):
            db.executemany(  # SQLite stores NaN as NULL
                f"INSERT INTO {table} VALUES (:number, :store, :row, :id, :ra, :dec, :stratum, :kind, :rank)",
                rows.assign(number=np.arange(1, len(rows) + 1)).to_dict("records"),
            )
        db.commit()


def summary_lines(graders: Mapping[str, Mapping[str, Any]], agreement: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line per grader with progress and results on the controls, and a line per group with its agreement."""
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


def is_grader(name: str) -> bool:
    """Return whether `name` may be the name of a grader."""
    return _GRADER.fullmatch(name) is not None and name == name.strip()


def _check_grade(grader: str, grade: str, artefact: str, comment: str) -> None:
    for name, value in (("grader", grader), ("grade", grade), ("artefact", artefact), ("comment", comment)):
        if not isinstance(value, str):
            raise InputError(f"{name} is {value!r:.60}; it must be a string")
    if not is_grader(grader):
        raise InputError(f"'{grader:.70}' is not a valid grader name: give 1 to 64 characters, without line breaks")
    if grade not in GRADES:
        raise InputError(f"unknown grade '{grade:.20}'; grades are {', '.join(GRADES)}")
    if artefact and (grade != "artefact" or artefact not in ARTEFACTS):
        kinds = ", ".join(ARTEFACTS)
        raise InputError(f"'{artefact:.20}' is not a kind of artefact ({kinds}), or the grade is not 'artefact'")
    if len(comment) > COMMENT or "\x00" in comment:
        raise InputError(f"a comment of {len(comment):,} characters is too long; give at most {COMMENT:,}")


def _check_key(key: str) -> None:
    if not (isinstance(key, str) and 8 <= len(key) <= 64):
        raise InputError("the key of a grade must have 8 to 64 characters")
