"""Injection of features into real galaxies: hosts selected by the recipe's rule, maps from prior or diffusion model.

The caller passes only galaxies of the training split, or unlabelled ones. Galaxies whose geometry cannot be measured
are not used as hosts; invisible features are dropped; both are counted. Injection changes flux, not pixel values
(`galscan.synthesis.flux`).
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
from galscan.synthesis.hosts import Donors, Hosts, measure_hosts
from galscan.synthesis.synthetic_set import HOST, INJECTED, MINED, SyntheticSet

SEEING = 1.3  # arcsec, full width at half maximum: the median of SDSS in r, used for all stores
DEEPENED, DEEPER = 3, 1.5  # number of attempts, and factor, to deepen a feature that is shallower than requested
ROUNDS = 4  # of injection, at most, until the requested number of galaxies is kept
BATCH = 256
MAX_HOSTS = 2000  # of one rule; more add no variety
LEAST_DONORS = 5  # galaxies of a store whose light is added to others
Maps = Callable[[int, np.random.Generator], np.ndarray]
"""Samples the requested number of maps: `galscan.synthesis.diffusion.maps.map_source`."""


@dataclass(frozen=True)
class Candidates:
    """Real galaxies available as hosts, as negatives, or to measure a feature on; none is held out."""

    images: np.ndarray  # uint8, (n, S, S, 3)
    labels: pd.DataFrame  # all answers of the schema, NaN = not asked; all NaN for an unlabelled galaxy
    predicted: pd.DataFrame
    """Answers predicted by a network trained on real galaxies, in their units; no columns without a network."""
    logit: np.ndarray  # target logit of that network, (n,); NaN without a network
    survey: np.ndarray  # index of the store of each galaxy, int, (n,)
    frame: np.ndarray  # side of the cutout in arcsec, (n,); NaN = unknown
    stretches: Sequence[Stretch]  # of each store
    bands: Sequence[str]  # of red, green and blue of each store
    questions: Sequence[Sequence[str]] = ()
    """Answers of each question of a decision tree, whose vote fractions add up to 1; empty for other labels."""
    _hosts: dict[int, tuple[float, ...]] = field(default_factory=dict, repr=False)

    @property
    def labelled(self) -> np.ndarray:
        """Mask of the galaxies with any label, bool, shape (n,)."""
        return self.labels.notna().any(axis=1).to_numpy()

    def satisfying(self, rule: str, predicted: str = "") -> np.ndarray:
        """Return the rows whose labels satisfy `rule`, and unlabelled ones whose predictions satisfy `predicted`."""
        columns = list(self.labels.columns)
        satisfied = parse_rule(rule, columns).evaluate({name: self.labels[name].to_numpy() for name in columns})[0]
        if predicted:
            parsed = parse_rule(predicted, columns)
            if set(parsed.names) <= set(self.predicted.columns):
                answers = {name: self.predicted[name].to_numpy() for name in parsed.names}
                satisfied = satisfied | (parsed.evaluate(answers)[0] & ~self.labelled)
        return np.flatnonzero(satisfied)

    def hosts(self, rows: np.ndarray) -> Hosts:
        """Return the geometry of galaxies; each is measured only once."""
        new = [int(row) for row in np.unique(rows) if int(row) not in self._hosts]
        for first in range(0, len(new), BATCH):
            batch = new[first : first + BATCH]
            measured = measure_hosts(self.images[batch])
            self._hosts.update(zip(batch, zip(*measured, strict=True), strict=True))
        columns = np.array([self._hosts[int(row)] for row in rows], float).reshape(len(rows), 5)
        return Hosts(*columns.T)

    def donors(self, rows: np.ndarray) -> Donors:
        """Return the galaxies of these rows as donors."""
        return Donors(self.images[rows], self.hosts(rows))

    def seeing(self, rows: np.ndarray) -> np.ndarray:
        """Return the standard deviation of the point spread function in pixels, 1 where the pixel scale is unknown."""
        scale = self.frame[rows] / self.images.shape[1]
        return np.where(np.isfinite(scale) & (scale > 0), SEEING / 2.3548 / np.where(scale > 0, scale, 1), 1.0)


def injected_set(
    candidates: Candidates, rules: LabelRules, settings: SyntheticSettings, sources: dict[str, Maps], *, seed: int
) -> tuple[SyntheticSet, dict[str, Any]]:
    """Make targets and hard negatives by injection, and add unmodified hosts and mined negatives.

    Raises `InputError` if the recipe has no ``inject`` rule, or no host is left.

    Parameters
    ----------
    sources : mapping of str to callable
        Source of maps for each feature.

    Returns
    -------
    synthetic : SyntheticSet
    counts : dict
        ``hosts`` and ``hosts_unlabelled`` of the targets, ``hosts_not_measured`` (skipped), ``invisible`` (dropped),
        ``injected``, ``too_faint`` (negatives, too faint for the positive rule), ``injected_negatives``, ``mined``.
    """
    if rules.inject is None:
        raise InputError("the recipe has no 'inject' rule for these labels")
    counts: dict[str, Any] = {"hosts_not_measured": 0, "invisible": 0, "too_faint": 0}
    tasks = [(rules.inject, 1.0, settings.injected)]
    negatives = rules.inject_negatives
    per_rule = settings.injected // 4 // max(len(negatives), 1)
    tasks += [(rule, 0.0, per_rule) for rule in negatives if per_rule]
    sets = []
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
            sets.append(_inject(candidates, rules, rule, rows, value, count, sources, random, counts, advance))
    if settings.injected and not (sets[0].origin == INJECTED).any():
        which = "they, or the donors," if find_feature(rules.inject.feature).DONORS else "they"
        raise InputError(
            f"the feature '{rules.inject.feature}' is invisible on all {counts['hosts']} hosts: {which} are too small, "
            f"faint or large for it in images of {candidates.images.shape[1]} px: loosen 'inject.hosts', ingest larger "
            "cutouts with more pixels, or pass --no-synthetic"
        )
    counts["injected"] = int(((sets[0].origin == INJECTED) & (sets[0].target == 1)).sum())
    counts["too_faint"] = int(((sets[0].origin == INJECTED) & (sets[0].target == 0)).sum())
    counts["injected_negatives"] = int(sum((s.origin == INJECTED).sum() for s in sets[1:]))
    mined = mined_rows(candidates, rules.mined_negatives, settings.mined)
    counts["mined"] = len(mined)
    no_labels = pd.DataFrame(np.nan, index=range(len(mined)), columns=candidates.labels.columns, dtype=np.float32)
    sets.append(SyntheticSet.of_origin(candidates.images[mined], no_labels, np.zeros(len(mined), np.float32), MINED))
    return SyntheticSet.joined(sets), counts


def mined_rows(candidates: Candidates, rule: str, count: int) -> np.ndarray:
    """Return up to `count` unlabelled galaxies whose predicted answers satisfy `rule`, by falling score."""
    if not rule or not count or candidates.predicted.empty:
        return np.empty(0, int)
    rows = candidates.satisfying(rule, rule)
    rows = rows[~candidates.labelled[rows]]
    return rows[np.argsort(-candidates.logit[rows], kind="stable")][:count]


def _host_rows(
    candidates: Candidates, rule: InjectRule, counts: dict[str, Any], random: np.random.Generator, *, positive: bool
) -> np.ndarray:
    """Return the rows that satisfy the rule and can be measured; likely targets among unlabelled ones are excluded."""
    rows = candidates.satisfying(rule.hosts, rule.unlabelled_hosts or rule.hosts)
    if positive:
        unlabelled = ~candidates.labelled[rows]
        # The tenth of the unlabelled galaxies with the highest scores may contain targets.
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
    """Inject until `count` targets are made (`value` 1) or negatives (`value` 0).

    A feature that is visible, but too faint for the positive rule, makes a negative; there are at most ``count // 4``
    of these. A network that is trained on clear features alone gives high scores to the faintest traces.
    """
    sets: list[SyntheticSet] = []
    used_hosts: list[np.ndarray] = []
    targets_left, faint_left = count, count // 4
    for _ in range(ROUNDS):
        host_rows = np.sort(random.choice(rows, count))
        injected, host_rows = _inject_once(candidates, rules, rule, host_rows, value, sources, random, counts)
        order = random.permutation(len(injected))
        wanted = order[injected.target[order] == value][:targets_left]
        faint = order[injected.target[order] != value][:faint_left]
        kept = np.sort(np.concatenate([wanted, faint]))
        sets.append(injected.select(kept))
        used_hosts.append(host_rows[kept])
        targets_left, faint_left = targets_left - len(wanted), faint_left - len(faint)
        advance(len(wanted))
        if not targets_left:
            break
    injected, host_rows = SyntheticSet.joined(sets), np.concatenate(used_hosts)
    if value != 1:
        return injected
    hosts, host = np.unique(host_rows, return_inverse=True)
    untouched = SyntheticSet.of_origin(
        candidates.images[hosts], candidates.labels.iloc[hosts], np.zeros(len(hosts), np.float32), HOST
    )
    joined = SyntheticSet.joined([injected, untouched])
    joined.host[: len(injected)] = len(injected) + host
    return joined


def _donor_rows(
    candidates: Candidates, rule: InjectRule, host_rows: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Return a random donor for each host: another galaxy of the same store that can be measured."""
    pool = candidates.satisfying(rule.donors, rule.donors) if rule.donors else np.arange(len(candidates.images))
    if len(pool) > MAX_HOSTS:
        pool = np.sort(random.choice(pool, MAX_HOSTS, replace=False))
    pool = pool[candidates.hosts(pool).measured]
    donors = np.full(len(host_rows), -1)
    for number in np.unique(candidates.survey[host_rows]):
        of_store = np.flatnonzero(candidates.survey[host_rows] == number)
        available = pool[candidates.survey[pool] == number]
        if len(available) < LEAST_DONORS:
            wanted = f"satisfy 'donors' ({' '.join(rule.donors.split())})" if rule.donors else "are training galaxies"
            raise InputError(
                f"{len(available)} galaxies {wanted} and can be measured, fewer than {LEAST_DONORS}, too few to inject "
                f"the feature '{rule.feature}': loosen the rule, add a store with --store, or pass --no-synthetic"
            )
        donors[of_store] = random.choice(available, len(of_store))
        while (itself := donors == host_rows).any():
            donors[itself] = random.choice(available, itself.sum())
    return donors


def _rescale_votes(labels: pd.DataFrame, changed: Sequence[str], questions: Sequence[Sequence[str]]) -> None:
    """Rescale the other answers of each question of which an answer was `changed`, so that they add up to 1.

    The rest is divided equally where nobody gave another answer, or the question was not asked.
    """
    for question in questions:
        given = [answer for answer in question if answer in changed]
        others = [answer for answer in question if answer not in changed]
        if given and others:
            rest = (1 - labels[given].to_numpy().sum(1, keepdims=True)).clip(0)
            votes = np.nan_to_num(labels[others].to_numpy())
            votes[votes.sum(1) <= 0] = 1
            labels[others] = (rest * votes / votes.sum(1, keepdims=True)).astype(np.float32)


def _inject_once(
    candidates: Candidates,
    rules: LabelRules,
    rule: InjectRule,
    host_rows: np.ndarray,
    value: float,
    sources: dict[str, Maps],
    random: np.random.Generator,
    counts: dict[str, Any],
) -> tuple[SyntheticSet, np.ndarray]:
    """Inject a feature into each host; return the galaxies with a visible one, and their host rows."""
    feature, n = find_feature(rule.feature), len(host_rows)
    images = np.empty((n, *candidates.images.shape[1:]), np.uint8)
    depth = np.empty(n, np.float32)
    maps = sources[rule.feature](n, random)
    hosts, seeing = candidates.hosts(host_rows), candidates.seeing(host_rows)
    donors = _donor_rows(candidates, rule, host_rows, random) if feature.DONORS else None
    # Requested depths are uniform, so that targets have all strengths; shallower features are deepened.
    requested = feature.LEAST_DEPTH + random.uniform(0, 1, n) * (rule.plain - feature.LEAST_DEPTH)
    rows = np.arange(n)
    for _ in range(DEEPENED + 1):
        for number, (stretch, bands) in enumerate(zip(candidates.stretches, candidates.bands, strict=True)):
            of_store = rows[candidates.survey[host_rows[rows]] == number]
            for first in range(0, len(of_store), BATCH):
                batch = of_store[first : first + BATCH]
                given: dict[str, Any] = {"bands": bands, "seeing": seeing[batch]}
                if donors is not None:
                    given["donors"] = candidates.donors(donors[batch])
                images[batch], depth[batch] = feature.inject(
                    candidates.images[host_rows[batch]], hosts.select(batch), maps[batch], stretch, random, **given
                )
        rows = rows[depth[rows] < requested[rows]] if value == 1 else rows[:0]
        maps[rows] = feature.deepen(maps[rows], DEEPER)
    visible = depth >= feature.LEAST_DEPTH
    counts["invisible"] += int((~visible).sum())
    labels = candidates.labels.iloc[host_rows].reset_index(drop=True)
    strength = ((depth - feature.LEAST_DEPTH) / (rule.plain - feature.LEAST_DEPTH)).clip(0, 1)
    for answer, (faint, plain) in rule.values.items():
        labels[answer] = (faint + strength * (plain - faint)).astype(np.float32)
    _rescale_votes(labels, list(rule.values), candidates.questions)
    target = np.full(n, value, np.float32)
    if value == 1:
        predicted = candidates.predicted.reindex(columns=labels.columns).iloc[host_rows].reset_index(drop=True)
        known = labels.fillna(predicted)
        target[
            parse_rule(rules.positive, list(known)).evaluate({name: known[name].to_numpy() for name in known})[1]
        ] = 0
    # Only after the target is known, which masked answers may decide.
    labels[list(rule.masked)] = np.float32(np.nan)
    rows = np.flatnonzero(visible)
    injected = SyntheticSet.of_origin(images[rows], labels.iloc[rows], target[rows], INJECTED)
    injected.depth[:] = depth[rows]
    return injected, host_rows[rows]
