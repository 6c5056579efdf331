"""Calibration: from a classifier's score to a probability, and to another prevalence.

The log ratio of the two classes is Platt's line or one of the curves of `classify.ratio`, which run from nearly that
line to nearly isotonic steps: what predicts left-out fifths of the calibration set best (cross-validated likelihood).

The line is that of Platt (1999), "Probabilistic outputs for support vector machines", with his prior-smoothed targets
as Lin, Lin & Weng (2007, Machine Learning 68, 267) write them: (n+ + 1)/(n+ + 2) for positives and 1/(n- + 2) for
negatives. They keep the fit finite when the classes do not overlap. The correction to another prevalence is equation 4
of Saerens, Latinne & Decaestecker (2002, Neural Computation 14, 21).

What counts as what: every labelled object is one of three. *Targets* satisfy the recipe's positive rule, *negatives*
the negative rule, and *ambiguous* ones neither: a faint lane, volunteers who disagree. A survey holds all three, so all
three calibrate and test, in the proportion in which they were labelled. Wherever two classes are meant, in purity,
completeness, prevalence and average precision, an ambiguous object is no target. Beside purity stands the expected
fraction of ambiguous ones (`Calibration.ambiguity`), which people may grade as possible. Ambiguous objects do not train
the target, as nobody knows what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import expit, logit

from galscan.core.errors import InputError
from galscan.stats.density_ratio import STIFFNESS, Curves, Evidence

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Calibration:
    """Platt's sigmoid ``p = 1 / (1 + exp(-(slope * score + intercept)))``, and what it was fitted on.

    The sigmoid is what is kept on disk; the curve that is used is fitted again from the scores when it is asked for.

    Attributes
    ----------
    slope, intercept : float
        Of the sigmoid; slope >= 0, so that a higher score is never less probable.
    prevalence : float
        Mean of the sigmoid's probabilities over the calibration set: the prior they are true for.
    scores, targets : ndarray of float64, shape (n,)
        The calibration set: real objects only. They trained nothing or, if cross-fitted, not the network that scored
        them (`galscan.stats.crossfit`). Targets are 0 or 1.
    ambiguous : ndarray of bool, shape (n,), or None
        Which of those that are no targets are ambiguous; None where that is not known.
    """

    slope: float
    intercept: float
    prevalence: float
    scores: np.ndarray
    targets: np.ndarray
    ambiguous: np.ndarray | None = None

    def log_ratio(self, scores: np.ndarray) -> np.ndarray:
        """Return ln of p(score | target) / p(score | not), which no prevalence changes."""
        scores = np.asarray(scores, dtype=np.float64)
        return self.curve(scores.ravel())[0].reshape(scores.shape)

    @cached_property
    def curve(self) -> Curves:
        """The log ratio: Platt's line, or the curve that predicts left-out scores better."""
        line = _line(self.slope, self.intercept, self.prevalence)
        negatives, positives = (np.sort(self.scores[self.targets == kind]) for kind in (0, 1))
        folds = min(FOLDS, len(negatives), len(positives))
        if self.slope == 0 or folds < 2:
            return line
        told = np.zeros(1 + len(STIFFNESS))  # log likelihood of what was left out
        for k in range(folds):
            left = [s[k::folds] for s in (negatives, positives)]
            kept = [np.delete(s, np.s_[k::folds]) for s in (negatives, positives)]
            prior = logit(len(kept[1]) / (len(kept[0]) + len(kept[1])))
            for j, curve in enumerate(_family(*kept)):
                odds = [curve(s)[0] + prior for s in left]
                told[j] -= np.logaddexp(0, odds[0]).sum() + np.logaddexp(0, -odds[1]).sum()
        return line if told[0] == told.max() else _family(negatives, positives)[int(np.argmax(told))]

    def probability(self, scores: np.ndarray, prevalence: float | None = None) -> np.ndarray:
        """Return the probability of being a target, where targets are `prevalence` of all (None: as calibrated).

        Raises
        ------
        InputError
            If `prevalence` is not within 0 to 1.
        """
        prior = self.prevalence if prevalence is None else float(prevalence)
        if not 0 <= prior <= 1:
            raise InputError(f"prevalence {prior} is not a fraction; use 0 to 1")
        return expit(self.log_ratio(scores) + logit(prior))

    def ambiguity(self, scores: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray | None:
        """Draw the probability that an object which is no target is ambiguous, by its score.

        Of those that are no targets, the ambiguous score higher the more they resemble targets: posterior draws of
        their density ratio to the negatives (`galscan.stats.density_ratio`), in the proportion in which both are
        labelled.

        Returns
        -------
        ndarray, shape (draws, n), or None
            None where it is not known which are ambiguous.
        """
        if self.ambiguous is None:
            return None
        scores = np.asarray(scores, np.float64).ravel()
        unclear, clear = self.scores[self.ambiguous], self.scores[~self.ambiguous & (self.targets == 0)]
        if not (len(unclear) and len(clear)) or self.slope <= 0:
            rate = rng.beta(len(unclear) + 0.5, len(clear) + 0.5, draws)  # Jeffreys' prior
            return np.broadcast_to(rate[:, None], (draws, len(scores))).copy()
        ratios = Evidence(clear, unclear).draw(draws, rng, ratio=True)[0]
        return expit(ratios(scores) + np.log(len(unclear) / len(clear)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists, for JSON."""
        told = {
            "slope": self.slope, "intercept": self.intercept, "prevalence": self.prevalence,
            "scores": [float(s) for s in self.scores], "targets": [int(t) for t in self.targets],
        }  # fmt: skip
        return told if self.ambiguous is None else told | {"ambiguous": [int(a) for a in self.ambiguous]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Rebuild what `to_dict` gave.

        Raises
        ------
        InputError
            If a part is absent or malformed.
        """
        try:
            made = cls(
                float(values["slope"]), float(values["intercept"]), float(values["prevalence"]),
                np.asarray(values["scores"], dtype=np.float64), np.asarray(values["targets"], dtype=np.float64),
                np.asarray(values["ambiguous"], dtype=bool) if "ambiguous" in values else None,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the model's calibration is damaged ({error!r}); train the model again") from error
        numbers = np.array([made.slope, made.intercept, made.prevalence, *made.scores.ravel()])
        unclear = np.zeros(made.targets.shape, bool) if made.ambiguous is None else made.ambiguous
        one_each = made.scores.ndim == 1 and made.scores.shape == made.targets.shape == unclear.shape
        if not (
            np.isfinite(numbers).all() and made.slope >= 0 and 0 < made.prevalence < 1 and one_each
            and set(made.targets.tolist()) == {0.0, 1.0} and not (unclear & (made.targets == 1)).any()
        ):  # fmt: skip
            raise InputError("the model's calibration is damaged (not one that was fitted); train the model again")
        return made


def fit(scores: np.ndarray, targets: np.ndarray, ambiguous: np.ndarray | None = None) -> Calibration:
    """Calibrate the scores of a labelled set that were given by networks which were not trained on it.

    Parameters
    ----------
    scores : ndarray, shape (n,)
        Any finite real numbers, higher for likelier targets.
    targets : ndarray, shape (n,)
        1 (or True) for targets, 0 for others.
    ambiguous : ndarray of bool, shape (n,), optional
        Which of the others are ambiguous.

    Raises
    ------
    InputError
        If there is no positive or no negative, or a score is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64).ravel()
    targets = np.asarray(targets, dtype=np.float64).ravel()
    if scores.shape != targets.shape:
        raise InputError(f"calibration: {len(scores)} scores for {len(targets)} targets; give one for each")
    if not np.isfinite(scores).all() or not np.isin(targets, (0.0, 1.0)).all():
        raise InputError("calibration: scores must be finite and targets 0 or 1")
    positives = targets == 1
    if not positives.any() or positives.all():
        raise InputError(
            f"calibration: {positives.sum()} positives and {(~positives).sum()} negatives; "
            "it needs at least one of each: label more objects or give calibration a larger share in the recipe's split"
        )
    weights = np.ones_like(scores)
    slope, intercept, prevalence = fit_sigmoid(scores, positives * weights, ~positives * weights)
    return Calibration(slope, intercept, prevalence, scores, targets, ambiguous)


def _line(slope: float, intercept: float, prevalence: float) -> Curves:
    start = intercept - float(logit(prevalence))
    return Curves(np.array([0.0, 1.0]), np.array([[start, start + slope]]), np.array([np.inf]))


def _family(negatives: np.ndarray, positives: np.ndarray) -> list[Curves]:
    """Return Platt's line, and the likeliest curve of each stiffness."""
    targets = np.repeat([0.0, 1.0], [len(negatives), len(positives)])
    found = [_line(*fit_sigmoid(np.concatenate([negatives, positives]), targets, 1 - targets))]
    evidence = Evidence(negatives, positives)
    mode = None
    for stiffness in STIFFNESS:
        mode, _ = evidence.mode(stiffness, mode)
        found.append(evidence.curves(mode[None], start=0))
    return found


def fit_sigmoid(scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float, float]:
    """Fit slope >= 0 and intercept to `positives` and `negatives` counted at each score.

    Returns
    -------
    slope, intercept, prevalence : float
        The last is the mean fitted probability, equal to the mean smoothed target at the optimum.
    """
    n_pos, n_neg = float(positives.sum()), float(negatives.sum())
    weights = positives + negatives
    total = n_pos + n_neg
    # Expected successes at each score; the loss is the cross entropy against them.
    success = positives * ((n_pos + 1) / (n_pos + 2)) + negatives / (n_neg + 2)
    prevalence = float(success.sum() / total)
    centre = float((weights * scores).sum() / total)
    spread = float(np.sqrt((weights * (scores - centre) ** 2).sum() / total))
    if spread <= 1e-12 * max(1.0, abs(centre)):
        return 0.0, float(logit(prevalence)), prevalence
    x = (scores - centre) / spread  # makes the problem well conditioned whatever the scale of the scores

    # Newton's method with backtracking, as Lin, Lin & Weng give it (their algorithm 1). A general minimiser calls
    # threaded linear algebra for these two unknowns, which on a busy machine is twenty times slower.
    def loss(a: float, b: float) -> float:
        z = a * x + b
        return float((weights * np.logaddexp(0.0, z) - success * z).sum() / total)

    a, b = 0.0, float(logit(prevalence))
    value = loss(a, b)
    for _ in range(100):
        p = expit(a * x + b)
        residual, curve = weights * p - success, weights * p * (1 - p)
        gradient_a, gradient_b = float((residual * x).sum() / total), float(residual.sum() / total)
        if a == 0 and gradient_a >= 0:  # convex: the best slope is not positive
            return 0.0, float(logit(prevalence)), prevalence
        if abs(gradient_a) + abs(gradient_b) < 1e-10:
            break
        aa = float((curve * x * x).sum() / total) + 1e-12
        ab = float((curve * x).sum() / total)
        bb = float(curve.sum() / total) + 1e-12
        determinant = aa * bb - ab * ab
        step_a = -(bb * gradient_a - ab * gradient_b) / determinant
        step_b = -(aa * gradient_b - ab * gradient_a) / determinant
        slope_along = gradient_a * step_a + gradient_b * step_b
        length = 1.0
        while (lower := loss(a + length * step_a, b + length * step_b)) > value + 1e-4 * length * slope_along:
            length *= 0.5
            if length < 1e-10:
                break
        if length < 1e-10:  # nothing lower in floating point
            break
        a, b, value = a + length * step_a, b + length * step_b, lower
    slope = max(a, 0.0) / spread
    return slope, b - slope * centre, prevalence
