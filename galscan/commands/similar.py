"""``galscan similar``: a survey in the order of similarity to some examples, where nobody has labelled anything yet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.candidates import columns, ranking, scan_tables
from galscan.candidates.export import formats
from galscan.candidates.similar import EmbeddingSpace
from galscan.commands.scan import scan
from galscan.core import files, home, thumbnails
from galscan.core.errors import GalscanError, InputError
from galscan.core.version import __version__
from galscan.models.ensemble import load_scorer
from galscan.models.model import Model, open_model
from galscan.scanning.run import FORMAT, INFO, Run, claim, open_run, tables
from galscan.stats.purity import Purity
from galscan.store import identity
from galscan.store.layout import Store
from galscan.surveys.base import Cutout, Failed
from galscan.surveys.files import images as pixels
from galscan.surveys.resampling import resample

SHEET, EXAMPLES = 48, 8  # pictures on the contact sheet, and how many of them are examples at most
EXAMPLE = (86, 156, 214)  # border of an example


@dataclass(frozen=True)
class _Request:
    """A list that is wanted: equal fingerprints give equal lists."""

    source: Run
    like: list[dict[str, Any]]
    top: int
    place: Path | None

    @cached_property
    def identity(self) -> dict[str, Any]:
        info = self.source.info
        of = {key: _first(info["identity"][key]) for key in ("model", "recipe")}
        same = [[one[key] for key in ("store", "index", "sha256") if key in one] for one in self.like]
        return info["identity"] | of | {"scan": _scan_of(info), "like": sorted(same, key=str), "top": self.top}

    @cached_property
    def fingerprint(self) -> str:
        return files.digest(self.identity)

    @property
    def out(self) -> Path:
        return self.place or home.run_path(f"similar-{self.source.path.name[:40].strip('-.')}-{self.fingerprint[:8]}")


def similar(
    *,
    like: str | int | Sequence[str | int] = (),
    image: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    run: str | os.PathLike[str] | None = None,
    survey: str | Sequence[str] = (),
    store: str | Path | Sequence[str | Path] = (),
    target: str | None = None,
    model: str | Path | None = None,
    top: int = 1000,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Run:
    """Rank a survey by similarity to some examples, as a network sees it, and leave what `galscan.vet` can show.

    Parameters
    ----------
    like : ids
        Objects of the survey. They are not in the list themselves.
    image : paths
        Pictures from elsewhere, one object in the middle of each, in a frame like the survey's: JPEG, PNG or FITS.
    run : path, optional
        A scan with embeddings (``galscan scan --embeddings``).
    survey, store, target, model : optional
        Instead of `run`: what to scan with which model, as for `galscan.scan`. That scan is kept in the data home, and
        found there the next time.
    top : int
        How many.
    out : path, optional
        The folder of the list; in the data home by default.
    device : str
        ``auto``, ``cpu`` or ``cuda``.

    Returns
    -------
    Run
        Its candidates in the order of similarity, which is their score; probability and purity are not known (NaN).

    Raises
    ------
    InputError
        If there is no example, an id is not in the survey, a picture cannot be read, or the scan has no embeddings.
    ConflictError
        If `out` holds something else.
    """
    started = time.perf_counter()
    ids = list(dict.fromkeys(str(i).strip() for i in ([like] if isinstance(like, str | int) else like)))
    paths = [Path(p) for p in ([image] if isinstance(image, str | os.PathLike) else image)]
    if not (ids or paths) or "" in ids:
        raise InputError("like what? name objects of the survey with --like ID,ID, or a picture with --image FILE")
    if top < 1:
        raise InputError(f"--top {top}: ask for at least 1 object")
    source = _source(run, survey, store, target, model, device)
    space = EmbeddingSpace(source.path, source.info)
    known = space.locate(ids) if ids else pd.DataFrame(columns=["part", "row", "store", "index", "id", "ra", "dec"])
    stores = scan_tables.open_stores(source.info)
    stored = next(iter(stores.values())).size  # an image is read as ingest reads it, and resampled as the scan does
    read = [_read(path, stored, stores) for path in paths]
    request = _Request(source, _told(known, paths), top, None if out is None else Path(out))
    with claim(request) as before:
        if before is not None and before["status"] == "done":
            print(f"{request.out} holds this very list; nothing to do", file=sys.stderr, flush=True)
            return open_run(request.out)
        bundle = _model(source)
        vectors = [space.at(known)] if len(known) else []
        if read:
            vectors.append(_embedded(source, bundle, np.stack(read), device))
        best = space.nearest(np.concatenate(vectors), top + len(known))
        frame = space.rows(best).assign(score=best.similarity, score_std=np.nan)
        examples = pd.MultiIndex.from_frame(known[["store", "index"]])
        frame = frame[~pd.MultiIndex.from_frame(frame[["store", "index"]]).isin(examples)].head(top)
        if frame.empty:
            raise InputError(f"{source.path} scored nothing but the examples; there is nothing to rank")
        frame = frame.reset_index(drop=True)
        frame["lineage"] = frame["store"].map({name: identity.lineage_of(one) for name, one in stores.items()})
        radius = identity.radius_of([*stores.values()])
        taught = bundle.in_train(frame, radius) if bundle else np.zeros(len(frame), bool)
        listed = ranking.rank(frame, _unknown(len(frame)), taught, radius)
        info = _info(request, listed)
        files.write_json(request.out / INFO, info)
        with files.atomic_path(request.out / "candidates.parquet") as temporary:
            listed.to_parquet(temporary, index=False)
        columns.write_fits(listed, request.out / "candidates.fits", formats.provenance(info), info["answers"])
        _contact_sheet(request.out, known, read, listed, stores)
        info |= {"wall_s": round(time.perf_counter() - started, 3), "status": "done"}
        files.write_json(request.out / INFO, info)
        return open_run(request.out)


def _source(run: Any, survey: Any, store: Any, target: Any, model: Any, device: str) -> Run:
    """Return the scan to search in: one that is there, or one made now."""
    if run is None:
        return scan(survey=survey, store=store, target=target, model=model, embeddings=True, device=device)
    if survey or store or target or model:
        raise InputError("--run has its own stores and model: name it alone, or stores and a model without it")
    return open_run(run)


def _read(path: Path, size: int, stores: Mapping[str, Store]) -> np.ndarray:
    """Read a picture as ingest does; a FITS file in the colours of the first store that was made of FITS."""
    if not path.is_file():
        raise InputError(f"--image {path}: there is no such file")
    if not pixels.is_image(path.name):
        raise InputError(f"--image {path}: not a JPEG, PNG or FITS file, by its name")
    if not pixels.is_fits(path.name):
        found = pixels.read_picture(path, size, np.nan)
    else:
        found = pixels.read_fits([path], size, np.nan, _rendering(path, stores))
    if not isinstance(found, Cutout):
        why = found.reason if isinstance(found, Failed) else "nothing in it"
        raise InputError(f"--image {path}: {why}; give a square cutout with the object in its middle")
    return np.asarray(found.image)


def _rendering(path: Path, stores: Mapping[str, Store]) -> pixels.Rendering | None:
    try:
        planes = pixels.read_planes([path])[0]
    except Exception:  # astropy raises many kinds; what is wrong is said when the file is read
        return None
    for store in stores.values():
        told = store.attrs["provenance"].get("rendering")
        if isinstance(told, dict):
            given = pixels.Rendering(**{k: v for k, v in told.items() if k in pixels.Rendering.__dataclass_fields__})
            if set(given.bands) <= set(planes):
                return given
    return pixels.measure([planes], [])


def _told(known: pd.DataFrame, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the examples as run.json tells them."""
    places = known[["store", "index", "id", "ra", "dec"]].astype(object)
    rows = [{k: None if v != v else v for k, v in row.items()} for row in places.to_dict("records")]
    return rows + [{"file": str(path.absolute()), "sha256": files.file_digest(path)} for path in paths]


def _model(source: Run) -> Model | None:
    """Return the model whose network saw the survey; None where it is gone or another by now."""
    try:
        bundle = open_model(_first(source.info["model"]))
    except GalscanError:
        return None
    return bundle if bundle.model_hash == _first(source.info["identity"]["model"]) else None


def _embedded(source: Run, bundle: Model | None, images: np.ndarray, device: str) -> np.ndarray:
    """Return what the network of a scan sees in pictures from elsewhere."""
    if bundle is None:
        raise InputError(
            f"{_first(source.info['model'])} is not the model of this scan any more: pictures cannot be seen as it saw "
            "the survey; restore it, or name objects of the survey with --like"
        )
    images = resample(images, int(source.info["size"]))
    seen = load_scorer([bundle], device, source.info["precision"], embeddings=True)(images).embedding
    assert seen is not None
    return seen.astype(np.float16)


def _unknown(count: int) -> Purity:
    """Return the purity of a list of which nothing of the kind is known."""
    none, each = float("nan"), np.full(count, np.nan)
    return Purity(none, none, none, each, each, each, each, each, each, each, each, each, each, [])


def _info(request: _Request, listed: pd.DataFrame) -> dict[str, Any]:
    """Return what ``run.json`` says."""
    info = request.source.info
    inside, before = (sum("store" in one for one in some) for some in (request.like, info.get("like", [])))
    kept = ("stores", "objects", "parts", "size", "answers", "precision", "device", "batch", "selection", "embedding")
    unknown = {"value": None, "low": None, "high": None}
    note = (
        f"In the order of similarity to {len(request.like)} examples: the mean cosine of what the network saw of both, "
        "from the survey's mean. It is no probability; how many of them are of the examples' kind is not known."
    )
    return {
        "format": FORMAT, "status": "running", "target": "similar", "targets": ["similar"], "run": str(request.out),
        "fingerprint": request.fingerprint, "identity": request.identity, "scan": _scan_of(info),
        "tables": os.path.abspath(tables(request.source.path, info)), "model": _first(info["model"]),
        **{key: info[key] for key in kept}, "top": request.top, "seed": int(request.fingerprint[:8], 16),
        "versions": {"galscan": __version__}, "like": request.like,
        # The examples are known already: the list is of the others.
        "scanned": info["scanned"] + before - inside, "quarantined": info["quarantined"],
        "quarantine_reasons": info["quarantine_reasons"], "candidates": len(listed), "first_look": None,
        "purity": {"confidence": None, "prevalence": unknown, "at": {}, "notes": [note]},
    }  # fmt: skip


def _contact_sheet(
    out: Path, known: pd.DataFrame, read: Sequence[np.ndarray], listed: pd.DataFrame, stores: Mapping[str, Store]
) -> None:
    """Draw the examples, and what is most like them."""
    given = known.head(max(EXAMPLES - len(read), 0))
    best = listed.head(SHEET - len(given) - len(read[:EXAMPLES]))
    places = [(str(s), int(i)) for some in (given, best) for s, i in zip(some["store"], some["index"], strict=True)]
    images = dict(scan_tables.pictures(stores, places))
    shown = [*read[:EXAMPLES], *(images[k] for k in range(len(places)))]
    first = len(shown) - len(best)
    thumbnails.contact_sheet(
        shown, out / "contact.png", title=f"like the first {first}: the best {len(best)} of {len(listed):,}",
        captions=[*["example"] * first, *(ranking.caption(row) for row in best.to_dict("records"))],
        borders=[*[EXAMPLE] * first, *[None] * len(best)],
    )  # fmt: skip


def _scan_of(info: Mapping[str, Any]) -> str:
    """Return the fingerprint of the scan whose tables a run has."""
    return str(info.get("scan", info["fingerprint"]))


def _first(value: Any) -> str:
    """Return what belongs to the first of several models, or the only one."""
    return str(value[0] if isinstance(value, list) else value)
