"""The grade book: one SQLite file a run, in which every grade is on disk before the page moves on.

Nothing is ever changed or removed in it: a grader who thinks again adds a grade, an undone one is marked. Every grade
has a key that whoever gave it chose, so that one sent twice, because a server died between writing and answering, is
there once.
"""

from __future__ import annotations

import csv
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.candidates.graded import Stratum
from galscan.errors import ConflictError, InputError, NotFoundError
from galscan.files import atomic_path, digest
from galscan.vetting.design import KINDS, POSITIVE, SURVEY

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
"""


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)


_IMPOSSIBLE = {  # what no galscan wrote, looked for when a book is opened
    "a grade that there is not": f"grades WHERE grade NOT IN ({_listed(GRADES)}) OR typeof(grader) <> 'text'",
    "a grade of no object": "grades WHERE item NOT IN (SELECT item FROM items)",
    "an object of no kind": f"items WHERE kind NOT IN ({_listed(KINDS)})",
    "an object of no stratum": f"items WHERE kind = '{SURVEY}' AND stratum NOT IN (SELECT name FROM strata)",
    "an object of another rank than its stratum's": "items LEFT JOIN strata ON stratum = name WHERE typeof(rank)"
    " <> 'integer' OR rank NOT BETWEEN coalesce(first, 0) AND coalesce(last, 0)",
    "an object without a place": "items WHERE typeof(row) <> 'integer' OR typeof(store) <> 'text' OR"
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
        for what, query in _IMPOSSIBLE.items():
            if self._db.execute(f"SELECT 1 FROM {query} LIMIT 1").fetchone():
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
        graders = list(says.columns)
        groups = [*combinations(graders, 2), *([tuple(graders)] if len(graders) > 2 else [])]
        told = []
        for group in groups:
            common = says[list(group)].dropna().astype(bool).to_numpy()
            if len(common):
                same, kappa = _kappa(common)
                told.append({"graders": list(group), "items": len(common), "same": same, "kappa": kappa})
        return told

    # -- in and out ------------------------------------------------------------------------------

    def write_csv(self, path: Path) -> int:
        """Write everybody's last words as CSV; return how many. What a spreadsheet would run is quoted."""
        table = self.current().merge(self.items()[["item", "store", "id"]], on="item")[_COLUMNS]
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows([_harmless(str(value)) for value in row] for row in table.itertuples(index=False))
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
        rows = _csv_rows(path)
        items = self.items()
        number = {(str(s), str(i)): int(k) for s, i, k in zip(items["store"], items["id"], items["item"], strict=True)}
        by_id: dict[str, list[int]] = {}
        for (_, name), item in number.items():
            by_id.setdefault(name, []).append(item)
        wanted: list[tuple[Any, ...]] = []
        said: dict[tuple[int, str], tuple[int, str]] = {}
        for line, row in enumerate(rows, 2):
            where = f"{path}, line {line}"
            found = [number[row["store"], row["id"]]] if (row["store"], row["id"]) in number else (
                by_id.get(row["id"], []) if not row["store"] else [])  # fmt: skip
            if len(found) != 1:
                raise InputError(f"{where}: object '{row['id']:.60}' is not in this sample (or in several stores)")
            key = row["key"] or digest([found[0], row["grader"], row["grade"]])[:40]
            try:
                _check_grade(row["grader"], row["grade"], row["artefact"], row["comment"])
                _check_key(key)
                datetime.fromisoformat(row["at"] or "2000-01-01")
            except ValueError as error:
                raise InputError(f"{where}: {error}") from None
            before = said.setdefault((found[0], row["grader"]), (line, row["grade"]))
            if before[1] != row["grade"]:
                raise InputError(
                    f"{where}: {row['grader']} grades object '{row['id']:.60}' {row['grade']}, and {before[1]} in line "
                    f"{before[0]}; keep one of the two"
                )
            wanted.append((key, found[0], row["grader"], row["grade"], row["artefact"], row["comment"], row["at"]))
        self._db.execute("BEGIN IMMEDIATE")
        try:
            new = sum(self.record(*grade) for grade in wanted)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return new, len(wanted) - new


def create(path: Path, items: pd.DataFrame, strata: Sequence[Stratum], meta: Mapping[str, str]) -> None:
    """Write a new grade book, atomically.

    Parameters
    ----------
    items, strata
        As `galscan.vetting.design.draw` gives them.
    meta : mapping
        Of text; ``fingerprint`` is the run's.

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
        rows = items.assign(item=np.arange(1, len(items) + 1)).to_dict("records")
        db.executemany(
            "INSERT INTO items VALUES (:item, :store, :row, :id, :ra, :dec, :stratum, :kind, :rank)",
            [{k: None if v != v else v for k, v in row.items()} for row in rows],
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


def _kappa(says: np.ndarray) -> tuple[float, float | None]:
    """Return the share of objects on which all graders agree, and kappa; `says` is bool of shape (objects, graders)."""
    count = says.shape[1]
    votes = says.sum(axis=1)
    same = float(np.isin(votes, (0, count)).mean())
    rates = says.mean(axis=0)
    if count == 2:
        agreed, chance = same, float(rates.prod() + (1 - rates).prod())
    else:
        agreed = float(((votes * (votes - 1) + (count - votes) * (count - votes - 1)) / (count * (count - 1))).mean())
        chance = float(rates.mean() ** 2 + (1 - rates.mean()) ** 2)
    return same, (agreed - chance) / (1 - chance) if chance < 1 else None


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


def _harmless(text: str) -> str:
    """Quote what a spreadsheet would run as a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else text


def _csv_rows(path: Path) -> list[dict[str, str]]:
    """Read a table of grades; every column there can be is there, as text."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            rows = list(reader)
            names = reader.fieldnames or []
            handle.seek(0)
            ended = handle.read().endswith("\n")
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a CSV table ({error})") from error
    if missing := [name for name in ("id", "grader", "grade") if name not in names]:
        raise InputError(f"{path} has no column '{missing[0]}'; it has {', '.join(map(str, names)) or 'none'}")
    if "key" in names and not ended:  # as `write_csv` always does
        raise InputError(f"{path} ends in the middle of a line; is it cut off?")
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise InputError(f"{path}, line {line}: another number of columns than in the first line; is it cut off?")
    plain = [{k: v[1:] if v.startswith("'") else v for k, v in row.items()} for row in rows]
    return [{name: row.get(name, "").strip() for name in _COLUMNS} for row in plain]
