"""Evaluation of synthetic galaxies: by a classifier trained on real galaxies alone, and by nearest real neighbours.

Every metric of the synthetic galaxies is also computed for *held-out real galaxies*, which the reference classifier
was not trained on. Both sets are compared with the training galaxies. Only the difference between the two sets is
meaningful, not the value of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from scipy.stats import beta

from galscan.labels.rules import parse_rule
from galscan.labels.schema import Schema
from galscan.labels.settings import LabelRules
from galscan.models.network import Network, to_unit
from galscan.models.votes import expected_fractions, groups_of
from galscan.synthesis import similarity
from galscan.synthesis.features.comparison import identical_images
from galscan.synthesis.galaxies import measure
from galscan.synthesis.neighbours import luminance, nearest, spacing
from galscan.synthesis.synthetic_set import GENERATED, HOST, INJECTED, SyntheticSet

COPY = "copy"
UNLIKE = "unlike any galaxy"
OTHER_CLASS = "not the class"
POSITIVE = "looks positive"
CONTRADICTION = 0.4  # largest difference between requested and predicted answer, as a fraction of its range
MOST_NEGATIVES = 4000  # held-out real negatives, at most
CLASSES = {"positive": 1, "negative": 0}


class Prediction(NamedTuple):
    """Output of the classifier: features (n, d) float32, answers in their units (n rows), and target logits (n,)."""

    features: np.ndarray
    answers: pd.DataFrame
    logit: np.ndarray


class ReferenceClassifier:
    """A network that was trained on real galaxies only; `answers` are the outputs of its morphology head, in order."""

    def __init__(self, network: Network, answers: Sequence[str], schema: Schema, device: torch.device):
        self.network, self.answers, self.device = network.to(device).eval(), list(answers), device
        self.groups = groups_of(self.answers, schema)
        ranges = np.array([schema.ranges[a] for a in self.answers], np.float32).reshape(-1, 2)
        self.low, self.high = ranges.T

    @torch.inference_mode()
    def predict(self, images: np.ndarray) -> Prediction:
        """Compute features, answers and target logits of images (n, S, S, 3) uint8."""
        batches = []
        for start in range(0, len(images), 256):
            pixels = torch.from_numpy(images[start : start + 256]).to(self.device)
            x = self.network.features(to_unit(pixels))
            outputs = x, expected_fractions(self.network.morphology(x), self.groups), self.network.target(x)
            batches.append([v.float().cpu() for v in outputs])
        features, fractions, logit = (torch.cat(column).numpy() for column in zip(*batches, strict=True))
        values = self.low + fractions * (self.high - self.low)
        return Prediction(features, pd.DataFrame(values, columns=self.answers), logit[:, 0])


class Comparison(NamedTuple):
    """Galaxies compared with the training galaxies.

    Distances are in units of the 1st percentile of the nearest-neighbour distances among training galaxies.
    """

    prediction: Prediction
    features: np.ndarray  # standardised, (n, d)
    measured: np.ndarray  # `galscan.synthesis.galaxies.measure`, (n, 4)
    pixel_distance: np.ndarray  # to the nearest training image, (n,)
    neighbour: np.ndarray  # row of that image, (n,)
    feature_distance: np.ndarray  # to the nearest training galaxy in feature space, (n,)


class ReferenceSet:
    """The real training galaxies with which other galaxies are compared."""

    def __init__(self, images: np.ndarray, classifier: ReferenceClassifier):
        self.classifier = classifier
        self.maps = luminance(images)
        raw = classifier.predict(images).features
        self.mean, spread = raw.mean(0), raw.std(0)
        self.spread = np.maximum(spread, 0.1 * spread.mean() + 1e-6)  # limits the weight of features that hardly vary
        self.features = self._standardised(raw)
        self.brightness = np.percentile(measure(images)[:, 0], [0.1, 99.9])
        spaces = (self.maps, torch.from_numpy(self.features))
        between = [spacing(space, device=classifier.device) for space in spaces]
        between = [d[d > 0.01 * np.median(d)] for d in between]  # duplicates of one galaxy do not count
        self.p1 = [float(np.percentile(d, 1)) for d in between]
        self.farthest = float(np.percentile(between[1], 99.5)) / self.p1[1]

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return ((features - self.mean) / self.spread).astype(np.float32)

    def compare(self, images: np.ndarray) -> Comparison:
        """Compare images (n, S, S, 3) uint8, none of them of a training galaxy, with the reference set."""
        prediction, device = self.classifier.predict(images), self.classifier.device
        features = self._standardised(prediction.features)
        pixel_distance, neighbour = nearest(luminance(images), self.maps, device=device)
        feature_distance, _ = nearest(torch.from_numpy(features), torch.from_numpy(self.features), device=device)
        return Comparison(
            prediction, features, measure(images), pixel_distance / self.p1[0], neighbour, feature_distance / self.p1[1]
        )


def filter_synthetic(
    synthetic: SyntheticSet, real_images: np.ndarray, classifier: ReferenceClassifier, rules: LabelRules, schema: Schema
) -> pd.DataFrame:
    """Find the synthetic galaxies to drop before training, each with the reason.

    - "copy": nearer to a training image than the 1st percentile of nearest-neighbour distances of real galaxies.
    - "unlike any galaxy": farther from all real galaxies, in the classifier's features, than the 99.5th percentile of
      those distances; or outside the central 99.8 % of their brightness.
    - "not the class": a positive whose predicted answer differs from the value set by ``synthetic.set`` by more than
      0.4 of the answer's range.
    - "looks positive": a negative whose predicted answers satisfy the positive rule.

    A galaxy with an injected feature is a copy of its host by construction, and its class is known: it is dropped only
    if it is "unlike any galaxy".

    `real_images` are the training galaxies. The table has one row per synthetic galaxy, and the columns kept (bool) and
    reason (text, empty if kept).
    """
    reference_set = ReferenceSet(real_images, classifier)
    return _filter(synthetic, reference_set.compare(synthetic.images), reference_set, rules, schema)


def _filter(
    galaxies: SyntheticSet, comparison: Comparison, reference_set: ReferenceSet, rules: LabelRules, schema: Schema
) -> pd.DataFrame:
    positive, generated = galaxies.target == 1, galaxies.origin == GENERATED
    faintest, brightest = reference_set.brightness
    brightness, answers = comparison.measured[:, 0], comparison.prediction.answers
    contradicted = np.zeros(len(galaxies), bool)
    for answer in rules.synthetic.set.keys() & set(answers):
        low, high = schema.ranges[answer]
        difference = np.abs(galaxies.labels[answer].to_numpy() - answers[answer].to_numpy())
        contradicted |= difference > CONTRADICTION * (high - low)
    satisfied = _satisfied(answers, rules, schema)
    tests = {
        COPY: generated & (comparison.pixel_distance < 1),
        UNLIKE: (comparison.feature_distance > reference_set.farthest)
        | (brightness < faintest)
        | (brightness > brightest),
        OTHER_CLASS: generated & positive & contradicted,
        POSITIVE: generated & ~positive & (satisfied if satisfied is not None else False),
    }
    reason = np.select(list(tests.values()), list(tests), "")
    return pd.DataFrame({"kept": reason == "", "reason": reason})


def _satisfied(answers: pd.DataFrame, rules: LabelRules, schema: Schema) -> np.ndarray | None:
    """Return where `answers` satisfy the positive rule; None if the classifier does not predict all of its answers."""
    rule = parse_rule(rules.positive, schema.names)
    if not set(rule.names) <= set(answers):
        return None
    return rule.evaluate({name: answers[name].to_numpy() for name in rule.names})[0]


def evaluate(
    synthetic_set: SyntheticSet,
    real_images: np.ndarray,
    real_labels: pd.DataFrame,
    real_target: np.ndarray,
    classifier: ReferenceClassifier,
    rules: LabelRules,
    schema: Schema,
    *,
    reference: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Evaluate synthetic galaxies and, in the same way, held-out real galaxies.

    Parameters
    ----------
    synthetic_set : SyntheticSet
        A synthetic training set. Only its synthetic galaxies (`SyntheticSet.synthetic`) are evaluated. Of the real
        ones, hosts are used for comparison and mined negatives are ignored.
    real_images : ndarray of uint8, shape (n, S, S, 3)
    real_labels : DataFrame, n rows
        All answers of the schema; NaN = not asked.
    real_target : ndarray, shape (n,)
        1, 0 or NaN.
    reference : ndarray of int
        Held-out rows: real galaxies that neither the reference classifier nor the generator was trained on. Those
        without a target are ignored; of more than 4,000 negatives, 4,000 are chosen at random. All other rows are the
        training galaxies.

    Returns
    -------
    dict
        JSON-able; None where there are too few galaxies. A *fraction* is a mapping ``n``, ``count``,
        ``fraction``, ``low`` and ``high`` (95 % interval, Jeffreys).

        - ``counts``: ``positive`` and ``negative`` of ``synthetic``, ``real`` (held out) and ``training`` (with
          ``all``); ``origin``, the synthetic ones by origin, ``generated`` (whole images) and ``injected``; ``hosts``:
          ``all``, and how many of these the reference classifier was ``trained_on`` as labelled galaxies.
        - ``acceptance``: fractions of positives that the reference classifier accepts: ``synthetic``, ``real``, and
          ``hosts`` (unmodified, so they should be rejected), each ``at_zero`` (logit above 0) and ``at_median``
          (logit at least ``median_logit``, the median of the real positives).
        - ``fidelity``, ``diversity`` (`galscan.synthesis.similarity.compare`) and ``light``
          (`galscan.synthesis.similarity.light`) by class, for ``synthetic`` and ``real``.
        - ``adherence``: ``synthetic_positive`` and so on, the fractions whose predicted answers and target score agree
          with the class; ``answers``, the correlation of condition and prediction.
        - ``copies``: of whole generated images, by ``pixels`` and by ``features``. A galaxy with an injected feature is
          a copy of its host by construction; for these, maps are compared when they are sampled
          (`galscan.synthesis.diffusion.maps.copies`).
        - ``filter``: numbers that `filter_synthetic` would drop, by reason.
        - ``each``: lists with one entry for each synthetic galaxy: its ``row`` in `synthetic_set`, the ``reason``
          (empty if kept), the row of the ``nearest`` training image, and the ``distance`` from it in units of the 1st
          percentile of real distances.
    """
    train = np.setdiff1d(np.arange(len(real_images)), reference)
    held = _thinned(reference[np.isfinite(real_target[reference])], real_target, seed)
    reference_set = ReferenceSet(real_images[train], classifier)
    real = SyntheticSet.of_origin(real_images[held], real_labels.iloc[held].reset_index(drop=True), real_target[held])
    synthetic = synthetic_set.select(synthetic_set.synthetic)
    hosts = synthetic_set.images[synthetic_set.origin == HOST]
    sets = {"synthetic": synthetic, "real": real}
    comparisons = {name: reference_set.compare(galaxies.images) for name, galaxies in sets.items()}
    filtered = {name: _filter(sets[name], comparisons[name], reference_set, rules, schema) for name in sets}

    random = np.random.default_rng(seed)
    axes = similarity.principal_axes(reference_set.features)
    compared: dict[str, Any] = {}
    for name, value in CLASSES.items():
        training = reference_set.features[real_target[train] == value]
        samples = {group: comparisons[group].features[sets[group].target == value] for group in sets}
        compared[name] = similarity.compare(training, samples, axes, random)
    train_of = {name: train[real_target[train] == value] for name, value in CLASSES.items()}
    base = parse_rule(rules.synthetic.base, schema.names).evaluate(
        {a: real_labels[a].to_numpy() for a in schema.names}
    )[0]
    labelled = train[real_labels.iloc[train].notna().any(axis=1)]
    generated = {group: galaxies.origin == GENERATED for group, galaxies in sets.items()}
    logits = {group: comparisons[group].prediction.logit[sets[group].target == 1] for group in sets}
    return {
        "counts": {
            group: {name: int((galaxies.target == value).sum()) for name, value in CLASSES.items()}
            for group, galaxies in sets.items()
        } | {
            "training": {"all": len(train)} | {name: len(rows) for name, rows in train_of.items()},
            "origin": {
                "generated": int((synthetic.origin == GENERATED).sum()),
                "injected": int((synthetic.origin == INJECTED).sum()),
            },
            "hosts": {
                "all": len(hosts), "trained_on": int((identical_images(hosts, real_images[labelled]) >= 0).sum()),
            },
        },
        "acceptance": _acceptance(logits | {"hosts": classifier.predict(hosts).logit if len(hosts) else np.empty(0)}),
        "fidelity": {name: _select(entry, ("n", "kid", "kid_std", "fid")) for name, entry in compared.items()}
        | {"dimensions": {"kid": reference_set.features.shape[1], "fid": axes.shape[1]}},
        "diversity": {name: _select(entry, ("n", "density", "coverage")) for name, entry in compared.items()},
        "adherence": _adherence(sets, comparisons, rules, schema),
        "copies": {
            "pixels": _copies(
                reference_set.p1[0], {group: comparisons[group].pixel_distance[generated[group]] for group in sets}
            ),
            "features": _copies(
                reference_set.p1[1], {group: comparisons[group].feature_distance[generated[group]] for group in sets}
            ),
        },
        "light": {
            name: similarity.light(
                real_images[rows],
                {w: sets[w].images[sets[w].target == CLASSES[name]] for w in sets}
                | ({"start": real_images[train][base[train]]} if name == "positive" else {}),
            )
            for name, rows in train_of.items()
        },
        "filter": {
            group: {
                "n": len(frame), "kept": int(frame["kept"].sum()),
                "dropped": {r: int((frame["reason"] == r).sum()) for r in (COPY, UNLIKE, OTHER_CLASS, POSITIVE)},
            } for group, frame in filtered.items()
        },
        "each": {
            "row": np.flatnonzero(synthetic_set.synthetic).tolist(),
            "reason": filtered["synthetic"]["reason"].tolist(),
            "nearest": train[comparisons["synthetic"].neighbour].tolist(),
            "distance": comparisons["synthetic"].pixel_distance.tolist(),
        },
    }  # fmt: skip


def _thinned(held: np.ndarray, target: np.ndarray, seed: int) -> np.ndarray:
    """Return all held-out positives and at most `MOST_NEGATIVES` negatives, which bounds the pairwise comparisons."""
    positive, negative = held[target[held] == 1], held[target[held] == 0]
    sample = np.random.default_rng([seed, 1]).permutation(negative)[:MOST_NEGATIVES]
    return np.sort(np.concatenate([positive, sample]))


def _acceptance(logits: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the fraction of each set that is accepted at logit 0, and at the median logit of the real positives.

    With a dozen real positives every threshold is uncertain. Their median does not depend on the calibration of the
    classifier.
    """
    median = float(np.median(logits["real"])) if len(logits["real"]) else np.inf
    return {"median_logit": median if np.isfinite(median) else None} | {
        group: {"at_zero": _fraction(of > 0), "at_median": _fraction(of >= median)} for group, of in logits.items()
    }


def _select(compared: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {group: {key: entry[key] for key in keys} for group, entry in compared.items()}


def _fraction(mask: np.ndarray) -> dict[str, Any]:
    """Return a fraction with its 95 % interval (Jeffreys)."""
    n, hits = len(mask), int(mask.sum())
    if not n:
        return {"n": 0, "count": 0, "fraction": None, "low": None, "high": None}
    low, high = beta.ppf([0.025, 0.975], hits + 0.5, n - hits + 0.5)
    return {"n": n, "count": hits, "fraction": hits / n, "low": float(low), "high": float(high)}


def _adherence(
    sets: dict[str, SyntheticSet], comparisons: dict[str, Comparison], rules: LabelRules, schema: Schema
) -> dict[str, Any]:
    """Return the fractions that show the class they were made for, and how well each answer matches its condition."""
    out: dict[str, Any] = {"answers": {}}
    for group, galaxies in sets.items():
        satisfied = _satisfied(comparisons[group].prediction.answers, rules, schema)
        logit = comparisons[group].prediction.logit
        for name, value in CLASSES.items():
            rows = galaxies.target == value
            probability = expit(logit[rows].astype(np.float64))
            out[f"{group}_{name}"] = {
                "in_class_by_answers": None if satisfied is None else _fraction(satisfied[rows]),
                "in_class_by_target": _fraction(logit[rows] > 0),
                "probability": float(probability.mean()) if rows.any() else None,
            }
        predicted_answers = comparisons[group].prediction.answers
        for answer in predicted_answers:
            condition, predicted = galaxies.labels[answer].to_numpy(), predicted_answers[answer].to_numpy()
            known = np.isfinite(condition)
            condition, predicted = condition[known].astype(np.float64), predicted[known].astype(np.float64)
            varied = len(condition) > 2 and condition.std() > 0 and predicted.std() > 0
            out["answers"].setdefault(answer, {})[group] = {
                "n": len(condition),
                "correlation": float(np.corrcoef(condition, predicted)[0, 1]) if varied else None,
                "difference": float(np.abs(condition - predicted).mean()) if len(condition) else None,
            }
    return out


def _copies(p1: float, ratios: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return how many are nearer to a training galaxy than the 1st percentile of distances among these."""
    return {"p1": p1} | {
        group: {
            "below_p1": _fraction(ratio < 1),
            "min_ratio": float(ratio.min()) if len(ratio) else None,
            "median_ratio": float(np.median(ratio)) if len(ratio) else None,
        }
        for group, ratio in ratios.items()
    }
