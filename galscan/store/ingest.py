"""Ingest: build or extend a store from images and a catalog (``galscan ingest``)."""

from __future__ import annotations

import inspect
import itertools
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from galscan.core import home, staging
from galscan.core.errors import ConflictError, InputError, nearest
from galscan.labels.schema import install_schema
from galscan.store import layout
from galscan.store.build import ingest_survey, pending
from galscan.store.layout import Store
from galscan.store.manifest import outcomes, write_manifest
from galscan.surveys.services.configured import ConfiguredFrames, load_survey, survey_names
from galscan.surveys.sizes import DEFAULT_SIZE
from galscan.surveys.subsets import stored_rendering, take
from galscan.surveys.tables import Catalog

SURVEYS = ("local", "frames", "simulated")
CATALOG = ("catalog", "table", "position_unit")
OPTIONS = {
    "local": ("path", *CATALOG, "labels", "columns", "size", "format", "bands"),
    "frames": ("path", *CATALOG, "labels", "columns", "size", "frame", "pixel_scale", "bands"),
    "simulated": ("labels", "size", "count", "seed", "rare_fraction", "labelled"),
    "service": (
        *CATALOG, "labels", "columns", "query", "cone", "size", "frame", "pixel_scale", "layer", "contact", "cache",
    ),
    "remote": (
        *CATALOG, "labels", "columns", "query", "cone", "size", "frame", "pixel_scale", "contact", "keep_frames",
    ),
}  # fmt: skip
EXAMPLES = {"service": "sdss", "remote": "sdss-frames"}


def ingest(
    survey: str,
    *,
    out: str | os.PathLike[str] | None = None,
    path: str | os.PathLike[str] | None = None,
    format: str | None = None,
    catalog: str | os.PathLike[str] | None = None,
    table: str | None = None,
    position_unit: str | None = None,
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
    """Build a store from a survey, or append to one.

    Parameters
    ----------
    survey : str
        ``local`` (a folder of images with a catalog), ``frames`` (a folder of frames to cut from), ``simulated`` (a sky
        with known truth), a survey whose cutouts a service provides (``sdss``, ``legacy-dr10`` ...), one whose frames
        are downloaded (``sdss-frames``, ``legacy-bricks``), or the path of a survey file, ending in ``.toml``.
    out : path, optional
        The store, default ``<data home>/surveys/<name or survey>.zarr``.
    path, catalog, labels, columns
        Of a local survey: see `galscan.surveys.files.local.LocalSurvey`.
    format : {"images", "cutana", "multimodal", "webdataset", "parquet"}, optional
        Of a local survey: format of the files, by default detected; see `galscan.surveys.files.formats`.
    catalog, labels, columns, frame, pixel_scale, layer
        Of a service: see `galscan.surveys.services.cutouts.ServiceSurvey`.
    bands
        Of a local survey of FITS images: the bands to use, and their names in file names.
    path, catalog, labels, columns, frame, pixel_scale, bands
        Of frames: see `galscan.surveys.mosaics.frames.FramesSurvey`.
    catalog, labels, columns, frame, pixel_scale
        Of downloaded frames: see `galscan.surveys.mosaics.remote.RemoteFrames`.
    keep_frames : path, optional
        Folder in which downloaded frames are kept and reused. Default: each is deleted after use.
    table : str, optional
        Name or number of the table, of a catalog file with several.
    position_unit : str, optional
        Unit of the positions in the catalog, as ``hour,deg`` or ``rad``, if the file does not say it. Default: degrees.
    query : str, optional
        Instead of a catalog: ``gz2``, ``vizier:TABLE`` or a SELECT for SkyServer: see
        `galscan.surveys.services.queries`. The result is stored beside the store, as ``NAME.objects.parquet`` (with
        `append` also ``NAME.objects-2.parquet`` and so on).
    cone : tuple of float, optional
        Right ascension, declination and radius in degrees: only objects within it; without catalog and query, the
        galaxies of SDSS within it.
    contact : str, optional
        Contact e-mail, sent to services in the User-Agent; default: the value of ``GALSCAN_CONTACT``.
    cache : bool
        Use the cache of service responses in the data home.
    retry_failed : bool
        Retry objects that failed, also in a complete store. Those that a service did not find (HTTP 404) are requested
        again, too, instead of using the cached response.
    append : bool
        Append to an existing store the objects that it does not have, identified by id: of a larger catalog, another
        query or cone, more images. Size, framing, bands, labels and stretch must be those of the store, and no id may
        have another position; a measured stretch (local FITS, frames) is taken from the store. If there is no store, it
        is built.
    size : int, optional
        Pixels on a side of a cutout. Default: with `append` the size of an existing store; else 96
        (`galscan.surveys.sizes.DEFAULT_SIZE`). Models may be of this size or smaller: images are resampled when read.
    count, seed, rare_fraction, labelled
        Of a simulated survey: see `galscan.surveys.simulated.survey.SimulatedSurvey`.
    name : str, optional
        Name of the survey, default the stem of `out`.
    workers : int, optional
        Number of processes, default one per processor. A service is always queried by one process.
    dry_run : bool
        Write nothing and send no requests; print the plan and return it as a dict: ``objects, shards, bytes`` (an upper
        bound), ``out, images_without_row``; for downloads also ``requests, seconds, megabytes``, for frames ``frames``,
        for frames in a folder ``on_no_frame, bytes_to_read``; with `append` also ``present``, the number of objects
        that are already in the store and not included in the other counts.

    Raises
    ------
    InputError
        If an argument cannot be used, or no image of a folder is usable; the message names the remedy.
    ServiceUnavailableError
        If a service's circuit breaker is open. Downloads are kept; the same call resumes.
    StorageError
        If writing fails. The same call resumes.
    """
    kind = survey if survey in SURVEYS else "service"
    if kind == "service" and survey not in survey_names() and not survey.endswith(".toml"):
        raise InputError(f"unknown survey '{survey}'{nearest(survey, (*SURVEYS, *survey_names()))}")
    if kind == "service" and isinstance(load_survey(survey), ConfiguredFrames):
        kind = "remote"
    options = {
        "path": path, "catalog": catalog, "table": table, "position_unit": position_unit,
        "labels": (labels,) if isinstance(labels, str) else tuple(labels),
        "columns": columns, "query": query, "cone": cone, "size": size, "frame": frame, "pixel_scale": pixel_scale,
        "format": format,
        "bands": bands, "layer": layer, "contact": contact, "cache": cache, "keep_frames": keep_frames,
        "count": count, "seed": seed, "rare_fraction": rare_fraction, "labelled": labelled,
    }  # fmt: skip
    parameters = inspect.signature(ingest).parameters
    if unused := [k for k, v in options.items() if k not in OPTIONS[kind] and v and v != parameters[k].default]:
        raise InputError(
            f"survey '{survey}' does not take {', '.join(k.replace('_', '-') for k in unused)}; leave it out, or use "
            f"survey {' or '.join(EXAMPLES.get(s, s) for s in OPTIONS if unused[0] in OPTIONS[s])}"
        )
    default_name = Path(survey).stem if survey.endswith(".toml") else survey
    target = Path(out) if out is not None else home.survey_path(name or default_name)
    name = name or (target.stem if out is not None else default_name)
    if size is None:
        options["size"] = _target_size(target, dry_run) if append else DEFAULT_SIZE
    source = _open_survey(kind, survey, name, target, options, dry_run, append, retry_failed)
    if source is None:
        _log("plan: the objects come from a query, which a dry run does not send: their number is unknown")
        return {"objects": None, "out": str(target)}
    for note in getattr(source, "position_notes", ()):  # before anything is downloaded
        _log(f"warning: {note}")
    store = _open_existing(target)
    if append and store is not None and kind in ("local", "frames"):  # their stretch is measured, not configured
        source.rendering = stored_rendering(source.rendering, store.attrs["provenance"].get("rendering"), str(target))
    if dry_run:
        return _dry_run(source, target, store if append else None)

    old_count = store.count if store is not None else 0
    workers = 1 if kind in EXAMPLES else workers
    for schema in (labels,) if isinstance(labels, str) else labels:
        install_schema(schema)  # recipes refer to it by name
    store = ingest_survey(source, target, workers=workers, retry_failed=retry_failed, append=append)
    if append and old_count:
        _log(f"{store.count - old_count:,} objects added to the {old_count:,} in the store")
    _summary(store, source, store.count == old_count and not retry_failed, kind)
    if kind in EXAMPLES:
        for content in ("responses", "frames"):
            shutil.rmtree(_download_folder(target, content), ignore_errors=True)
        write_manifest(store, target.with_suffix(".manifest.parquet"))
    else:  # objects that a service lacks may be retried, and their store is kept
        _refuse_empty(store)
    return store


def _open_survey(
    kind: str, survey: str, name: str, target: Path, options: dict[str, Any], dry_run: bool, append: bool, retry: bool
) -> Any:  # a Survey
    """Return the survey; None if a dry run would have to query its objects."""
    settings = {k: v for k, v in options.items() if k in OPTIONS[kind]}
    about = {key: settings.pop(key, None) for key in CATALOG[1:]}
    if kind in ("local", "frames") and any(about.values()):
        settings["catalog"] = Catalog(settings["catalog"], **about)
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
        if unknown := {*(requested := settings.pop("labels"))} - {"simulated", "gz2"}:
            raise InputError(
                f"--labels {unknown.pop()}: the simulated sky has its own labels, and votes (--labels gz2)"
            )
        return SimulatedSurvey(name=name, votes="gz2" in requested, **settings)
    contact = home.contact(settings.pop("contact"))
    if any(about.values()) and settings["catalog"] is None:
        raise InputError("--table and --position-unit are about a catalog; give one: --catalog FILE")
    found = _object_table(survey, target, settings, contact, dry_run, append)
    if found is None:
        return None
    settings["catalog"] = Catalog(found, **about)
    if kind == "remote":
        from galscan.surveys.mosaics.remote import RemoteFrames

        keep_folder = settings.pop("keep_frames")
        folder = Path(keep_folder) if keep_folder else _download_folder(target, "frames")
        return RemoteFrames(survey, folder=folder, keep=bool(keep_folder), name=name, contact=contact, **settings)
    from galscan.surveys.services.cutouts import ServiceSurvey

    response_folder = None if settings.pop("cache") else _download_folder(target, "responses")
    return ServiceSurvey(
        survey, name=name, contact=contact, response_folder=response_folder, retry_not_found=retry, **settings
    )


def _open_existing(target: Path) -> Store | None:
    try:
        return layout.open_store(target)
    except InputError:  # no store; `ingest_survey` reports other problems
        return None


def _target_size(target: Path, dry_run: bool) -> int:
    """Return the image size of the store at `target`; the default if there is none."""
    if not dry_run:
        staging.recover(target)  # else a store is missed whose replacement was interrupted
    store = _open_existing(target)
    return store.size if store is not None else DEFAULT_SIZE


def _object_table(
    survey: str, target: Path, settings: dict[str, Any], contact: str, dry_run: bool, append: bool
) -> str | os.PathLike[str] | None:
    """Return the table of objects, queried if necessary; None if a dry run would have to query it."""
    from galscan.surveys.services.queries import objects

    catalog, query = settings.pop("catalog"), settings.pop("query")
    if catalog is not None and query is not None:
        raise InputError("--catalog and --query exclude each other; give one")
    if catalog is None:
        config = load_survey(survey)
        if isinstance(config, ConfiguredFrames) and config.objects is None:
            columns = ", ".join(config.keys)
            raise InputError(f"survey '{survey}' needs objects with {columns}: --catalog TABLE; {config.advice}")
        if query is None and settings["cone"] is None:
            raise InputError(f"survey '{survey}' needs objects: --catalog TABLE, --query gz2, or --cone RA,DEC,RADIUS")
        for k in itertools.count(1):
            table_path = target.with_suffix(f".objects{f'-{k}' if k > 1 else ''}.parquet")
            try:
                return objects(survey, query, settings["cone"], table_path, contact=contact, download=not dry_run)
            except ConflictError:  # it holds the result of another query
                if not append:
                    raise
    table: str | os.PathLike[str] = catalog
    return table


def _download_folder(target: Path, content: str) -> Path:
    """Return the folder of downloads until the store is complete; it is removed then, so no user chooses its name."""
    return target.with_name(f".{target.name}.galscan-{content}")


def _dry_run(source: Any, out: Path, existing: Store | None) -> dict[str, Any]:
    if out.is_file():
        raise ConflictError(f"{out} is a file; choose another --out")
    columns = sum(map(len, source.schemas().values())) + len(source.truth())
    object_bytes = source.size**2 * 3 + 3 * 8 + 1 + layout.padded_id_dtype(source.id_dtype).itemsize + 4 * columns
    new, first, shard = source, 0, layout.shard_size(len(source))
    extra: dict[str, Any] = {}
    if existing is not None:
        new, first, shard = take(source, pending(source, out)), existing.count, existing.shard
        extra = {"present": len(source) - len(new)}
        _log(f"plan: {extra['present']:,} of {len(source):,} objects are already among the {first:,} in {out}; others:")
    count = len(new)
    shards = -(-(first + count) // shard) - first // shard if count else 0
    megabytes = count * object_bytes / 1e6
    _log(f"plan: {count:,} objects in {shards} shards, at most {megabytes:,.1f} MB, to {out}; nothing written")
    extra |= new.plan() if count and hasattr(new, "plan") else {}
    if "frames" in extra:
        _log(f"plan: {extra['frames']:,} frames")
    if "bytes_to_read" in extra:
        _log(f"plan: {extra['bytes_to_read'] / 1e6:,.1f} MB to read")
    if "requests" in extra:
        state = "downloaded" if "frames" in extra else "cached"
        _log(
            f"plan: {extra['requests']:,} requests to {extra['host']}, {extra['per_minute']:g} a minute at most: "
            f"{timedelta(seconds=round(extra['seconds']))}, about {extra['megabytes']:,.0f} MB, if nothing is {state}"
        )
    _log_warnings(source)
    return {
        "objects": count, "shards": shards, "bytes": count * object_bytes, "out": str(out),
        "images_without_row": len(getattr(source, "unmatched", ())),
    } | extra  # fmt: skip


def _summary(store: Store, source: Any, present: bool, kind: str) -> None:
    result = outcomes(store)
    unusable = ", ".join(f"{count:,} {reason}" for reason, count in result["unusable"].items()) or "none"
    state = "was already complete" if present else "is complete"
    _log(f"{store.path} {state}: {result['stored']:,} cutouts stored, unusable: {unusable}")
    if kind in EXAMPLES:
        _log(f"no coverage: {result['no_coverage']:,}, failed: {result['failed']:,}")
        if result["failed"]:
            most_common = result["failures"][0]
            _log(f"warning: {most_common['objects']:,} failed with '{most_common['reason']}'; use --retry-failed")
        if not result["stored"]:
            _log("warning: no image was stored; check that the survey covers these objects, and its URL")
    _log_warnings(source)


def _refuse_empty(store: Store) -> None:
    """Raise `InputError` if no object has a usable image."""
    result = outcomes(store)
    if result["stored"] or not store.count:
        return
    reasons = Counter(message for *_, message in result["details"]).most_common(1)
    raise InputError(
        f"{store.path}: none of {store.count:,} objects has a usable image, the most frequent reason is "
        f"'{reasons[0][0]}'; mend the images or choose others, remove this store and ingest again"
    )


def _log_warnings(source: Any) -> None:
    if unmatched := getattr(source, "unmatched", ()):
        words = "image(s) have no row in the catalog and are left out, the first is"
        _log(f"warning: {len(unmatched):,} {words} {unmatched[0]}")
    for note in getattr(source, "notes", ()):
        _log(f"warning: {note}")


def _log(line: str) -> None:
    print(line, file=sys.stderr)
