"""``galscan feature measure``: the maps of a recipe's feature as measured on labelled galaxies, and injected."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from galscan.core import home, thumbnails
from galscan.core.errors import InputError
from galscan.labels.recipe import load_recipe
from galscan.labels.rules import parse_rule
from galscan.labels.schema import load_schema
from galscan.labels.settings import InjectRule
from galscan.store import layout
from galscan.training import rule_check

if TYPE_CHECKING:
    from galscan.synthesis.injection import Candidates

SHOWN = 24  # galaxies on a contact sheet
HOSTS = 60  # galaxies among which hosts for the sheet are chosen
CONTRAST = 1.0  # value of a map that is white, and minus this black, on the sheet


def measure_feature(
    target: str,
    *,
    survey: str | Sequence[str] = (),
    store: str | Path | Sequence[str | Path] = (),
    seed: int = 0,
    sheet: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Measure the feature that a recipe injects on the labelled galaxies that show it, as training will do.

    Nothing is trained. Training measures only galaxies of its training sets, so fewer.

    Parameters
    ----------
    target : str
        A shipped target's name, or the path of a recipe (``.toml``), with a rule ``inject.measure``.
    survey, store : str or path, or sequence of them
        Surveys of the data home by name, stores by path or URL.
    seed : int
        Seed of the selection of images and hosts.
    sheet : path, optional
        Write a contact sheet (PNG) there: for up to 24 galaxies the galaxy, its map (grey is 0, brighter is added
        light, darker is missing light), a host without the feature, and the host with this map injected.

    Returns
    -------
    dict
        JSON-able: ``labelled``, galaxies that satisfy ``inject.measure``; ``measured``, of which a map was measured;
        ``left_out``, the numbers of the others by reason; ``needed``, maps that training needs; ``error``, the reason
        in one line why they are too few, or None; ``text``.

    Raises
    ------
    InputError
        If recipe and stores do not fit together, the feature cannot be measured, or no galaxy is a host for the sheet.
    """
    from galscan.synthesis.diffusion.maps import LEAST_EXAMPLES, LEAST_MEASURED, check_examples, measured_maps
    from galscan.synthesis.features.base import has_model, has_prior

    recipe = load_recipe(target)
    paths = home.find_stores(survey, store)
    if not paths:
        raise InputError("no labelled galaxies to measure; name labelled stores with --store, or surveys with --survey")
    stores = [layout.open_store(p) for p in paths]
    schema = load_schema(recipe.schema_for(name for s in stores for name in s.schemas))
    rule = recipe.schemas[schema.name].inject
    if rule is None or not rule.measure:
        raise InputError(
            f"target '{recipe.name}' has no rule 'inject.measure' for {schema.name} labels: add one that selects the "
            "galaxies on which its feature is measured"
        )
    rule_check.check_sizes(stores, recipe)
    table = rule_check.read(recipe, schema, stores, seed)
    columns = rule_check.columns_of(table, schema)
    examples = np.flatnonzero(parse_rule(rule.measure, schema.names).evaluate(columns)[0])
    random = np.random.default_rng(seed)
    hosts = np.setdiff1d(np.flatnonzero(parse_rule(rule.hosts, schema.names).evaluate(columns)[0]), examples)
    hosts = random.permutation(hosts)[: HOSTS if sheet is not None else 0]
    candidates = _candidates(table.iloc[np.concatenate([examples, hosts])], schema.names, stores, recipe.size)
    maps, rows = measured_maps(candidates, rule)
    resolved = candidates.hosts(np.arange(len(examples))).measured
    needed = LEAST_MEASURED if has_model(rule.feature) else 0 if has_prior(rule.feature) else LEAST_EXAMPLES
    left_out = {
        "galaxy_not_measured": int((~resolved).sum()), "feature_not_measured": int(resolved.sum()) - len(maps),
    }  # fmt: skip
    result: dict[str, Any] = {
        "target": recipe.name, "schema": schema.name, "feature": rule.feature,
        "measure": " ".join(rule.measure.split()),
        "labelled": len(examples), "measured": len(maps), "left_out": left_out, "needed": needed, "error": None,
    }  # fmt: skip
    try:
        check_examples(rule, len(maps), "can be measured")
    except InputError as error:
        result["error"] = str(error)
    if sheet is not None and len(maps):
        pool = np.arange(len(examples), len(candidates.images))
        ids = table["id"].to_numpy()[examples]
        result["sheet"] = str(_contact_sheet(candidates, rule, maps, rows, pool, ids, random, Path(sheet)))
    return result | {"text": _text(result)}


def _candidates(table: pd.DataFrame, answers: Sequence[str], stores: Sequence[layout.Store], size: int) -> Candidates:
    """Read the images of a table's objects, resampled to `size`."""
    from galscan.surveys.resampling import resample
    from galscan.synthesis.flux import stretch_of
    from galscan.synthesis.injection import Candidates
    from galscan.training.synthetic import bands_of

    pairs = table[["survey", "row"]].to_numpy()
    images = [resample(stores[s].images(slice(r, r + 1)), size)[0] for s, r in pairs]
    return Candidates(
        np.array(images, np.uint8).reshape(-1, size, size, 3), table[list(answers)].reset_index(drop=True),
        pd.DataFrame(index=range(len(table))), np.full(len(table), np.nan), table["survey"].to_numpy(int),
        table["frame"].to_numpy(float), [stretch_of(s.attrs.get("provenance", {}), str(s.path)) for s in stores],
        [bands_of(s) for s in stores],
    )  # fmt: skip


def _contact_sheet(
    candidates: Candidates,
    rule: InjectRule,
    maps: np.ndarray,
    rows: np.ndarray,
    pool: np.ndarray,
    ids: np.ndarray,
    random: np.random.Generator,
    path: Path,
) -> Path:
    """Write a contact sheet: each galaxy, its map, a host from `pool`, and the host with the map injected."""
    from galscan.synthesis.features.base import find_feature

    feature, images, captions = find_feature(rule.feature), [], []
    pool = pool[candidates.hosts(pool).measured]
    for k in np.sort(random.permutation(len(maps))[:SHOWN]):
        row = rows[k]
        of_store = pool[candidates.survey[pool] == candidates.survey[row]]
        if not len(of_store):
            raise InputError(
                f"no galaxy satisfies 'inject.hosts' ({' '.join(rule.hosts.split())}) and can be measured: loosen the "
                "rule, add a store with --store, or leave out --sheet"
            )
        host, number = random.choice(of_store, 1), candidates.survey[row]
        injected, depth = feature.inject(
            candidates.images[host], candidates.hosts(host), maps[k : k + 1], candidates.stretches[number], random,
            bands=candidates.bands[number], seeing=candidates.seeing(host),
        )  # fmt: skip
        images += [candidates.images[row], _picture(maps[k]), candidates.images[host[0]], injected[0]]
        captions += [str(ids[row]), "map", "host", f"injected, depth {depth[0]:.2f}"]
    return thumbnails.contact_sheet(
        images, path, tile=128, columns=8, captions=captions,
        title=f"{rule.feature}: galaxy, map (grey is 0), host, and host with the map",
    )  # fmt: skip


def _picture(values: np.ndarray) -> np.ndarray:
    """Return a map (1 or 3 channels, side, side) as an image: grey is 0; absorption, of one channel, is dark."""
    shown = np.moveaxis(values if len(values) == 3 else np.repeat(-values, 3, 0), 0, 2) / CONTRAST
    return (127.5 * (1 + shown)).clip(0, 255).astype(np.uint8)


def _text(result: dict[str, Any]) -> str:
    left_out = result["left_out"]
    return "\n".join([
        f"feature      {result['feature']}, of the target {result['target']}",
        f"labelled     {result['labelled']:,} galaxies satisfy '{result['measure']}' ({result['schema']})",
        f"measured     {result['measured']:,}" + (f"; training needs {result['needed']}" if result["needed"] else ""),
        f"left out     {left_out['galaxy_not_measured']:,} too small, cut off or not in the middle of the image, "
        f"{left_out['feature_not_measured']:,} without a clear feature or beside a bright neighbour",
        *([f"error        {result['error']}"] if result["error"] else []),
        *([f"sheet        {result['sheet']}"] if "sheet" in result else []),
    ])  # fmt: skip
