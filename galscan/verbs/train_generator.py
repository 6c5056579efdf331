"""``galscan train-generator``: train a generator alone; by default the base weights, on the simulated sky.

The base weights never see what they will be asked for: the sky they learn from holds dust lanes across
spirals, many and as plain as early types have them, and early types without lanes, but no early type with a lane.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from galscan import home
from galscan.errors import ConflictError, InputError
from galscan.files import file_digest, write_json
from galscan.generate.galaxies import GalaxySet, measure
from galscan.labels import Schema, load_schema, schema_names
from galscan.recipe import GeneratorSettings, validated
from galscan.store import layout
from galscan.store.ingest import ingest_survey
from galscan.surveys.simulated import SimulatedSurvey
from galscan.unfinished import work_on

if TYPE_CHECKING:
    import torch

    from galscan.generate.model import Generator

COUNT = 40_000  # simulated galaxies the base weights learn from
LANES = 0.3  # share of the spirals there that are crossed by a lane such as early types have
LEARNING_RATE = 1.6e-3  # from nothing; weights to go on from are tuned with the recipes' smaller one
SEED = 250_616_233  # a part of the sky that no other command draws by default


def train_generator(
    out: str | Path,
    *,
    survey: str | Sequence[str] = (),
    store: str | Path | Sequence[str | Path] = (),
    schema: str | None = None,
    size: int = 64,
    count: int = COUNT,
    steps: int = 4500,
    batch: int = 16,
    widths: Sequence[int] | None = None,
    start: str = "none",
    budget: float | None = None,
    seed: int = 0,
    device: str = "auto",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train a conditional generator and write its weights.

    Parameters
    ----------
    out : path
        The weights, ``.safetensors``; how they were made is written beside them as ``.json``.
    survey, store : str or path, or sequence of them
        Surveys of the data home by name, stores by path. With neither, `count` galaxies of the simulated
        sky without the rare class.
    schema : str, optional
        The labels that become conditions; default the stores' only ones.
    size : int
        Pixels on a side of simulated galaxies; stores have theirs.
    steps, batch, widths : int, int, sequence of int
        See `galscan.recipe.GeneratorSettings`.
    start : str
        ``none``, ``base``, or the path of weights to go on from.
    budget : float, optional
        Minutes at most.
    dry_run : bool
        Print the plan and train nothing.

    Returns
    -------
    dict
        ``weights``, ``bytes``, ``sha256``, ``steps``, ``seconds``, ``loss``, ``galaxies`` and the request.

    Raises
    ------
    InputError
        If stores and schema do not fit together.
    ConflictError
        If `out` is there, or its unfinished training is another one.
    Interrupted
        On Ctrl-C; the same call goes on where it stopped.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: weights are written as .safetensors; name such a file")
    if out.exists():
        raise ConflictError(f"{out} exists; choose another --out, or remove it")
    if budget is not None and not budget > 0:
        raise InputError(f"--budget {budget:g}: give minutes above 0")
    stores = [layout.open_store(p) for p in home.find_stores(survey, store)]
    chosen = _schema(stores, schema)
    given: dict[str, Any] = {"steps": steps, "batch": batch, "start": start}
    given |= ({"widths": widths} if widths else {}) | ({"learning_rate": LEARNING_RATE} if start == "none" else {})
    settings = validated(GeneratorSettings, "generator", given)
    settings.check_size(stores[0].size if stores else size)
    request = {
        "stores": [[s.name, s.content_hash] for s in stores]
        or {"simulated": count, "size": size, "seed": SEED, "lane_fraction": LANES},
        "schema": chosen.name, "settings": settings.model_dump(mode="json"), "seed": seed,
        "budget": budget,
    }  # fmt: skip
    _describe(stores, chosen, settings, request, out)
    if dry_run:
        return request
    from galscan import device as devices
    from galscan.generate.model import load_start

    where, begin = devices.pick(device), load_start(settings.start)  # before anything is written
    if begin is not None:
        begin.check_widths(settings.widths)
    with work_on(out, request, "training") as work:
        if not stores:
            sky = work / "sky.zarr"
            stores = [ingest_survey(SimulatedSurvey(count, size, SEED, rare_fraction=0.0, lane_fraction=LANES), sky)]
        outcome = _train(stores, chosen, settings, work / "generator.safetensors", seed, where, budget, begin)
        os.replace(work / "generator.safetensors", out)
        result = {
            "weights": str(out), "bytes": out.stat().st_size, "sha256": file_digest(out), **outcome, "request": request,
        }  # fmt: skip
        write_json(out.with_suffix(".json"), {**result, "weights": out.name})
        shutil.rmtree(work)
    return result


def _schema(stores: Sequence[layout.Store], schema: str | None) -> Schema:
    held = sorted({s for store in stores for s in store.schemas}) if stores else ["simulated"]
    if schema is None:
        if len(held) != 1:
            raise InputError(f"the stores hold {', '.join(held) or 'no'} labels; name the schema with --schema")
        schema = held[0]
    elif schema not in held:
        raise InputError(
            f"--schema {schema}: the stores hold {', '.join(held) or 'no'} labels (known: {', '.join(schema_names())})"
        )
    if len({s.size for s in stores}) > 1:
        raise InputError("the stores hold cutouts of several sizes; ingest them with one --size")
    return load_schema(schema)


def _describe(
    stores: Sequence[layout.Store], schema: Schema, settings: GeneratorSettings, request: dict[str, Any], out: Path
) -> None:
    rows = [f"store        {s.name}: {s.count:,} objects, {s.size} px ({s.path})" for s in stores]
    sky = request["stores"]
    rows = rows or [f"galaxies     {sky['simulated']:,} simulated, {sky['size']} px, no early type with a dust lane"]
    rows += [
        f"conditions   {schema.name}: {len(schema.names)} answers, and what is measured on the picture",
        f"network      widths {list(settings.widths)}, starting from {settings.start}",
        f"training     {settings.steps:,} steps of {settings.batch}"
        + (f", at most {request['budget']:g} minutes" if request["budget"] else ""),
        f"output       {out}",
    ]
    print("\n".join(rows), file=sys.stderr)


def _train(
    stores: Sequence[layout.Store],
    schema: Schema,
    settings: GeneratorSettings,
    out: Path,
    seed: int,
    device: torch.device,
    budget: float | None,
    start: Generator | None,
) -> dict[str, Any]:
    from galscan.generate import train
    from galscan.generate.model import make_config

    images, values, survey = [], [], []
    for number, store in enumerate(stores):
        usable = np.flatnonzero((store.column("flags") & layout.UNUSABLE) == 0)
        labels = store.labels(schema.name).reindex(columns=schema.names) if schema.name in store.schemas else None
        images.append(store.images()[usable])
        blank = np.full((len(usable), len(schema.names)), np.nan, np.float32)
        values.append(blank if labels is None else labels.to_numpy(np.float32)[usable])
        survey.append(np.full(len(usable), number))
    pixels = np.concatenate(images)
    conditions = np.concatenate([np.concatenate(values), measure(pixels)], 1)
    galaxies = GalaxySet(pixels, conditions, np.concatenate(survey), np.ones(len(pixels)))
    outcome = train.train_generator(
        galaxies, make_config(pixels, schema, [s.name for s in stores], settings.widths), settings, out, seed=seed,
        device=device, seconds=None if budget is None else budget * 60, start=start,
    )  # fmt: skip
    return outcome | {"galaxies": len(pixels)}
