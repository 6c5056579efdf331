"""Evaluate synthetic galaxies by a classifier trained on real ones alone, and by their nearest real galaxies.

One principle holds throughout: what is computed of the synthetic galaxies is computed in the same way of *held-out real
galaxies*, which the reference classifier was not trained on either. Both are compared with the training galaxies, and
stand side by side; a figure says something by its difference from the one for real galaxies, not by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import beta

from galscan.labels.rules import parse_rule
from galscan.labels.schema import Schema
from galscan.labels.settings import LabelRules
from galscan.models.network import Network, to_unit
from galscan.models.votes import groups_of, shares
from galscan.synthesis import similarity
from galscan.synthesis.features.comparison import same_pictures
from galscan.synthesis.galaxies import measure
from galscan.synthesis.neighbours import luminance, nearest, spacing
from galscan.synthesis.synthetic_set import DRAWN, HOST, INJECTED, SyntheticSet

COPY = "copy"
UNLIKE = "unlike any galaxy"
OTHER_CLASS = "not the class"
POSITIVE = "looks positive"
CONTRADICTION = 0.4  # of an answer's range, between what was asked and what the critic sees
MOST_NEGATIVES = 4000  # held-out real galaxies
CLASSES = {"positive": 1, "negative": 0}


class Prediction(NamedTuple):
    """What the critic sees: features (n, d) float32, answers in their own units (n rows), target logits (n,)."""

    features: np.ndarray
    answers: pd.DataFrame
    logit: np.ndarray


class ReferenceClassifier:
    """The reference classifier: a network trained on real galaxies alone, never on a synthetic one.

    Parameters
    ----------
    network : Network
    answers : sequence of str
        What its morphology head predicts, in order.
    schema : Schema
        Of these answers; gives their units.
    device : torch.device
    """

    def __init__(self, network: Network, answers: Sequence[str], schema: Schema, device: torch.device):
        self.network, self.answers, self.device = network.to(device).eval(), list(answers), device
        self.groups = groups_of(self.answers, schema)
        ranges = np.array([schema.ranges[a] for a in self.answers], np.float32).reshape(-1, 2)
        self.low, self.high = ranges.T

    @torch.inference_mode()
    def look(self, images: np.ndarray) -> Prediction:
        """Look at images (n, S, S, 3) uint8."""
        parts = []
        for start in range(0, len(images), 256):
            pixels = torch.from_numpy(images[start : start + 256]).to(self.device)
            x = self.network.features(to_unit(pixels))
            seen = x, shares(self.network.morphology(x), self.groups), self.network.target(x)
            parts.append([v.float().cpu() for v in seen])
        features, fractions, logit = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        values = self.low + fractions * (self.high - self.low)
        return Prediction(features, pd.DataFrame(values, columns=self.answers), logit[:, 0])


class Comparison(NamedTuple):
    """Galaxies held against the training galaxies; distances in units of the 1st percentile of real ones."""

    look: Prediction
    features: np.ndarray  # standardised, (n, d)
    measured: np.ndarray  # `galscan.synthesis.galaxies.measure`, (n, 4)
    pixels: np.ndarray  # distance to the nearest training picture, (n,)
    neighbour: np.ndarray  # and its row, (n,)
    apart: np.ndarray  # distance to the nearest training galaxy in feature space, (n,)


class ReferenceSet:
    """The real training galaxies that all others are held against."""

    def __init__(self, images: np.ndarray, critic: ReferenceClassifier):
        self.critic = critic
        self.maps = luminance(images)
        raw = critic.look(images).features
        self.mean, spread = raw.mean(0), raw.std(0)
        self.spread = np.maximum(spread, 0.1 * spread.mean() + 1e-6)  # a channel that hardly ever speaks is no ruler
        self.features = self._standardised(raw)
        self.brightness = np.percentile(measure(images)[:, 0], [0.1, 99.9])
        spaces = (self.maps, torch.from_numpy(self.features))
        between = [spacing(space, device=critic.device) for space in spaces]
        between = [d[d > 0.01 * np.median(d)] for d in between]  # a galaxy that is there twice is no pair
        self.p1 = [float(np.percentile(d, 1)) for d in between]
        self.farthest = float(np.percentile(between[1], 99.5)) / self.p1[1]

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        return ((features - self.mean) / self.spread).astype(np.float32)

    def hold(self, images: np.ndarray) -> Comparison:
        """Hold images (n, S, S, 3) uint8, of which none is a training galaxy, against the gallery."""
        look, device = self.critic.look(images), self.critic.device
        features = self._standardised(look.features)
        pixels, neighbour = nearest(luminance(images), self.maps, device=device)
        apart, _ = nearest(torch.from_numpy(features), torch.from_numpy(self.features), device=device)
        return Comparison(look, features, measure(images), pixels / self.p1[0], neighbour, apart / self.p1[1])


def screen(
    dreams: SyntheticSet, real_images: np.ndarray, critic: ReferenceClassifier, rules: LabelRules, schema: Schema
) -> pd.DataFrame:
    """Find the synthetic galaxies that clearly failed, each with the reason.

    - "copy": nearer to a training picture than 1 % of real galaxies are to another one.
    - "unlike any galaxy": farther from all real galaxies, for the critic, than 99.5 % of them are from another
      one; or darker or brighter than 99.8 % of them.
    - "not the class": a positive for which the critic's answer is off what ``synthetic.set`` demanded by more than
      0.4 of the answer's range.
    - "looks positive": a negative for which the critic's answers satisfy the positive rule.

    What was injected into a training galaxy is a copy of all but the feature, and has the class it was made for: it is
    only dropped if it is unlike any galaxy.

    Parameters
    ----------
    real_images : ndarray of uint8, shape (m, S, S, 3)
        Training galaxies.

    Returns
    -------
    DataFrame
        Columns kept (bool) and reason (text, empty if kept); one row a dream.
    """
    gallery = ReferenceSet(real_images, critic)
    return _screen(dreams, gallery.hold(dreams.images), gallery, rules, schema)


def _screen(
    dreams: SyntheticSet, seen: Comparison, gallery: ReferenceSet, rules: LabelRules, schema: Schema
) -> pd.DataFrame:
    positive, drawn = dreams.target == 1, dreams.origin == DRAWN
    dark, bright = gallery.brightness
    brightness, answers = seen.measured[:, 0], seen.look.answers
    contradicted = np.zeros(len(dreams), bool)
    for answer in rules.synthetic.set.keys() & set(answers):
        low, high = schema.ranges[answer]
        off = np.abs(dreams.labels[answer].to_numpy() - answers[answer].to_numpy())
        contradicted |= off > CONTRADICTION * (high - low)
    satisfied = _satisfied(answers, rules, schema)
    tests = {
        COPY: drawn & (seen.pixels < 1),
        UNLIKE: (seen.apart > gallery.farthest) | (brightness < dark) | (brightness > bright),
        OTHER_CLASS: drawn & positive & contradicted,
        POSITIVE: drawn & ~positive & (satisfied if satisfied is not None else False),
    }
    reason = np.select(list(tests.values()), list(tests), "")
    return pd.DataFrame({"kept": reason == "", "reason": reason})


def _satisfied(answers: pd.DataFrame, rules: LabelRules, schema: Schema) -> np.ndarray | None:
    """Return where `answers` satisfy the positive rule; None where the critic does not know all that it names."""
    rule = parse_rule(rules.positive, schema.names)
    if not set(rule.names) <= set(answers):
        return None
    return rule.evaluate({name: answers[name].to_numpy() for name in rule.names})[0]


def evaluate(
    dreams: SyntheticSet,
    real_images: np.ndarray,
    real_labels: pd.DataFrame,
    real_target: np.ndarray,
    critic: ReferenceClassifier,
    rules: LabelRules,
    schema: Schema,
    *,
    reference: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Evaluate synthetic galaxies, and beside them held-out real ones in the same way.

    Parameters
    ----------
    dreams : Dreams
        A synthetic training set. Only what is synthetic in it (`SyntheticSet.synthetic`) is evaluated; hosts serve for
        comparison, and mined negatives are left out: both are real.
    real_images : ndarray of uint8, shape (n, S, S, 3)
    real_labels : DataFrame, n rows
        All answers of the schema; NaN = not asked.
    real_target : ndarray, shape (n,)
        1, 0 or NaN.
    reference : ndarray of int
        Rows of the real galaxies that the reference classifier (and the generator) was not trained on. Those without a
        target are left out, and of more than 4,000 negatives 4,000 are chosen at random; all other rows are the
        training galaxies.

    Returns
    -------
    dict
        For JSON, None where there are too few galaxies to tell. A *fraction* is a mapping ``n``, ``count``,
        ``fraction``, ``low`` and ``high`` (95 % interval, Jeffreys).

        - ``counts``: ``positive`` and ``negative`` of ``synthetic``, ``real`` (held out) and ``training`` (with
          ``all``); ``origin``, the synthetic ones that were ``drawn`` whole and ``injected``; ``hosts``: ``all``, and
          how many of these the reference classifier was ``trained_on`` as labelled galaxies.
        - ``acceptance``: of positives, the fraction that the reference classifier accepts: ``synthetic``, ``real`` and
          ``hosts`` (as they are, which must not be accepted), each ``at_zero`` (its logit above 0) and ``at_median``
          (not below ``median_logit``, the median of the real ones').
        - ``fidelity``, ``diversity`` (`galscan.synthesis.similarity.compare`) and ``light``
          (`galscan.synthesis.similarity.light`) by class, for ``synthetic`` and ``real``.
        - ``adherence``: ``synthetic_positive`` and so on, the fractions whose predicted answers and whose target score
          are those of the class; ``answers``, how condition and prediction correlate.
        - ``copies``: of what was drawn whole, by ``pixels`` and by ``features``. What is injected into a training
          galaxy is a copy of all but the feature; there, maps are compared when they are sampled
          (`galscan.synthesis.diffusion.maps.copies`).
        - ``screen``: what the screening before training would drop, by reason.
        - ``each``: lists with one entry for each synthetic galaxy: its ``row`` in `dreams`, the ``reason`` (empty if
          kept), the row of the ``nearest`` training picture, and the ``distance`` from it in units of the 1st
          percentile of real distances.
    """
    train = np.setdiff1d(np.arange(len(real_images)), reference)
    held = _thinned(reference[np.isfinite(real_target[reference])], real_target, seed)
    gallery = ReferenceSet(real_images[train], critic)
    real = SyntheticSet.of_origin(real_images[held], real_labels.iloc[held].reset_index(drop=True), real_target[held])
    synthetic, hosts = dreams.select(dreams.synthetic), dreams.images[dreams.origin == HOST]
    sets = {"synthetic": synthetic, "real": real}
    seen = {name: gallery.hold(galaxies.images) for name, galaxies in sets.items()}
    screened = {name: _screen(sets[name], seen[name], gallery, rules, schema) for name in sets}

    random = np.random.default_rng(seed)
    axes = similarity.principal_axes(gallery.features)
    compared: dict[str, Any] = {}
    for name, value in CLASSES.items():
        examples = gallery.features[real_target[train] == value]
        others = {which: seen[which].features[sets[which].target == value] for which in sets}
        compared[name] = similarity.compare(examples, others, axes, random)
    train_of = {name: train[real_target[train] == value] for name, value in CLASSES.items()}
    base = parse_rule(rules.synthetic.base, schema.names).evaluate(
        {a: real_labels[a].to_numpy() for a in schema.names}
    )[0]
    labelled = train[real_labels.iloc[train].notna().any(axis=1)]
    drawn = {which: galaxies.origin == DRAWN for which, galaxies in sets.items()}
    logits = {which: seen[which].look.logit[sets[which].target == 1] for which in sets}
    return {
        "counts": {
            which: {name: int((galaxies.target == value).sum()) for name, value in CLASSES.items()}
            for which, galaxies in sets.items()
        } | {
            "training": {"all": len(train)} | {name: len(rows) for name, rows in train_of.items()},
            "origin": {
                "drawn": int((synthetic.origin == DRAWN).sum()), "injected": int((synthetic.origin == INJECTED).sum()),
            },
            "hosts": {
                "all": len(hosts), "trained_on": int((same_pictures(hosts, real_images[labelled]) >= 0).sum()),
            },
        },
        "acceptance": _acceptance(logits | {"hosts": critic.look(hosts).logit if len(hosts) else np.empty(0)}),
        "fidelity": {name: _part(entry, ("n", "kid", "kid_std", "fid")) for name, entry in compared.items()}
        | {"dimensions": {"kid": gallery.features.shape[1], "fid": axes.shape[1]}},
        "diversity": {name: _part(entry, ("n", "density", "coverage")) for name, entry in compared.items()},
        "adherence": _adherence(sets, seen, rules, schema),
        "copies": {
            "pixels": _copies(gallery.p1[0], {which: seen[which].pixels[drawn[which]] for which in sets}),
            "features": _copies(gallery.p1[1], {which: seen[which].apart[drawn[which]] for which in sets}),
        },
        "light": {
            name: similarity.light(
                real_images[rows],
                {w: sets[w].images[sets[w].target == CLASSES[name]] for w in sets}
                | ({"start": real_images[train][base[train]]} if name == "positive" else {}),
            )
            for name, rows in train_of.items()
        },
        "screen": {
            which: {
                "n": len(frame), "kept": int(frame["kept"].sum()),
                "dropped": {r: int((frame["reason"] == r).sum()) for r in (COPY, UNLIKE, OTHER_CLASS, POSITIVE)},
            } for which, frame in screened.items()
        },
        "each": {
            "row": np.flatnonzero(dreams.synthetic).tolist(),
            "reason": screened["synthetic"]["reason"].tolist(),
            "nearest": train[seen["synthetic"].neighbour].tolist(),
            "distance": seen["synthetic"].pixels.tolist(),
        },
    }  # fmt: skip


def _thinned(held: np.ndarray, target: np.ndarray, seed: int) -> np.ndarray:
    """Return all held-out positives and at most `MOST_NEGATIVES` negatives: each is held against all training ones."""
    positive, negative = held[target[held] == 1], held[target[held] == 0]
    some = np.random.default_rng([seed, 1]).permutation(negative)[:MOST_NEGATIVES]
    return np.sort(np.concatenate([positive, some]))


def _acceptance(logits: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what fraction of each set is accepted at logit 0, and at the median logit of the real ones.

    With a dozen real positives hardly any threshold is certain; their own median splits them evenly, whatever the
    classifier's calibration is.
    """
    median = float(np.median(logits["real"])) if len(logits["real"]) else np.inf
    return {"median_logit": median if np.isfinite(median) else None} | {
        which: {"at_zero": _fraction(of > 0), "at_median": _fraction(of >= median)} for which, of in logits.items()
    }


def _part(compared: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {which: {key: entry[key] for key in keys} for which, entry in compared.items()}


def _fraction(mask: np.ndarray) -> dict[str, Any]:
    """Return a fraction with its 95 % interval (Jeffreys)."""
    n, hits = len(mask), int(mask.sum())
    if not n:
        return {"n": 0, "count": 0, "fraction": None, "low": None, "high": None}
    low, high = beta.ppf([0.025, 0.975], hits + 0.5, n - hits + 0.5)
    return {"n": n, "count": hits, "fraction": hits / n, "low": float(low), "high": float(high)}


def _adherence(
    sets: dict[str, SyntheticSet], seen: dict[str, Comparison], rules: LabelRules, schema: Schema
) -> dict[str, Any]:
    """Tell how many are what they were asked to be, and how well each answer was followed."""
    out: dict[str, Any] = {"answers": {}}
    for which, galaxies in sets.items():
        satisfied = _satisfied(seen[which].look.answers, rules, schema)
        logit = seen[which].look.logit
        for name, value in CLASSES.items():
            rows = galaxies.target == value
            probability = 1 / (1 + np.exp(-logit[rows].astype(np.float64)))
            out[f"{which}_{name}"] = {
                "in_class_by_answers": None if satisfied is None else _fraction(satisfied[rows]),
                "in_class_by_target": _fraction(logit[rows] > 0),
                "probability": float(probability.mean()) if rows.any() else None,
            }
        for answer in seen[which].look.answers:
            asked, found = galaxies.labels[answer].to_numpy(), seen[which].look.answers[answer].to_numpy()
            known = np.isfinite(asked)
            asked, found = asked[known].astype(np.float64), found[known].astype(np.float64)
            varied = len(asked) > 2 and asked.std() > 0 and found.std() > 0
            out["answers"].setdefault(answer, {})[which] = {
                "n": len(asked),
                "correlation": float(np.corrcoef(asked, found)[0, 1]) if varied else None,
                "difference": float(np.abs(asked - found).mean()) if len(asked) else None,
            }
    return out


def _copies(p1: float, ratios: dict[str, np.ndarray]) -> dict[str, Any]:
    """Tell how many are nearer to a training galaxy than 1 % of these are to each other."""
    return {"p1": p1} | {
        which: {
            "below_p1": _fraction(ratio < 1),
            "min_ratio": float(ratio.min()) if len(ratio) else None,
            "median_ratio": float(np.median(ratio)) if len(ratio) else None,
        }
        for which, ratio in ratios.items()
    }
