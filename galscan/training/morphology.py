"""How well networks know the morphology of galaxies that they never saw, question by question.

Completeness and purity are of the leading answer, as in table 2 of Ma et al. (arXiv:2506.16233): of the galaxies whose
volunteers favour an answer, how many the networks give it; and of those that they give it, how many are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from galscan.labels.columns import votes_column
from galscan.labels.schema import Schema
from galscan.models import votes as voting

LEVEL = 0.9
BINS = 5  # of a reliability curve


def evaluate(raw: np.ndarray, labels: pd.DataFrame, answers: Sequence[str], schema: Schema) -> dict[str, Any]:
    """Compare what networks say with labels.

    Parameters
    ----------
    raw : ndarray, shape (members, n, answers)
        Of the networks' morphology heads.
    labels : DataFrame
        In their own units, NaN = not asked; of votes also how many there were (`galscan.labels.columns.votes_column`).

    Returns
    -------
    dict
        JSON-able. ``questions`` of a tree: id, title, n (galaxies asked), accuracy, coverage (of 90 % intervals, by the
        fractions of the volunteers) and ``answers``; or ``answers`` alone. Of an answer: name, title, n (galaxies that
        have it), completeness, purity, error (mean of the absolute difference), ``reliability`` (rows of expected,
        found, galaxies); None where there is nothing to tell.
    """
    raw = raw.swapaxes(0, 1)
    titles = {answer.name: answer.title or answer.name for answer in schema.answers}
    if not (groups := voting.groups_of(answers, schema)):
        columns = [schema.names.index(name) for name in answers]
        low, high = schema.low[columns], schema.high[columns]
        said = low + (high - low) * expit(raw).mean(1)
        return {"answers": [_answer(name, titles[name], said[:, k], labels[name]) for k, name in enumerate(answers)]}
    said, worth = voting.expected(raw, groups)
    tasks = [task for task in schema.tasks if set(task.answers) & set(answers)]
    told = []
    for number, (task, columns) in enumerate(zip(tasks, groups, strict=True)):
        found = labels[list(task.answers)].to_numpy(float)
        counted = labels.get(votes_column(task.id), pd.Series(np.nan, labels.index)).to_numpy(float)
        asked = np.isfinite(found).all(1)
        expected = said[:, columns]
        lead, guess = found[asked].argmax(1), expected[asked].argmax(1)
        inside = []
        known = asked & (counted > 0)
        for k in range(len(columns)):
            limits = voting.vote_interval(expected[known, k], worth[known, number], counted[known], LEVEL)
            whole = np.round(found[known, k] * counted[known]) / counted[known]  # debiased fractions are no counts
            inside.append((whole >= limits[0] - 1e-9) & (whole <= limits[1] + 1e-9))
        each = []
        for k, name in enumerate(task.answers):
            right = int(((lead == k) & (guess == k)).sum())
            each.append(
                _answer(name, titles[name], expected[:, k], labels[name])
                | {
                    "n": int((lead == k).sum()), "completeness": _share(right, (lead == k).sum()),
                    "purity": _share(right, (guess == k).sum()),
                }
            )  # fmt: skip
        told.append({
            "id": task.id, "title": task.title, "n": int(asked.sum()),
            "accuracy": _share((lead == guess).sum(), asked.sum()),
            "coverage": float(np.mean(inside)) if known.any() else None,
            "answers": each, "confusion": _confusion(lead, guess, len(columns)),
        })  # fmt: skip
    return {"level": LEVEL, "questions": told}


def _answer(name: str, title: str, said: np.ndarray, label: pd.Series) -> dict[str, Any]:
    known = label.notna().to_numpy()
    said, found = said[known].astype(float), label.to_numpy(float)[known]
    curve = []
    if len(said):
        edges = np.quantile(said, np.linspace(0, 1, BINS + 1)[1:-1])
        place = np.searchsorted(edges, said, side="right")
        curve = [
            [float(said[place == k].mean()), float(found[place == k].mean()), int((place == k).sum())]
            for k in range(BINS)
            if (place == k).any()
        ]
    error = float(np.abs(said - found).mean()) if len(said) else None
    return {"name": name, "title": title, "n": len(said), "error": error, "reliability": curve}


def _share(some: int, of: int) -> float | None:
    return float(some / of) if of else None


def _confusion(lead: np.ndarray, guess: np.ndarray, count: int) -> list[list[int]]:
    """Return how many galaxies of each leading answer (rows) are given each (columns)."""
    table = np.zeros((count, count), int)
    np.add.at(table, (lead, guess), 1)
    return table.tolist()
