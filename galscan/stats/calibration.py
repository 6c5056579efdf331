"""Calibration: from a classifier's score to a probability, for any prevalence.

The log density ratio of the two classes is Platt's line or one of the curves of `galscan.stats.density_ratio`, which
range from nearly that line to nearly isotonic steps; 5-fold cross-validated likelihood on the calibration set selects
one of them.

The line is that of Platt (1999), "Probabilistic outputs for support vector machines", with prior-smoothed targets as
in Lin, Lin & Weng (2007, Machine Learning 68, 267): (n+ + 1)/(n+ + 2) for positives and 1/(n- + 2) for negatives. They
keep the fit finite when the classes do not overlap. The correction to another prevalence is equation 4 of Saerens,
Latinne & Decaestecker (2002, Neural Computation 14, 21).

Labelled objects are *targets*, which satisfy the recipe's positive rule, *negatives*, which satisfy the negative rule,
or *ambiguous*: a faint dust lane, volunteers who disagree. A survey contains all three, so all are used for calibration
and test, in the proportion in which they were labelled. Ambiguous objects do not train the target, and count as
non-targets in purity, completeness, prevalence and average precision; their expected fraction is estimated as well
(`Calibration.ambiguity`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from galscan.core.errors import InputError
from galscan.stats.density_ratio import PRIOR_SCALES, Curves, Evidence

FOLDS = 5


class Reliability(NamedTuple):
    """Fractions of targets in groups of calibration objects; arrays of shape (groups,).

    Attributes
    ----------
    predicted, observed : ndarray of float
        Mean predicted probability, and fraction of targets.
    low, high : ndarray of float
        95 % interval of the observed fraction (Jeffreys).
    """

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class Calibration:
    """Platt's sigmoid ``p = 1 / (1 + exp(-(slope * score + intercept)))``, with the calibration set it was fitted on.

    Only the sigmoid and the calibration set are stored; `curve` is fitted again on first use.

    The calibration set has real objects only, which trained no network or, if cross-fitted, not the network that scored
    them (`galscan.stats.crossfit`).
    """

    slope: float
    """At least 0, so that probability never falls with the score."""
    intercept: float
    prevalence: float
    """Mean of the sigmoid's probabilities over the calibration set: the prior for which they hold."""
    scores: np.ndarray
    targets: np.ndarray
    """1 or 0; float64 of shape (n,), as the scores."""
    ambiguous: np.ndarray | None = None
    """Which of the non-targets are ambiguous; None if unknown."""

    def log_ratio(self, scores: np.ndarray) -> np.ndarray:
        """Return ln p(score | target) / p(score | non-target), which does not depend on the prevalence."""
        scores = np.asarray(scores, dtype=np.float64)
        return self.curve(scores.ravel())[0].reshape(scores.shape)

    @cached_property
    def curve(self) -> Curves:
        """The log density ratio: Platt's line, or the curve with the highest cross-validated likelihood."""
        from scipy.special import logit

        line = _line(self.slope, self.intercept, self.prevalence)
        negatives, positives = (np.sort(self.scores[self.targets == label]) for label in (0, 1))
        folds = min(FOLDS, len(negatives), len(positives))
        if self.slope == 0 or folds < 2:
            return line
        log_likelihood = np.zeros(1 + len(PRIOR_SCALES))  # of the left-out objects, for the line and each curve
        for k in range(folds):
            validation = [s[k::folds] for s in (negatives, positives)]
            training = [np.delete(s, np.s_[k::folds]) for s in (negatives, positives)]
            prior = logit(len(training[1]) / (len(training[0]) + len(training[1])))
            for j, curve in enumerate(_family(*training)):
                odds = [curve(s)[0] + prior for s in validation]
                log_likelihood[j] -= np.logaddexp(0, odds[0]).sum() + np.logaddexp(0, -odds[1]).sum()
        best = int(np.argmax(log_likelihood))
        return _family(negatives, positives)[best] if best else line

    def reliability(self) -> Reliability:
        """Return observed and predicted fractions, in groups with about as many targets each."""
        from scipy.stats import beta

        predicted = self.probability(self.scores)
        found = predicted[self.targets == 1]
        # Groups of equal size would all lie near zero where targets are rare.
        quantiles = np.linspace(0, 1, max(2, min(8, len(found) // 5)) + 1)
        edges = np.unique(np.quantile(found, quantiles)) if len(found) else np.empty(0)
        group = np.searchsorted(edges, predicted, side="right")
        groups = [np.flatnonzero(group == g) for g in np.unique(group)]
        hits, sizes = np.array([self.targets[g].sum() for g in groups]), np.array([len(g) for g in groups])
        low, high = (beta.ppf(q, hits + 0.5, sizes - hits + 0.5) for q in (0.025, 0.975))
        low, high = np.where(hits == 0, 0, low), np.where(hits == sizes, 1, high)  # intervals include the fraction
        return Reliability(np.array([predicted[g].mean() for g in groups]), hits / sizes, low, high)

    def probability(self, scores: np.ndarray, prevalence: float | None = None) -> np.ndarray:
        """Return the probability of being a target for a prevalence of 0 to 1 (None: that of the calibration set)."""
        from scipy.special import expit, logit

        prior = self.prevalence if prevalence is None else float(prevalence)
        if not 0 <= prior <= 1:
            raise InputError(f"prevalence {prior} is not a fraction; use 0 to 1")
        return expit(self.log_ratio(scores) + logit(prior))

    def ambiguity(self, scores: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray | None:
        """Draw the probability that a non-target with this score is ambiguous, shape (draws, n); None if unknown.

        Ambiguous objects score higher the more they resemble targets: posterior draws of their density ratio to the
        negatives (`galscan.stats.density_ratio`), times the proportion in which both are labelled.
        """
        from scipy.special import expit

        if self.ambiguous is None:
            return None
        scores = np.asarray(scores, np.float64).ravel()
        ambiguous, negatives = self.scores[self.ambiguous], self.scores[~self.ambiguous & (self.targets == 0)]
        if not (len(ambiguous) and len(negatives)) or self.slope <= 0:
            rate = rng.beta(len(ambiguous) + 0.5, len(negatives) + 0.5, draws)  # Jeffreys' prior
            return np.broadcast_to(rate[:, None], (draws, len(scores))).copy()
        ratios = Evidence(negatives, ambiguous).draw(draws, rng, ratio=True)[0]
        return expit(ratios(scores) + np.log(len(ambiguous) / len(negatives)))

    def to_dict(self) -> dict[str, Any]:
        """Return a dict of numbers and lists, for JSON."""
        values = {
            "slope": self.slope, "intercept": self.intercept, "prevalence": self.prevalence,
            "scores": [float(s) for s in self.scores], "targets": [int(t) for t in self.targets],
        }  # fmt: skip
        return values if self.ambiguous is None else values | {"ambiguous": [int(a) for a in self.ambiguous]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Rebuild the calibration from `to_dict`; raise `InputError` if an entry is missing or malformed."""
        try:
            slope, intercept, prevalence = (float(values[name]) for name in ("slope", "intercept", "prevalence"))
            scores, targets = (np.asarray(values[name], dtype=np.float64) for name in ("scores", "targets"))
            ambiguous = np.asarray(values["ambiguous"], dtype=bool) if "ambiguous" in values else None
            unclear = np.zeros(targets.shape, bool) if ambiguous is None else ambiguous
            if not (
                np.isfinite([slope, intercept, prevalence, *scores.ravel()]).all() and slope >= 0 and 0 < prevalence < 1
                and scores.ndim == 1 and scores.shape == targets.shape == unclear.shape
                and set(targets.tolist()) == {0.0, 1.0} and not (unclear & (targets == 1)).any()
            ):  # fmt: skip
                raise ValueError("not one that was fitted")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the model's calibration is damaged ({error!r}); train the model again") from error
        return cls(slope, intercept, prevalence, scores, targets, ambiguous)


def fit(scores: np.ndarray, targets: np.ndarray, ambiguous: np.ndarray | None = None) -> Calibration:
    """Calibrate finite scores of a labelled set, given by networks that were not trained on it.

    `targets` is 1 (or True) for targets, 0 for non-targets; `ambiguous` flags the ambiguous ones of these.

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
            f"calibration: {positives.sum()} positives and {(~positives).sum()} negatives; it needs one of each at "
            "least: label more objects or raise the calibration fraction in the recipe's split"
        )
    return Calibration(*fit_sigmoid(scores, targets, 1 - targets), scores, targets, ambiguous)


def _line(slope: float, intercept: float, prevalence: float) -> Curves:
    from scipy.special import logit

    start = intercept - float(logit(prevalence))
    return Curves(np.array([0.0, 1.0]), np.array([[start, start + slope]]), np.array([np.inf]))


def _family(negatives: np.ndarray, positives: np.ndarray) -> list[Curves]:
    """Return Platt's line, and the maximum-posterior curve for each prior scale."""
    targets = np.repeat([0.0, 1.0], [len(negatives), len(positives)])
    curves = [_line(*fit_sigmoid(np.concatenate([negatives, positives]), targets, 1 - targets))]
    evidence = Evidence(negatives, positives)
    mode = None
    for prior_scale in PRIOR_SCALES:
        mode, _ = evidence.mode(prior_scale, mode)
        curves.append(evidence.curves(mode[None], start=0))
    return curves


def fit_sigmoid(scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float, float]:
    """Fit slope >= 0 and intercept to the numbers of `positives` and `negatives` at each score.

    Also return the prevalence: the mean fitted probability, equal to the mean smoothed target at the optimum.
    """
    from scipy.special import expit, logit

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

    # Newton's method with backtracking, algorithm 1 of Lin, Lin & Weng. A general minimiser would start BLAS threads
    # for these two unknowns, which on a busy machine is twenty times slower.
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
        if length < 1e-10:  # no further decrease in floating point
            break
        a, b, value = a + length * step_a, b + length * step_b, lower
    slope = max(a, 0.0) / spread
    return slope, b - slope * centre, prevalence
