"""``galscan train-generator``: train a generator alone; by default the base weights, on the simulated sky.

The base weights of whole images are trained without the rare class: their sky has many spirals with dust lanes, as
strong as those of early types, and early types without lanes, but no early type with a lane. The base weights of
feature maps (``--kind maps``) are trained on the feature's physical prior alone.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    from galscan.synthesis.backends import AnySettings

COUNT = 40_000  # simulated galaxies that the base weights are trained on
SIZE = 64  # their pixels on a side
BATCH = 16
LANE_FRACTION = 0.3  # fraction of those spirals with a dust lane like those of early types
STEPS = 4500  # of the flow network
LEARNING_RATE = 1.6e-3  # from random weights; fine-tuning uses the smaller one of the recipes
SEED = 250_616_233  # no other command simulates this sky by default


class _Plan(NamedTuple):
    settings: AnySettings | MapSettings
    request: dict[str, Any]
    lines: list[str]
    train: Callable[..., dict[str, Any]]
    """Trains into a folder, with the options seed, device and seconds."""


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
        Diffusion a folder in the form of diffusers or with released checkpoints, or a name on the Hugging Face hub.
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
    options: dict[str, Any] = {"steps": steps, "batch": batch, "widths": widths}
    of_images = {"lora": lora, "resolution": resolution}
    if kind == "maps":
        inapplicable = {"store": store, "survey": survey, "schema": schema, "size": size} | of_images
        for option, value in inapplicable.items():
            if value not in (None, (), []):
                raise InputError(
                    f"--{option} does not apply to --kind maps, which trains on the feature's prior alone; leave it out"
                )
        plan = _plan_maps(feature or "dust_lane", count, start or "none", options)
    else:
        if feature is not None:
            raise InputError(f"--feature {feature} applies to --kind maps only; pass that, or leave --feature out")
        stores = [layout.open_store(p) for p in home.find_stores(survey, store)]
        plan = _plan_images(kind, stores, schema, size or SIZE, count or COUNT, start, options | of_images)
    settings = plan.settings
    request = plan.request | {"settings": settings.model_dump(mode="json"), "seed": seed, "budget": budget}
    at_most = f", at most {budget:g} minutes" if budget else ""
    training = f"{settings.steps:,} steps of {settings.batch}{at_most}" if settings.steps else "none"
    lines = [*plan.lines, f"training     {training}", f"output       {out}"]
    print("\n".join(lines), file=sys.stderr)
    if dry_run:
        return request
    from galscan.core import device as devices
    from galscan.synthesis import backends

    torch_device = devices.pick(device)
    if not isinstance(settings, MapSettings):
        backends.check_start(settings)  # before anything is written
    with staging_folder(out, request, "training") as work, devices.recorded_training_dtype(work, torch_device):
        outcome = plan.train(work, seed=seed, device=torch_device, seconds=None if budget is None else budget * 60)
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


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _plan_maps(feature: str, count: int | None, start: str, options: dict[str, Any]) -> _Plan:
    """Plan the training of the diffusion model of a feature's maps on its prior."""
    from galscan.synthesis.diffusion import maps

    maps.check_feature(feature)
    model = None if start == "none" else maps.load_weights(feature, start)
    defaults: dict[str, Any] = {"kind": "maps", "start": start, "steps": maps.STEPS, "batch": maps.BATCH_SIZE}
    defaults |= {"ema": maps.EMA}
    defaults |= {"widths": model.config.widths} if model else {"learning_rate": maps.LEARNING_RATE}
    settings = validated(MapSettings, "generator", defaults | _given(options))
    if model:
        model.check_widths(settings.widths)
    count = maps.COUNT if count is None else count
    for option, value in {"steps": settings.steps, "count": count}.items():
        if value < 1:
            raise InputError(f"--{option} {value}: give 1 or more")

    def train(work: Path, **how: Any) -> dict[str, Any]:
        return maps.train_on_prior(feature, count, settings, work / "generator.safetensors", start=model, **how)

    lines = [
        f"maps         {count:,} of the prior of '{feature}'",
        f"network      widths {list(settings.widths)}, starting from {settings.start}",
    ]
    return _Plan(settings, {"feature": feature, "maps": {"prior": count, "seed": maps.SEED}}, lines, train)


def _plan_images(
    kind: str,
    stores: list[layout.Store],
    schema: str | None,
    size: int,
    count: int,
    start: str | None,
    options: dict[str, Any],
) -> _Plan:
    """Plan the training of a generator of whole images on stores, or on the simulated sky."""
    label_schema = _schema(stores, schema)
    given = _given({"kind": kind, "start": start, "batch": BATCH} | _given(options))
    if kind == "flow":
        given = {"start": "none", "steps": STEPS} | given
        given |= {"learning_rate": LEARNING_RATE} if given["start"] == "none" else {}
    settings = validated(KINDS[kind], "generator", given)
    assert not isinstance(settings, MapSettings)
    settings.check_size(stores[0].size if stores else size)
    request: dict[str, Any] = {"schema": label_schema.name, "stores": [[s.name, s.content_hash] for s in stores]}
    lines = [f"store        {s.name}: {s.count:,} objects, {s.size} px ({s.path})" for s in stores]
    if not stores:
        request["stores"] = {"simulated": count, "size": size, "seed": SEED, "lane_fraction": LANE_FRACTION}
        lines = [f"galaxies     {count:,} simulated, {size} px, no early type with a dust lane"]
    if isinstance(settings, StableDiffusionSettings):
        trained = f", {f'adapters of rank {settings.lora}' if settings.lora else 'all of its weights'}"
        network = f"Stable Diffusion at {settings.resolution} px{trained if settings.steps else ''}"
        conditions = "as captions"
    else:
        network, conditions = f"widths {list(settings.widths)}", "and measured image properties"
    lines += [
        f"conditions   {label_schema.name}: {len(label_schema.names)} answers, {conditions}",
        f"network      {network}, starting from {settings.start}",
    ]

    def train(work: Path, **how: Any) -> dict[str, Any]:
        used = stores
        if not used:
            sky = SimulatedSurvey(count, size, SEED, rare_fraction=0.0, lane_fraction=LANE_FRACTION)
            used = [ingest_survey(sky, work / "sky.zarr")]
        return _train_images(used, label_schema, settings, work, **how)

    return _Plan(settings, request, lines, train)


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


def _size_and_hash(weights: Path) -> dict[str, Any]:
    """Return size and hash of trained weights, a file or a folder."""
    if weights.is_file():
        return {"bytes": weights.stat().st_size, "sha256": file_digest(weights)}
    files = sorted(p for p in weights.rglob("*") if p.is_file())
    hashes = [[str(p.relative_to(weights)), file_digest(p)] for p in files]
    return {"bytes": sum(p.stat().st_size for p in files), "sha256": digest(hashes)}


def _train_images(
    stores: Sequence[layout.Store], schema: Schema, settings: AnySettings, work: Path, **how: Any
) -> dict[str, Any]:
    from galscan.synthesis import backends

    images, values, survey = [], [], []
    for number, store in enumerate(stores):
        usable = np.flatnonzero((store.column("flags") & UNUSABLE) == 0)
        images.append(store.images()[usable])
        labels = np.full((store.count, len(schema.names)), np.nan, np.float32)
        if schema.name in store.schemas:
            labels = store.labels(schema.name).reindex(columns=schema.names).to_numpy(np.float32)
        values.append(labels[usable])
        survey.append(np.full(len(usable), number))
    pixels = np.concatenate(images)
    conditions = np.concatenate([np.concatenate(values), measure(pixels)], 1)
    galaxies = GalaxySet(pixels, conditions, np.concatenate(survey), np.ones(len(pixels)))
    outcome = backends.train(galaxies, schema, [s.name for s in stores], settings, work, **how)
    return outcome | {"galaxies": len(pixels)}
