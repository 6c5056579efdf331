"""``galscan dream``: draw galaxies of a rare class, also of a combination that hardly any survey shows."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from galscan import home
from galscan.classify.bundle import open_bundle
from galscan.errors import ConflictError, InputError, Interrupted
from galscan.files import storage_errors, write_json
from galscan.labels import Schema, load_schema
from galscan.recipe import Recipe, check_dream, load_recipe, validated
from galscan.resampling import resample
from galscan.settings import DreamRule, DreamSettings
from galscan.store import layout

if TYPE_CHECKING:
    from galscan.generate.dreams import Dreams
    from galscan.generate.sample import Dreamer


@dataclass(frozen=True)
class _Source:
    """What to dream with, and the real galaxies whose other answers the dreams take over."""

    recipe: Recipe
    schema: Schema
    generator: Dreamer
    conditions: pd.DataFrame
    surveys: np.ndarray  # name of each condition's survey


def dream(
    target: str,
    *,
    count: int,
    out: str | Path,
    model: str | Path | None = None,
    generator: str | None = None,
    store: str | Path | Sequence[str | Path] = (),
    base: str | None = None,
    values: Mapping[str, tuple[float, float]] | None = None,
    weights: Mapping[str, float] | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Dream galaxies of `target` and write them with their conditions and a sheet.

    Every condition is that of a real galaxy for which the recipe's ``from`` holds - its inclination, size, colour
    and all else - with the answers of the recipe's ``set`` drawn anew. So a dreamt class is as varied as the survey.

    Parameters
    ----------
    target : str
        A recipe's name or path; its dream rule says what to draw.
    count : int
        How many.
    out : path
        A store if it ends in ``.zarr``, else a folder of PNG images with ``conditions.csv``.
    model : path, optional
        The trained model whose generator dreams; default that of `target` in the data home.
    generator : str, optional
        Instead of a model: weights, a file, a folder (Stable Diffusion) or ``base``; conditions are then drawn from
        `store`.
    base : str, optional
        Instead of the recipe's ``from``: a condition over labels that the real galaxies must satisfy.
    values : mapping of answer to (low, high), optional
        Ranges beside or instead of the recipe's ``set``.
    weights : mapping of answer to float, optional
        How strongly to insist on single answers, beside or instead of the recipe's; 1 = no more than on the rest.
    guidance : float, optional
        How strongly to insist on the whole condition; 1 = what was learnt, as it is. Default the recipe's, or else what
        is good for the generator.
    steps : int, optional
        Steps from noise to picture; default alike.
    dry_run : bool
        Print the plan, write nothing.

    Returns
    -------
    dict
        ``out``, ``sheet``, ``count``, ``answers`` (asked: mean of each answer), and the settings.

    Raises
    ------
    InputError
        If rule, labels and generator do not fit together.
    ConflictError
        If `out` is there.
    Interrupted
        On Ctrl-C; nothing is left behind.
    """
    out = Path(out)
    partial, picture = out.with_name(out.name + ".partial"), out.with_suffix(".png")
    for path in (out, partial, *([picture] if out.suffix == ".zarr" else [])):
        if path.exists():
            raise ConflictError(f"{path} exists; choose another --out, or remove it")
    if count < 1:
        raise InputError(f"--count {count}: give 1 or more")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} does not exist; make it first")
    source = _source(target, model, generator, store)
    given = {"guidance": source.generator.guidance, "steps": source.generator.steps}
    given |= source.recipe.dream.model_dump(exclude_none=True)
    given |= {k: v for k, v in (("guidance", guidance), ("steps", steps)) if v is not None}
    settings = validated(DreamSettings, "dream", given)
    shipped = source.recipe.schemas[source.schema.name].dream
    rule = validated(
        DreamRule, "dream",
        {"from": base or shipped.base, "set": shipped.set | dict(values or {}),
         "weights": shipped.weights | dict(weights or {})},
    )  # fmt: skip
    check_dream("dream", rule, source.schema)
    plan = {
        "target": target, "count": count, "out": str(out), "from": rule.base, "set": rule.set, "weights": rule.weights,
        "guidance": settings.guidance, "steps": settings.steps, "seed": seed,
    }  # fmt: skip
    print("\n".join(f"{key:<12} {value}" for key, value in plan.items()), file=sys.stderr)
    if dry_run:
        return plan
    try:
        dreams = _dream(source, rule, settings, count, seed, device)
        picture = _write(dreams, source, out, partial, plan)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    asked = {a: float(m) for a, m in dreams.labels.mean().items() if np.isfinite(m)}
    return plan | {"answers": asked, "sheet": str(picture)}


def _source(target: str, model: str | Path | None, weights: str | None, store: Any) -> _Source:
    from galscan.generate import kinds
    from galscan.generate.dreams import CONDITIONS, read_conditions
    from galscan.generate.galaxies import MEASURED, measure

    if weights is None:
        bundle = open_bundle(Path(model) if model is not None else home.find_model(target))
        conditions, _, surveys = read_conditions(bundle.path / CONDITIONS)
        # That of models trained together lies beside them.
        generator = kinds.load(bundle.path if kinds.find(bundle.path) else bundle.path.parent)
        recipe = bundle.recipe if target == bundle.target else load_recipe(target)
        schema = load_schema(bundle.schema)
        recipe.schema_for([schema.name])
        return _Source(recipe, schema, generator, conditions, surveys)
    if model is not None:
        raise InputError("--model and --generator exclude each other; name one")
    recipe, network = load_recipe(target), kinds.load_named(weights)
    schema = load_schema(network.config.schema)
    recipe.schema_for([schema.name])
    stores = [layout.open_store(p) for p in home.find_stores((), store)]
    stores = [s for s in stores if schema.name in s.schemas]
    if not stores:
        raise InputError(f"--generator {weights} needs --store with {schema.name} labels, to draw conditions from")
    parts, names = [], []
    for s in stores:
        rows = np.flatnonzero((s.column("flags") & layout.UNUSABLE) == 0)
        labels = s.labels(schema.name).reindex(columns=schema.names).iloc[rows].reset_index(drop=True)
        images = resample(s.images()[rows], min(s.size, network.config.size))
        measured = pd.DataFrame(measure(images), columns=list(MEASURED))
        parts.append(pd.concat([labels, measured], axis=1))
        names += [s.name] * len(rows)
    return _Source(recipe, schema, network, pd.concat(parts, ignore_index=True), np.array(names))


def _dream(source: _Source, rule: DreamRule, settings: DreamSettings, count: int, seed: int, device: str) -> Dreams:
    from galscan import device as devices
    from galscan.generate.dreams import Dreams
    from galscan.generate.sample import draw_conditions
    from galscan.generate.sample import dream as draw

    known = list(source.generator.config.surveys)
    conditions = source.conditions[list(source.generator.config.answers)]
    values, rows = draw_conditions(conditions, count, np.random.default_rng(seed), rule)
    survey = np.array([known.index(name) if name in known else -1 for name in source.surveys[rows]])
    images = draw(
        source.generator, values, survey, guidance=settings.guidance, weights=rule.weights, steps=settings.steps,
        seed=seed, device=devices.pick(device),
    )  # fmt: skip
    labels = pd.DataFrame(values, columns=conditions.columns)[source.schema.names]
    return Dreams.of_origin(images, labels, np.ones(count, np.float32))


def _write(dreams: Dreams, source: _Source, out: Path, partial: Path, plan: dict[str, Any]) -> Path:
    """Write a store and a sheet beside it, or a folder with the sheet inside; return the sheet's path."""
    from PIL import Image

    from galscan.generate.dreams import sheet, write_dreams

    shown, rows = [*plan["set"]][:2], np.arange(min(48, len(dreams)))
    title = f"dreamt {source.recipe.name}, with their conditions"
    if out.suffix == ".zarr":
        picture = out.with_suffix(".png")
        provenance = {k: v for k, v in plan.items() if k != "out"}
        write_dreams(dreams, partial / out.name, out.stem, source.schema, provenance)
        sheet(dreams, partial / picture.name, shown, title, rows=rows)
        os.replace(partial / picture.name, picture)
        os.replace(partial / out.name, out)
        return picture
    with storage_errors(partial):
        (partial / "images").mkdir(parents=True)
        names = [f"images/{k:06d}.png" for k in range(len(dreams))]
        for name, image in zip(names, dreams.images, strict=True):
            Image.fromarray(image).save(partial / name)
        dreams.labels.assign(file=names).to_csv(partial / "conditions.csv", index=False)
    sheet(dreams, partial / "sheet.png", shown, title, rows=rows)
    write_json(partial / "dream.json", plan)
    os.replace(partial, out)
    return out / "sheet.png"
