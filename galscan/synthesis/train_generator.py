"""``galscan train-generator``: train a generator alone; by default the base weights, on the simulated sky.

The base weights of whole images are trained without the rare class: their sky has many spirals with dust lanes, as
strong as those of early types, and early types without lanes, but no early type with a lane. The base weights of
feature maps (``--kind maps``) are trained on the feature's physical prior alone.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from galscan.core import home
from galscan.core.errors import ConflictError, InputError, nearest
from galscan.core.files import digest, file_digest, write_json
from galscan.core.staging import staging_folder
from galscan.labels.recipe import validated
from galscan.labels.schema import Schema, load_schema, schema_names
from galscan.labels.settings import KINDS, MapSettings, StableDiffusionSettings
from galscan.store import layout
from galscan.store.build import ingest_survey
from galscan.surveys.base import UNUSABLE
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis.galaxies import GalaxySet, measure

if TYPE_CHECKING:
    import torch

    from galscan.synthesis.backends import AnySettings

COUNT = 40_000  # simulated galaxies that the base weights are trained on
SIZE = 64  # their pixels on a side
BATCH = 16
LANE_FRACTION = 0.3  # fraction of those spirals with a dust lane like those of early types
STEPS = 4500  # of the flow network
LEARNING_RATE = 1.6e-3  # from random weights; fine-tuning uses the smaller one of the recipes
SEED = 250_616_233  # no other command simulates this sky by default


def train_generator(
    out: str | Path,
    *,
    kind: str = "flow",
    feature: str | None = None,
    survey: str | Sequence[str] = (),
    store: str | Path | Sequence[str | Path] = (),
    schema: str | None = None,
    size: int | None = None,
    count: int | None = None,
    steps: int | None = None,
    batch: int | None = None,
    widths: Sequence[int] | None = None,
    lora: int | None = None,
    resolution: int | None = None,
    start: str | None = None,
    budget: float | None = None,
    seed: int = 0,
    device: str = "auto",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train a conditional generator and write its weights.

    Parameters
    ----------
    out : path
        The weights, ``.safetensors``, with provenance beside them as ``.json``. For Stable Diffusion a folder, with the
        provenance in ``training.json``.
    kind : str
        ``flow``, ``stable-diffusion`` (see `galscan.labels.settings.StableDiffusionSettings`), or ``maps``: the
        diffusion model of a feature's maps (see `galscan.labels.settings.MapSettings`), trained on the feature's prior
        alone.
    feature : str, optional
        Of ``maps``: a module of `galscan.synthesis.features.base`; default ``dust_lane``.
    survey, store : str or path, or sequence of them
        Surveys of the data home by name, stores by path. With neither, `count` galaxies of the simulated sky without
        the rare class.
    schema : str, optional
        Label schema of the conditions; by default the only one of the stores.
    size : int
        Pixels on a side of simulated galaxies, 64 by default; not used for stores.
    count : int
        Simulated galaxies, 40,000 by default; of ``maps``, maps of the prior, 24,000 by default.
    steps, batch, widths, lora, resolution : int, int, sequence of int, int, int
        See the settings of each kind in `galscan.labels.settings`.
    start : str
        ``none`` (the default of ``flow`` and ``maps``), ``base``, or the path of weights to start from; for Stable
        Diffusion a folder in the form of diffusers, or a name on the Hugging Face hub.
    budget : float, optional
        Minutes at most.
    dry_run : bool
        Print the plan without training.

    Returns
    -------
    dict
        ``weights``, ``bytes``, ``sha256``, ``steps``, ``seconds``, ``loss``, ``galaxies`` or ``maps``, and the request.

    Raises
    ------
    InputError
        If stores and schema do not fit together, or an option does not apply to this kind.
    ConflictError
        If `out` exists, or a staging folder beside it belongs to a different training.
    Interrupted
        On Ctrl-C; the same call resumes.
    """
    out = Path(out)
    if kind not in KINDS:
        raise InputError(f"--kind {kind}: no such generator{nearest(kind, KINDS)}")
    if kind != "stable-diffusion" and out.suffix != ".safetensors":
        raise InputError(f"--out {out}: weights are written as .safetensors; name such a file")
    if kind == "stable-diffusion" and out.suffix == ".safetensors":
        raise InputError(f"--out {out}: Stable Diffusion is written as a folder; name one")
    if out.exists():
        raise ConflictError(f"{out} exists; choose another --out, or remove it")
    if budget is not None and not budget > 0:
        raise InputError(f"--budget {budget:g}: give minutes above 0")
    if kind == "maps":
        inapplicable = {
            "store": store, "survey": survey, "schema": schema, "lora": lora, "resolution": resolution, "size": size,
        }  # fmt: skip
        for option, value in inapplicable.items():
            if value not in (None, (), []):
                raise InputError(
                    f"--{option} does not apply to --kind maps, which trains on the feature's prior alone; leave it out"
                )
        options = {"steps": steps, "batch": batch, "widths": widths}
        return _train_maps(
            out, feature or "dust_lane", count, {k: v for k, v in options.items() if v is not None},
            start or "none", budget, seed, device, dry_run,
        )  # fmt: skip
    if feature is not None:
        raise InputError(f"--feature {feature} applies to --kind maps only; pass that, or leave --feature out")
    size, count = size or SIZE, count or COUNT
    stores = [layout.open_store(p) for p in home.find_stores(survey, store)]
    label_schema = _schema(stores, schema)
    flow = {"start": start or "none", "steps": steps or STEPS, "widths": widths}
    flow |= {"learning_rate": LEARNING_RATE} if flow["start"] == "none" else {}
    chosen = flow if kind == "flow" else {"start": start, "steps": steps, "widths": widths}
    chosen |= {"kind": kind, "batch": batch or BATCH, "lora": lora, "resolution": resolution}
    settings = validated(KINDS[kind], "generator", {k: v for k, v in chosen.items() if v is not None})
    assert not isinstance(settings, MapSettings)
    settings.check_size(stores[0].size if stores else size)
    request = {
        "stores": [[s.name, s.content_hash] for s in stores]
        or {"simulated": count, "size": size, "seed": SEED, "lane_fraction": LANE_FRACTION},
        "schema": label_schema.name, "settings": settings.model_dump(mode="json"), "seed": seed,
        "budget": budget,
    }  # fmt: skip
    _describe(stores, label_schema, settings, request, out)
    if dry_run:
        return request
    from galscan.core import device as devices
    from galscan.synthesis import backends

    torch_device = devices.pick(device)
    backends.check_start(settings)  # before anything is written
    with staging_folder(out, request, "training") as work:
        if not stores:
            sky = work / "sky.zarr"
            stores = [
                ingest_survey(SimulatedSurvey(count, size, SEED, rare_fraction=0.0, lane_fraction=LANE_FRACTION), sky)
            ]
        outcome = _train(stores, label_schema, settings, work, seed, torch_device, budget)
        weights = backends.find(work)
        assert weights is not None  # just trained
        result = {"weights": str(out), **_size_and_hash(weights), **outcome, "request": request}
        provenance = {**result, "weights": out.name}
        if weights.is_dir():
            write_json(weights / "training.json", provenance)
        os.replace(weights, out)
        if out.is_file():
            write_json(out.with_suffix(".json"), provenance)
        shutil.rmtree(work)
    return result


def _train_maps(
    out: Path,
    feature: str,
    count: int | None,
    options: dict[str, Any],
    start: str,
    budget: float | None,
    seed: int,
    device: str,
    dry_run: bool,
) -> dict[str, Any]:
    """Train the diffusion model of a feature's maps on its prior, and write it with its provenance."""
    from galscan.core import device as devices
    from galscan.synthesis.diffusion import map_training as training
    from galscan.synthesis.diffusion.maps import SEED as PRIOR_SEED

    training.check_feature(feature)
    model = None if start == "none" else training.load_weights(feature, start)
    defaults: dict[str, Any] = {"steps": training.STEPS, "batch": training.BATCH, "ema": training.EMA}
    defaults |= {"widths": model.config.widths} if model else {"learning_rate": training.LEARNING_RATE}
    settings = validated(MapSettings, "generator", {"kind": "maps", "start": start} | defaults | options)
    if settings.steps < 1:
        raise InputError(f"--steps {settings.steps}: give 1 or more")
    if model and settings.widths != model.config.widths:
        raise InputError(f"widths {list(settings.widths)} differ from those of {start}, {list(model.config.widths)}")
    count = training.COUNT if count is None else count
    if count < 1:
        raise InputError(f"--count {count}: give 1 or more")
    request = {
        "feature": feature, "maps": {"prior": count, "seed": PRIOR_SEED}, "settings": settings.model_dump(mode="json"),
        "seed": seed, "budget": budget,
    }  # fmt: skip
    budgeted = f", at most {budget:g} minutes" if budget else ""
    rows = [
        f"maps         {count:,} of the prior of '{feature}'",
        f"network      widths {list(settings.widths)}, starting from {settings.start}",
        f"training     {settings.steps:,} steps of {settings.batch}{budgeted}",
        f"output       {out}",
    ]
    print("\n".join(rows), file=sys.stderr)
    if dry_run:
        return request
    torch_device = devices.pick(device)
    with staging_folder(out, request, "training") as work:
        weights = work / "generator.safetensors"
        outcome = training.train_on_prior(
            feature, count, settings, weights, seed=seed, device=torch_device, start=model,
            seconds=None if budget is None else budget * 60,
        )  # fmt: skip
        result = {"weights": str(out), **_size_and_hash(weights), **outcome, "request": request}
        os.replace(weights, out)
        write_json(out.with_suffix(".json"), {**result, "weights": out.name})
        shutil.rmtree(work)
    return result


def _schema(stores: Sequence[layout.Store], schema: str | None) -> Schema:
    available = sorted({s for store in stores for s in store.schemas}) if stores else ["simulated"]
    if schema is None:
        if len(available) != 1:
            raise InputError(f"the stores hold {', '.join(available) or 'no'} labels; name the schema with --schema")
        schema = available[0]
    elif schema not in available:
        raise InputError(
            f"--schema {schema}: the stores hold {', '.join(available) or 'no'} labels "
            f"(known: {', '.join(schema_names())})"
        )
    if len({s.size for s in stores}) > 1:
        raise InputError("the stores hold cutouts of several sizes; ingest them with one --size")
    return load_schema(schema)


def _describe(
    stores: Sequence[layout.Store], schema: Schema, settings: AnySettings, request: dict[str, Any], out: Path
) -> None:
    rows = [f"store        {s.name}: {s.count:,} objects, {s.size} px ({s.path})" for s in stores]
    simulated = request["stores"]
    rows = rows or [
        f"galaxies     {simulated['simulated']:,} simulated, {simulated['size']} px, no early type with a dust lane"
    ]
    rows += [
        f"conditions   {schema.name}: {len(schema.names)} answers, "
        + ("as captions" if isinstance(settings, StableDiffusionSettings) else "and measured image properties"),
        "network      "
        + (
            f"Stable Diffusion at {settings.resolution} px, "
            + (f"adapters of rank {settings.lora}" if settings.lora else "all of its weights")
            if isinstance(settings, StableDiffusionSettings)
            else f"widths {list(settings.widths)}"
        )
        + f", starting from {settings.start}",
        f"training     {settings.steps:,} steps of {settings.batch}"
        + (f", at most {request['budget']:g} minutes" if request["budget"] else ""),
        f"output       {out}",
    ]
    print("\n".join(rows), file=sys.stderr)


def _size_and_hash(weights: Path) -> dict[str, Any]:
    """Return size and hash of trained weights, a file or a folder."""
    if weights.is_file():
        return {"bytes": weights.stat().st_size, "sha256": file_digest(weights)}
    files = sorted(p for p in weights.rglob("*") if p.is_file())
    hashes = [[str(p.relative_to(weights)), file_digest(p)] for p in files]
    return {"bytes": sum(p.stat().st_size for p in files), "sha256": digest(hashes)}


def _train(
    stores: Sequence[layout.Store],
    schema: Schema,
    settings: AnySettings,
    work: Path,
    seed: int,
    device: torch.device,
    budget: float | None,
) -> dict[str, Any]:
    from galscan.synthesis import backends

    images, values, survey = [], [], []
    for number, store in enumerate(stores):
        usable = np.flatnonzero((store.column("flags") & UNUSABLE) == 0)
        labels = store.labels(schema.name).reindex(columns=schema.names) if schema.name in store.schemas else None
        images.append(store.images()[usable])
        unlabelled = np.full((len(usable), len(schema.names)), np.nan, np.float32)
        values.append(unlabelled if labels is None else labels.to_numpy(np.float32)[usable])
        survey.append(np.full(len(usable), number))
    pixels = np.concatenate(images)
    conditions = np.concatenate([np.concatenate(values), measure(pixels)], 1)
    galaxies = GalaxySet(pixels, conditions, np.concatenate(survey), np.ones(len(pixels)))
    outcome = backends.train(
        galaxies, schema, [s.name for s in stores], settings, work, seed=seed, device=device,
        seconds=None if budget is None else budget * 60,
    )  # fmt: skip
    return outcome | {"galaxies": len(pixels)}
