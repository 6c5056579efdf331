"""``galscan target``: write a recipe template, check a recipe on labelled galaxies, list the shipped targets."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core import files, home, thumbnails
from galscan.core.errors import ConflictError, InputError
from galscan.labels.recipe import Recipe, load_recipe, recipe_names
from galscan.labels.rules import parse_rule
from galscan.labels.schema import Schema, load_schema
from galscan.labels.template import recipe_template
from galscan.store import layout
from galscan.store.layout import Store
from galscan.training import rule_check

SHOWN = 24  # images of each kind on a contact sheet
GREEN, RED, GREY = (94, 190, 120), (224, 96, 86), (150, 157, 170)


def new_target(
    name: str, *, schema: str | Sequence[str] = "gz2", answer: str | Sequence[str] = (), out: str | Path | None = None
) -> dict[str, Any]:
    """Write a recipe template: all keys explained, the answers of the labels listed, example rules that are valid.

    Parameters
    ----------
    name : str
        Name of the target.
    schema : str or sequence of str
        Label schemas that the recipe has rules for.
    answer : str or sequence of str
        Answers that define the target, e.g. ``t08_odd_feature_a20_lens_or_arc``; by default an example.
    out : path, optional
        The file; default ``NAME.toml`` in the working directory.

    Returns
    -------
    dict
        JSON-able: ``recipe``, the file, and ``next``, the command that checks it.
    """
    schemas = [schema] if isinstance(schema, str) else list(schema)
    path = Path(out) if out is not None else Path(f"{name}.toml")
    text = recipe_template(name, schemas, [answer] if isinstance(answer, str) else answer)
    if path.suffix != ".toml":
        raise InputError(f"{path} does not end in .toml, which marks the path of a recipe; rename it")
    if path.exists():
        raise ConflictError(f"{path} exists and is not overwritten; name another file with --out")
    files.write_text(path, text)
    return {"recipe": str(path), "schemas": schemas, "next": f"galscan target check {path} --store STORE"}


def list_targets() -> dict[str, Any]:
    """Return the shipped targets with name, title, label schemas, kind of synthetic galaxies and a line of science."""
    recipes = [load_recipe(name) for name in recipe_names()]
    targets = [
        {
            "name": r.name, "title": r.title, "schemas": list(r.schemas), "science": first_sentence(r.science),
            "synthetic": _synthetic_kinds(r),
        }
        for r in recipes
    ]  # fmt: skip
    lines = [
        f"{t['name']:<18}{t['title']} ({', '.join(t['schemas'])})\n{'':<18}{t['science']}\n"
        f"{'':<18}Synthetic positives: {'; '.join(t['synthetic']) or 'none'}."
        for t in targets
    ]
    return {"targets": targets, "text": "\n".join(lines)}


def _synthetic_kinds(recipe: Recipe) -> list[str]:
    """Return how a recipe makes synthetic positives: the features that it injects, by schema, and whole images."""
    schemas: dict[str, list[str]] = {}
    for name, rules in recipe.schemas.items():
        if rules.inject is not None and recipe.synthetic.injected:
            schemas.setdefault(rules.inject.feature, []).append(name)
    kinds = [
        f"feature {feature} injected into real galaxies" + f" ({', '.join(names)})" * (len(names) < len(recipe.schemas))
        for feature, names in schemas.items()
    ]
    return kinds + ["whole images"] * (recipe.synthetic.positives > 0)


def first_sentence(text: str) -> str:
    """Return the first sentence of `text` in one line, without references in brackets."""
    plain = re.sub(r" \([^()]*\b\d{4}\b[^()]*\)", "", " ".join(text.split()))
    return plain.partition(". ")[0].rstrip(".") + "."


def check_target(
    target: str,
    *,
    survey: str | Sequence[str] = (),
    store: str | Path | Sequence[str | Path] = (),
    seed: int = 0,
    sheet: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Check a recipe's rules on labelled galaxies: counts by rule and condition, errors and warnings.

    Parameters
    ----------
    target : str
        A shipped target's name, or the path of a recipe (``.toml``).
    survey, store : str or path, or sequence of them
        Surveys of the data home by name, stores by path or URL.
    seed : int
        Seed of the split, as in `galscan.train_rare`, and of the selection of images.
    sheet : path, optional
        Write a contact sheet (PNG) there: positives, hard negatives and ambiguous galaxies, 24 of each.

    Returns
    -------
    dict
        JSON-able. ``error``: the reason in one line why the target cannot be trained on these stores, or None;
        ``warnings``: problems that do not prevent training; ``text``: all results as text.

    Raises
    ------
    InputError
        If recipe and stores do not fit together.
    """
    recipe = load_recipe(target)
    paths = home.find_stores(survey, store)
    if not paths:
        raise InputError(
            "no labelled galaxies to check the recipe on; name labelled stores with --store, or surveys with --survey"
        )
    stores = [layout.open_store(p) for p in paths]
    schema = load_schema(recipe.schema_for(name for s in stores for name in s.schemas))
    rules = recipe.schemas[schema.name]
    table = rule_check.read(recipe, schema, stores, seed)
    result: dict[str, Any] = {
        "target": recipe.name, "title": recipe.title, "schema": schema.name,
        "objects": rule_check.counts(table), "split": rule_check.splits(table),
        "positive": rule_check.waterfall(rules.positive, table, schema),
        "negative": rule_check.waterfall(rules.negative, table, schema),
        "sources": rule_check.sources(rules, table, schema), "synthetic": recipe.synthetic.summary(rules),
        "warnings": rule_check.warnings(recipe, schema, table),
        "error": rule_check.problem(recipe, schema, table, stores),
    }  # fmt: skip
    if sheet is not None:
        result["sheet"] = str(_contact_sheet(recipe, schema, table, stores, seed, Path(sheet)))
    return result | {"text": _text(result)}


def _contact_sheet(
    recipe: Recipe, schema: Schema, table: pd.DataFrame, stores: Sequence[Store], seed: int, path: Path
) -> Path:
    """Write a contact sheet of positives, hard negatives and ambiguous galaxies by the rules."""
    rules, random = recipe.schemas[schema.name], np.random.default_rng(seed)
    shuffle = random.random(len(table))
    order = {"positive": shuffle, "negative": shuffle - rule_check.hardness(rules, table, schema), "ambiguous": shuffle}
    chosen = {}
    for kind, key in order.items():
        rows = np.flatnonzero((table["kind"] == kind).to_numpy())
        chosen[kind] = rows[np.argsort(key[rows])][:SHOWN]
    rows = np.concatenate(list(chosen.values()))
    if not len(rows):
        raise InputError(f"{recipe.name}: the contact sheet would be empty, as no object has labels that the rules use")
    images = [stores[s].images(slice(r, r + 1))[0] for s, r in table[["survey", "row"]].iloc[rows].to_numpy()]
    positive = parse_rule(rules.positive, schema.names)
    colours = dict(zip(chosen, (GREEN, RED, GREY), strict=True))
    n = {kind: len(kind_rows) for kind, kind_rows in chosen.items()}
    return thumbnails.contact_sheet(
        images, path, tile=128,
        captions=["\n".join([table["id"].iloc[r], *rule_check.named(positive, schema, table, int(r))]) for r in rows],
        borders=[colours[kind] for kind, kind_rows in chosen.items() for _ in kind_rows],
        title=f"{recipe.name} ({schema.name}): {n['positive']} positive (green), {n['negative']} hard negative (red), "
        f"{n['ambiguous']} ambiguous (grey)",
    )  # fmt: skip


def _text(result: dict[str, Any]) -> str:
    objects, split = result["objects"], result["split"].items()
    kinds = [k for k in ("objects", *rule_check.KINDS) if k != "both" or objects[-1]["both"]]
    width = max(8, *(len(row["store"]) for row in objects))
    return "\n".join([
        f"target       {result['target']}: {result['title']}", f"labels       {result['schema']}", "",
        f"  {'':<{width}}" + "".join(f"{k.replace('_', ' '):>12}" for k in kinds),
        *(f"  {row['store']:<{width}}" + "".join(f"{row[k]:>12,}" for k in kinds) for row in objects), "",
        *(f"{name:<13}" + ", ".join(f"{count:,} {kind}" for kind, count in n.items()) for name, n in split),
        "", *_steps("positive", **result["positive"]), "", *_steps("negative", **result["negative"]), "",
        f"{'made from':<13}{'galaxies':>9}{'training':>10}",
        *(f"  {e['match']:>20,}{e['training']:>10,}  {e['key']}: {e['rule']}" for e in result["sources"]),
        f"synthetic    {result['synthetic']}", "", *(f"warning      {warning}" for warning in result["warnings"]),
        *([f"sheet        {result['sheet']}"] if "sheet" in result else []),
        f"trainable    {'no: ' + result['error'] if result['error'] else 'yes'}",
    ])  # fmt: skip


def _steps(key: str, join: str, steps: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a waterfall; for conditions joined by "and", the one that excludes most is marked."""
    heading = {"and": "all of", "or": "any of", "": "where"}[join]
    lines = [f"{key + ', ' + heading:<22}{'true':>9}{'not asked':>11}{'so far':>9}{'without it':>12}"]
    worst = max(range(len(steps)), key=lambda k: steps[k]["without"] or 0) if join == "and" else None
    for k, step in enumerate(steps):
        without = "" if step["without"] is None else f"{step['without']:,}"
        mark = "  <- excludes most" if k == worst else ""
        lines.append(
            f"{'':<22}{step['true']:>9,}{step['not_asked']:>11,}{step['so_far']:>9,}{without:>12}  "
            f"{step['condition']}{mark}"
        )
    return lines
