"""The synthetic training set of one target: features injected into real training galaxies, or whole images.

Only galaxies passed by the caller are used: of the training split, or unlabelled. A network trained on real galaxies
alone selects hosts and hard negatives among unlabelled galaxies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from galscan.core.errors import InputError
from galscan.core.files import read_json, write_json
from galscan.labels.recipe import Recipe
from galscan.labels.rules import parse_rule
from galscan.labels.schema import Schema
from galscan.labels.settings import InjectRule, LabelRules, MapSettings, SyntheticSettings
from galscan.models.network import Network
from galscan.store.layout import Store
from galscan.synthesis import evaluation, synthetic_set
from galscan.synthesis.diffusion import maps as feature_maps
from galscan.synthesis.diffusion.map_model import MapFlow
from galscan.synthesis.evaluation import ReferenceClassifier
from galscan.synthesis.features.base import find_feature, has_model, has_prior
from galscan.synthesis.flux import stretch_of
from galscan.synthesis.injection import Candidates, Maps, injected_set
from galscan.synthesis.sampling import ImageGenerator
from galscan.synthesis.synthetic_set import SyntheticSet
from galscan.training.dataset import Galaxies
from galscan.training.plan import Plan
from galscan.training.split import held_out
from galscan.training.train import Examples

# In a model's folder: the diffusion model of maps, with its metadata beside it (.json).
MODEL = "feature_maps.safetensors"


def bands_of(store: Store) -> str:
    """Return the bands of red, green and blue of a store: those recorded, or those of SDSS images."""
    valid, provenance = set("ugrizy"), store.attrs.get("provenance", {})
    if isinstance(rendering := provenance.get("rendering"), dict):
        named = [str(rendering.get(colour) or "") for colour in ("red", "green", "blue")]
        if set(named) <= valid:
            return "".join(named)
    bands = [band for band in provenance.get("bands") or "" if band in valid]
    return "".join(reversed(bands)) if len(bands) == 3 else "irg"


def candidates_of(
    galaxies: Galaxies,
    rows: np.ndarray,
    stores: Sequence[Store],
    network: Network | None,
    answers: Sequence[str],
    schema: Schema,
    device: torch.device,
) -> Candidates:
    """Return the galaxies of `rows`, none held out, as candidate hosts, with what a network of one target predicts.

    `answers` are those of its morphology head.
    """
    images, table = galaxies.images[rows], galaxies.table.iloc[rows]
    predicted, logit = pd.DataFrame(index=range(len(rows))), np.full(len(rows), np.nan)
    if network is not None:
        prediction = ReferenceClassifier(network, answers, schema, device).predict(images)
        predicted, logit = prediction.answers, prediction.logit
    paths = [str(store.path) for store in stores]
    stretches = [stretch_of(s.attrs.get("provenance", {}), name) for s, name in zip(stores, paths, strict=True)]
    return Candidates(
        images, galaxies.labels.iloc[rows].reset_index(drop=True), predicted, logit, table["survey"].to_numpy(),
        table["frame"].to_numpy(float), stretches, [bands_of(s) for s in stores], schema.groups,
    )  # fmt: skip


def check_rule(plan: Plan, rule: InjectRule) -> None:
    """Raise an `InputError` if a network would have no host, or too few examples of a feature without a prior."""
    labels = {name: plan.table[name].to_numpy() for name in plan.schema.names}
    hosts = parse_rule(rule.hosts, plan.schema.names).evaluate(labels)[0]
    # Whether an unlabelled galaxy is a host is predicted by a network that is not trained yet.
    hosts |= plan.table[plan.schema.names].isna().all(axis=1).to_numpy()
    folds = [~held_out(plan.table, k) for k in range(max(plan.folds, 1))]
    if not all(hosts[fold].any() for fold in folds):
        raise InputError(
            f"no training galaxy satisfies 'inject.hosts' ({' '.join(rule.hosts.split())}): loosen the rule, "
            "add a store with --store, or pass --no-synthetic"
        )
    if not has_prior(rule.feature):
        examples = parse_rule(rule.measure, plan.schema.names).evaluate(labels)[0]
        feature_maps.check_examples(rule, min(int(examples[fold].sum()) for fold in folds), "train every network")


def map_settings(recipe: Recipe) -> MapSettings:
    """Return the settings of the maps to inject: defaults if the recipe's generator is one of whole images."""
    return recipe.generator if isinstance(recipe.generator, MapSettings) else MapSettings(kind="maps")


def generate(
    generator: ImageGenerator,
    galaxies: Galaxies,
    rows: np.ndarray,
    conditions: pd.DataFrame,
    reference: Network,
    answers: Sequence[str],
    plan: Plan,
    settings: SyntheticSettings,
    *,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
) -> tuple[SyntheticSet, dict[str, int]]:
    """Generate whole images under the `conditions` of the galaxies of these `rows`.

    Returns those that `reference`, a network trained on real galaxies alone, accepts, and the numbers of others by
    reason.
    """
    table = galaxies.table.iloc[rows]
    generated = synthetic_set.generate_set(
        generator, conditions, table["target"].to_numpy(), table["survey"].to_numpy(), plan.rules, settings,
        seed=seed, device=device, seconds=seconds,
    )  # fmt: skip
    classifier = ReferenceClassifier(reference, answers, plan.schema, device)
    filtered = evaluation.filter_synthetic(generated, galaxies.images[rows], classifier, plan.rules, plan.schema)
    kept = filtered["kept"].to_numpy()
    return generated.select(kept), {str(k): int(n) for k, n in filtered["reason"][~kept].value_counts().items()}


def inject(
    candidates: Candidates,
    schema: Schema,
    rules: LabelRules,
    settings: SyntheticSettings,
    generator: MapSettings,
    work: Path,
    *,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
) -> tuple[SyntheticSet, dict[str, Any]]:
    """Measure maps, fine-tune their diffusion model (stored in `work`), and inject sampled maps.

    Returns the result of `galscan.synthesis.injection.injected_set`; its counts also have ``measured_maps`` and
    ``maps`` ("diffusion", "prior", or "measured" for
    a feature without a prior).
    """
    rule = rules.inject
    assert rule is not None
    measured, rows = feature_maps.measured_maps(candidates, rule)
    strength = _strength(candidates, rows, rule.values, schema)
    model = None
    metadata_path = work / MODEL.replace(".safetensors", ".json")
    if generator.maps != "prior" and has_model(rule.feature):
        tuned = generator.steps > 0 and feature_maps.measured_weight(generator, len(measured)) > 0
        if tuned and not metadata_path.is_file():
            outcome = feature_maps.fine_tune(
                measured, strength, rule, generator, work / MODEL, seed=seed, device=device, seconds=seconds
            )
            write_json(metadata_path, outcome)
        model = MapFlow.load(work / MODEL) if tuned else feature_maps.load_start(rule, generator)
    sources: dict[str, Maps] = {
        rule.feature: feature_maps.map_source(rule, generator, model, measured, strength, device=device)
    }
    for negative in rules.inject_negatives:
        sources.setdefault(negative.feature, find_feature(negative.feature).prior)
    synthetic, counts = injected_set(candidates, rules, settings, sources, seed=seed)
    return synthetic, counts | {
        "measured_maps": len(measured),
        "maps": generator.maps if model is not None else "prior" if has_prior(rule.feature) else "measured",
        "map_training": read_json(metadata_path) if metadata_path.is_file() else None,
    }


def _strength(
    candidates: Candidates, rows: np.ndarray, values: dict[str, tuple[float, float]], schema: Schema
) -> np.ndarray:
    """Return the strength of the feature by labels, 0..1: the first answer that the rule sets, scaled by its range."""
    if not values:
        return np.full(len(rows), np.nan, np.float32)
    answer = next(iter(values))
    low, high = schema.ranges[answer]
    return ((candidates.labels[answer].to_numpy()[rows] - low) / (high - low)).astype(np.float32)


def examples_of(synthetic: SyntheticSet, target: np.ndarray, answers: Sequence[str], schema: Schema) -> Examples:
    """Convert a synthetic training set to examples; `target` has a column for each target."""
    return Examples.from_labels(synthetic.images, target, synthetic.labels, answers, schema, synthetic.host)
