"""``galscan similar``: rank a survey by similarity to examples, without labels."""

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

from galscan.candidates import columns, ranking
from galscan.candidates.embeddings import object_list
from galscan.candidates.embeddings.similar import EmbeddingSpace
from galscan.candidates.run import Run, open_run, provenance
from galscan.commands.scan import scan
from galscan.core import files, home, thumbnails
from galscan.core.errors import InputError
from galscan.core.version import __version__
from galscan.models.ensemble import load_scorer
from galscan.models.model import Model
from galscan.scanning.run_info import FORMAT, RunInfo, claim
from galscan.store import identity
from galscan.store.layout import Store, read_images
from galscan.surveys.base import Cutout, Failed
from galscan.surveys.file_names import is_fits, is_image
from galscan.surveys.files import images as pixels
from galscan.surveys.files.planes import read_planes
from galscan.surveys.resampling import resample

SHEET, EXAMPLES = 48, 8  # images on the contact sheet, and the maximum number of examples among them
EXAMPLE = (86, 156, 214)  # border colour of an example


@dataclass(frozen=True)
class _Request:
    """A requested list; equal fingerprints give equal lists."""

    source: Run
    like: list[dict[str, Any]]
    top: int
    folder: Path | None

    @property
    def scan(self) -> str:
        """Fingerprint of the scan whose tables are searched; the source may be a similarity list itself."""
        return self.source.info.scan or self.source.info.fingerprint

    @cached_property
    def identity(self) -> dict[str, Any]:
        info = self.source.info
        hashes = {key: _first(info.identity[key]) for key in ("model", "recipe")}
        examples = [[entry[key] for key in ("store", "index", "sha256") if key in entry] for entry in self.like]
        return info.identity | hashes | {"scan": self.scan, "like": sorted(examples, key=str), "top": self.top}

    @cached_property
    def fingerprint(self) -> str:
        return files.digest(self.identity)

    @property
    def out(self) -> Path:
        return self.folder or home.run_path(f"similar-{self.source.path.name[:40].strip('-.')}-{self.fingerprint[:8]}")


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
    """Rank a survey by similarity to examples in the feature space of a network; the result is a run.

    Parameters
    ----------
    like : ids or paths
        Examples from the survey, by object id, or tables of ids (CSV, FITS, VOTable, Parquet), as saved from the page
        of `galscan.make_map`. They are not ranked themselves.
    image : paths
        Images of other examples, each with the object in the centre and framed as in the survey: JPEG, PNG or FITS.
    run : path, optional
        A scan with embeddings (``galscan scan --embeddings``).
    survey, store, target, model : optional
        Instead of `run`: what to scan with which model, as for `galscan.scan`. The scan is written to the data home
        and reused by later calls.
    top : int
        Number of objects to rank.
    out : path, optional
        Output folder; default in the data home.
    device : str
        ``auto``, ``cpu`` or ``cuda``.

    Returns
    -------
    Run
        Its candidates in order of similarity, which is their score; probability and purity are unknown (NaN).

    Raises
    ------
    InputError
        If there is no example, an id is not in the survey, an image cannot be read, or the scan has no embeddings.
    ConflictError
        If `out` holds something else.
    """
    started = time.perf_counter()
    ids = list(dict.fromkeys(str(i).strip() for i in ([like] if isinstance(like, str | int) else like)))
    paths = [Path(p) for p in ([image] if isinstance(image, str | os.PathLike) else image)]
    if not (ids or paths) or "" in ids:
        raise InputError("no examples: name objects of the survey with --like ID,ID, or an image with --image FILE")
    if top < 1:
        raise InputError(f"--top {top}: give at least 1")
    if run is None:
        source = scan(survey=survey, store=store, target=target, model=model, embeddings=True, device=device)
    elif survey or store or target or model:
        raise InputError("--run already names stores and a model: give either --run, or stores and a model")
    else:
        source = open_run(Path(run))
    space = EmbeddingSpace(source)
    known = space.locate(_objects(ids)) if ids else pd.DataFrame(columns=["part", "row", *object_list.POSITION])
    stores = source.stores()
    stored = next(iter(stores.values())).size  # images are read as in ingest, and resampled as in the scan
    images = [_read(path, stored, stores) for path in paths]
    request = _Request(source, _examples(known, paths), top, None if out is None else Path(out))
    with claim(request) as previous:
        if previous is not None and previous.status == "done":
            print(f"{request.out} holds this list, finished; nothing to do", file=sys.stderr, flush=True)
            return open_run(request.out)
        scan_model = source.model_if_unchanged()
        vectors = [space.at(known)] if len(known) else []
        if images:
            vectors.append(_embeddings(source, scan_model, np.stack(images), device))
        nearest = space.nearest(np.concatenate(vectors), top + len(known))
        examples = {*zip(known["part"], known["row"], strict=True)}
        others = [pair not in examples for pair in zip(nearest["part"], nearest["row"], strict=True)]
        nearest = nearest[others].head(top)
        if nearest.empty:
            raise InputError(f"{source.path} holds only the examples; scan a larger survey")
        frame = space.rows(nearest).assign(score=nearest["similarity"].to_numpy(), score_std=np.nan)
        frame["lineage"] = frame["store"].map({name: identity.lineage_of(opened) for name, opened in stores.items()})
        radius = identity.radius_of([*stores.values()])
        in_train = scan_model.in_train(frame, radius) if scan_model else np.zeros(len(frame), bool)
        ranked = ranking.rank(frame, None, in_train, radius)
        info = _info(request, ranked)
        info.write(request.out)
        with files.atomic_path(request.out / "candidates.parquet") as temporary:
            ranked.to_parquet(temporary, index=False)
        columns.write_fits(ranked, request.out / "candidates.fits", provenance(info), info.answers)
        _contact_sheet(request.out, known, images, ranked, stores)
        info.updated(wall_s=round(time.perf_counter() - started, 3), status="done").write(request.out)
        return open_run(request.out)


def _objects(like: Sequence[str]) -> pd.DataFrame:
    """Return the id and the store ('' for any) of examples given by id or as tables of ids."""
    given = [
        object_list.read_object_list(item) if object_list.is_object_list(item) else pd.DataFrame([(item, "")])
        for item in like
    ]
    return pd.concat([table.set_axis(["id", "store"], axis=1) for table in given]).drop_duplicates(ignore_index=True)


def _read(path: Path, size: int, stores: Mapping[str, Store]) -> np.ndarray:
    """Read an image as in ingest; a FITS file is rendered as in the first store that was made from FITS."""
    if not path.is_file():
        raise InputError(f"--image {path}: there is no such file")
    if not is_image(path.name):
        raise InputError(f"--image {path}: the file name ends in none of the suffixes of JPEG, PNG and FITS")
    if is_fits(path.name):
        found = pixels.read_fits([path], size, np.nan, _rendering(path, stores))
    else:
        found = pixels.read_picture(path, size, np.nan)
    if not isinstance(found, Cutout):
        reason = found.reason if isinstance(found, Failed) else "nothing in it"
        raise InputError(f"--image {path}: {reason}; give a square cutout with the object in its centre")
    return np.asarray(found.image)


def _rendering(path: Path, stores: Mapping[str, Store]) -> pixels.Rendering | None:
    try:
        planes = read_planes([path])[0]
    except Exception:  # astropy raises many kinds; the error is reported when the file is read
        return None
    for store in stores.values():
        entry = store.attrs["provenance"].get("rendering")
        if isinstance(entry, dict):
            fields = pixels.Rendering.__dataclass_fields__
            rendering = pixels.Rendering(**{k: v for k, v in entry.items() if k in fields})
            if set(rendering.bands) <= set(planes):
                return rendering
    return pixels.measure([planes], [])


def _examples(known: pd.DataFrame, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the examples as entries of ``run.json``."""
    objects = known[["store", "index", "id", "ra", "dec"]].astype(object)
    rows = [{k: None if v != v else v for k, v in row.items()} for row in objects.to_dict("records")]
    return rows + [{"file": str(path.absolute()), "sha256": files.file_digest(path)} for path in paths]


def _embeddings(source: Run, model: Model | None, images: np.ndarray, device: str) -> np.ndarray:
    """Return the embeddings of images that are not in the survey, by the network of a scan."""
    if model is None:
        raise InputError(
            f"{source.info.models[0]} is missing or has changed since the scan, so --image has no embedding: "
            "restore it, or name objects of the survey with --like"
        )
    images = resample(images, source.info.size)
    embedding = load_scorer([model], device, source.info.precision, embeddings=True)(images).embedding
    assert embedding is not None
    return embedding.astype(np.float16)


def _info(request: _Request, ranked: pd.DataFrame) -> RunInfo:
    """Return the content of ``run.json``."""
    info = request.source.info
    examples, previous = (sum("store" in entry for entry in like) for like in (request.like, info.like or []))
    kept = {"stores", "objects", "parts", "size", "answers", "precision", "device", "batch", "selection", "embedding"}
    note = (
        f"In order of similarity to {len(request.like)} examples: the mean cosine similarity of their embeddings, "
        "relative to the survey's mean. It is not a probability; how many of the objects are of the examples' kind is "
        "not known."
    )
    return RunInfo(
        format=FORMAT, status="running", target="similar", targets=["similar"], run=str(request.out),
        fingerprint=request.fingerprint, identity=request.identity, scan=request.scan,
        tables=os.path.abspath(request.source.tables), model=info.models[0], **info.model_dump(include=kept),
        top=request.top, seed=int(request.fingerprint[:8], 16), versions={"galscan": __version__}, like=request.like,
        # The examples themselves are not ranked.
        scanned=info.scanned + previous - examples, quarantined=info.quarantined,
        quarantine_reasons=info.quarantine_reasons, candidates=len(ranked), first_look=None,
        purity={"confidence": None, "prevalence": dict.fromkeys(("value", "low", "high")), "at": {}, "notes": [note]},
    )  # fmt: skip


def _contact_sheet(
    out: Path, known: pd.DataFrame, images: Sequence[np.ndarray], ranked: pd.DataFrame, stores: Mapping[str, Store]
) -> None:
    """Draw a contact sheet of the examples and the objects most similar to them."""
    examples = known.head(max(EXAMPLES - len(images), 0))
    top = ranked.head(SHEET - len(examples) - len(images[:EXAMPLES]))
    rows = [(str(s), int(i)) for table in (examples, top) for s, i in zip(table["store"], table["index"], strict=True)]
    cutouts = dict(read_images(stores, rows))
    shown = [*images[:EXAMPLES], *(cutouts[k] for k in range(len(rows)))]
    n_examples = len(shown) - len(top)
    thumbnails.contact_sheet(
        shown, out / "contact.png",
        title=f"similar to the {n_examples} examples: the top {len(top)} of {len(ranked):,}",
        captions=[*["example"] * n_examples, *(ranking.caption(row) for row in top.to_dict("records"))],
        borders=[*[EXAMPLE] * n_examples, *[None] * len(top)],
    )  # fmt: skip


def _first(value: Any) -> str:
    """Return the entry of the first model, where there may be several."""
    return str(value[0] if isinstance(value, list) else value)
