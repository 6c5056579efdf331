"""What is at a path: `galscan.open` opens it, ``galscan info`` summarises it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.candidates import ranking
from galscan.candidates.run import Run, open_run
from galscan.core import home, thumbnails
from galscan.core.errors import InputError, NotFoundError
from galscan.core.old_names import existing
from galscan.models.model import MODELS_INDEX, Model, open_model, open_models
from galscan.scanning.run_info import INFO, read_info
from galscan.store import layout
from galscan.store.append import appended
from galscan.store.layout import Store
from galscan.store.manifest import marker_path, outcomes
from galscan.surveys.base import UNUSABLE, Flag

SHEET = 48  # images on a contact sheet
FAILURES = 5  # reasons listed separately
RETRY = (
    "run the ingest again with --retry-failed to retry failed objects; those without coverage are not retried, "
    "unless a service responded HTTP 404"
)

Cell = tuple[Store, int, str]  # row of a store, and its caption


def open(path: str | os.PathLike[str]) -> Store | Model | list[Model] | Run:
    """Open a store, a model or a finished run; its content, not its name, decides which of these it is.

    Parameters
    ----------
    path : path or str
        A folder; for a store also a URL (``s3://``, ``gs://``, ``az://``, ``https://``).

    Returns
    -------
    Store, Model or Run
        For a folder with the models of several targets that were trained together, a list of models.

    Raises
    ------
    NotFoundError
        If there is nothing at `path`.
    InputError
        If it is something else, or not complete; the message says what was found.
    """
    text = os.fspath(path)
    kind = "store" if "://" in text else _kind(Path(text))
    openers: dict[str, Any] = {"store": layout.open_store, "model": open_model, "models": open_models, "run": open_run}
    opened: Store | Model | list[Model] | Run = openers[kind](text)
    return opened


def _kind(path: Path) -> str:
    """Return ``store``, ``model``, ``models`` (of several targets) or ``run``."""
    if not path.exists():
        raise NotFoundError(f"{path} does not exist; name a store, a model or a run{_in_home(path.name)}")
    markers = {"zarr.json": "store", "model.json": "model", MODELS_INDEX: "models", INFO: "run"}
    for marker, kind in markers.items():
        if (path / marker).is_file():
            return kind
    raise InputError(f"{path} is {_found(path, markers)}; name the folder of a store, a model or a run")


def _in_home(name: str) -> str:
    """Return where the data home has a store, a model or a run of this name, as the end of a message."""
    if not home.is_name(name):
        return ""
    places = [home.survey_path(name), home.model_path(name), home.run_path(name)]
    present = [str(place) for place in places if place.exists()]
    return f" (in the data home: {', '.join(present)})" if present else ""


def _found(path: Path, markers: Mapping[str, str]) -> str:
    """Return what is at a path that is neither a store nor a model nor a run."""
    for parent in (path.parent, path.parent.parent):
        if kind := next((kind for marker, kind in markers.items() if (parent / marker).is_file()), ""):
            return f"part of the {kind.removesuffix('s')} {parent}"
    if path.is_file():
        return f"a file ({path.stat().st_size:,} bytes)"
    if path.name.endswith(".partial"):
        return "the staging folder of a command that has not finished (run the command again to resume it)"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "an empty folder"
    listing = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"a folder of {len(names):,} other entries ({listing})"


def info(path: str | os.PathLike[str], *, sheet: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Summarise the store, model or run at `path`; its content, not its name, decides which of these it is.

    Parameters
    ----------
    path : path
        A store, a model or a run (finished or not).
    sheet : path, optional
        Also write a contact sheet (PNG) to this path: cutouts evenly spaced over a store, a model's synthetic
        galaxies, or the top candidates of a run.

    Returns
    -------
    dict
        Its keys are listed in docs/reference/json.md; ``kind`` is ``store``, ``model`` or ``run``.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "store":
        store = layout.open_store(path)
        result, draw = _store(store), partial(_store_sheet, store)
    elif kind == "model":
        model = open_model(path)
        result, draw = {"kind": "model"} | model.summary(), partial(_model_sheet, model)
    elif kind == "run" and (found := read_info(path)) is not None:
        result, draw = {"kind": "run"} | Run(path, found).summary(), partial(_run_sheet, path)
    else:
        names = ", ".join(str(model.path) for model in open_models(path))
        raise InputError(f"{path} holds the models of several targets; name one of them: {names}")
    if sheet is None:
        return result
    cells, title = draw()
    if not cells:
        raise InputError("no objects to draw on a contact sheet; leave --sheet out")
    images = [store.images(slice(row, row + 1))[0] for store, row, _ in cells]
    thumbnails.contact_sheet(images, Path(sheet), captions=[caption for _, _, caption in cells], title=title)
    return result | {"sheet": str(sheet)}


def _store_sheet(store: Store) -> tuple[list[Cell], str]:
    rows = np.unique(np.linspace(0, store.count - 1, min(SHEET, store.count)).round().astype(int))
    ids = store.column("id")
    return [(store, int(r), str(ids[r])) for r in rows], f"{store.name}: {len(rows)} of {store.count:,}"


def _model_sheet(model: Model) -> tuple[list[Cell], str]:
    folder = existing(model.path / "synthetic.zarr")
    if not folder.is_dir():
        raise InputError(f"{model.path} was trained on real galaxies only: it has no synthetic galaxies to show")
    store = layout.open_store(folder)
    target = store.column("truth/target")
    cells = [(store, r, f"target {target[r]:.0f}") for r in range(min(SHEET, store.count))]
    return cells, f"{model.target}: synthetic galaxies"


def _run_sheet(path: Path) -> tuple[list[Cell], str]:
    run = open_run(path).require_single_target()
    stores = run.stores()
    top: pd.DataFrame = run.candidates.head(SHEET)
    cells = [(stores[str(row["store"])], int(row["index"]), ranking.caption(row)) for row in top.to_dict("records")]
    return cells, f"{run.info.target}: the top {len(top)}"


def summarize(result: Store | Model | list[Model] | Run | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the result of any public function as a JSON-serialisable dict."""
    if result is None:  # a dry run that made nothing
        return {"dry_run": True}
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, list):
        summaries = {model.target: model.summary() for model in result}
        return {"models": summaries, "text": "\n".join(summary["text"] for summary in summaries.values())}
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
    added = [
        {"objects": batch["rows"][1] - batch["rows"][0], "of": batch["count"]}
        | {key: batch["survey"][key] for key in ("catalog", "path", "cone") if key in batch["survey"]}
        for batch in appended(store)
    ]
    return {"kind": "store"} | summarize(store) | _outcomes(store) | {
        "objects_per_shard": store.shard, "positions": int(np.isfinite(store.column("ra")).sum()), "labels": labels,
        "truth": list(store.attrs["truth"]),
        "flags": {str(f.name).lower(): n for f in Flag if f and (n := int(((flags & f) > 0).sum()))},
        "provenance": store.attrs["provenance"], "appended": added,
    }  # fmt: skip


def _outcomes(store: Store) -> dict[str, Any]:
    """Return the outcomes of the ingest and how to retry failures; empty where no ingest recorded them."""
    if not marker_path(Path(store.path), 0).is_file():
        return {}
    result = outcomes(store)
    top, rest = result["failures"][:FAILURES], result["failures"][FAILURES:]
    if rest:
        top.append(rest[0] | {"objects": sum(f["objects"] for f in rest), "reason": "other reasons"})
    return {
        "outcomes": {key: result[key] for key in ("stored", "no_coverage", "failed")},
        "failures": top,
        "retry": RETRY if result["failed"] else None,
    }
