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

from galscan.core.files import read_json, write_json
from galscan.labels.schema import Schema
from galscan.labels.settings import LabelRules, MapSettings, SyntheticSettings
from galscan.models.network import Network
from galscan.store.layout import Store
from galscan.synthesis.diffusion import maps as feature_maps
from galscan.synthesis.diffusion.map_model import load_maps_model
from galscan.synthesis.evaluation import ReferenceClassifier
from galscan.synthesis.features.base import find_feature
from galscan.synthesis.flux import stretch_of
from galscan.synthesis.injection import Candidates, Maps, injected_set
from galscan.synthesis.synthetic_set import SyntheticSet
from galscan.training.dataset import Galaxies
from galscan.training.train import Examples

MODEL = (
    "feature_maps.safetensors"  # in a model's folder: the diffusion model of maps, with its metadata beside it (.json)
)


def bands_of(store: Store) -> str:
    """Return the bands of red, green and blue of a store: those recorded, or those of SDSS images."""
    valid = set("ugrizy")
    recorded = store.attrs.get("provenance", {}).get("bands")
    bands = [b for b in (recorded or "") if b in valid]
    rendering = store.attrs.get("provenance", {}).get("rendering")
    if isinstance(rendering, dict):
        named = [str(rendering.get(colour) or "") for colour in ("red", "green", "blue")]
        if set(named) <= valid:
            return "".join(named)
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
    """Return candidate hosts, with the predictions of a network trained on real galaxies.

    Parameters
    ----------
    rows : ndarray of int
        Galaxies that are not held out.
    network : Network or None
        Has one target, and `answers` as its morphology head.
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
        table["frame"].to_numpy(float), stretches, [bands_of(s) for s in stores],
    )  # fmt: skip


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

    Returns
    -------
    synthetic : SyntheticSet
    counts : dict
        See `galscan.synthesis.injection.injected_set`; also ``measured_maps`` and ``maps`` ("diffusion" or "prior").

    Raises
    ------
    InputError
        If no host is left, or weights, rules and settings do not fit together.
    """
    rule = rules.inject
    assert rule is not None
    measured, rows = feature_maps.measured_maps(candidates, rule)
    strength = _strength(candidates, rows, rule.values, schema)
    model = None
    metadata_path = work / MODEL.replace(".safetensors", ".json")
    if generator.maps != "prior" and find_feature(rule.feature).CONDITIONS:
        tuned = generator.steps > 0 and feature_maps.measured_weight(generator, len(measured)) > 0
        if tuned and not metadata_path.is_file():
            outcome = feature_maps.fine_tune(
                measured, strength, rule, generator, work / MODEL, seed=seed, device=device, seconds=seconds
            )
            write_json(metadata_path, outcome)
        model = load_maps_model(work / MODEL) if tuned else feature_maps.load_start(rule, generator)
    sources: dict[str, Maps] = {
        rule.feature: feature_maps.map_source(rule, generator, model, measured, strength, device=device)
    }
    for negative in rules.inject_negatives:
        sources.setdefault(negative.feature, find_feature(negative.feature).prior)
    synthetic, counts = injected_set(candidates, rules, settings, sources, seed=seed)
    map_counts = {"measured_maps": len(measured), "maps": generator.maps if model is not None else "prior"}
    return synthetic, counts | map_counts | {
        "map_training": read_json(metadata_path) if metadata_path.is_file() else None
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
