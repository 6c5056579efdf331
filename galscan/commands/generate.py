"""``galscan generate``: make synthetic galaxies of a rare class, also with properties that are rare in any survey.

With a generator of maps the recipe's feature is injected into real galaxies (`galscan.commands.generate_injected`);
otherwise a generator samples whole images.
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

SHEET, COLUMNS = 48, 12  # synthetic galaxies on the contact sheet, and images per row (galaxies with hosts: in pairs)


@dataclass(frozen=True)
class _Source:
    """A generator of whole images, and the labels of real galaxies to condition it on."""

    recipe: Recipe
    schema: Schema
    generator: ImageGenerator
    conditions: pd.DataFrame
    surveys: np.ndarray  # survey name of each row of `conditions`


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
    """Make synthetic galaxies of `target` and write them with their conditions and a contact sheet.

    If the recipe injects a feature, every synthetic galaxy is a real one from `store` that satisfies the rule
    ``inject.hosts``, and differs from it only in the feature. Whole images are conditioned on real galaxies that
    satisfy the recipe's rule ``from`` (inclination, size, colour, ...), with the answers in ``set`` sampled from
    ranges. So a synthetic class is as varied as the survey.

    Parameters
    ----------
    target : str
        Name or path of a recipe.
    count : int
        Number of synthetic galaxies.
    out : path
        A store if it ends in ``.zarr``, else a folder of PNG images with ``conditions.csv``. The unchanged hosts of
        injected features are written, too.
    model : path, optional
        A trained model. Its first network predicts which unlabelled galaxies may be hosts, and its diffusion model
        samples maps; objects it held out are not used as hosts. Without injection its generator samples the images.
        Default the model of `target` in the data home, if neither `generator` nor `store` is given.
    generator : str, optional
        Other weights. For maps: a file, ``base`` (the default without a model), or ``prior`` for the physical prior.
        For whole images: a file, a folder (Stable Diffusion) or ``base``; conditions are then taken from `store`.
    store : path, or sequence of them
        Real galaxies that are hosts or provide conditions.
    base : str, optional
        Rule over labels that the real galaxies must satisfy, instead of the recipe's ``inject.hosts`` or ``from``.
    values, weights, guidance, steps : optional
        For whole images only: ranges of answers (low, high) beside or instead of the recipe's ``set``; relative
        guidance weights of single answers; guidance scale of the whole condition, 1 = none; number of sampling steps.
    dry_run : bool
        Print the plan, write nothing.

    Returns
    -------
    dict
        ``out``, ``sheet``, ``count``, ``answers`` (mean of each in the conditions), and the settings; for injected
        features also ``hosts``, ``hosts_to_choose``, ``hosts_unlabelled``, ``hosts_not_measured``, ``invisible`` and
        ``too_faint`` (`galscan.synthesis.injection.injected_set`).

    Raises
    ------
    InputError
        If rules, labels, weights and options do not fit together, or no host is left.
    ConflictError
        If `out` exists.
    Interrupted
        On Ctrl-C; nothing is left behind.
    """
    out = Path(out)
    partial, sheet_path = out.with_name(out.name + ".partial"), out.with_suffix(".png")
    for path in (out, partial, *([sheet_path] if out.suffix == ".zarr" else [])):
        if path.exists():
            raise ConflictError(f"{path} exists; choose another --out, or remove it")
    if count < 1:
        raise InputError(f"--count {count}: give 1 or more")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} does not exist; make it first")
    plan: dict[str, Any] = {"target": target, "count": count, "out": str(out)}
    trained_model = _trained_model(target, model, generator, store)
    recipe = _recipe(target, trained_model)
    if generate_injected.injects(recipe, trained_model, generator):
        image_options = {"set": values, "weight": weights, "guidance": guidance, "steps": steps}
        injection = generate_injected.plan_injection(recipe, trained_model, generator, store, base, image_options)
        plan |= generate_injected.describe(injection) | {"seed": seed}
        schema, shown_answers = injection.schema, [*injection.rule.values][:1]

        def make() -> tuple[SyntheticSet, dict[str, Any]]:
            return generate_injected.make_injected(injection, count, seed, device)
    else:
        source = _source(target, trained_model, generator, store)
        rule, settings = _rule(source, base, values, weights, guidance, steps)
        plan |= {
            "from": rule.base, "set": rule.set, "weights": rule.weights, "guidance": settings.guidance,
            "steps": settings.steps, "seed": seed,
        }  # fmt: skip
        schema, shown_answers = source.schema, [*rule.set][:2]

        def make() -> tuple[SyntheticSet, dict[str, Any]]:
            return _generate(source, rule, settings, count, seed, device), {}

    print("\n".join(f"{key:<12} {value}" for key, value in plan.items()), file=sys.stderr)
    if dry_run:
        return plan
    try:
        synthetic_set, counts = make()
        plan |= counts
        sheet_path = _write(synthetic_set, schema, recipe.name, shown_answers, out, partial, plan)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    means = synthetic_set.labels[synthetic_set.synthetic].mean()
    return plan | {"answers": {a: float(m) for a, m in means.items() if np.isfinite(m)}, "sheet": str(sheet_path)}


def _trained_model(target: str, model: str | Path | None, generator: str | None, store: Any) -> Model | None:
    """Open the given model; without weights and stores that of `target` in the data home, if there is one."""
    if model is not None:
        return open_model(Path(model))
    if generator is not None or home.find_stores((), store):
        return None
    try:
        return open_model(home.find_model(target))
    except NotFoundError:
        return None


def _recipe(target: str, model: Model | None) -> Recipe:
    return model.recipe if model and target == model.target else load_recipe(target)


def _rule(
    source: _Source,
    base: str | None,
    values: Mapping[str, tuple[float, float]] | None,
    weights: Mapping[str, float] | None,
    guidance: float | None,
    steps: int | None,
) -> tuple[SyntheticRule, SyntheticSettings]:
    """Return the rule for the conditions of whole images, and the sampling settings."""
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


def _source(target: str, trained_model: Model | None, weights: str | None, store: Any) -> _Source:
    from galscan.synthesis import backends
    from galscan.synthesis.galaxies import MEASURED, measure
    from galscan.synthesis.synthetic_set import CONDITIONS, read_conditions

    if weights is None:
        trained_model = trained_model or open_model(home.find_model(target))
        conditions, _, surveys = read_conditions(trained_model.path / CONDITIONS)
        # Models trained together share a generator, in the parent folder.
        folder = trained_model.path
        generator = backends.load(folder if backends.find(folder) else folder.parent)
        recipe, schema = _recipe(target, trained_model), trained_model.schema
        recipe.schema_for([schema.name])
        return _Source(recipe, schema, generator, conditions, surveys)
    if trained_model is not None:
        raise InputError("--model and --generator exclude each other; name one")
    recipe, network = load_recipe(target), backends.load_named(weights)
    schema = load_schema(network.config.schema)
    recipe.schema_for([schema.name])
    stores = [layout.open_store(p) for p in home.find_stores((), store)]
    stores = [s for s in stores if schema.name in s.schemas]
    if not stores:
        raise InputError(f"--generator {weights} needs --store with {schema.name} labels, for the conditions")
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
    from galscan.synthesis.sampling import sample_conditions, sample_images
    from galscan.synthesis.synthetic_set import SyntheticSet

    known = list(source.generator.config.surveys)
    conditions = source.conditions[list(source.generator.config.answers)]
    values, rows = sample_conditions(conditions, count, np.random.default_rng(seed), rule)
    survey = np.array([known.index(name) if name in known else -1 for name in source.surveys[rows]])
    images = sample_images(
        source.generator, values, survey, guidance=settings.guidance, weights=rule.weights, steps=settings.steps,
        seed=seed, device=devices.pick(device),
    )  # fmt: skip
    labels = pd.DataFrame(values, columns=conditions.columns)[source.schema.names]
    return SyntheticSet.of_origin(images, labels, np.ones(count, np.float32))


def _write(
    synthetic_set: SyntheticSet,
    schema: Schema,
    name: str,
    shown_answers: list[str],
    out: Path,
    partial: Path,
    plan: dict[str, Any],
) -> Path:
    """Write a store with a contact sheet beside it, or a folder that contains the sheet; return the sheet's path."""
    from PIL import Image

    from galscan.synthesis.synthetic_set import write_synthetic_set

    if out.suffix == ".zarr":
        sheet_path = out.with_suffix(".png")
        provenance = {k: v for k, v in plan.items() if k != "out"}
        write_synthetic_set(synthetic_set, partial / out.name, out.stem, schema, provenance)
        _sheet(synthetic_set, partial / sheet_path.name, shown_answers, name)
        os.replace(partial / sheet_path.name, sheet_path)
        os.replace(partial / out.name, out)
        return sheet_path
    folder = np.where(synthetic_set.synthetic, "images", "hosts")
    names = np.array([f"{subfolder}/{k:06d}.png" for k, subfolder in enumerate(folder)])
    with storage_errors(partial):
        for subfolder in np.unique(folder):
            (partial / subfolder).mkdir(parents=True)
        for file, image in zip(names, synthetic_set.images, strict=True):
            Image.fromarray(image).save(partial / file)
        table = synthetic_set.labels.assign(file=names)
        if (synthetic_set.host >= 0).any():
            table = table.assign(
                host=np.where(synthetic_set.host >= 0, names[synthetic_set.host], ""), depth=synthetic_set.depth
            )
        table[synthetic_set.synthetic].to_csv(partial / "conditions.csv", index=False)
    _sheet(synthetic_set, partial / "sheet.png", shown_answers, name)
    write_json(partial / "synthetic.json", plan)
    os.replace(partial, out)
    return out / "sheet.png"


def _sheet(synthetic_set: SyntheticSet, path: Path, shown_answers: list[str], name: str) -> Path:
    """Draw a contact sheet of 48 synthetic galaxies with their conditions; injected ones beside their hosts."""
    from galscan.core.thumbnails import contact_sheet
    from galscan.synthesis.synthetic_set import sheet

    rows = np.flatnonzero(synthetic_set.synthetic)
    rows = rows[np.sort(np.random.default_rng(0).permutation(len(rows))[:SHEET])]
    if not (synthetic_set.host[rows] >= 0).all():
        return sheet(synthetic_set, path, shown_answers, f"synthetic {name}, with their conditions", rows=rows)
    pairs = np.stack([synthetic_set.host[rows], rows], 1).ravel()
    captions = []
    for k in rows:
        values = "".join(f"\n{answer} {synthetic_set.labels[answer].iloc[k]:.2f}" for answer in shown_answers)
        captions += ["host" + "\n" * len(shown_answers), f"depth {synthetic_set.depth[k]:.2f}{values}"]
    title = f"synthetic {name}: each host unchanged, and with the feature injected"
    return contact_sheet(synthetic_set.images[pairs], path, captions=captions, columns=COLUMNS, title=title)
