"""``galscan ingest``: images and a catalog become a store."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from galscan import home
from galscan.errors import ConflictError, InputError, nearest
from galscan.store import layout
from galscan.store.ingest import ingest_survey, outcomes
from galscan.store.layout import Store
from galscan.surveys.base import Survey

SURVEYS = ("local", "frames", "simulated")


def ingest(
    survey: str,
    *,
    out: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    catalog: str | os.PathLike[str] | None = None,
    labels: str | Sequence[str] = (),
    size: int = 64,
    count: int = 10_000,
    seed: int = 0,
    rare_fraction: float | None = None,
    labelled: float = 1.0,
    bands: str | None = None,
    pixel_scale: float | None = None,
    frame: float | None = None,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> Store | dict[str, Any]:
    """Bring a survey into a store.

    Parameters
    ----------
    survey : {"local", "frames", "simulated"}
        A folder of images with a catalog, frames of the sky to cut from, or a sky with known truth.
    out : path, optional
        The store, default ``<data home>/surveys/<name or survey>.zarr``.
    path, catalog, labels, columns
        Of a local survey: see `galscan.surveys.local.LocalSurvey`.
    size : int
        Pixels on a side.
    count, seed, rare_fraction, labelled
        Of a simulated survey: see `galscan.surveys.simulated.SimulatedSurvey`.
    bands, pixel_scale, frame
        Of frames (as are path, catalog, labels and columns): see `galscan.surveys.frames.FramesSurvey`.
    name : str, optional
        Name of the survey, default the stem of `out`.
    workers : int, optional
        Processes, default one a processor.
    dry_run : bool
        Write nothing; print the plan and return it as a dict: ``objects, shards, bytes`` (an upper
        bound), ``out, images_without_row``; of frames also ``frames, on_no_frame, bytes_to_read``.

    Raises
    ------
    InputError
        If something given cannot work; the message says what and how to mend it.
    StorageError
        If writing fails. The same call goes on.
    """
    if survey not in SURVEYS:
        raise InputError(f"unknown survey '{survey}'{nearest(survey, SURVEYS)}")
    target = Path(out) if out is not None else home.survey_path(name or survey)
    name = name or (target.stem if out is not None else survey)
    if survey == "frames":
        source = _frames(path, catalog, labels, columns, size, name, bands, pixel_scale, frame)
    elif given := [k for k, v in {"bands": bands, "pixel-scale": pixel_scale, "frame": frame}.items() if v is not None]:
        raise InputError(f"--{given[0]} is for survey 'frames', not '{survey}'; leave it out")
    else:
        source = _open(survey, path, catalog, labels, columns, size, count, seed, rare_fraction, labelled, name)
    if dry_run:
        return _plan(source, target)

    present = target.exists()
    store = ingest_survey(source, target, workers=workers)
    _summary(store, source, present)
    return store


def _open(
    survey: str,
    path: str | os.PathLike[str] | None,
    catalog: str | os.PathLike[str] | None,
    labels: str | Sequence[str],
    columns: Mapping[str, str] | None,
    size: int,
    count: int,
    seed: int,
    rare_fraction: float | None,
    labelled: float,
    name: str,
) -> Survey:
    if survey == "local":
        if path is None:
            raise InputError("survey 'local' needs the folder of images: --path IMAGES")
        from galscan.surveys.local import LocalSurvey

        return LocalSurvey(path, catalog, (labels,) if isinstance(labels, str) else labels, size, columns, name)
    given = [k for k, v in {"path": path, "catalog": catalog, "labels": labels, "columns": columns}.items() if v]
    if given:
        raise InputError(
            f"survey 'simulated' makes its own images and labels; leave out {', '.join(given)}, or use survey 'local'"
        )
    from galscan.surveys.simulated import SimulatedSurvey

    settings: dict[str, Any] = {} if rare_fraction is None else {"rare_fraction": rare_fraction}
    return SimulatedSurvey(count, size=size, seed=seed, labelled=labelled, name=name, **settings)


def _frames(
    path: str | os.PathLike[str] | None,
    catalog: str | os.PathLike[str] | None,
    labels: str | Sequence[str],
    columns: Mapping[str, str] | None,
    size: int,
    name: str,
    bands: str | None,
    pixel_scale: float | None,
    frame: float | None,
) -> Survey:
    if path is None:
        raise InputError("survey 'frames' needs the folder of frames: --path FRAMES")
    from galscan.surveys.frames import FramesSurvey

    labels = (labels,) if isinstance(labels, str) else labels
    return FramesSurvey(
        path, catalog, labels, size, columns, name, bands=bands, pixel_scale=pixel_scale, frame=frame
    )  # fmt: skip


def _plan(source: Survey, out: Path) -> dict[str, Any]:
    if out.is_file():
        raise ConflictError(f"{out} is a file; choose another --out")
    columns = sum(map(len, source.schemas().values())) + len(source.truth())
    each = source.size**2 * 3 + 3 * 8 + 1 + source.id_dtype.itemsize + 4 * columns
    count = len(source)
    shards = -(-count // layout.shard_size(count))
    _say(f"plan: {count:,} objects in {shards} shards, at most {count * each / 1e6:,.1f} MB, to {out}; nothing written")
    more = source.plan() if hasattr(source, "plan") else {}
    if more:
        _say(f"from {more['frames']:,} frames, {more['bytes_to_read'] / 1e6:,.1f} MB to read")
    _warn(source)
    unmatched = len(getattr(source, "unmatched", ()))
    return {
        "objects": count, "shards": shards, "bytes": count * each, "out": str(out), "images_without_row": unmatched,
    } | more  # fmt: skip


def _summary(store: Store, source: Survey, present: bool) -> None:
    result = outcomes(store)
    bad = ", ".join(f"{count:,} {reason}" for reason, count in result["unusable"].items()) or "none"
    state = "was complete already" if present else "is complete"
    _say(f"{store.path} {state}: {result['stored']:,} cutouts stored, unusable: {bad}")
    _warn(source)


def _warn(source: Survey) -> None:
    if unmatched := getattr(source, "unmatched", ()):
        words = "image(s) have no row in the catalog and are left out, the first is"
        _say(f"warning: {len(unmatched):,} {words} {unmatched[0]}")
    for note in getattr(source, "notes", ()):
        _say(f"warning: {note}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
