"""Evaluation of predicted morphology on held-out galaxies, by question.

Completeness and purity (recall and precision) are of the leading answer, as in table 2 of Ma et al. (arXiv:2506.16233).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.metrics import confusion_matrix

from galscan.labels.columns import votes_column
from galscan.labels.schema import Schema
from galscan.models import votes as voting

LEVEL = 0.9
BINS = 5  # of a reliability curve


def evaluate(raw: np.ndarray, labels: pd.DataFrame, answers: Sequence[str], schema: Schema) -> dict[str, Any]:
    """Compare predicted answers with labels.

    Parameters
    ----------
    raw : ndarray, shape (members, n, answers)
        Outputs of the networks' morphology heads.
    labels : DataFrame
        In their units, NaN = not asked; for votes also their number (`galscan.labels.columns.votes_column`).

    Returns
    -------
    dict
        JSON-able. For a tree, ``questions``: id, title, n (galaxies with the question), accuracy, coverage (fraction of
        vote fractions within their 90 % intervals) and ``answers``; otherwise ``answers`` alone. For an answer: name,
        title, n (galaxies with that answer), completeness, purity, error (mean absolute error), ``reliability`` (rows
        of mean prediction, mean label, galaxies). None where undefined.
    """
    raw = raw.swapaxes(0, 1)
    titles = {answer.name: answer.title or answer.name for answer in schema.answers}
    if not (groups := voting.groups_of(answers, schema)):
        columns = [schema.names.index(name) for name in answers]
        low, high = schema.low[columns], schema.high[columns]
        predicted = low + (high - low) * expit(raw).mean(1)
        return {
            "answers": [_answer(name, titles[name], predicted[:, k], labels[name]) for k, name in enumerate(answers)]
        }
    predicted, worth = voting.expected(raw, groups)
    tasks = [task for task in schema.tasks if set(task.answers) & set(answers)]
    questions = []
    for number, (task, columns) in enumerate(zip(tasks, groups, strict=True)):
        fractions = labels[list(task.answers)].to_numpy(float)
        counted = labels.get(votes_column(task.id), pd.Series(np.nan, labels.index)).to_numpy(float)
        asked = np.isfinite(fractions).all(1)
        expected = predicted[:, columns]
        # Leading answers by label (rows) and prediction (columns).
        confusion = (
            confusion_matrix(fractions[asked].argmax(1), expected[asked].argmax(1), labels=range(len(columns)))
            if asked.any()
            else np.zeros((len(columns),) * 2, int)
        )
        inside = []
        known = asked & (counted > 0)
        for k in range(len(columns)):
            limits = voting.vote_interval(expected[known, k], worth[known, number], counted[known], LEVEL)
            # Debiased fractions do not correspond to whole votes, so they are rounded to these.
            fraction = np.round(fractions[known, k] * counted[known]) / counted[known]
            inside.append((fraction >= limits[0] - 1e-9) & (fraction <= limits[1] + 1e-9))
        correct, true, called = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        entries = [
            _answer(name, titles[name], expected[:, k], labels[name])
            | {
                "n": int(true[k]), "completeness": _fraction(correct[k], true[k]),
                "purity": _fraction(correct[k], called[k]),
            }
            for k, name in enumerate(task.answers)
        ]  # fmt: skip
        questions.append({
            "id": task.id, "title": task.title, "n": int(asked.sum()),
            "accuracy": _fraction(correct.sum(), asked.sum()),
            "coverage": float(np.mean(inside)) if known.any() else None,
            "answers": entries, "confusion": confusion.tolist(),
        })  # fmt: skip
    return {"level": LEVEL, "questions": questions}


def _answer(name: str, title: str, predicted: np.ndarray, label: pd.Series) -> dict[str, Any]:
    known = label.notna().to_numpy()
    predicted, true = predicted[known].astype(float), label.to_numpy(float)[known]
    curve = []
    if len(predicted):
        edges = np.quantile(predicted, np.linspace(0, 1, BINS + 1)[1:-1])
        bins = np.searchsorted(edges, predicted, side="right")
        curve = [
            [float(predicted[bins == k].mean()), float(true[bins == k].mean()), int((bins == k).sum())]
            for k in range(BINS)
            if (bins == k).any()
        ]
    error = float(np.abs(predicted - true).mean()) if len(predicted) else None
    return {"name": name, "title": title, "n": len(predicted), "error": error, "reliability": curve}


def _fraction(count: int, total: int) -> float | None:
    return float(count / total) if total else None
