"""Cross-fitting: every labelled object trains, calibrates and tests, and no network is tested on what trained it.

Labelled objects are divided into as many folds as the committee has networks, and network k is trained on all folds but
k. Each object is then scored by the one network that did not train on it: its out-of-fold score (cross-fitting:
Chernozhukov et al. 2018, Econometrics Journal 21, C1; averaged over the folds' networks, as in their definition 2).
Nothing that depends on fold k may reach network k: synthetic galaxies for it are made without hosts, maps or negatives
of fold k, and the reference network that chooses hosts and negatives among the unlabelled galaxies is the real-only
network that was not trained on fold k either. So each network has a synthetic training set of its own.

A survey is scored by the mean of all K networks, which scatters less than one of them. Let s_k(x) be the score of
network k and m(x) the mean. For a randomly chosen k, the law of total variance gives, for objects of one kind,

    Var(s) = Var(m) + E[(1 - 1/K) sigma2],

where sigma2(x) is the sample variance (K - 1 in the denominator) of the networks' scores of x. The mean of s is that of
m. D = (1 - 1/K) sigma2 is measured, as a function of m, on objects that trained no network. If D were the same for all
scores, out-of-fold scores of each kind would be shrunk about their mean to the variance Var(m), which makes an ensemble
of estimates scatter as what they estimate (Louis 1984, Journal of the American Statistical Association 79, 393). It is
not: networks differ most in some range of scores. To have noise of variance D added is to diffuse for one unit of time,
df/dt = (D f)''/2, and the scores are moved back along the flow that transports their density f,

    dx/dt = D'(x)/2 + D(x) (ln f)'(x)/2,

with f normal at any time (the probability flow of Song et al. 2021, ICLR, arXiv:2011.13456, with a D that varies). For
a constant D it is the shrinkage above. What is moved back still says less than as many scores of the whole committee
would: the mean of n of them is known to Var(s)/n, and not to Var(m)/n. So n scores count as n Var(m)/Var(s) when they
calibrate: as many equally spaced quantiles stand for them (`calibration_set`). Uncorrected, the kinds overlap more than
in the survey, and purity is underestimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from galscan.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from galscan.classify.model import Network

FOLD = "fold "  # and a number: the split of an object that is cross-fitted
LEAST = 200  # objects, below which the networks' scatter is not known well enough to correct for it
RESERVED = 8000  # unlabelled objects, at most, on which it is measured: the scores of rare targets must be among theirs
HIGHEST = 25  # objects of the highest scores in the first bin of `Scatter`
STEPS = 20  # at least, of the flow along which scores are corrected
FARTHEST = 0.05  # relative change of scores in a step


# -- what a split says of an object ------------------------------------------------------------------------------------


def fold_name(number: int) -> str:
    """Return the split of the objects of a fold."""
    return f"{FOLD}{number}"


def fold_numbers(split: pd.Series) -> np.ndarray:
    """Return the fold of each object, int, shape (n,); -1 where it is in none."""
    text = split.astype(str)
    return np.where(text.str.startswith(FOLD), text.str.removeprefix(FOLD), "-1").astype(int)


def trains(split: pd.Series, member: int | None = None) -> np.ndarray:
    """Return which objects may train a network (bool, shape (n,)): the one of this number, or any."""
    folds = fold_numbers(split)
    return ((split == "train") | (folds >= 0) & (folds != member)).to_numpy()


def calibrates(split: pd.Series) -> np.ndarray:
    """Return which objects calibrate, bool, shape (n,)."""
    return (split == "calibration").to_numpy() | (fold_numbers(split) >= 0)


def tests(split: pd.Series) -> np.ndarray:
    """Return which objects the figures of a model are of, bool, shape (n,)."""
    return (split == "test").to_numpy() | (fold_numbers(split) >= 0)


def kept_from(split: pd.Series, member: int = 0) -> np.ndarray:
    """Return which objects a network, and the synthetic galaxies made for it, know nothing of; bool, shape (n,).

    Those of a model folder are of its first network: a generated galaxy that is evaluated beside real ones must not be
    made of them.
    """
    return split.isin(("calibration", "test")).to_numpy() | (fold_numbers(split) == member)


def as_fixed(split: pd.Series) -> pd.Series:
    """Return the split with the first fold for a test set, for what evaluates with one network only."""
    folds = fold_numbers(split)
    return split.mask(folds == 0, "test").mask(folds > 0, "train")


def folds_of(recipe: Recipe, *, whole: bool) -> tuple[int, str]:
    """Return how many folds a training has, 0 for a fixed split, and in words why it is fixed though the recipe is not.

    Parameters
    ----------
    whole : bool
        Whether a generator draws whole images: it is trained once, on galaxies of all folds.
    """
    members = recipe.classifier.members
    if recipe.split.method == "fixed":
        return 0, ""
    if members < 2:
        return 0, "cross-fitting needs two networks or more ([classifier] members)"
    if whole:
        return 0, "one generator of whole images is trained for all networks ([dream] positives)"
    return members, ""


def reserved(table: pd.DataFrame, *, synthetic: bool, seed: int) -> pd.DataFrame:
    """Return the rows of unlabelled objects on which the scatter of the networks is measured.

    Nothing is made of them, as networks agree on what they were trained on: where synthetic galaxies need hosts, half
    of the unlabelled objects remain for these. No rows where there are too few.

    Parameters
    ----------
    table : DataFrame
        Columns object, target and labelled (bool).
    """
    labelled = table["labelled"].astype(bool) | table["target"].notna()
    free = table[~table["object"].isin(table.loc[labelled, "object"])]
    count = min(RESERVED, len(free) // 2 if synthetic else len(free))
    return free.sample(count if count >= LEAST else 0, random_state=seed).sort_index().reset_index(drop=True)


# -- scores ------------------------------------------------------------------------------------------------------------


def out_of_fold(
    networks: list[Network], images: np.ndarray, folds: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Let each network score the objects that it was not trained on.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    folds : ndarray of int, shape (n,)
        Of each image, 0 to ``len(networks) - 1``.

    Returns
    -------
    scores, answers : ndarray of float32, shape (1, n, targets) and (1, n, answers)
        As `galscan.classify.scoring.member_outputs`, of one network each.
    """
    from galscan.classify.scoring import member_outputs

    scores = np.empty((1, len(images), networks[0].targets), np.float32)
    answers = np.empty((1, len(images), networks[0].answers), np.float32)
    for k, network in enumerate(networks):
        rows = np.flatnonzero(folds == k)
        for out, found in zip((scores, answers), member_outputs([network], images[rows], device), strict=True):
            out[0, rows] = found[0]
    return scores, answers


class Scatter(NamedTuple):
    """How one network scatters about the mean of all, by that mean."""

    score: np.ndarray
    """Mean score in each bin, rising, shape (bins,)."""
    variance: np.ndarray
    """Sample variance of the networks' scores of one object, mean over the bin."""
    members: int
    objects: int

    def at(self, scores: np.ndarray) -> np.ndarray:
        """Return the variance at some scores; beyond the first and last bin it is theirs."""
        return np.interp(scores, self.score, self.variance)


def scatter_of(scores: np.ndarray) -> Scatter | None:
    """Measure the scatter of networks on objects that trained none of them; None where they are fewer than `LEAST`.

    Bins are finer where scores are high, where few objects of a survey are, and its targets.

    Parameters
    ----------
    scores : ndarray, shape (members, n)
    """
    members, n = scores.shape
    if n < LEAST or members < 2:
        return None
    scores = scores.astype(np.float64)
    order = np.argsort(-scores.mean(0), kind="stable")
    edges = [HIGHEST]
    while (after := edges[-1] + max(HIGHEST, min(edges[-1], n // 20))) <= n - HIGHEST:
        edges.append(after)
    bins = np.split(order, edges)[::-1]
    means = np.array([scores[:, rows].mean() for rows in bins])
    variances = np.array([scores[:, rows].var(axis=0, ddof=1).mean() for rows in bins])
    return Scatter(means, variances, members, n)


def correct(
    scores: np.ndarray, kinds: np.ndarray, scatter: Scatter | None
) -> tuple[np.ndarray, dict[Any, float] | None]:
    """Give out-of-fold scores of each kind the distribution of committee scores; their means and their order stay.

    Without a `scatter` nothing is corrected: the kinds then overlap more than they do in the survey, and purity is
    underestimated rather than overestimated.

    Parameters
    ----------
    scores : ndarray, shape (n,)
    kinds : ndarray, shape (n,)
        What each object is, any values.

    Returns
    -------
    scores : ndarray of float64, shape (n,)
    factors : dict, or None
        By which the standard deviation of each kind shrank.
    """
    scores = np.asarray(scores, np.float64)
    if scatter is None:
        return scores, None
    corrected, factors = scores.copy(), {}
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        corrected[rows] = _reversed(scores[rows], scatter)
        before = scores[rows].std()
        factors[kind] = float(corrected[rows].std() / before) if before > 0 else 1.0
    return corrected, factors


def _reversed(scores: np.ndarray, scatter: Scatter) -> np.ndarray:
    """Take the scatter of one network about the mean of all out of the scores of objects of one kind."""
    if len(scores) < 2 or not scores.var() > 0:
        return scores
    mean, first = scores.mean(), scores.var(ddof=1)
    now, order, left = scores.copy(), np.argsort(scores, kind="stable"), 1.0
    # The mean of networks that have nothing in common scatters 1/K as much, and no less.
    least = first / scatter.members
    while left > 0 and (variance := now.var(ddof=1)) > least:
        noise, width = scatter.at(now) * (1 - 1 / scatter.members), 0.25 * now.std()
        slope = (scatter.at(now + width) - scatter.at(now - width)) * (1 - 1 / scatter.members) / (2 * width)
        step = min(left, 1 / STEPS, FARTHEST * 2 * variance / max(noise.max(), 1e-300))
        moved = now + step * (slope - noise * (now - mean) / variance) / 2
        moved[order] = np.maximum.accumulate(moved[order])
        now = mean + (moved - moved.mean())
        left -= step
    if (variance := now.var(ddof=1)) < least:
        now = mean + (now - mean) * np.sqrt(least / variance)
    return now


NAMES = {1.0: "targets", 0.0: "negatives", -1.0: "ambiguous"}


def committee_scores(
    scores: np.ndarray, targets: np.ndarray, unlabelled: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return out-of-fold scores of one target as the committee would give them, and what was done to them.

    Parameters
    ----------
    scores, targets : ndarray, shape (n,)
        Targets are 1, 0, or NaN (ambiguous).
    unlabelled : ndarray, shape (members, m)
        Scores of objects that trained no network.

    Returns
    -------
    scores : ndarray of float64, shape (n,)
    summary : dict
        ``objects`` of which the scatter is known, and ``factors``: by which each kind was shrunk, None if none was.
    """
    scatter = scatter_of(unlabelled)
    corrected, factors = correct(scores, np.nan_to_num(targets, nan=-1.0), scatter)
    named = None if factors is None else {NAMES[float(kind)]: factor for kind, factor in factors.items()}
    return corrected, {"objects": unlabelled.shape[1], "factors": named}


def calibration_set(
    scores: np.ndarray, targets: np.ndarray, factors: Mapping[str, float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, truth (1 or 0) and which are ambiguous of what calibrates: as many as the scores are worth.

    Quantiles of each kind (those of Hazen, at (k - 1/2) / m) keep its distribution. Ambiguous objects and negatives
    remain in proportion, as together they are the objects that are no targets.

    Parameters
    ----------
    scores, targets : ndarray, shape (n,)
        As `committee_scores` gives and takes them.
    factors : mapping of str to float, or None
        As of `committee_scores`; None: all scores as they are.
    """
    kinds = np.nan_to_num(targets, nan=-1.0)
    if factors is None:
        return np.asarray(scores, np.float64), (kinds == 1).astype(int), kinds == -1
    counts = {kind: int((kinds == kind).sum()) for kind in np.unique(kinds)}
    worth = {kind: min(1.0, factors[NAMES[kind]] ** 2) for kind in counts}
    others = [kind for kind in counts if kind != 1]
    if others:
        common = sum(counts[kind] * worth[kind] for kind in others) / sum(counts[kind] for kind in others)
        worth |= dict.fromkeys(others, common)
    parts = {}
    for kind, count in counts.items():
        many = max(1, round(count * worth[kind]))
        parts[kind] = np.quantile(scores[kinds == kind], (np.arange(many) + 0.5) / many, method="hazen")
    kept = np.repeat([*parts], [len(part) for part in parts.values()])
    return np.concatenate([*parts.values()]), (kept == 1).astype(int), kept == -1


def describe(crossfit: Mapping[str, Any] | None) -> str:
    """Return in words how figures and calibration of a cross-fitted model came about."""
    if not crossfit:
        return ""
    text = (
        f"Cross-fitted in {crossfit['folds']} folds: every labelled object trained all networks but one, and that one "
        "gave its out-of-fold score, which calibrates and tests"
    )
    if not crossfit["factors"]:
        return (
            f"{text}. Scores of one network scatter more than the mean of all, by which a survey is scored; this is "
            f"not corrected, as it takes {LEAST} unlabelled objects that train nothing: purity may be underestimated."
        )
    factors = ", ".join(f"{name} {factor:.2f}" for name, factor in crossfit["factors"].items())
    return (
        f"{text}, after its scatter about the mean of its kind was shrunk to that of all networks' mean ({factors}), "
        f"by {crossfit['objects']:,} unlabelled objects. To calibrate, it counts as the square of that factor."
    )
