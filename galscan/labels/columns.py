"""Reading of label columns from a catalog, and conversion between the two forms of a decision tree's vote fractions.

NaN means "not asked".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

import numpy as np
import pandas as pd

from galscan.core.errors import InputError, nearest
from galscan.labels.schema import Naming, Schema, Task


def votes_column(task: str) -> str:
    """Return the name of the column with the number of votes on a question."""
    return f"{task}_votes"


def read_answers(schema: Schema, table: pd.DataFrame) -> pd.DataFrame:
    """Read the answers of a schema from a catalog.

    Raises `InputError` if no answer is found (the message has the nearest columns), or a value is outside its range.

    Returns
    -------
    DataFrame
        float32, the rows of `table`, one column for each answer found; NaN = not asked. For a tree also the number of
        votes on each question (`votes_column`), if the catalog has it.
    """
    columns = {_plain(c): c for c in table.columns}
    reader = {"attributes": _read_attributes, "classes": _read_classes, "tree": _read_tree}[schema.kind]
    frame = reader(schema, table, columns)
    if not len(frame.columns):
        # Answers of a tree have suffixes instead of columns.
        wanted = (schema.column or schema.answers[0].columns or [schema.names[0] + "".join(schema.suffixes[:1])])[0]
        hint = nearest(wanted, map(str, table.columns))
        raise InputError(f"no '{schema.name}' label column in the catalog: expected {wanted!r}{hint}")
    for answer in schema.answers:
        if answer.name in frame:
            values, limits = frame[answer.name], f"{answer.low:g}..{answer.high:g}"
            wrong = values[(values < answer.low - 1e-3) | (values > answer.high + 1e-3)]  # tolerates rounding
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
    values = table[column]
    if pd.api.types.is_float_dtype(values.dtype) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")  # numbers of classes with missing ones, or of Parquet: 3, not 3.0
    text = values.astype("object").where(values.notna(), "").astype(str).str.strip()
    known = {a.value or a.name: a.name for a in schema.answers}
    if unknown := sorted(set(text) - known.keys() - {""}):
        hint = nearest(unknown[0], known)
        raise InputError(f"class column {column!r} contains {unknown[0]!r}, which is not in '{schema.name}'{hint}")
    labelled = text != ""
    return pd.DataFrame(
        {name: (text == value).astype(float).where(labelled) for value, name in known.items()}, index=table.index
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
        # The published products are rounded, so that a ratio can slightly exceed 1.
        return to_conditional(schema, cumulative, min_reach=schema.min_reach).clip(0.0, 1.0)

    alias = {a.name: a.alias for a in schema.answers}
    found: dict[str, pd.Series] = {}
    counts: dict[str, pd.Series] = {}
    for task in schema.tasks:
        question = f"{task.id}_{task.stem}".rstrip("_")
        spellings = [_Spelling(question, {a: a for a in task.answers}, schema.naming)]
        spellings += [_Spelling(q, {a: f"{q}_{alias[a]}" for a in task.answers}, schema.aliases) for q in task.aliases]
        for spelling in spellings:
            fractions, total = _fractions(table, columns, spelling, schema.min_votes)
            if total is not None and len(fractions.columns):
                before = counts.get(votes_column(task.id), total)
                counts[votes_column(task.id)] = before.where(before > 0, total)
            for a in fractions:  # fill in galaxies that were asked in another campaign
                found[a] = found[a].fillna(fractions[a]) if a in found else fractions[a]
    return pd.DataFrame(found | counts, index=table.index)


class _Spelling(NamedTuple):
    """Names of a question and of its answers in a catalog."""

    question: str
    answers: Mapping[str, str]
    naming: Naming

    def columns_with(self, columns: Mapping[str, str], suffix: str) -> dict[str, str]:
        """Return the columns of the answers that end with `suffix`, by answer."""
        plain = {a: _plain(name + suffix) for a, name in self.answers.items()}
        return {a: columns[p] for a, p in plain.items() if p in columns}


def _fractions(
    table: pd.DataFrame, columns: Mapping[str, str], spelling: _Spelling, min_votes: float
) -> tuple[pd.DataFrame, pd.Series | None]:
    """Return the vote fractions of a question, NaN below `min_votes` votes, and the number of votes if known."""
    total, counts = _counts(table, columns, spelling)
    # One suffix for all answers of a question: fractions of different kinds do not add up to 1.
    by_answer = next((f for s in spelling.naming.suffixes if (f := spelling.columns_with(columns, s))), {})
    if by_answer and (len(by_answer) == len(spelling.answers) or not spelling.naming.whole):
        fractions = pd.DataFrame({a: _numbers(table, c) for a, c in by_answer.items()})
    elif counts is not None and total is not None:
        fractions = counts.div(total.where(total > 0), axis=0)
    else:
        return pd.DataFrame(index=table.index), None
    enough = fractions.sum(axis=1) > 0
    if total is not None:
        enough &= total >= min_votes
    return pd.DataFrame({a: fractions[a].where(enough) for a in fractions}), total


def _counts(
    table: pd.DataFrame, columns: Mapping[str, str], spelling: _Spelling
) -> tuple[pd.Series | None, pd.DataFrame | None]:
    """Return the numbers of votes on a question and on each of its answers; None if the catalog lacks them."""
    by_answer, counts = spelling.columns_with(columns, spelling.naming.count), None
    if len(by_answer) == len(spelling.answers):
        counts = pd.DataFrame({a: _numbers(table, c) for a, c in by_answer.items()})
    if (total := _plain(spelling.question + spelling.naming.total)) in columns:
        return _numbers(table, columns[total]), counts
    return None if counts is None else counts.sum(axis=1), counts


def _reach(schema: Schema, cumulative: Mapping[str, np.ndarray], task: Task, like: np.ndarray) -> np.ndarray:
    """Return the probability that `task` is asked: the sum of the answers that lead to it."""
    if task.always or task is schema.tasks[0]:
        return np.ones_like(like)
    return sum(
        (cumulative[a] for t in schema.tasks for a, after in t.answers.items() if after == task.id), np.zeros_like(like)
    )


def _topological_order(schema: Schema) -> list[Task]:
    """Return the tasks so that each follows all that lead to it (task 06 is asked after 07 and 09)."""
    leading: dict[str, set[str]] = {task.id: set() for task in schema.tasks}
    for task in schema.tasks:
        for after in task.answers.values():
            leading.get(after or "", set()).add(task.id)
    leading |= {task.id: set() for task in schema.tasks if task.always}
    try:
        order = list(TopologicalSorter(leading).static_order())
    except CycleError as error:
        raise InputError(f"schema '{schema.name}': the tasks {', '.join(error.args[1])} form a cycle") from None
    return sorted(schema.tasks, key=lambda task: order.index(task.id))


def to_cumulative(schema: Schema, conditional: pd.DataFrame) -> pd.DataFrame:
    """Multiply every answer's fraction by the probability that its question is asked (Kaggle's form).

    Answers of a question reached with probability 0 are 0; unknown answers stay NaN.
    """
    values = conditional.reindex(columns=_tree(schema).names).astype(float)
    out: dict[str, np.ndarray] = {}
    for task in _topological_order(schema):
        reach = _reach(schema, out, task, np.zeros(len(values)))
        for answer in task.answers:
            out[answer] = np.where(reach == 0, 0.0, values[answer].to_numpy() * reach)
    return pd.DataFrame(out, index=conditional.index)[schema.names]


def to_conditional(schema: Schema, cumulative: pd.DataFrame, *, min_reach: float = 0.0) -> pd.DataFrame:
    """Divide every answer by the probability that its question is asked: the inverse of `to_cumulative`.

    Answers of a question reached with a probability of 0, or below `min_reach`, are NaN.
    """
    values = {a: cumulative.reindex(columns=[a])[a].to_numpy(float) for a in _tree(schema).names}
    out: dict[str, np.ndarray] = {}
    for task in schema.tasks:
        reach = _reach(schema, values, task, np.zeros(len(cumulative)))
        asked = (reach > 0) & (reach >= min_reach)
        for answer in task.answers:
            out[answer] = np.divide(values[answer], reach, out=np.full(len(cumulative), np.nan), where=asked)
    return pd.DataFrame(out, index=cumulative.index)


def _tree(schema: Schema) -> Schema:
    if schema.kind != "tree":
        raise InputError(f"schema '{schema.name}' is not a decision tree; only a tree has cumulative votes")
    return schema
