"""Conditional sampling of galaxy images, also for rare combinations of labels.

Guidance has one term for the whole condition and one for each answer with a weight of its own (composable guidance, Liu
et al. 2022, arXiv:2206.01714). It is applied at intermediate noise levels only: elsewhere it costs variety or time
without benefit (Kynkaanniemi et al. 2024, arXiv:2404.07724).

At high noise levels each step uses new noise. With the same noise throughout, a network with little training amplifies
structure of the noise; new noise averages it out (compare Karras et al. 2022, arXiv:2206.00364, section 4).
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
    """Configuration of a trained generator."""

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
    """Default guidance."""
    steps: int
    """Default number of sampling steps."""
    batch: int
    """Images per batch."""

    @property
    def config(self) -> GeneratorSpec: ...

    def generate(
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
        """Generate one image for each of at most ``batch`` conditions, uint8 (n, S, S, 3); see `sample_images`.

        Image k does not depend on the number of conditions.
        """


def sample_conditions(
    labels: pd.DataFrame, count: int, random: np.random.Generator, rule: SyntheticRule | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sample `count` conditions from the labels of real galaxies, which keeps the joint distribution of the labels.

    Shapes (ellipticities) are rotated by random angles. With a `rule`, only labelled galaxies for which ``rule.base``
    holds are sampled, and the answers of ``rule.set`` are set to values uniform in their ranges. Raises `InputError` if
    no labelled galaxy satisfies ``rule.base``.

    Returns
    -------
    values : ndarray of float32, shape (count, answers)
    rows : ndarray of int, shape (count,)
        Row of `labels` of each condition.
    """
    pool = np.arange(len(labels)) if rule is None else np.flatnonzero(satisfies_base(labels, rule))
    if not len(pool):
        required = f"satisfies '{rule.base}'" if rule is not None else "is labelled"
        raise InputError(
            f"no training galaxy {required}, so synthetic galaxies have no conditions to start from; label some, or "
            "pass --no-synthetic"
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


def satisfies_base(labels: pd.DataFrame, rule: SyntheticRule) -> np.ndarray:
    """Return which galaxies satisfy ``rule.base``."""
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
    label: str = "generate",
) -> np.ndarray:
    """Generate one image per condition.

    Parameters
    ----------
    values : ndarray, shape (n, answers)
        Answers in their units; NaN = not given.
    survey : ndarray of int, shape (n,)
        Index of the survey whose framing and depth the image has (-1 = any).
    guidance : float, optional
        Guidance scale: 1 = none; larger = more typical and less varied. By default that of the generator.
    weights : mapping of answer to float, optional
        Relative guidance of answers. The flow adds guidance of w - 1 for the answers of weight w, as one group for each
        weight, as answers may be correlated; Stable Diffusion weights their tokens.
    steps : int, optional
        Sampling steps. By default those of the generator.
    seconds : float, optional
        Time limit after which no further batch is started.

    Returns
    -------
    ndarray of uint8, shape (n, S, S, 3)
        Images of the first conditions only, at least one batch, if the time limit is reached.
    """
    options: dict[str, Any] = {
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
            rows = slice(start, start + batch)
            images[rows] = generator.generate(values[rows], survey[rows], seed=seed * 1_000_003 + start, **options)
            advance(len(images[rows]))
    return images
