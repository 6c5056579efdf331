"""Sources of feature maps: the physical prior, or its diffusion model, also fine-tuned on measured maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from galscan.core.errors import InputError
from galscan.core.files import atomic_path
from galscan.core.progress import track
from galscan.labels.settings import InjectRule, MapSettings
from galscan.synthesis.diffusion.map_model import MEASURED, STRENGTH, MapFlow, make_config, sample_maps, train_maps
from galscan.synthesis.features import residual
from galscan.synthesis.features.base import FEATURES, base_weights, find_feature, has_model, has_prior, prior_maps
from galscan.synthesis.injection import BATCH, Candidates, Maps

LEAST_MEASURED = 12  # measured maps, below which there are too few to fine-tune on
LEAST_EXAMPLES = 5  # measured maps of a feature without a prior
ENOUGH_MEASURED = 100  # measured maps at which the recipe's fraction is used; it falls in proportion for fewer
PRIOR = 2000  # maps of the prior in fine-tuning
POOL = 384  # maps sampled for one training set; each is mirrored and injected into several hosts
FLOOR = 0.012  # attenuation below which a sampled map is set to zero
RESCALED = (-0.3, 0.4)  # range of the logarithm of the factor that corrects the depth of a sampled map
# Training of base weights on maps of the prior alone
COUNT, SEED = 24_000, 11
STEPS, BATCH_SIZE, LEARNING_RATE, EMA = 4000, 32, 1e-3, 0.998
CHUNK = 1000  # maps whose conditions are computed at a time
MAPS = "maps.npy"  # in the staging folder: sampling the prior takes minutes


def check_feature(name: str) -> None:
    """Raise `InputError` if a feature is unknown, or has no diffusion model, as its maps have no conditions."""
    if not has_model(name):
        supported = ", ".join(key for key, feature in FEATURES.items() if feature.CONDITIONS)
        raise InputError(f"the feature '{name}' has no diffusion model of maps; choose one of: {supported}")


def load_weights(feature: str, weights: str) -> MapFlow:
    """Load a diffusion model of a feature's maps: "base" (those shipped), or a path.

    Raises `InputError` if there are no such weights, or they are of another feature or other conditions.
    """
    path = base_weights(feature) if weights == "base" else Path(weights)
    if path is None:
        check_feature(feature)
        raise InputError(
            f"no base weights are shipped for the feature '{feature}'; train some (galscan train-generator --kind maps "
            f"--feature {feature} --out {feature}.safetensors), or set generator.maps = 'prior'"
        )
    model = MapFlow.load(path)
    if model.config.feature != feature:
        raise InputError(f"{path} samples maps of '{model.config.feature}', not of '{feature}'")
    expected = [*find_feature(feature).CONDITIONS, MEASURED, STRENGTH]
    if list(model.config.conditions) != expected:
        raise InputError(f"{path} takes the conditions {list(model.config.conditions)}, not {expected}: train it again")
    return model


def load_start(rule: InjectRule, settings: MapSettings) -> MapFlow | None:
    """Load initial weights (`load_weights`), None for "none"; those of other widths raise an `InputError`."""
    if settings.start == "none":
        return None
    model = load_weights(rule.feature, settings.start)
    model.check_widths(settings.widths)
    return model


def measured_maps(candidates: Candidates, rule: InjectRule) -> tuple[np.ndarray, np.ndarray]:
    """Measure maps on the labelled training galaxies that satisfy ``rule.measure``.

    Return the usable maps, float32, shape (n, channels, side, side), and the row of each in `candidates`.
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
    shape = feature.prior(0, np.random.default_rng(0)).shape[1:]
    return np.concatenate([np.empty((0, *shape), np.float32), *maps]), np.concatenate([np.empty(0, int), *kept])


def check_examples(rule: InjectRule, count: int, what: str) -> None:
    """Raise `InputError` if a feature has no prior, and fewer than `LEAST_EXAMPLES` examples.

    `count` of the galaxies that satisfy ``rule.measure`` are examples; `what` says why, e.g. "can be measured".
    """
    if not has_prior(rule.feature) and count < LEAST_EXAMPLES:
        raise InputError(
            f"{count} training galaxies satisfy 'inject.measure' ({' '.join(rule.measure.split())}) and {what}, fewer "
            f"than {LEAST_EXAMPLES}: the feature '{rule.feature}' has no prior; label more galaxies that show it, "
            "loosen the rule, or pass --no-synthetic"
        )


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

    `strength` (n,) is the strength of the feature by labels, 0..1; NaN = not asked. Return ``steps``, ``seconds``,
    ``loss``, ``measured`` (maps) and ``measured_fraction``.
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
        pool, values, weight, config, settings, out, seed=seed, device=device, seconds=seconds, start=start
    )
    return outcome | {"measured": len(maps), "measured_fraction": fraction}


def train_on_prior(
    feature: str,
    count: int,
    settings: MapSettings,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
    start: MapFlow | None = None,
) -> dict[str, Any]:
    """Train base weights: the diffusion model of `count` maps of a feature's prior; an interrupted call resumes.

    The maps are stored beside `out` as `MAPS`. See `galscan.synthesis.diffusion.map_model.train_maps`.
    """
    path = out.with_name(MAPS)
    if path.is_file():
        maps = np.load(path, allow_pickle=False)
    else:
        with track("sample maps from the prior", count, "map") as advance:
            maps = prior_maps(feature, count, SEED)
            advance(count)
        with atomic_path(path) as temporary, temporary.open("wb") as handle:
            np.save(handle, maps, allow_pickle=False)
    chunks = [maps[first : first + CHUNK] for first in range(0, count, CHUNK)]
    values = np.concatenate([conditions_of(feature, chunk, measured=False) for chunk in chunks])
    config = start.config if start else make_config(feature, find_feature(feature).CONDITIONS, maps, settings.widths)
    outcome = train_maps(
        maps, values, np.ones(count), config, settings, out, seed=seed, device=device, seconds=seconds, start=start
    )
    return outcome | {"maps": count}


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
    map that is a copy of a measured one (`copies`) is replaced. Of a feature without a prior they are variants of the
    measured maps; fewer than `LEAST_EXAMPLES` raise an `InputError`.
    """
    feature = find_feature(rule.feature)
    if not has_prior(rule.feature):
        check_examples(rule, len(maps), "can be measured")
        return lambda count, random: residual.variants(maps, count, random)
    if model is None or settings.maps == "prior" or not feature.CONDITIONS:
        return feature.prior
    fraction = measured_weight(settings, len(maps))
    # With "both", only maps like measured ones (without any, half of all) come from the diffusion model.
    both = settings.maps == "both"
    sampled_fraction = (fraction or 0.5) if both else 1.0
    measured_like = 1.0 if both and fraction else fraction
    measured = conditions_of(rule.feature, maps, measured=True, strength=strength) if fraction else None
    low, high = np.array(list(feature.CONDITIONS.values())).T

    def sample(count: int, random: np.random.Generator) -> np.ndarray:
        """Sample maps with conditions of the prior and, for a fraction, of measured maps."""
        values = conditions_of(rule.feature, feature.prior(count, random), measured=False)
        if measured is not None:
            rows = np.flatnonzero(random.random(count) < measured_like)
            conditions = measured[random.integers(len(measured), size=len(rows))].copy()
            scattered = conditions[:, : len(low)] + random.normal(0, 0.08, (len(rows), len(low)))
            conditions[:, : len(low)] = scattered.clip(low, high)
            values[rows] = conditions
        options: dict[str, Any] = {"device": device, "guidance": settings.guidance}
        seed = int(random.integers(2**31))
        found = sample_maps(model, values, seed=seed, **options)
        if measured is not None and len(near := copies(found, maps)):
            found[near] = sample_maps(model, values[near], seed=seed + 1, **options)
        found[found < FLOOR] = 0
        if "log_depth" in feature.CONDITIONS:  # samples are slightly shallower than their condition
            depth = list(feature.CONDITIONS).index("log_depth")
            found *= np.exp((values[:, depth] - feature.describe(found)[:, depth]).clip(*RESCALED))[:, None, None, None]
        return found

    pool: list[np.ndarray] = []

    def choose(count: int, random: np.random.Generator) -> np.ndarray:
        if not pool:
            pool.append(sample(min(count, POOL), random))
        result = pool[0][random.integers(len(pool[0]), size=count)]
        for axis in (2, 3):  # mirror images are equally likely
            flip = random.random(count) < 0.5
            result[flip] = np.flip(result[flip], axis)
        from_prior = np.flatnonzero(random.random(count) >= sampled_fraction)
        result[from_prior] = feature.prior(len(from_prior), random)
        return result

    return choose


def copies(sampled: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the sampled maps nearer to a measured one than the 1st percentile of distances among measured maps."""
    pairs = _distances(measured, measured)
    np.fill_diagonal(pairs, np.inf)
    spacing = pairs.min(1)
    spacing = spacing[spacing > 0.01 * np.median(spacing)]  # duplicates of one galaxy do not count
    return np.flatnonzero(_distances(sampled, measured).min(1) < np.percentile(spacing, 1))


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return root mean square differences of the square roots of maps, averaged in blocks of 4 x 4 pixels."""
    small = [F.avg_pool2d(torch.from_numpy(np.sqrt(np.maximum(maps, 0))), 4).flatten(1).numpy() for maps in (a, b)]
    return cdist(*small) / np.sqrt(small[0].shape[1])
