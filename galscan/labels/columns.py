"""The answers of a label schema in the columns of a catalog, and the two forms of a decision tree's votes.

NaN means "not asked" everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from galscan.core.errors import InputError, nearest
from galscan.labels.schema import Naming, Schema, Task


def votes_column(task: str) -> str:
    """Return the name of the column that says how many votes there were on a question."""
    return f"{task}_votes"


def read_answers(schema: Schema, table: pd.DataFrame) -> pd.DataFrame:
    """Read the answers of a schema from a catalog.

    Returns
    -------
    DataFrame
        float32, the rows of `table`, one column for each answer found; NaN = not asked. Of a tree also how many votes
        there were on each question (`votes_column`), where the catalog counts them.

    Raises
    ------
    InputError
        If no answer is found (the nearest columns are named), or a value is outside its range.
    """
    columns = {_plain(c): c for c in table.columns}
    reader = {"attributes": _read_attributes, "classes": _read_classes, "tree": _read_tree}[schema.kind]
    frame = reader(schema, table, columns)
    if not len(frame.columns):
        # An answer without columns of its own is a vote of a tree.
        wanted = (schema.column or schema.answers[0].columns or [schema.names[0] + "".join(schema.suffixes[:1])])[0]
        hint = nearest(wanted, map(str, table.columns))
        raise InputError(f"no '{schema.name}' label column in the catalog: expected {wanted!r}{hint}")
    for answer in schema.answers:
        if answer.name in frame:
            values, limits = frame[answer.name], f"{answer.low:g}..{answer.high:g}"
            wrong = values[(values < answer.low - 1e-3) | (values > answer.high + 1e-3)]  # rounding is forgiven
            if len(wrong):
                raise InputError(
                    f"'{schema.name}' label {answer.name}: {len(wrong)} values outside {limits} "
                    f"(first {wrong.iloc[0]:g}); correct the catalog"
                )
            frame[answer.name] = values.clip(answer.low, answer.high)
    return frame.astype(np.float32)


def _plain(name: object) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(name).lower())


def _numbers(table: pd.DataFrame, column: str) -> pd.Series:
    try:
        return pd.to_numeric(table[column]).astype(float)
    except (ValueError, TypeError) as error:
        raise InputError(f"label column {column!r} is not numeric ({error}); correct the catalog") from None


def _read_attributes(schema: Schema, table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    found = {}
    for answer in schema.answers:
        if column := next((columns[_plain(c)] for c in answer.columns if _plain(c) in columns), None):
            values = _numbers(table, column)
            found[answer.name] = values if answer.missing is None else values.mask(values == answer.missing)
    return pd.DataFrame(found, index=table.index)


def _read_classes(schema: Schema, table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    column = next((columns[_plain(c)] for c in schema.column if _plain(c) in columns), None)
    if column is None:
        return pd.DataFrame(index=table.index)
    text = table[column].astype("object").where(table[column].notna(), "").astype(str).str.strip()
    known = {a.value or a.name: a.name for a in schema.answers}
    if unknown := sorted(set(text) - known.keys() - {""}):
        hint = nearest(unknown[0], known)
        raise InputError(f"class column {column!r} holds {unknown[0]!r}, which '{schema.name}' does not know{hint}")
    asked = text != ""
    return pd.DataFrame(
        {name: (text == value).astype(float).where(asked) for value, name in known.items()}, index=table.index
    )


def _read_tree(schema: Schema, table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    numbered = [(int(t.id[1:]), t) for t in schema.tasks if re.fullmatch(r"t\d+", t.id)]
    kaggle = {f"class{number}_{k}": a for number, t in numbered for k, a in enumerate(t.answers, 1)}
    if not kaggle.keys().isdisjoint(columns):
        if missing := [k for k in kaggle if k not in columns]:
            first = missing[0].replace("class", "Class").replace("_", ".")
            raise InputError(
                f"cumulative votes need all {len(kaggle)} columns ClassT.k; "
                f"{len(missing)} are missing, the first is {first}"
            )
        cumulative = pd.DataFrame({a: _numbers(table, columns[k]) for k, a in kaggle.items()})
        # The published products are rounded, so a ratio can pass 1 by a hair.
        return to_conditional(schema, cumulative, min_reach=schema.min_reach).clip(0.0, 1.0)

    alias = {a.name: a.alias for a in schema.answers}
    found: dict[str, pd.Series] = {}
    counts: dict[str, pd.Series] = {}
    for task in schema.tasks:
        question = f"{task.id}_{task.stem}".rstrip("_")
        spelled = [_Spelling(question, {a: a for a in task.answers}, schema.naming)]
        spelled += [_Spelling(q, {a: f"{q}_{alias[a]}" for a in task.answers}, schema.aliases) for q in task.aliases]
        for spelling in spelled:
            votes, answered = _fractions(table, columns, spelling, schema.min_votes)
            if answered is not None and len(votes.columns):
                counted = counts.get(votes_column(task.id), answered)
                counts[votes_column(task.id)] = counted.where(counted > 0, answered)
            for a in votes:  # a galaxy that one campaign did not ask about may have been asked by the next
                found[a] = found[a].fillna(votes[a]) if a in found else votes[a]
    return pd.DataFrame(found | counts, index=table.index)


class _Spelling(NamedTuple):
    """How a catalog may name a question and, by answer, its answers."""

    question: str
    answers: Mapping[str, str]
    naming: Naming

    def ending(self, columns: Mapping[str, str], suffix: str) -> dict[str, str]:
        """Return the columns of the answers that end so, by answer."""
        plain = {a: _plain(name + suffix) for a, name in self.answers.items()}
        return {a: columns[p] for a, p in plain.items() if p in columns}


def _fractions(
    table: pd.DataFrame, columns: Mapping[str, str], said: _Spelling, least: float
) -> tuple[pd.DataFrame, pd.Series | None]:
    """Return the vote fractions of one question, NaN where fewer than `least` answered, and how many did if known."""
    answered, counts = _answered(table, columns, said)
    # One suffix for a whole question: fractions of different kinds do not add up.
    asked = next((found for s in said.naming.suffixes if (found := said.ending(columns, s))), {})
    if asked and (len(asked) == len(said.answers) or not said.naming.whole):
        votes = pd.DataFrame({a: _numbers(table, c) for a, c in asked.items()})
    elif counts is not None and answered is not None:
        votes = counts.div(answered.where(answered > 0), axis=0)
    else:
        return pd.DataFrame(index=table.index), None
    enough = votes.sum(axis=1) > 0
    if answered is not None:
        enough &= answered >= least
    return pd.DataFrame({a: votes[a].where(enough) for a in votes}), answered


def _answered(
    table: pd.DataFrame, columns: Mapping[str, str], said: _Spelling
) -> tuple[pd.Series | None, pd.DataFrame | None]:
    """Return how many answered a question, and how many gave each answer; None where the catalog does not tell."""
    counted, counts = said.ending(columns, said.naming.count), None
    if len(counted) == len(said.answers):
        counts = pd.DataFrame({a: _numbers(table, c) for a, c in counted.items()})
    if (total := _plain(said.question + said.naming.total)) in columns:
        return _numbers(table, columns[total]), counts
    return None if counts is None else counts.sum(axis=1), counts


def _reach(schema: Schema, cumulative: Mapping[str, np.ndarray], task: Task, like: np.ndarray) -> np.ndarray:
    """Return the probability that `task` is asked: all that flows into it from earlier answers."""
    if task.always or task is schema.tasks[0]:
        return np.ones_like(like)
    return sum(
        (cumulative[a] for t in schema.tasks for a, after in t.answers.items() if after == task.id), np.zeros_like(like)
    )


def _in_order(schema: Schema) -> list[Task]:
    """Return the tasks so that each follows all that lead to it (task 06 is asked after 07 and 09)."""
    done: list[Task] = []
    left = list(schema.tasks)
    while left:
        waiting = {after for t in left for after in t.answers.values()}
        ready = [t for t in left if t.always or t.id not in waiting]
        if not ready:
            raise InputError(
                f"schema '{schema.name}': the tasks {', '.join(t.id for t in left)} lead to each other in a circle"
            )
        done += ready
        left = [t for t in left if t not in ready]
    return done


def to_cumulative(schema: Schema, conditional: pd.DataFrame) -> pd.DataFrame:
    """Multiply every answer's fraction by the probability that its question is asked (Kaggle's form).

    An answer of a question that nobody reached is 0; one that is unknown stays NaN.
    """
    given = conditional.reindex(columns=_tree(schema).names).astype(float)
    out: dict[str, np.ndarray] = {}
    for task in _in_order(schema):
        reach = _reach(schema, out, task, np.zeros(len(given)))
        for answer in task.answers:
            out[answer] = np.where(reach == 0, 0.0, given[answer].to_numpy() * reach)
    return pd.DataFrame(out, index=conditional.index)[schema.names]


def to_conditional(schema: Schema, cumulative: pd.DataFrame, *, min_reach: float = 0.0) -> pd.DataFrame:
    """Divide every answer by the probability that its question is asked: the inverse of `to_cumulative`.

    Answers of a question reached with a probability of 0, or below `min_reach`, are NaN.
    """
    given = {a: cumulative.reindex(columns=[a])[a].to_numpy(float) for a in _tree(schema).names}
    out: dict[str, np.ndarray] = {}
    for task in schema.tasks:
        reach = _reach(schema, given, task, np.zeros(len(cumulative)))
        asked = (reach > 0) & (reach >= min_reach)
        for answer in task.answers:
            out[answer] = np.divide(given[answer], reach, out=np.full(len(cumulative), np.nan), where=asked)
    return pd.DataFrame(out, index=cumulative.index)


def _tree(schema: Schema) -> Schema:
    if schema.kind != "tree":
        raise InputError(f"schema '{schema.name}' is not a decision tree; only a tree has cumulative votes")
    return schema
