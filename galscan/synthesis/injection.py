"""Inject features into real galaxies: hosts chosen by the recipe's rule, maps from the prior or the diffusion model.

Hosts are galaxies of the training split, or unlabelled ones; the caller sees to that. What cannot be measured is no
host, and is counted; a feature that cannot be seen is left out. Flux is changed, not pixels (`galscan.synthesis.flux`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.core.progress import track
from galscan.labels.rules import parse_rule
from galscan.labels.settings import InjectRule, LabelRules, SyntheticSettings
from galscan.synthesis.features.base import find_feature
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts, measure_hosts
from galscan.synthesis.synthetic_set import HOST, INJECTED, MINED, SyntheticSet

SEEING = 1.3  # arcsec, full width at half maximum: the median of SDSS in r, where a store does not say
DEEPENED, DEEPER = 3, 1.5  # how often, and by how much, a feature is made deeper that shows less than was asked
ROUNDS = 4  # in which as many galaxies are made as were asked for, until as many are kept
BATCH = 256
MAX_HOSTS = 2000  # of one rule: more add no variety
Maps = Callable[[int, np.random.Generator], np.ndarray]
"""Draws as many maps as asked for: `galscan.synthesis.diffusion.maps.map_source`."""


@dataclass(frozen=True)
class Candidates:
    """Real galaxies that may be hosts, negatives, or show a feature to be measured: none is held out.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    labels : DataFrame, n rows
        All answers of the schema, NaN = not asked; all NaN for an unlabelled galaxy.
    predicted : DataFrame, n rows
        What a network trained on real galaxies predicts of the answers it knows, in their units; empty without one.
    logit : ndarray, shape (n,)
        Its score of the target; NaN without one.
    survey : ndarray of int, shape (n,)
        Index of the store each is from.
    frame : ndarray, shape (n,)
        Arcsec on a side; NaN = unknown.
    stretches : sequence of Stretch
        Of each store.
    bands : sequence of str
        Bands of red, green and blue of each store.
    """

    images: np.ndarray
    labels: pd.DataFrame
    predicted: pd.DataFrame
    logit: np.ndarray
    survey: np.ndarray
    frame: np.ndarray
    stretches: Sequence[Stretch]
    bands: Sequence[str]
    _hosts: dict[int, tuple[float, ...]] = field(default_factory=dict, repr=False)

    @property
    def labelled(self) -> np.ndarray:
        """Which carry any label, bool, shape (n,)."""
        return self.labels.notna().any(axis=1).to_numpy()

    def satisfying(self, rule: str, predicted: str = "") -> np.ndarray:
        """Return the rows whose labels satisfy `rule`, and unlabelled ones whose predictions satisfy `predicted`."""
        columns = list(self.labels.columns)
        found = parse_rule(rule, columns).evaluate({name: self.labels[name].to_numpy() for name in columns})[0]
        if predicted:
            parsed = parse_rule(predicted, columns)
            if set(parsed.names) <= set(self.predicted.columns):
                answers = {name: self.predicted[name].to_numpy() for name in parsed.names}
                found = found | (parsed.evaluate(answers)[0] & ~self.labelled)
        return np.flatnonzero(found)

    def hosts(self, rows: np.ndarray) -> Hosts:
        """Measure the geometry of some galaxies, each once."""
        new = [int(row) for row in np.unique(rows) if int(row) not in self._hosts]
        for first in range(0, len(new), BATCH):
            some = new[first : first + BATCH]
            measured = measure_hosts(self.images[some])
            self._hosts.update(zip(some, zip(*measured, strict=True), strict=True))
        columns = np.array([self._hosts[int(row)] for row in rows], float).reshape(len(rows), 5)
        return Hosts(*columns.T)

    def seeing(self, rows: np.ndarray) -> np.ndarray:
        """Return the standard deviation of the point spread function in pixels, 1 where the scale is unknown."""
        scale = self.frame[rows] / self.images.shape[1]
        return np.where(np.isfinite(scale) & (scale > 0), SEEING / 2.3548 / np.where(scale > 0, scale, 1), 1.0)


def injected_set(
    candidates: Candidates, rules: LabelRules, settings: SyntheticSettings, sources: dict[str, Maps], *, seed: int
) -> tuple[SyntheticSet, dict[str, Any]]:
    """Inject targets and hard negatives, with their hosts as they are, and add mined negatives.

    Parameters
    ----------
    sources : mapping of str to callable
        How maps of each feature are drawn.

    Returns
    -------
    synthetic : Dreams
    counts : dict
        ``hosts`` and ``hosts_unlabelled`` of the targets, ``hosts_not_measured`` (skipped), ``invisible`` (left out),
        ``injected``, ``too_faint`` for the positive rule (negatives), ``injected_negatives``, ``mined``.

    Raises
    ------
    InputError
        If the rules inject nothing, or no host is left.
    """
    if rules.inject is None:
        raise InputError("the recipe has no 'inject' rule for these labels")
    counts: dict[str, Any] = {"hosts_not_measured": 0, "invisible": 0, "too_faint": 0}
    tasks = [(rules.inject, 1.0, settings.injected)]
    negatives = rules.inject_negatives
    each = settings.injected // 4 // max(len(negatives), 1)
    tasks += [(rule, 0.0, each) for rule in negatives if each]
    parts = []
    with track("inject features", sum(count for *_, count in tasks), "galaxy") as advance:
        for number, (rule, value, count) in enumerate(tasks):
            random = np.random.default_rng([seed, 17, number])
            rows = _host_rows(candidates, rule, counts, random, positive=value == 1)
            if not len(rows):
                if value == 1:
                    raise InputError(
                        f"no training galaxy satisfies 'inject.hosts' ({' '.join(rule.hosts.split())}) and can be "
                        "measured: loosen the rule, add a store with --store, or pass --no-synthetic"
                    )
                continue
            if value == 1:
                counts |= {"hosts": len(rows), "hosts_unlabelled": int((~candidates.labelled[rows]).sum())}
            parts.append(_inject(candidates, rules, rule, rows, value, count, sources, random, counts, advance))
    counts["injected"] = int(((parts[0].origin == INJECTED) & (parts[0].target == 1)).sum())
    counts["too_faint"] = int(((parts[0].origin == INJECTED) & (parts[0].target == 0)).sum())
    counts["injected_negatives"] = int(sum((p.origin == INJECTED).sum() for p in parts[1:]))
    mined = mined_rows(candidates, rules.mined_negatives, settings.mined)
    counts["mined"] = len(mined)
    nothing = pd.DataFrame(np.nan, index=range(len(mined)), columns=candidates.labels.columns, dtype=np.float32)
    parts.append(SyntheticSet.of_origin(candidates.images[mined], nothing, np.zeros(len(mined), np.float32), MINED))
    return SyntheticSet.joined(parts), counts


def mined_rows(candidates: Candidates, rule: str, count: int) -> np.ndarray:
    """Return the unlabelled galaxies whose predicted answers satisfy `rule`, highest scores first, at most `count`."""
    if not rule or not count or candidates.predicted.empty:
        return np.empty(0, int)
    rows = candidates.satisfying(rule, rule)
    rows = rows[~candidates.labelled[rows]]
    return rows[np.argsort(-candidates.logit[rows], kind="stable")][:count]


def _host_rows(
    candidates: Candidates, rule: InjectRule, counts: dict[str, Any], random: np.random.Generator, *, positive: bool
) -> np.ndarray:
    """Return the rows that satisfy the rule and can be measured; of unlabelled ones, none that may be a target."""
    rows = candidates.satisfying(rule.hosts, rule.unlabelled_hosts or rule.hosts)
    if positive:
        unlabelled = ~candidates.labelled[rows]
        # A survey's rare targets score high: the upper tenth of the unlabelled ones is not taken for clean.
        scores = candidates.logit[rows]
        suspect = unlabelled & (scores > np.quantile(scores[unlabelled], 0.9)) if unlabelled.any() else unlabelled
        rows = rows[~suspect]
    if len(rows) > MAX_HOSTS:
        rows = np.sort(random.choice(rows, MAX_HOSTS, replace=False))
    measured = candidates.hosts(rows).measured
    counts["hosts_not_measured"] += int((~measured).sum())
    return rows[measured]


def _inject(
    candidates: Candidates,
    rules: LabelRules,
    rule: InjectRule,
    rows: np.ndarray,
    value: float,
    count: int,
    sources: dict[str, Maps],
    random: np.random.Generator,
    counts: dict[str, Any],
    advance: Callable[..., None],
) -> SyntheticSet:
    """Inject until `count` targets are made, or negatives where the `value` is 0.

    A feature that can be seen, but is too faint for the positive rule, makes a negative: a network that learns from
    plain ones alone ranks every hint of one as high. Of these there are at most a quarter of `count`.
    """
    parts: list[SyntheticSet] = []
    used: list[np.ndarray] = []
    left, faint = count, count // 4
    for _ in range(ROUNDS):
        below = np.sort(random.choice(rows, count))
        made, below = _inject_once(candidates, rules, rule, below, value, sources, random, counts)
        order = random.permutation(len(made))
        wanted, others = order[made.target[order] == value][:left], order[made.target[order] != value][:faint]
        some = np.sort(np.concatenate([wanted, others]))
        parts.append(made.select(some))
        used.append(below[some])
        left, faint = left - len(wanted), faint - len(others)
        advance(len(wanted))
        if not left:
            break
    made, below = SyntheticSet.joined(parts), np.concatenate(used)
    if value != 1:
        return made
    hosts, host = np.unique(below, return_inverse=True)
    untouched = SyntheticSet.of_origin(
        candidates.images[hosts], candidates.labels.iloc[hosts], np.zeros(len(hosts), np.float32), HOST
    )
    joined = SyntheticSet.joined([made, untouched])
    joined.host[: len(made)] = len(made) + host
    return joined


def _inject_once(
    candidates: Candidates,
    rules: LabelRules,
    rule: InjectRule,
    below: np.ndarray,
    value: float,
    sources: dict[str, Maps],
    random: np.random.Generator,
    counts: dict[str, Any],
) -> tuple[SyntheticSet, np.ndarray]:
    """Inject into each of the hosts `below`; return what is kept, and the hosts of that."""
    feature, n = find_feature(rule.feature), len(below)
    images = np.empty((n, *candidates.images.shape[1:]), np.uint8)
    depth = np.empty(n, np.float32)
    maps = sources[rule.feature](n, random)
    hosts, seeing = candidates.hosts(below), candidates.seeing(below)
    # Targets are to be of every strength: what comes out too faint on its host is deepened.
    asked = feature.LEAST_DEPTH + random.uniform(0, 1, n) * (rule.plain - feature.LEAST_DEPTH)
    rows = np.arange(n)
    for _ in range(DEEPENED + 1):
        for number, (stretch, bands) in enumerate(zip(candidates.stretches, candidates.bands, strict=True)):
            of_store = rows[candidates.survey[below[rows]] == number]
            for first in range(0, len(of_store), BATCH):
                some = of_store[first : first + BATCH]
                images[some], depth[some] = feature.inject(
                    candidates.images[below[some]], hosts.select(some), maps[some], stretch, random, bands=bands,
                    seeing=seeing[some],
                )  # fmt: skip
        rows = rows[depth[rows] < asked[rows]] if value == 1 else rows[:0]
        maps[rows] *= DEEPER
    seen = depth >= feature.LEAST_DEPTH
    counts["invisible"] += int((~seen).sum())
    labels = candidates.labels.iloc[below].reset_index(drop=True)
    strength = ((depth - feature.LEAST_DEPTH) / (rule.plain - feature.LEAST_DEPTH)).clip(0, 1)
    for answer, (faint, plain) in rule.values.items():
        labels[answer] = (faint + strength * (plain - faint)).astype(np.float32)
    target = np.full(n, value, np.float32)
    if value == 1:
        predicted = candidates.predicted.reindex(columns=labels.columns).iloc[below].reset_index(drop=True)
        known = labels.fillna(predicted)
        target[
            parse_rule(rules.positive, list(known)).evaluate({name: known[name].to_numpy() for name in known})[1]
        ] = 0
    rows = np.flatnonzero(seen)
    made = SyntheticSet.of_origin(images[rows], labels.iloc[rows], target[rows], INJECTED)
    made.depth[:] = depth[rows]
    return made, below[rows]
