"""Dream: draw galaxies for conditions, also for combinations that hardly ever occur.

Guidance is one term for the whole condition and one for each answer that is to be pushed by itself
(composable guidance, Liu et al. 2022, arXiv:2206.01714). It is switched off at both ends of the way, where
it costs variety, or time, and buys nothing (Kynkaanniemi et al. 2024, arXiv:2404.07724).

Every step begins with noise of its own, until the galaxy is settled. With one noise all the way, a network that has
not been trained for days takes lumps of it for the galaxy, and each step makes them firmer; new noise averages them
out (compare Karras et al. 2022, arXiv:2206.00364, section 4).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from galscan.core.errors import InputError
from galscan.core.progress import track
from galscan.labels.rules import parse_rule
from galscan.labels.settings import SyntheticRule
from galscan.synthesis.galaxies import MEASURED, turn


class GeneratorSpec(Protocol):
    """What a generator was taught."""

    @property
    def size(self) -> int: ...
    @property
    def schema(self) -> str: ...
    @property
    def answers(self) -> tuple[str, ...]: ...
    @property
    def surveys(self) -> tuple[str, ...]: ...


class ImageGenerator(Protocol):
    """A generator of any kind (`galscan.synthesis.backends`)."""

    guidance: float
    """What is good for it where nobody asks for something else; so is ``steps``."""
    steps: int
    batch: int
    """Pictures that are drawn at a time."""

    @property
    def config(self) -> GeneratorSpec: ...

    def draw(
        self,
        values: np.ndarray,
        survey: np.ndarray,
        *,
        guidance: float,
        weights: Mapping[str, float],
        steps: int,
        seed: int,
        device: torch.device,
    ) -> np.ndarray:
        """Draw one picture for each of at most ``batch`` conditions, uint8 (n, S, S, 3); see `sample_images`.

        Picture k is the same however many conditions follow.
        """


def sample_conditions(
    labels: pd.DataFrame, count: int, random: np.random.Generator, rule: SyntheticRule | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` label vectors to dream from real ones, so that everything else varies as it really does.

    Where shapes are among them, each is turned by any angle: a galaxy has no up.

    Parameters
    ----------
    labels : DataFrame, shape (n, answers)
        Labels of real *training* galaxies, and what is measured on them; NaN = not asked.
    rule : DreamRule, optional
        Draw only from labelled galaxies for which ``rule.base`` holds, then set the answers of ``rule.set``
        to values uniform in their ranges.

    Returns
    -------
    values : ndarray of float32, shape (count, answers)
    rows : ndarray of int, shape (count,)
        The row of `labels` each was drawn from.

    Raises
    ------
    InputError
        If no labelled galaxy satisfies ``rule.base``.
    """
    pool = np.arange(len(labels))
    if rule is not None:
        pool = np.flatnonzero(_starts(labels, rule))
    if not len(pool):
        wanted = f"satisfies '{rule.base}'" if rule is not None else "is labelled"
        raise InputError(
            f"no training galaxy {wanted}, from which dreams would start; label some, or pass --no-synthetic"
        )
    rows = random.choice(pool, size=count)
    values = labels.to_numpy(np.float32)[rows]
    if rule is not None:
        for answer, (low, high) in rule.set.items():
            values[:, labels.columns.get_loc(answer)] = random.uniform(low, high, count)
    if set(MEASURED) <= set(labels.columns):
        columns = [labels.columns.get_loc(name) for name in MEASURED]
        values[:, columns] = turn(values[:, columns], random.uniform(0, np.pi, count))
    return values, rows


def has_start(labels: pd.DataFrame, rule: SyntheticRule) -> bool:
    """Tell whether some galaxy satisfies ``rule.base``, so that `sample_conditions` can start from it."""
    return bool(_starts(labels, rule).any())


def _starts(labels: pd.DataFrame, rule: SyntheticRule) -> np.ndarray:
    return parse_rule(rule.base, list(labels.columns)).evaluate({c: labels[c].to_numpy() for c in labels})[0]


def sample_images(
    generator: ImageGenerator,
    values: np.ndarray,
    survey: np.ndarray,
    *,
    guidance: float | None = None,
    weights: Mapping[str, float] | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    seconds: float | None = None,
    label: str = "dream",
) -> np.ndarray:
    """Draw one image per condition.

    Parameters
    ----------
    values : ndarray, shape (n, answers)
        Answers in their own units; NaN = left open.
    survey : ndarray of int, shape (n,)
        Whose framing and depth to draw (-1 = any).
    guidance : float, optional
        1 = what was learnt, as it is; more = more typical and less varied. Default the generator's own.
    weights : mapping of answer to float, optional
        How strongly to insist on an answer. The flow pushes one of weight w by w - 1 times more than the rest, those of
        one weight together, which matters where one says what the other says; Stable Diffusion weighs its words.
    steps : int, optional
        From noise to picture. Default the generator's own.
    seconds : float, optional
        Begin no further batch after so long.

    Returns
    -------
    ndarray of uint8, shape (n, S, S, 3)
        The first of the conditions only, at least one batch, where `seconds` did not suffice for all.
    """
    how: dict[str, Any] = {
        "guidance": generator.guidance if guidance is None else guidance, "steps": steps or generator.steps,
        "weights": weights or {}, "device": device or torch.device("cpu"),
    }  # fmt: skip
    size, batch = generator.config.size, generator.batch
    started = time.monotonic()
    images = np.empty((len(values), size, size, 3), np.uint8)
    with track(label, len(values), "image") as advance:
        for start in range(0, len(values), batch):
            if start and seconds is not None and time.monotonic() - started > seconds:
                return images[:start]
            some = slice(start, start + batch)
            drawn = generator.draw(values[some], survey[some], seed=seed * 1_000_003 + start, **how)
            images[some] = drawn
            advance(len(drawn))
    return images
