"""Histogram of all scores of a survey, from which prevalence and purity are estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from galscan.core.errors import InputError

EDGE, STEP = 40.0, 0.05
BINS = round(2 * EDGE / STEP)


@dataclass
class ScoreHistogram:
    """Counts of scores in fixed bins of 0.05 over -40 to 40 (outer scores go to the outer bins).

    `n_scored` is the number of objects that were scored: less than `counts` where they are a sample that was scaled up.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    n_scored: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    @property
    def centres(self) -> np.ndarray:
        return (np.arange(BINS) + 0.5) * STEP - EDGE

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @classmethod
    def of(cls, scores: np.ndarray) -> ScoreHistogram:
        """Count `scores` (finite, any shape)."""
        counts = np.bincount(bins(scores), minlength=BINS)
        return cls(counts, counts.copy())

    def scaled_to(self, total: int) -> ScoreHistogram:
        """Return the estimated histogram of `total` objects of which this is a random sample; empty if that is empty.

        Counts are integers and add up to `total`: the largest remainders are rounded up.
        """
        if not self.total:
            return ScoreHistogram()
        exact = self.counts * (total / self.total)
        counts = np.floor(exact).astype(np.int64)
        counts[np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]] += 1
        return ScoreHistogram(counts, self.n_scored.copy())

    def to_list(self) -> list[list[int]]:
        """Return ``[bin, count]`` of every occupied bin, for JSON; ``[bin, count, n_scored]`` where that is less."""
        rows = [[int(k), int(self.counts[k]), int(self.n_scored[k])] for k in np.flatnonzero(self.counts)]
        return [row[:2] if row[1] == row[2] else row for row in rows]

    @classmethod
    def from_list(cls, pairs: Sequence[Sequence[int]]) -> ScoreHistogram:
        """Rebuild the histogram from `to_list`; raise `InputError` if it is damaged."""
        histogram = cls()
        try:
            for k, count, *rest in pairs:
                n_scored = rest[0] if rest else count
                if not (0 <= k < BINS and 0 <= n_scored <= count and len(rest) < 2 and (n_scored or not count)):
                    raise ValueError(f"bin {k} holds {count}")
                histogram.counts[k], histogram.n_scored[k] = count, n_scored
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"the run's histogram of scores is damaged ({error}); remove its candidates.parquet, and run its scan "
                "command again: it ranks the stored scores again"
            ) from None
        return histogram

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        return ScoreHistogram(self.counts + other.counts, self.n_scored + other.n_scored)


def bins(scores: np.ndarray) -> np.ndarray:
    """Return the bin of each score."""
    position = np.floor((np.asarray(scores, dtype=np.float64).ravel() + EDGE) / STEP)
    return np.clip(position, 0, BINS - 1).astype(np.int64)
