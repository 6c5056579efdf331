"""Sources of feature maps: the physical prior, or the diffusion model fine-tuned on measured maps."""

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

LEAST_MEASURED = 12  # measured maps, below which there are too few to fine-tune on
ENOUGH_MEASURED = 100  # measured maps at which the recipe's fraction is used; it falls in proportion for fewer
PRIOR = 2000  # maps of the prior in fine-tuning
POOL = 384  # maps sampled for one training set; each is mirrored and injected into several hosts
FLOOR = 0.012  # attenuation below which a sampled map is set to zero
RESCALED = (-0.3, 0.4)  # range of the logarithm of the factor that corrects the depth of a sampled map
SEED = 11  # of the prior maps that the base weights are trained on


def load_start(rule: InjectRule, settings: MapSettings) -> MapFlow | None:
    """Load initial weights; None for "none".

    Raises
    ------
    InputError
        If there are no such weights, or they are of another feature or other widths.
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
    expected = [*find_feature(rule.feature).CONDITIONS, MEASURED, STRENGTH]
    if list(model.config.conditions) != expected:
        raise InputError(f"{path} takes the conditions {list(model.config.conditions)}, not {expected}: train it again")
    if tuple(settings.widths) != model.config.widths:
        raise InputError(
            f"generator widths {list(settings.widths)} differ from those of {path}, {list(model.config.widths)}; "
            "set these widths, or start from random weights with generator.start = 'none'"
        )
    return model


def measured_maps(candidates: Candidates, rule: InjectRule) -> tuple[np.ndarray, np.ndarray]:
    """Measure maps on the labelled training galaxies that satisfy ``rule.measure``.

    Returns
    -------
    maps : ndarray of float32, shape (n, channels, side, side)
        Usable maps.
    rows : ndarray of int, shape (n,)
        Row of each map in `candidates`.
    """
    feature = find_feature(rule.feature)
    rows = candidates.satisfying(rule.measure) if rule.measure else np.empty(0, int)
    hosts = candidates.hosts(rows)
    maps, kept = [], []
    for number, (stretch, bands) in enumerate(zip(candidates.stretches, candidates.bands, strict=True)):
        of_store = np.flatnonzero(candidates.survey[rows] == number)
        for first in range(0, len(of_store), BATCH):
            batch = of_store[first : first + BATCH]
            measured, usable = feature.measure(
                candidates.images[rows[batch]], hosts.select(batch), stretch, bands=bands
            )
            maps.append(measured[usable])
            kept.append(rows[batch[usable]])
    shape = feature.prior(1, np.random.default_rng(0)).shape[1:]
    return np.concatenate([np.empty((0, *shape), np.float32), *maps]), np.concatenate([np.empty(0, int), *kept])


def conditions_of(feature: str, maps: np.ndarray, *, measured: bool, strength: np.ndarray | None = None) -> np.ndarray:
    """Return the conditions of the diffusion model for maps (n, channels, side, side), shape (n, k)."""
    properties = find_feature(feature).describe(np.asarray(maps, np.float32))
    flag = np.full((len(maps), 1), float(measured), np.float32)
    strengths = np.full((len(maps), 1), np.nan, np.float32) if strength is None else strength.reshape(-1, 1)
    return np.concatenate([properties, flag, strengths], 1).astype(np.float32)


def measured_weight(settings: MapSettings, count: int) -> float:
    """Return the fraction of maps sampled like measured ones: that of the recipe, or less for few measured maps."""
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
    """Fine-tune the diffusion model on measured maps, mixed with maps of the prior to keep its variety.

    Parameters
    ----------
    strength : ndarray, shape (n,)
        Strength of the feature by labels, 0..1; NaN = not asked.

    Returns
    -------
    dict
        ``steps``, ``seconds``, ``loss``, ``measured`` (maps) and ``measured_fraction``.
    """
    start = load_start(rule, settings)
    from_prior = prior_maps(rule.feature, PRIOR, seed + 1).astype(np.float32)
    fraction = measured_weight(settings, len(maps))
    pool = np.concatenate([from_prior, maps]) if fraction else from_prior
    values = conditions_of(rule.feature, from_prior, measured=False)
    weight = np.full(len(from_prior), (1 - fraction) / len(from_prior))
    if fraction:
        values = np.concatenate([values, conditions_of(rule.feature, maps, measured=True, strength=strength)])
        weight = np.concatenate([weight, np.full(len(maps), fraction / len(maps))])
    conditions = find_feature(rule.feature).CONDITIONS
    config = start.config if start else make_config(rule.feature, conditions, from_prior, settings.widths)
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
    """Return a function that samples maps for a rule: from the prior, the diffusion model, or both.

    Conditions of the diffusion model are those of maps of the prior, or of measured maps with small scatter. A sampled
    map that is a copy of a measured one (`copies`) is replaced.
    """
    feature = find_feature(rule.feature)
    if model is None or settings.maps == "prior" or not feature.CONDITIONS:
        return feature.prior
    fraction = measured_weight(settings, len(maps))
    names = list(model.config.conditions)
    assert names == [*feature.CONDITIONS, MEASURED, STRENGTH]
    measured = conditions_of(rule.feature, maps, measured=True, strength=strength) if fraction else None

    # With "both", only maps like measured ones (without any, half of all) come from the diffusion model.
    sampled_fraction = 1.0 if settings.maps == "diffusion" else fraction or 0.5
    measured_like = fraction if settings.maps == "diffusion" or not fraction else 1.0
    pool: list[np.ndarray] = []

    def sample(count: int, random: np.random.Generator) -> np.ndarray:
        if not pool:
            made = _sample(
                model, feature, measured, measured_like, maps, min(count, POOL), settings.guidance, random, device
            )
            pool.append(made)
        result = pool[0][random.integers(len(pool[0]), size=count)]
        for axis in (2, 3):  # mirror images are equally likely
            flip = random.random(count) < 0.5
            result[flip] = np.flip(result[flip], axis)
        from_prior = np.flatnonzero(random.random(count) >= sampled_fraction)
        result[from_prior] = feature.prior(len(from_prior), random)
        return result

    return sample


def _sample(
    model: MapFlow,
    feature: Feature,
    measured: np.ndarray | None,
    fraction: float,
    maps: np.ndarray,
    count: int,
    guidance: float,
    random: np.random.Generator,
    device: torch.device,
) -> np.ndarray:
    """Sample maps with conditions of the prior and, for a `fraction`, of measured maps (`measured`)."""
    values = np.full((count, len(model.config.conditions)), np.nan, np.float32)
    values[:, : len(feature.CONDITIONS)] = feature.describe(feature.prior(count, random))
    values[:, len(feature.CONDITIONS)] = 0  # not measured
    if measured is not None:
        rows = np.flatnonzero(random.random(count) < fraction)
        conditions = measured[random.integers(len(measured), size=len(rows))].copy()
        low, high = np.array(list(feature.CONDITIONS.values())).T
        scattered = conditions[:, : len(low)] + random.normal(0, 0.08, (len(rows), len(low)))
        conditions[:, : len(low)] = scattered.clip(low, high)
        values[rows] = conditions
    seed = int(random.integers(2**31))
    found = sample_maps(model, values, seed=seed, device=device, guidance=guidance)
    if measured is not None and len(near := copies(found, maps)):
        found[near] = sample_maps(model, values[near], seed=seed + 1, device=device, guidance=guidance)
    found[found < FLOOR] = 0
    if "log_depth" in feature.CONDITIONS:  # samples are slightly shallower than their condition
        depth = list(feature.CONDITIONS).index("log_depth")
        found *= np.exp((values[:, depth] - feature.describe(found)[:, depth]).clip(*RESCALED))[:, None, None, None]
    return found


def copies(sampled: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the sampled maps nearer to a measured one than the 1st percentile of distances among measured maps."""
    pairs = _distances(measured, measured)
    np.fill_diagonal(pairs, np.inf)
    spacing = pairs.min(1)
    spacing = spacing[spacing > 0.01 * np.median(spacing)]  # duplicates of one galaxy do not count
    return np.flatnonzero(_distances(sampled, measured).min(1) < np.percentile(spacing, 1))


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return root mean square differences of the square roots of maps, averaged in blocks of 4 x 4 pixels."""

    def small(maps: np.ndarray) -> np.ndarray:
        n, channels, side, _ = maps.shape
        blocks = np.sqrt(np.maximum(maps, 0)).reshape(n, channels, side // 4, 4, side // 4, 4).mean((3, 5))
        return blocks.reshape(n, channels * (side // 4) ** 2).astype(np.float64)

    a, b = small(a), small(b)
    square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.sqrt(square.clip(0) / a.shape[1])
