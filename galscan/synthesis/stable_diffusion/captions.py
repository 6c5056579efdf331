"""Captions: what labels say of a galaxy, in words, for a generator that reads. No torch.

The words are ``phrase`` in the files of `catalogs/`; the form is that of Ma et al. 2025 (arXiv:2506.16233): the survey,
then phrases between commas, one that is to be insisted on in braces with its weight::

    sdss, smooth, in-between round galaxy
    sdss, smooth, in-between round galaxy, {dust lane:1.3}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from galscan.core.errors import InputError
from galscan.core.files import digest
from galscan.labels.schema import Answer, Schema


def captions(
    schema: Schema, values: np.ndarray, surveys: Sequence[str], weights: Mapping[str, float] | None = None
) -> list[str]:
    """Return one caption for each row of labels.

    In a decision tree the way is followed that most votes take, and of each question on it the answer that leads is
    told; elsewhere every answer that has a phrase for its value. What was not asked is not told.

    Parameters
    ----------
    values : ndarray, shape (n, answers of `schema`)
        In their own units; NaN = not asked.
    surveys : sequence of str, n long
        Name of the survey each is to look like; "" = any.
    weights : mapping of answer to float, optional
        How strongly to insist on an answer. In a tree its votes count as many times.
    """
    pushed = dict(weights or {})
    tell = _leading if schema.kind == "tree" else _true
    told = []
    for row, survey in zip(values, surveys, strict=True):
        phrases = tell(schema, dict(zip(schema.names, row.tolist(), strict=True)), pushed)
        parts = [_weighted(text, pushed.get(name, 1.0)) for name, text in phrases]
        told.append(", ".join(dict.fromkeys(filter(None, [survey.lower(), *parts]))))
    return told


def _leading(schema: Schema, votes: Mapping[str, float], weights: Mapping[str, float]) -> list[tuple[str, str]]:
    """Follow the tree from its first question; phrases come in the order of the questions."""
    by_id = {task.id: task for task in schema.tasks}
    phrases = {a.name: a.phrases[0][1] for a in schema.answers if a.phrases}
    chosen: dict[str, str] = {}
    for start in [schema.tasks[0], *(t for t in schema.tasks if t.always)]:
        at: str | None = start.id
        while at is not None and at not in chosen:
            answers = by_id[at].answers
            counts = {a: votes[a] * weights.get(a, 1.0) for a in answers if votes[a] > 0}
            if counts:
                chosen[at] = max(counts, key=counts.__getitem__)
                at = answers[chosen[at]]
            else:  # not answered: go on where every answer leads, if to one place
                ways = set(answers.values())
                at = ways.pop() if len(ways) == 1 else None
    return [(chosen[t.id], phrases[chosen[t.id]]) for t in schema.tasks if chosen.get(t.id) in phrases]


def _true(schema: Schema, values: Mapping[str, float], weights: Mapping[str, float]) -> list[tuple[str, str]]:
    said = [(a.name, _said(a, values[a.name])) for a in schema.answers]
    return [(name, text) for name, text in said if text]


def _said(answer: Answer, value: float) -> str:
    return next((text for low, text in reversed(answer.phrases) if value >= low), "")


def _weighted(phrase: str, weight: float) -> str:
    return phrase if weight == 1 else f"{{{phrase}:{weight:g}}}"


def parse(caption: str) -> list[tuple[str, float]]:
    """Divide a caption into pieces of text with their weights; what stands in no braces has 1.

    Raises
    ------
    InputError
        If braces are not closed, nested, or hold anything but ``{text:weight}``.
    """
    pieces: list[tuple[str, float]] = []
    rest, at = caption, 0
    while rest:
        plain, brace, after = rest.partition("{")
        if "}" in plain:
            raise _wrong(caption, at + plain.index("}"), "closes nothing")
        if plain:
            pieces.append((plain, 1.0))
        if not brace:
            break
        at += len(plain)
        inside, closed, rest = after.partition("}")
        if not closed:
            raise _wrong(caption, at, "is never closed")
        if "{" in inside:
            raise _wrong(caption, at + 1 + inside.index("{"), "stands within another")
        text, _, number = inside.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not text.strip() or not 0 <= weight < math.inf:
            raise _wrong(caption, at, f"holds {inside!r}")
        pieces.append((text, weight))
        at += len(inside) + 2
    return pieces


def _wrong(caption: str, at: int, what: str) -> InputError:
    return InputError(
        f"caption {caption!r}: the brace at character {at + 1} {what}; write {{text:weight}}, as in {{dust lane:1.3}}"
    )


def wording(schema: Schema) -> str:
    """Return a hash of all that decides how labels become captions: a generator knows no other words."""
    return digest([[a.name, a.phrases] for a in schema.answers] + [[t.id, dict(t.answers)] for t in schema.tasks])
