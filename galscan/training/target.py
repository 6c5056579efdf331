"""``galscan target``: a recipe to start from, its rules proved on labelled galaxies, and the targets that are there."""

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
from galscan.labels.template import starting_recipe
from galscan.store import layout
from galscan.store.layout import Store
from galscan.training import rule_check

SHOWN = 24  # pictures of each kind on a sheet
GREEN, RED, GREY = (94, 190, 120), (224, 96, 86), (150, 157, 170)


def new_target(
    name: str, *, schema: str | Sequence[str] = "gz2", answer: str | Sequence[str] = (), out: str | Path | None = None
) -> dict[str, Any]:
    """Write a recipe to start from: every key explained, the labels' answers listed, rules that work.

    Parameters
    ----------
    name : str
        Of the target.
    schema : str or sequence of str
        Label schemas to have rules for.
    answer : str or sequence of str
        What the target is about, e.g. ``t08_odd_feature_a20_lens_or_arc``; some example by default.
    out : path, optional
        The file; default ``NAME.toml`` here.

    Returns
    -------
    dict
        JSON-able: ``recipe``, the file, and ``next``, the command that proves it.

    Raises
    ------
    InputError
        If the name, a schema or an answer cannot be, or `out` does not end in ``.toml``.
    ConflictError
        If `out` is there.
    """
    schemas = [schema] if isinstance(schema, str) else list(schema)
    path = Path(out) if out is not None else Path(f"{name}.toml")
    text = starting_recipe(name, schemas, [answer] if isinstance(answer, str) else answer)
    if path.suffix != ".toml":
        raise InputError(f"{path} does not end in .toml, by which a recipe is told from a target's name")
    if path.exists():
        raise ConflictError(f"{path} is there and is not overwritten; name another file with --out")
    files.write_text(path, text)
    return {"recipe": str(path), "schemas": schemas, "next": f"galscan target check {path} --store STORE"}


def list_targets() -> dict[str, Any]:
    """Return the targets that come with galscan: name, title, label schemas, and a line of science each."""
    recipes = [load_recipe(name) for name in recipe_names()]
    told = [
        {"name": r.name, "title": r.title, "schemas": list(r.schemas), "science": first_sentence(r.science)}
        for r in recipes
    ]
    lines = [f"{t['name']:<18}{t['title']} ({', '.join(t['schemas'])})\n{'':<18}{t['science']}" for t in told]
    return {"targets": told, "text": "\n".join(lines)}


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
    """Prove a recipe's rules on labelled galaxies: what they find and what limits them.

    Parameters
    ----------
    target : str
        A shipped target's name, or the path of a recipe (``.toml``).
    survey, store : str or path, or sequence of them
        Surveys of the data home by name, stores by path or URL.
    seed : int
        Of the split, as `galscan.train_rare` takes it, and of the choice of pictures.
    sheet : path, optional
        Write a contact sheet (PNG) there: positives, hard negatives and ambiguous galaxies, 24 of each.

    Returns
    -------
    dict
        JSON-able. ``error`` says in one line why the target cannot be trained on these stores, or is None;
        ``warnings`` what makes it worth less; ``text`` is all of it for people.

    Raises
    ------
    InputError
        If recipe and stores do not fit together.
    """
    recipe = load_recipe(target)
    paths = home.find_stores(survey, store)
    if not paths:
        raise InputError("nothing to check it against; name labelled stores with --store, or surveys with --survey")
    stores = [layout.open_store(p) for p in paths]
    schema = load_schema(recipe.schema_for(name for s in stores for name in s.schemas))
    rules = recipe.schemas[schema.name]
    table = rule_check.read(recipe, schema, stores, seed)
    told: dict[str, Any] = {
        "target": recipe.name, "title": recipe.title, "schema": schema.name,
        "objects": rule_check.counts(table), "split": rule_check.splits(table),
        "positive": rule_check.waterfall(rules.positive, table, schema),
        "negative": rule_check.waterfall(rules.negative, table, schema),
        "sources": rule_check.sources(rules, table, schema), "synthetic": recipe.synthetic.summary(rules),
        "warnings": rule_check.warnings(recipe, schema, table),
        "error": rule_check.problem(recipe, schema, table, stores),
    }  # fmt: skip
    if sheet is not None:
        told["sheet"] = str(_draw(recipe, schema, table, stores, seed, Path(sheet)))
    return told | {"text": _text(told)}


def _draw(recipe: Recipe, schema: Schema, table: pd.DataFrame, stores: Sequence[Store], seed: int, path: Path) -> Path:
    """Draw what the rules call positive, negative but hard, and ambiguous, so that a person sees what they mean."""
    rules, random = recipe.schemas[schema.name], np.random.default_rng(seed)
    lot = random.random(len(table))
    order = {"positive": lot, "negative": lot - rule_check.hardness(rules, table, schema), "ambiguous": lot}
    chosen = {}
    for kind, key in order.items():
        rows = np.flatnonzero((table["kind"] == kind).to_numpy())
        chosen[kind] = rows[np.argsort(key[rows])][:SHOWN]
    rows = np.concatenate(list(chosen.values()))
    if not len(rows):
        raise InputError(f"{recipe.name}: nothing to draw, no object has a label that the rules ask for")
    images = [stores[s].images(slice(r, r + 1))[0] for s, r in table[["survey", "row"]].iloc[rows].to_numpy()]
    positive = parse_rule(rules.positive, schema.names)
    colours = dict(zip(chosen, (GREEN, RED, GREY), strict=True))
    n = {kind: len(some) for kind, some in chosen.items()}
    return thumbnails.contact_sheet(
        images, path, tile=128,
        captions=["\n".join([table["id"].iloc[r], *rule_check.named(positive, schema, table, int(r))]) for r in rows],
        borders=[colours[kind] for kind, some in chosen.items() for _ in some],
        title=f"{recipe.name} ({schema.name}): {n['positive']} positive (green), {n['negative']} hard negative (red), "
        f"{n['ambiguous']} ambiguous (grey)",
    )  # fmt: skip


def _text(told: dict[str, Any]) -> str:
    lines = [f"target       {told['target']}: {told['title']}", f"labels       {told['schema']}", ""]
    kinds = [k for k in ("objects", *rule_check.KINDS) if k != "both" or told["objects"][-1]["both"]]
    wide = max(8, *(len(row["store"]) for row in told["objects"]))
    lines.append(f"  {'':<{wide}}" + "".join(f"{k.replace('_', ' '):>12}" for k in kinds))
    lines += [f"  {row['store']:<{wide}}" + "".join(f"{row[k]:>12,}" for k in kinds) for row in told["objects"]]
    lines.append("")
    lines += [
        f"{s:<13}{n['positive']:,} positive, {n['negative']:,} negative, {n['ambiguous']:,} ambiguous"
        for s, n in told["split"].items()
    ]
    for key in ("positive", "negative"):
        lines += ["", *_steps(key, **told[key])]
    lines += ["", f"{'made from':<13}{'galaxies':>9}{'training':>10}"]
    lines += [f"  {e['match']:>20,}{e['training']:>10,}  {e['key']}: {e['rule']}" for e in told["sources"]]
    lines += [f"synthetic    {told['synthetic']}", ""]
    lines += [f"warning      {warning}" for warning in told["warnings"]]
    lines += [f"sheet        {told['sheet']}"] if "sheet" in told else []
    lines.append(f"trainable    {'no: ' + told['error'] if told['error'] else 'yes'}")
    return "\n".join(lines)


def _steps(key: str, join: str, steps: list[dict[str, Any]]) -> list[str]:
    """Return a waterfall; of conditions that must all hold the one that excludes most is marked."""
    head = {"and": "all of", "or": "any of", "": "where"}[join]
    lines = [f"{key + ', ' + head:<22}{'true':>9}{'not asked':>11}{'so far':>9}{'without it':>12}"]
    worst = max(range(len(steps)), key=lambda k: steps[k]["without"] or 0) if join == "and" else None
    for k, step in enumerate(steps):
        without = "" if step["without"] is None else f"{step['without']:,}"
        mark = "  <- excludes most" if k == worst else ""
        lines.append(
            f"{'':<22}{step['true']:>9,}{step['not_asked']:>11,}{step['so_far']:>9,}{without:>12}  "
            f"{step['condition']}{mark}"
        )
    return lines
