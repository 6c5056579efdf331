"""``galscan generate``: make synthetic galaxies of a rare class, also of a combination that hardly any survey shows.

Where the recipe's generator is of maps, its feature is injected into real galaxies
(`galscan.commands.generate_injected`); else a generator draws whole images.
"""

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

from galscan.commands import generate_injected
from galscan.core import home
from galscan.core.errors import ConflictError, InputError, Interrupted, NotFoundError
from galscan.core.files import storage_errors, write_json
from galscan.labels.recipe import Recipe, check_synthetic, load_recipe, validated
from galscan.labels.schema import Schema, load_schema
from galscan.labels.settings import SyntheticRule, SyntheticSettings
from galscan.models.model import Model, open_model
from galscan.store import layout
from galscan.surveys.base import UNUSABLE
from galscan.surveys.resampling import resample

if TYPE_CHECKING:
    from galscan.synthesis.sampling import ImageGenerator
    from galscan.synthesis.synthetic_set import SyntheticSet

SHEET, COLUMNS = 48, 12  # synthetic galaxies on the sheet, and pictures in a row of it: pairs, where they have hosts


@dataclass(frozen=True)
class _Source:
    """A generator of whole images, and the real galaxies whose other answers are the conditions."""

    recipe: Recipe
    schema: Schema
    generator: ImageGenerator
    conditions: pd.DataFrame
    surveys: np.ndarray  # name of each condition's survey


def generate(
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
    """Make synthetic galaxies of `target` and write them with their conditions and a sheet.

    Where the recipe injects a feature, every synthetic galaxy is a real one of `store` for which the rule
    ``inject.hosts`` holds, and differs from it in the feature alone. Whole images are drawn with conditions of real
    galaxies for which the recipe's ``from`` holds - inclination, size, colour and all else - and the answers of ``set``
    drawn from ranges. So a synthetic class is as varied as the survey.

    Parameters
    ----------
    target : str
        A recipe's name or path.
    count : int
        How many.
    out : path
        A store if it ends in ``.zarr``, else a folder of PNG images with ``conditions.csv``. Hosts of injected features
        are written as well, as they are.
    model : path, optional
        A trained model. Its first network predicts which unlabelled galaxies may be hosts, and its diffusion model
        samples maps; what it held out is no host. Of a model with a generator of whole images, that one draws; this
        is by default that of `target` in the data home.
    generator : str, optional
        Other weights. Of maps: a file, ``base`` (the default without a model), or ``prior`` for the physical prior. Of
        whole images: a file, a folder (Stable Diffusion) or ``base``; conditions are then those of `store`.
    store : path, or sequence of them
        Real galaxies: hosts, or where conditions come from.
    base : str, optional
        Instead of the recipe's ``inject.hosts`` or ``from``: a rule over labels that the real galaxies must satisfy.
    values, weights, guidance, steps : optional
        Of whole images only: ranges of answers (low, high) beside or instead of the recipe's ``set``; how much stronger
        single answers are guided than the rest; guidance of the whole condition, 1 = none; steps from noise to picture.
    dry_run : bool
        Print the plan, write nothing.

    Returns
    -------
    dict
        ``out``, ``sheet``, ``count``, ``answers`` (mean of each in the conditions), and the settings; of injected
        features ``hosts``, ``hosts_to_choose``, ``hosts_unlabelled``, ``hosts_not_measured``, ``invisible`` and
        ``too_faint``, too (`galscan.synthesis.injection.injected_set`).

    Raises
    ------
    InputError
        If rules, labels, weights and options do not fit together, or no host is left.
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
    plan: dict[str, Any] = {"target": target, "count": count, "out": str(out)}
    bundle = _bundle(target, model, generator, store)
    recipe = bundle.recipe if bundle and target == bundle.target else load_recipe(target)
    if generate_injected.injects(recipe, bundle, generator):
        useless = {"set": values, "weight": weights, "guidance": guidance, "steps": steps}
        injection = generate_injected.plan_injection(recipe, bundle, generator, store, base, useless)
        plan |= generate_injected.describe(injection) | {"seed": seed}
        schema, shown = injection.schema, [*injection.rule.values][:1]

        def make() -> tuple[SyntheticSet, dict[str, Any]]:
            return generate_injected.make_injected(injection, count, seed, device)
    else:
        source = _source(target, model, generator, store)
        rule, settings = _rule(source, base, values, weights, guidance, steps)
        plan |= {
            "from": rule.base, "set": rule.set, "weights": rule.weights, "guidance": settings.guidance,
            "steps": settings.steps, "seed": seed,
        }  # fmt: skip
        schema, shown = source.schema, [*rule.set][:2]

        def make() -> tuple[SyntheticSet, dict[str, Any]]:
            return _generate(source, rule, settings, count, seed, device), {}

    print("\n".join(f"{key:<12} {value}" for key, value in plan.items()), file=sys.stderr)
    if dry_run:
        return plan
    try:
        dreams, counts = make()
        plan |= counts
        picture = _write(dreams, schema, recipe.name, shown, out, partial, plan)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    means = dreams.labels[dreams.synthetic].mean()
    return plan | {"answers": {a: float(m) for a, m in means.items() if np.isfinite(m)}, "sheet": str(picture)}


def _bundle(target: str, model: str | Path | None, generator: str | None, store: Any) -> Model | None:
    """Open the model that is named; the one of the data home where neither weights nor stores are named either."""
    if model is not None:
        return open_model(Path(model))
    if generator is not None or home.find_stores((), store):
        return None
    try:
        return open_model(home.find_model(target))
    except NotFoundError:
        return None


def _rule(
    source: _Source,
    base: str | None,
    values: Mapping[str, tuple[float, float]] | None,
    weights: Mapping[str, float] | None,
    guidance: float | None,
    steps: int | None,
) -> tuple[SyntheticRule, SyntheticSettings]:
    """Return what whole images are drawn of, and how."""
    given = {"guidance": source.generator.guidance, "steps": source.generator.steps}
    given |= source.recipe.synthetic.model_dump(exclude_none=True)
    given |= {k: v for k, v in (("guidance", guidance), ("steps", steps)) if v is not None}
    settings = validated(SyntheticSettings, "synthetic", given)
    shipped = source.recipe.schemas[source.schema.name].synthetic
    rule = validated(
        SyntheticRule, "synthetic",
        {"from": base or shipped.base, "set": shipped.set | dict(values or {}),
         "weights": shipped.weights | dict(weights or {})},
    )  # fmt: skip
    check_synthetic("synthetic", rule, source.schema)
    return rule, settings


def _source(target: str, model: str | Path | None, weights: str | None, store: Any) -> _Source:
    from galscan.synthesis import backends
    from galscan.synthesis.galaxies import MEASURED, measure
    from galscan.synthesis.synthetic_set import CONDITIONS, read_conditions

    if weights is None:
        bundle = open_model(Path(model) if model is not None else home.find_model(target))
        conditions, _, surveys = read_conditions(bundle.path / CONDITIONS)
        # That of models trained together lies beside them.
        generator = backends.load(bundle.path if backends.find(bundle.path) else bundle.path.parent)
        recipe = bundle.recipe if target == bundle.target else load_recipe(target)
        schema = load_schema(bundle.schema)
        recipe.schema_for([schema.name])
        return _Source(recipe, schema, generator, conditions, surveys)
    if model is not None:
        raise InputError("--model and --generator exclude each other; name one")
    recipe, network = load_recipe(target), backends.load_named(weights)
    schema = load_schema(network.config.schema)
    recipe.schema_for([schema.name])
    stores = [layout.open_store(p) for p in home.find_stores((), store)]
    stores = [s for s in stores if schema.name in s.schemas]
    if not stores:
        raise InputError(f"--generator {weights} needs --store with {schema.name} labels, to draw conditions from")
    parts, names = [], []
    for s in stores:
        rows = np.flatnonzero((s.column("flags") & UNUSABLE) == 0)
        labels = s.labels(schema.name).reindex(columns=schema.names).iloc[rows].reset_index(drop=True)
        images = resample(s.images()[rows], min(s.size, network.config.size))
        measured = pd.DataFrame(measure(images), columns=list(MEASURED))
        parts.append(pd.concat([labels, measured], axis=1))
        names += [s.name] * len(rows)
    return _Source(recipe, schema, network, pd.concat(parts, ignore_index=True), np.array(names))


def _generate(
    source: _Source, rule: SyntheticRule, settings: SyntheticSettings, count: int, seed: int, device: str
) -> SyntheticSet:
    from galscan.core import device as devices
    from galscan.synthesis.sampling import sample_conditions
    from galscan.synthesis.sampling import sample_images as draw
    from galscan.synthesis.synthetic_set import SyntheticSet

    known = list(source.generator.config.surveys)
    conditions = source.conditions[list(source.generator.config.answers)]
    values, rows = sample_conditions(conditions, count, np.random.default_rng(seed), rule)
    survey = np.array([known.index(name) if name in known else -1 for name in source.surveys[rows]])
    images = draw(
        source.generator, values, survey, guidance=settings.guidance, weights=rule.weights, steps=settings.steps,
        seed=seed, device=devices.pick(device),
    )  # fmt: skip
    labels = pd.DataFrame(values, columns=conditions.columns)[source.schema.names]
    return SyntheticSet.of_origin(images, labels, np.ones(count, np.float32))


def _write(
    dreams: SyntheticSet, schema: Schema, name: str, shown: list[str], out: Path, partial: Path, plan: dict[str, Any]
) -> Path:
    """Write a store and a sheet beside it, or a folder with the sheet inside; return the sheet's path."""
    from PIL import Image

    from galscan.synthesis.synthetic_set import write_synthetic_set

    if out.suffix == ".zarr":
        picture = out.with_suffix(".png")
        provenance = {k: v for k, v in plan.items() if k != "out"}
        write_synthetic_set(dreams, partial / out.name, out.stem, schema, provenance)
        _sheet(dreams, partial / picture.name, shown, name)
        os.replace(partial / picture.name, picture)
        os.replace(partial / out.name, out)
        return picture
    folder = np.where(dreams.synthetic, "images", "hosts")
    names = np.array([f"{where}/{k:06d}.png" for k, where in enumerate(folder)])
    with storage_errors(partial):
        for where in np.unique(folder):
            (partial / where).mkdir(parents=True)
        for file, image in zip(names, dreams.images, strict=True):
            Image.fromarray(image).save(partial / file)
        table = dreams.labels.assign(file=names)
        if (dreams.host >= 0).any():
            table = table.assign(host=np.where(dreams.host >= 0, names[dreams.host], ""), depth=dreams.depth)
        table[dreams.synthetic].to_csv(partial / "conditions.csv", index=False)
    _sheet(dreams, partial / "sheet.png", shown, name)
    write_json(partial / "dream.json", plan)
    os.replace(partial, out)
    return out / "sheet.png"


def _sheet(dreams: SyntheticSet, path: Path, shown: list[str], name: str) -> Path:
    """Draw 48 synthetic galaxies with their conditions, each of those that have one beside its host."""
    from galscan.core.thumbnails import contact_sheet
    from galscan.synthesis.synthetic_set import sheet

    rows = np.flatnonzero(dreams.synthetic)
    rows = rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:SHEET])]
    if not (dreams.host[rows] >= 0).all():
        return sheet(dreams, path, shown, f"synthetic {name}, with their conditions", rows=rows)
    pairs = np.stack([dreams.host[rows], rows], 1).ravel()
    captions = []
    for k in rows:
        values = "".join(f"\n{answer} {dreams.labels[answer].iloc[k]:.2f}" for answer in shown)
        captions += ["host" + "\n" * len(shown), f"depth {dreams.depth[k]:.2f}{values}"]
    title = f"synthetic {name}: each host as it is, and with the feature injected"
    return contact_sheet(dreams.images[pairs], path, captions=captions, columns=COLUMNS, title=title)
