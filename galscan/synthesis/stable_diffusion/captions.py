"""Captions of galaxies from their labels, for text-conditioned generators. No torch.

Phrases are the ``phrase`` entries in the files of `catalogs/`. The format is that of Ma et al. 2025 (arXiv:2506.16233):
the survey, then phrases separated by commas; a phrase with a weight is in braces::

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
    """Return one caption for each row of labels, `values` (n, answers of `schema`) in their units.

    In a decision tree, the caption has the leading answer of each question on the path of most votes, multiplied by the
    `weights` of answers, or the phrases of the first of ``schema.captions`` whose answers all lead; otherwise every
    answer with a phrase for its value. Answers that were not asked (NaN) are omitted. A survey of "" is any.
    """
    factors = dict(weights or {})
    choose = _leading if schema.kind == "tree" else _with_phrase
    texts = []
    for row, survey in zip(values, surveys, strict=True):
        phrases = choose(schema, dict(zip(schema.names, row.tolist(), strict=True)), factors)
        weighted = [_weighted(text, factors.get(name, 1.0)) for name, text in phrases]
        texts.append(", ".join(dict.fromkeys(filter(None, [survey.lower(), *weighted]))))
    return texts


def _leading(schema: Schema, votes: Mapping[str, float], weights: Mapping[str, float]) -> list[tuple[str, str]]:
    """Follow the tree from its first question; return phrases in the order of the questions."""
    by_id = {task.id: task for task in schema.tasks}
    phrases = {a.name: a.phrases[0][1] for a in schema.answers if a.phrases}
    chosen: dict[str, str] = {}
    for start in [schema.tasks[0], *(t for t in schema.tasks if t.always)]:
        question: str | None = start.id
        while question is not None and question not in chosen:
            answers = by_id[question].answers
            counts = {a: votes[a] * weights.get(a, 1.0) for a in answers if votes[a] > 0}
            if counts:
                chosen[question] = max(counts, key=counts.__getitem__)
                question = answers[chosen[question]]
            else:  # not answered: continue if all answers lead to the same question
                following = set(answers.values())
                question = following.pop() if len(following) == 1 else None
    leading = set(chosen.values())
    for entry in schema.captions:
        if leading.issuperset(name for name, _ in entry):
            return list(entry)
    return [(chosen[t.id], phrases[chosen[t.id]]) for t in schema.tasks if chosen.get(t.id) in phrases]


def _with_phrase(schema: Schema, values: Mapping[str, float], weights: Mapping[str, float]) -> list[tuple[str, str]]:
    phrases = [(a.name, _phrase(a, values[a.name])) for a in schema.answers]
    return [(name, text) for name, text in phrases if text]


def _phrase(answer: Answer, value: float) -> str:
    return next((text for low, text in reversed(answer.phrases) if value >= low), "")


def _weighted(phrase: str, weight: float) -> str:
    return phrase if weight == 1 else f"{{{phrase}:{weight:g}}}"


def parse(caption: str) -> list[tuple[str, float]]:
    """Split a caption into pieces of text with weights; text outside of braces has weight 1.

    Raises `InputError` if braces are not closed, nested, or hold anything but ``{text:weight}``.
    """
    pieces: list[tuple[str, float]] = []
    rest, position = caption, 0
    while rest:
        plain, brace, after = rest.partition("{")
        if "}" in plain:
            raise _brace_error(caption, position + plain.index("}"), "has no opening brace")
        if plain:
            pieces.append((plain, 1.0))
        if not brace:
            break
        position += len(plain)
        inside, closed, rest = after.partition("}")
        if not closed:
            raise _brace_error(caption, position, "is never closed")
        if "{" in inside:
            raise _brace_error(caption, position + 1 + inside.index("{"), "is nested")
        text, _, number = inside.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not text.strip() or not 0 <= weight < math.inf:
            raise _brace_error(caption, position, f"holds {inside!r}")
        pieces.append((text, weight))
        position += len(inside) + 2
    return pieces


def _brace_error(caption: str, position: int, problem: str) -> InputError:
    return InputError(
        f"caption {caption!r}: the brace at character {position + 1} {problem}; write {{text:weight}}, "
        "as in {dust lane:1.3}"
    )


def wording(schema: Schema) -> str:
    """Return a hash of the phrases and the tree, which a generator is trained with."""
    phrases, tree = [[a.name, a.phrases] for a in schema.answers], [[t.id, dict(t.answers)] for t in schema.tasks]
    return digest([*phrases, *tree, *schema.captions])
