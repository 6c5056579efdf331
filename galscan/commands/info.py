"""``galscan info``: what a store, a model or a run holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.candidates import ranking
from galscan.core import thumbnails
from galscan.core.errors import InputError, NotFoundError
from galscan.models.model import Model, open_model
from galscan.scanning import run as runs
from galscan.scanning.run import Run
from galscan.store import layout
from galscan.store.append import appended
from galscan.store.layout import Store
from galscan.store.manifest import marker_path, outcomes
from galscan.surveys.base import UNUSABLE, Flag

SHEET = 48  # pictures on a contact sheet
FAILURES = 5  # reasons that are told


def info(path: str | os.PathLike[str], *, sheet: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Say what is at `path`, told by what it contains, not by its name.

    Parameters
    ----------
    path : path
        A store, a model or a run (finished or not).
    sheet : path, optional
        Write a contact sheet (PNG) there: cutouts evenly spaced over a store, a model's synthetic galaxies, or the top
        candidates of a run.

    Returns
    -------
    dict
        JSON-able; ``kind`` is ``store``, ``model`` or ``run``.

    Raises
    ------
    NotFoundError
        If there is nothing.
    InputError
        If it is none of the three, or has no pictures to show.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"{path} does not exist; name a store, a model or a run")
    if (path / "zarr.json").is_file():
        store = layout.open_store(path)
        result = _store(store)
        if sheet is not None:
            rows = np.unique(np.linspace(0, store.count - 1, min(SHEET, store.count)).round().astype(int))
            ids = store.column("id")
            _draw([(store, int(r), str(ids[r])) for r in rows], sheet, f"{store.name}: {len(rows)} of {store.count:,}")
    elif (path / "model.json").is_file():
        result = {"kind": "model"} | open_model(path).summary()
        if sheet is not None:
            if not (path / "dreams.zarr").is_dir():
                raise InputError(f"{path} was trained on real galaxies alone: it has no synthetic galaxies to show")
            dreams = layout.open_store(path / "dreams.zarr")
            target = dreams.column("truth/target")
            cells = [(dreams, r, f"target {target[r]:.0f}") for r in range(min(SHEET, dreams.count))]
            _draw(cells, sheet, f"{result['target']}: synthetic galaxies")
    elif (found := runs.read_info(path)) is not None:
        result = {"kind": "run"} | Run(path, found).summary()
        if sheet is not None:
            _draw_run(runs.open_one(path), sheet)
    else:
        raise InputError(f"{path} is not a store, a model or a run of galscan")
    return result | ({"sheet": str(sheet)} if sheet is not None else {})


def summarize(result: Store | Model | list[Model] | Run | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a public function returned as a JSON-able dict, for scripts."""
    if result is None:  # a dry run that made nothing
        return {"dry_run": True}
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, list):
        each = {bundle.target: bundle.summary() for bundle in result}
        return {"models": each, "text": "\n".join(one["text"] for one in each.values())}
    if isinstance(result, Path):
        return {"file": str(result), "bytes": result.stat().st_size}
    if isinstance(result, Store):
        flags = result.column("flags")
        return {
            "store": str(result.path), "survey": result.name, "objects": result.count,
            "unusable": int(((flags & UNUSABLE) > 0).sum()), "size": result.size, "shards": result.n_shards,
            "labels": {schema: len(answers) for schema, answers in result.schemas.items()},
            "content_hash": result.content_hash,
        }  # fmt: skip
    return result.summary()


def _store(store: Store) -> dict[str, Any]:
    flags = store.column("flags")
    labels = {
        schema: {answer: int(np.isfinite(store.column(f"labels/{schema}/{answer}")).sum()) for answer in answers}
        for schema, answers in store.schemas.items()
    }
    return {"kind": "store"} | summarize(store) | _outcomes(store) | {
        "objects_per_shard": store.shard,
        "positions": int(np.isfinite(store.column("ra")).sum()),
        "labels": labels,
        "truth": list(store.attrs["truth"]),
        "flags": {str(f.name).lower(): n for f in Flag if f and (n := int(((flags & f) > 0).sum()))},
        "provenance": store.attrs["provenance"],
        "appended": [
            {"objects": came["rows"][1] - came["rows"][0], "of": came["count"]}
            | {key: came["survey"].get(key) for key in ("catalog", "path", "cone") if key in came["survey"]}
            for came in appended(store)
        ],
    }  # fmt: skip


def _outcomes(store: Store) -> dict[str, Any]:
    """Return what became of the objects, and how to ask again; nothing where no ingest has told it."""
    if not marker_path(Path(store.path), 0).is_file():
        return {}
    told = outcomes(store)
    again = "the command that made the store, with --retry-failed, asks for what failed once more; no coverage is final"
    most, others = told["failures"][:FAILURES], told["failures"][FAILURES:]
    if others:
        others = [others[0] | {"objects": sum(f["objects"] for f in others), "reason": "other reasons"}]
    return {
        "outcomes": {key: told[key] for key in ("stored", "no_coverage", "failed")},
        "failures": most + others,
        "retry": again if told["failed"] else None,
    }


def _draw_run(run: Run, sheet: str | os.PathLike[str]) -> None:
    """Draw the best candidates, from the stores that were scanned."""
    stores = {s["name"]: layout.open_store(s["path"]) for s in run.info["stores"]}
    best: pd.DataFrame = run.candidates.head(SHEET)
    cells = [(stores[str(row["store"])], int(row["index"]), ranking.caption(row)) for row in best.to_dict("records")]
    _draw(cells, sheet, f"{run.info['target']}: the best {len(best)}")


def _draw(cells: list[tuple[Store, int, str]], sheet: str | os.PathLike[str], title: str) -> None:
    if not cells:
        raise InputError("there is nothing to draw on a contact sheet")
    images = [store.images(slice(row, row + 1))[0] for store, row, _ in cells]
    thumbnails.contact_sheet(images, Path(sheet), captions=[caption for _, _, caption in cells], title=title)
