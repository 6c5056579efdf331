"""Where the maps of a feature come from: the physical prior, or the diffusion model, fine-tuned on measured maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from galscan.core.errors import InputError
from galscan.labels.settings import InjectRule, MapSettings
from galscan.synthesis.diffusion.map_model import (
    MEASURED,
    STRENGTH,
    MapFlow,
    load_maps_model,
    make_config,
    sample_maps,
    train_maps,
)
from galscan.synthesis.features.base import Feature, base_weights, find_feature, prior_maps
from galscan.synthesis.injection import BATCH, Candidates, Maps

LEAST_MEASURED = 12  # measured maps below which there is nothing to fine-tune on
ENOUGH_MEASURED = 100  # measured maps from which the recipe's fraction of them holds; fewer count less
PRIOR = 2000  # maps of the prior beside them
POOL = 384  # maps that are sampled for one training set; they are mirrored, and put on many hosts
FLOOR = 0.012  # of a sampled map: below it there is nothing
RESCALED = (-0.3, 0.4)  # logarithms of the factors by which a sampled map may be made shallower or deeper
SEED = 11  # of the prior maps that the base weights are trained on


def load_start(rule: InjectRule, settings: MapSettings) -> MapFlow | None:
    """Return the weights to start from; None for "none".

    Raises
    ------
    InputError
        If there are none, or they are of another feature or other widths.
    """
    if settings.start == "none":
        return None
    path = base_weights(rule.feature) if settings.start == "base" else Path(settings.start)
    if path is None:
        raise InputError(
            f"no base weights are shipped for the feature '{rule.feature}'; set generator.start = 'none', or "
            "generator.maps = 'prior'"
        )
    model = load_maps_model(path)
    if model.config.feature != rule.feature:
        raise InputError(f"{path} samples maps of '{model.config.feature}', the recipe injects '{rule.feature}'")
    known = [*find_feature(rule.feature).CONDITIONS, MEASURED, STRENGTH]
    if list(model.config.conditions) != known:
        raise InputError(f"{path} takes the conditions {list(model.config.conditions)}, not {known}: train it again")
    if tuple(settings.widths) != model.config.widths:
        raise InputError(
            f"generator widths {list(settings.widths)} differ from those of {path}, {list(model.config.widths)}; "
            "set these widths, or start from nothing with generator.start = 'none'"
        )
    return model


def measured_maps(candidates: Candidates, rule: InjectRule) -> tuple[np.ndarray, np.ndarray]:
    """Measure maps on the labelled training galaxies that satisfy ``rule.measure``.

    Returns
    -------
    maps : ndarray of float32, shape (n, channels, side, side)
        The usable ones.
    rows : ndarray of int, shape (n,)
        The candidates they were measured on.
    """
    feature = find_feature(rule.feature)
    rows = candidates.satisfying(rule.measure) if rule.measure else np.empty(0, int)
    hosts = candidates.hosts(rows)
    maps, kept = [], []
    for number, (stretch, bands) in enumerate(zip(candidates.stretches, candidates.bands, strict=True)):
        of_store = np.flatnonzero(candidates.survey[rows] == number)
        for first in range(0, len(of_store), BATCH):
            some = of_store[first : first + BATCH]
            found, usable = feature.measure(candidates.images[rows[some]], hosts.select(some), stretch, bands=bands)
            maps.append(found[usable])
            kept.append(rows[some[usable]])
    shape = feature.prior(1, np.random.default_rng(0)).shape[1:]
    return np.concatenate([np.empty((0, *shape), np.float32), *maps]), np.concatenate([np.empty(0, int), *kept])


def conditions_of(feature: str, maps: np.ndarray, *, measured: bool, strength: np.ndarray | None = None) -> np.ndarray:
    """Return the conditions of the diffusion model that maps (n, channels, side, side) show, shape (n, k)."""
    shown = find_feature(feature).describe(np.asarray(maps, np.float32))
    flag = np.full((len(maps), 1), float(measured), np.float32)
    told = np.full((len(maps), 1), np.nan, np.float32) if strength is None else strength.reshape(-1, 1)
    return np.concatenate([shown, flag, told], 1).astype(np.float32)


def measured_weight(settings: MapSettings, count: int) -> float:
    """Return the fraction of maps that are like measured ones: as the recipe says, or less where few were measured."""
    return settings.measured_fraction * min(1.0, count / ENOUGH_MEASURED) if count >= LEAST_MEASURED else 0.0


def fine_tune(
    maps: np.ndarray,
    strength: np.ndarray,
    rule: InjectRule,
    settings: MapSettings,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Train the diffusion model on measured maps and as many of the prior's as keep it from forgetting them.

    Parameters
    ----------
    strength : ndarray, shape (n,)
        How plainly people saw the feature, 0..1; NaN = not asked.

    Returns
    -------
    dict
        ``steps``, ``seconds``, ``loss``, ``measured`` (maps) and ``measured_fraction``.
    """
    start = load_start(rule, settings)
    drawn = prior_maps(rule.feature, PRIOR, seed + 1).astype(np.float32)
    fraction = measured_weight(settings, len(maps))
    pool = np.concatenate([drawn, maps]) if fraction else drawn
    values = conditions_of(rule.feature, drawn, measured=False)
    weight = np.full(len(drawn), (1 - fraction) / len(drawn))
    if fraction:
        values = np.concatenate([values, conditions_of(rule.feature, maps, measured=True, strength=strength)])
        weight = np.concatenate([weight, np.full(len(maps), fraction / len(maps))])
    conditions = find_feature(rule.feature).CONDITIONS
    config = start.config if start else make_config(rule.feature, conditions, drawn, settings.widths)
    outcome = train_maps(
        pool, values, weight, config, out, steps=settings.steps, batch=settings.batch,
        learning_rate=settings.learning_rate, ema=settings.ema, seed=seed, device=device, seconds=seconds, start=start,
    )  # fmt: skip
    return outcome | {"measured": len(maps), "measured_fraction": fraction}


def map_source(
    rule: InjectRule,
    settings: MapSettings,
    model: MapFlow | None,
    maps: np.ndarray,
    strength: np.ndarray,
    *,
    device: torch.device,
) -> Maps:
    """Return what draws maps for a rule: the prior, the diffusion model, or both.

    Its conditions are those of maps drawn from the prior, or of measured ones with a little scatter; a sampled map that
    is nearer to a measured one than 1 % of these are to their nearest is replaced.
    """
    feature = find_feature(rule.feature)
    if model is None or settings.maps == "prior" or not feature.CONDITIONS:
        return feature.prior
    fraction = measured_weight(settings, len(maps))
    names = list(model.config.conditions)
    assert names == [*feature.CONDITIONS, MEASURED, STRENGTH]
    like = conditions_of(rule.feature, maps, measured=True, strength=strength) if fraction else None

    # What only imitates the prior may as well be drawn from it.
    sampled = 1.0 if settings.maps == "diffusion" else fraction or 0.5
    inside = fraction if settings.maps == "diffusion" or not fraction else 1.0
    pool: list[np.ndarray] = []

    def sample(count: int, random: np.random.Generator) -> np.ndarray:
        if not pool:
            made = _sample(model, feature, like, inside, maps, min(count, POOL), settings.guidance, random, device)
            pool.append(made)
        found = pool[0][random.integers(len(pool[0]), size=count)]
        for axis in (2, 3):  # a map is as likely as its mirror image
            flip = random.random(count) < 0.5
            found[flip] = np.flip(found[flip], axis)
        drawn = np.flatnonzero(random.random(count) >= sampled)
        found[drawn] = feature.prior(len(drawn), random)
        return found

    return sample


def _sample(
    model: MapFlow,
    feature: Feature,
    like: np.ndarray | None,
    fraction: float,
    maps: np.ndarray,
    count: int,
    guidance: float,
    random: np.random.Generator,
    device: torch.device,
) -> np.ndarray:
    """Sample maps under conditions of the prior and, a `fraction`, of measured maps (`like`)."""
    values = np.full((count, len(model.config.conditions)), np.nan, np.float32)
    values[:, : len(feature.CONDITIONS)] = feature.describe(feature.prior(count, random))
    values[:, len(feature.CONDITIONS)] = 0  # not measured
    if like is not None:
        rows = np.flatnonzero(random.random(count) < fraction)
        drawn = like[random.integers(len(like), size=len(rows))].copy()
        low, high = np.array(list(feature.CONDITIONS.values())).T
        scattered = drawn[:, : len(low)] + random.normal(0, 0.08, (len(rows), len(low)))
        drawn[:, : len(low)] = scattered.clip(low, high)
        values[rows] = drawn
    seed = int(random.integers(2**31))
    found = sample_maps(model, values, seed=seed, device=device, guidance=guidance)
    if like is not None and len(near := copies(found, maps)):
        found[near] = sample_maps(model, values[near], seed=seed + 1, device=device, guidance=guidance)
    found[found < FLOOR] = 0
    if "log_depth" in feature.CONDITIONS:  # samples are a little shallower than they were asked to be
        depth = list(feature.CONDITIONS).index("log_depth")
        found *= np.exp((values[:, depth] - feature.describe(found)[:, depth]).clip(*RESCALED))[:, None, None, None]
    return found


def copies(sampled: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return which of the sampled maps are nearer to a measured one than 1 % of these are to their nearest."""
    pairs = _distances(measured, measured)
    np.fill_diagonal(pairs, np.inf)
    spacing = pairs.min(1)
    spacing = spacing[spacing > 0.01 * np.median(spacing)]  # a galaxy that is there twice is no pair
    return np.flatnonzero(_distances(sampled, measured).min(1) < np.percentile(spacing, 1))


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return root mean square differences of the maps' square roots, each blurred to an eighth of the resolution."""

    def small(maps: np.ndarray) -> np.ndarray:
        n, channels, side, _ = maps.shape
        blocks = np.sqrt(np.maximum(maps, 0)).reshape(n, channels, side // 4, 4, side // 4, 4).mean((3, 5))
        return blocks.reshape(n, channels * (side // 4) ** 2).astype(np.float64)

    a, b = small(a), small(b)
    square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.sqrt(square.clip(0) / a.shape[1])
