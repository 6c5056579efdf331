"""``galscan ingest``: images and a catalog become a store."""

from __future__ import annotations

import inspect
import itertools
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from galscan.core import home, staging
from galscan.core.errors import ConflictError, InputError, nearest
from galscan.labels.schema import remember
from galscan.store import layout
from galscan.store.build import ingest_survey, pending
from galscan.store.layout import Store
from galscan.store.manifest import outcomes, write_manifest
from galscan.surveys.growth import like, take
from galscan.surveys.services.configured import ConfiguredFrames, load_survey, survey_names
from galscan.surveys.sizes import DEFAULT_SIZE

SURVEYS = ("local", "frames", "simulated")
TAKES = {
    "local": ("path", "catalog", "labels", "columns", "size", "format"),
    "frames": ("path", "catalog", "labels", "columns", "size", "frame", "pixel_scale", "bands"),
    "simulated": ("labels", "size", "count", "seed", "rare_fraction", "labelled"),
    "service": (
        "catalog", "labels", "columns", "query", "cone", "size", "frame", "pixel_scale", "layer", "contact", "cache",
    ),
    "remote": (
        "catalog", "labels", "columns", "query", "cone", "size", "frame", "pixel_scale", "contact", "keep_frames",
    ),
}  # fmt: skip
SUCH_AS = {"service": "sdss", "remote": "sdss-frames"}


def ingest(
    survey: str,
    *,
    out: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    format: str | None = None,
    catalog: str | os.PathLike[str] | None = None,
    query: str | None = None,
    cone: tuple[float, float, float] | None = None,
    labels: str | Sequence[str] = (),
    size: int | None = None,
    frame: float | None = None,
    pixel_scale: float | None = None,
    bands: str | None = None,
    layer: str | None = None,
    contact: str | None = None,
    cache: bool = True,
    keep_frames: str | os.PathLike[str] | None = None,
    retry_failed: bool = False,
    append: bool = False,
    count: int = 10_000,
    seed: int = 0,
    rare_fraction: float | None = None,
    labelled: float = 1.0,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> Store | dict[str, Any]:
    """Bring a survey into a store.

    Parameters
    ----------
    survey : str
        ``local`` (a folder of images with a catalog), ``frames`` (a folder of frames to cut from), ``simulated`` (a sky
        with known truth), a survey that a service gives cutouts of (``sdss``, ``legacy-dr10`` ...), one whose frames
        are fetched (``sdss-frames``, ``legacy-bricks``), or the path of a survey file, ending in ``.toml``.
    out : path, optional
        The store, default ``<data home>/surveys/<name or survey>.zarr``.
    path, catalog, labels, columns
        Of a local survey: see `galscan.surveys.files.local.LocalSurvey`.
    format : {"images", "cutana", "multimodal", "webdataset"}, optional
        Of a local survey: what the files are, default found out; see `galscan.surveys.files.formats`.
    catalog, labels, columns, frame, pixel_scale, layer
        Of a service: see `galscan.surveys.services.cutouts.ServiceSurvey`.
    path, catalog, labels, columns, frame, pixel_scale, bands
        Of frames: see `galscan.surveys.mosaics.frames.FramesSurvey`.
    catalog, labels, columns, frame, pixel_scale
        Of frames that are fetched: see `galscan.surveys.mosaics.remote.RemoteFrames`.
    keep_frames : path, optional
        Keep frames that are fetched in this folder, and take those that are there. Default: each goes after use.
    query : str, optional
        Instead of a catalog: ``gz2``, ``vizier:TABLE`` or a SELECT for SkyServer: see
        `galscan.surveys.services.queries`. What comes is kept beside the store, as ``NAME.objects.parquet`` (with
        `append` also ``NAME.objects-2.parquet`` and so on).
    cone : tuple of float, optional
        Right ascension, declination and radius in degrees: only objects therein; without catalog and query, the
        galaxies that SDSS has there.
    contact : str, optional
        Who asks, told to services; default: what ``GALSCAN_CONTACT`` says.
    cache : bool
        Take answers of services from the cache in the data home, and keep them there.
    retry_failed : bool
        Ask once more for what failed, also of a complete store.
    append : bool
        Add to a store that is there the objects that it does not have, told by id, after those that it has: of a larger
        catalog, another query or cone, more images. Size, framing, bands, labels and stretch must be those of the
        store, and no id may be at another place of the sky; a stretch that is measured (local FITS, frames) is taken
        from it. Where there is no store, one is made.
    size : int, optional
        Pixels on a side of a cutout. Default: with `append` the size of the store, where there is one; else 96
        (`galscan.surveys.sizes.DEFAULT_SIZE`). Models may be of this size or smaller: images are resampled when read.
    count, seed, rare_fraction, labelled
        Of a simulated survey: see `galscan.surveys.simulated.survey.SimulatedSurvey`.
    name : str, optional
        Name of the survey, default the stem of `out`.
    workers : int, optional
        Processes, default one a processor. A service is asked by one.
    dry_run : bool
        Write nothing and ask nobody; print the plan and return it as a dict: ``objects, shards, bytes`` (an upper
        bound), ``out, images_without_row``; of what is fetched also ``requests, seconds, megabytes``, of frames
        ``frames``, of those in a folder ``on_no_frame, bytes_to_read``; with `append` also ``present``, objects that
        are in the store already and of which nothing else is counted.

    Raises
    ------
    InputError
        If something given cannot work; the message says what and how to mend it.
    HostDown
        If a service is to be left alone. What was fetched is kept; the same call goes on.
    StorageError
        If writing fails. The same call goes on.
    """
    kind = survey if survey in SURVEYS else "service"
    if kind == "service" and survey not in survey_names() and not survey.endswith(".toml"):
        raise InputError(f"unknown survey '{survey}'{nearest(survey, (*SURVEYS, *survey_names()))}")
    if kind == "service" and isinstance(load_survey(survey), ConfiguredFrames):
        kind = "remote"
    options = {
        "path": path, "catalog": catalog, "labels": (labels,) if isinstance(labels, str) else tuple(labels),
        "columns": columns, "query": query, "cone": cone, "size": size, "frame": frame, "pixel_scale": pixel_scale,
        "format": format,
        "bands": bands, "layer": layer, "contact": contact, "cache": cache, "keep_frames": keep_frames,
        "count": count, "seed": seed, "rare_fraction": rare_fraction, "labelled": labelled,
    }  # fmt: skip
    usual = inspect.signature(ingest).parameters
    if refused := [k for k, v in options.items() if k not in TAKES[kind] and v and v != usual[k].default]:
        raise InputError(
            f"survey '{survey}' does not take {', '.join(k.replace('_', '-') for k in refused)}; leave it out, or use "
            f"survey {' or '.join(SUCH_AS.get(s, s) for s in TAKES if refused[0] in TAKES[s])}"
        )
    stem = Path(survey).stem if survey.endswith(".toml") else survey
    target = Path(out) if out is not None else home.survey_path(name or stem)
    name = name or (target.stem if out is not None else stem)
    if size is None:
        options["size"] = _size_of(target, dry_run) if append else DEFAULT_SIZE
    source = _open(kind, survey, name, target, options, dry_run, append)
    if source is None:
        _say("plan: the objects come from a query, and a dry run asks nobody: how many they are is not known yet")
        return {"objects": None, "out": str(target)}
    store = _there(target)
    if append and store is not None and kind in ("local", "frames"):  # whose stretch is measured, not declared
        source.rendering = like(source.rendering, store.attrs["provenance"].get("rendering"), str(target))
    if dry_run:
        return _plan(source, target, store if append else None)

    before = store.count if store is not None else 0
    workers = 1 if kind in SUCH_AS else workers
    for schema in (labels,) if isinstance(labels, str) else labels:
        remember(schema)  # recipes go by its name
    store = ingest_survey(source, target, workers=workers, retry_failed=retry_failed, append=append)
    if append and before:
        _say(f"{store.count - before:,} objects added to the {before:,} that were there")
    _summary(store, source, store.count == before and not retry_failed, kind)
    if kind in SUCH_AS:
        for folder in (_uncached(target), _passing(target)):
            shutil.rmtree(folder, ignore_errors=True)
        write_manifest(store, target.with_suffix(".manifest.parquet"))
    return store


def _open(
    kind: str, survey: str, name: str, target: Path, given: dict[str, Any], dry_run: bool, append: bool
) -> Any:  # a Survey
    """Return the survey; None where a dry run would have to ask for its objects."""
    settings = {k: v for k, v in given.items() if k in TAKES[kind]}
    if kind == "local":
        if settings["path"] is None:
            raise InputError("survey 'local' needs the folder of images: --path IMAGES")
        from galscan.surveys.files.formats import open_local

        return open_local(name=name, **settings)
    if kind == "frames":
        if settings["path"] is None:
            raise InputError("survey 'frames' needs the folder of frames: --path FRAMES")
        from galscan.surveys.mosaics.frames import FramesSurvey

        return FramesSurvey(name=name, **settings)
    if kind == "simulated":
        from galscan.surveys.simulated.survey import SimulatedSurvey

        if settings["rare_fraction"] is None:
            del settings["rare_fraction"]
        if strange := {*(asked := settings.pop("labels"))} - {"simulated", "gz2"}:
            raise InputError(
                f"--labels {strange.pop()}: the simulated sky has its own labels, and votes (--labels gz2)"
            )
        return SimulatedSurvey(name=name, votes="gz2" in asked, **settings)
    contact = home.contact(settings.pop("contact"))
    settings["catalog"] = _table(survey, target, settings, contact, dry_run, append)
    if settings["catalog"] is None:
        return None
    if kind == "remote":
        from galscan.surveys.mosaics.remote import RemoteFrames

        kept = settings.pop("keep_frames")
        folder = Path(kept) if kept else _passing(target)
        return RemoteFrames(survey, folder=folder, keep=bool(kept), name=name, contact=contact, **settings)
    from galscan.surveys.services.cutouts import ServiceSurvey

    remember = None if settings.pop("cache") else _uncached(target)
    return ServiceSurvey(survey, name=name, contact=contact, remember=remember, **settings)


def _there(target: Path) -> Store | None:
    try:
        return layout.open_store(target)
    except InputError:  # nothing, or what ingest refuses in words of its own
        return None


def _size_of(target: Path, dry_run: bool) -> int:
    """Return the pixels on a side of what is added to the store at `target`; the default where there is none."""
    if not dry_run:
        staging.recover(target)  # else a store whose replacement was killed is not found
    store = _there(target)
    return store.size if store is not None else DEFAULT_SIZE


def _table(
    survey: str, target: Path, settings: dict[str, Any], contact: str, dry_run: bool, append: bool
) -> str | os.PathLike[str] | None:
    """Return the table of objects, asked for if need be; None where a dry run would have to ask."""
    from galscan.surveys.services.queries import objects

    catalog, query = settings.pop("catalog"), settings.pop("query")
    if catalog is not None and query is not None:
        raise InputError("--catalog and --query exclude each other; give one")
    if catalog is None:
        said = load_survey(survey)
        if isinstance(said, ConfiguredFrames) and said.objects is None:
            columns = ", ".join(said.keys)
            raise InputError(f"survey '{survey}' needs objects with {columns}: --catalog TABLE; {said.advice}")
        if query is None and settings["cone"] is None:
            raise InputError(f"survey '{survey}' needs objects: --catalog TABLE, --query gz2, or --cone RA,DEC,RADIUS")
        for k in itertools.count(1):
            place = target.with_suffix(f".objects{f'-{k}' if k > 1 else ''}.parquet")
            try:
                return objects(survey, query, settings["cone"], place, contact=contact, ask=not dry_run)
            except ConflictError:  # it holds what another query gave
                if not append:
                    raise
    table: str | os.PathLike[str] = catalog
    return table


def _uncached(target: Path) -> Path:
    """Return where answers are kept until the store is complete, if not in the cache."""
    return target.with_name(target.name + ".answers")


def _passing(target: Path) -> Path:
    """Return where frames are until they are cut, if they are not kept."""
    return target.with_name(target.name + ".frames")


def _plan(source: Any, out: Path, grows: Store | None) -> dict[str, Any]:
    if out.is_file():
        raise ConflictError(f"{out} is a file; choose another --out")
    columns = sum(map(len, source.schemas().values())) + len(source.truth())
    each = source.size**2 * 3 + 3 * 8 + 1 + layout.roomy(source.id_dtype).itemsize + 4 * columns
    wanted, first, shard = source, 0, layout.shard_size(len(source))
    more: dict[str, Any] = {}
    if grows is not None:
        wanted, first, shard = take(source, pending(source, out)), grows.count, grows.shard
        more = {"present": len(source) - len(wanted)}
        _say(f"plan: {more['present']:,} of {len(source):,} objects are among the {first:,} in {out}; of the others:")
    count = len(wanted)
    shards = -(-(first + count) // shard) - first // shard if count else 0
    _say(f"plan: {count:,} objects in {shards} shards, at most {count * each / 1e6:,.1f} MB, to {out}; nothing written")
    more |= wanted.plan() if count and hasattr(wanted, "plan") else {}
    if "bytes_to_read" in more:
        _say(f"plan: {more['frames']:,} frames, {more['bytes_to_read'] / 1e6:,.1f} MB to read")
    elif "requests" in more:
        had = "cached"
        if "frames" in more:
            had = "there yet"
            _say(f"plan: {more['frames']:,} frames")
        _say(
            f"plan: {more['requests']:,} requests to {more['host']}, {more['per_minute']:g} a minute at most: "
            f"{timedelta(seconds=round(more['seconds']))}, about {more['megabytes']:,.0f} MB, if nothing is {had}"
        )
    _warn(source)
    unmatched = len(getattr(source, "unmatched", ()))
    plan = {"objects": count, "shards": shards, "bytes": count * each, "out": str(out), "images_without_row": unmatched}
    return plan | more


def _summary(store: Store, source: Any, present: bool, kind: str) -> None:
    result = outcomes(store)
    bad = ", ".join(f"{count:,} {reason}" for reason, count in result["unusable"].items()) or "none"
    state = "was complete already" if present else "is complete"
    _say(f"{store.path} {state}: {result['stored']:,} cutouts stored, unusable: {bad}")
    if kind in SUCH_AS:
        _say(f"no coverage: {result['no_coverage']:,}, failed: {result['failed']:,}")
        if result["failed"]:
            most = result["failures"][0]
            _say(f"warning: {most['objects']:,} failed with '{most['reason']}'; --retry-failed asks for them again")
        if not result["stored"]:
            _say("warning: there is no image at all; does the survey cover these objects, is its address right?")
    _warn(source)


def _warn(source: Any) -> None:
    if unmatched := getattr(source, "unmatched", ()):
        words = "image(s) have no row in the catalog and are left out, the first is"
        _say(f"warning: {len(unmatched):,} {words} {unmatched[0]}")
    for note in getattr(source, "notes", ()):
        _say(f"warning: {note}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
