"""``galscan map``: a page with a map of a scan, on which objects with similar images are close together."""

from __future__ import annotations

import base64
import shlex
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.candidates.embeddings.points import MapPoints, make_points
from galscan.candidates.embeddings.similar import EmbeddingSpace
from galscan.core import thumbnails as pictures
from galscan.core.errors import ConflictError, InputError
from galscan.core.files import write_text
from galscan.reports.page import render
from galscan.scanning.known_labels import NAMES
from galscan.scanning.run import OUTPUTS, Run, open_run
from galscan.stats import projection
from galscan.store.layout import Store, read_images
from galscan.vetting import gradebook
from galscan.vetting.sampling import BLANK

FILE, CSV = "map.html", "selection.csv"
MAX_POINTS, MOST_POINTS = 100_000, 1_000_000
IMAGES, MOST_IMAGES = 1500, 10_000
TILE = 64  # pixels of a small image
NO_POSITION, UNIT = 0xFFFFFFFF, 1e-7  # positions are integers of this unit, in degrees
# Codes in the page, by position in these lists: those of CATEGORIES in map.js.j2.
KNOWN = ["", NAMES[0.0], *[name for value, name in NAMES.items() if value not in (0.0, 1.0)], NAMES[1.0]]
GRADES = ["", *reversed(gradebook.GRADES)]


def make_map(
    run: str | Path,
    *,
    target: str | None = None,
    method: str = projection.PCA,
    max_points: int = MAX_POINTS,
    thumbnails: int = IMAGES,
    out: str | Path | None = None,
    seed: int = 0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write a page with a map of a scan: the embeddings of its objects, projected onto two dimensions.

    The page is one HTML file without requests to any server. Objects are coloured by score, known label, grade or
    predicted answer; they can be selected with a lasso and saved as a table for `galscan.similar` and `galscan.vet`.

    Parameters
    ----------
    run : path
        Folder of a scan with embeddings (``galscan scan --embeddings``), or of a list of similar objects.
    target : str, optional
        Of a scan for several targets: the one whose scores and candidates are shown.
    method : str
        ``pca``, the principal components, or ``umap`` (extra ``map``).
    max_points : int
        Largest number of points. A larger scan is represented by its candidates, its labelled and graded objects, and
        a random sample of the others.
    thumbnails : int
        Number of small images in the page: half for the best candidates, the rest for random points; 0 for none.
    out : path, optional
        File to write; default ``map.html`` in the folder of the run. An older map is replaced.
    seed : int
        Random seed.
    dry_run : bool
        Check everything, and return what would be written.

    Returns
    -------
    dict
        JSON-serialisable; its keys are listed in the documentation of ``--json``.

    Raises
    ------
    NotFoundError
        If there is no run.
    InputError
        If it has no embeddings, fewer than three objects or several targets, an option is out of range, or umap-learn
        is needed and not installed.
    ConflictError
        If `out` is another file of the run.
    """
    started = time.perf_counter()
    projection.check(method)
    if not projection.LEAST <= max_points <= MOST_POINTS:
        raise InputError(f"--max-points {max_points}: use {projection.LEAST} to {MOST_POINTS:,}")
    if not 0 <= thumbnails <= MOST_IMAGES:
        raise InputError(f"--thumbnails {thumbnails}: use 0 to {MOST_IMAGES:,}")
    opened = open_run(run)
    opened = opened.require_single_target() if target is None else opened.of(target)
    if target is not None and opened.info.target != target:
        raise InputError(f"{opened.path} has the candidates for '{opened.info.target}'; omit --target {target}")
    space = EmbeddingSpace(opened)
    path = _file(opened, out)
    result: dict[str, Any] = {
        "file": str(path), "run": str(opened.path), "target": opened.info.target, "method": method,
        "points": min(opened.info.scanned, max_points), "of": opened.info.scanned, "seed": seed,
    }  # fmt: skip
    if opened.info.scanned < projection.LEAST:
        raise InputError(
            f"{opened.path} has {opened.info.scanned} scored objects; a map needs at least {projection.LEAST}"
        )
    if dry_run:
        return result | {"dry_run": True}
    points = make_points(space, max_points=max_points, method=method, seed=seed, grades=_grades(opened))
    shown = _with_images(points.table, opened.stores_if_unchanged(), thumbnails, seed)
    jpeg, columns, tiles = _sprite(points.table, opened.stores_if_unchanged(), shown)
    replaced = path.exists()
    write_text(path, _page(opened, points, method, jpeg, columns, tiles, seed))
    result |= {
        "points": len(points.table), "of": points.scored, "random": points.random,
        "candidates": int((points.table["rank"] > 0).sum()), "images": int((tiles > 0).sum()),
        "explained": points.explained, "bytes": path.stat().st_size, "replaced": replaced,
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip
    return result | {"text": _text(result)}


def _file(run: Run, out: str | Path | None) -> Path:
    path = run.path / FILE if out is None else Path(out)
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {path}: the map is a page; give a name that ends with .html")
    if path.is_dir():
        raise ConflictError(f"--out {path} is a folder; name a file")
    if path.name == OUTPUTS["report"] and path.exists():
        raise ConflictError(f"--out {path} is the report of a run; choose another name, for example {FILE}")
    return path


def _grades(run: Run) -> pd.DataFrame | None:
    """Return store, index and grade of the graded objects of a run; None without a grade book."""
    if not (run.path / gradebook.FILE).is_file():
        return None
    with gradebook.GradeBook(run.path / gradebook.FILE, run.info.fingerprint) as book:
        verdicts = book.verdicts()
    verdicts = verdicts[verdicts["kind"] != BLANK]
    return verdicts.rename(columns={"row": "index"})[["store", "index", "grade"]]


def _with_images(table: pd.DataFrame, stores: Mapping[str, Store], count: int, seed: int) -> np.ndarray:
    """Return the rows of the points that get an image: the best candidates, then random ones, in no order."""
    rng = np.random.default_rng([seed, 1])
    possible = table["store"].isin(list(stores)).to_numpy()
    rank = table["rank"].to_numpy()
    ranked = np.flatnonzero(possible & (rank > 0))
    best = ranked[np.argsort(rank[ranked], kind="stable")][: -(-count // 2)]
    others = rng.permutation(np.setdiff1d(np.flatnonzero(possible), best))[: count - len(best)]
    return np.concatenate([best, others])


def _sprite(table: pd.DataFrame, stores: Mapping[str, Store], shown: np.ndarray) -> tuple[bytes, int, np.ndarray]:
    """Return a JPEG of small images, its number of columns, and the number of each point's image (0 for none)."""
    tiles = np.zeros(len(table), np.uint16)
    rows = [(str(table["store"].iat[k]), int(table["index"].iat[k])) for k in shown]

    def images() -> Iterator[np.ndarray]:
        for number, (k, image) in enumerate(read_images(stores, rows), 1):
            tiles[shown[k]] = number
            yield image

    if not len(shown):
        return b"", 1, tiles
    try:
        jpeg, columns = pictures.sprite(images(), len(shown), TILE)
    except (OSError, ValueError, RuntimeError):  # a chunk is missing or damaged: the page is written without images
        return b"", 1, np.zeros_like(tiles)
    return jpeg, columns, tiles


# The page


def _page(run: Run, points: MapPoints, method: str, jpeg: bytes, columns: int, tiles: np.ndarray, seed: int) -> str:
    table, info = points.table, run.info
    arrays, answers, stores = _arrays(table, info.answers, tiles)
    layout, packed = _packed(arrays)
    settings = {
        "count": len(table), "arrays": layout, "answers": answers, "stores": stores, "csv": CSV,
        "text_ids": arrays["id"].dtype != np.int64,
        "x": _range(table["x"]), "y": _range(table["y"]),
        "sprite": {"columns": columns, "tile": TILE, "count": int((tiles > 0).sum())},
    }  # fmt: skip
    return render(
        "map.html.j2", kind="map", title=f"galscan: map of {run.path.name}", name=run.path.absolute().name,
        sentence=_sentence(points), notes=_notes(run, points, method, tiles),
        colourings=_colourings(run, table), commands=_commands(run),
        facts=[
            ("points", f"{len(table):,}"), ("scored objects", f"{points.scored:,}"),
            ("candidates", f"{(table['rank'] > 0).sum():,}"), ("known label", f"{(table['known'] != '').sum():,}"),
            ("graded", f"{(table['grade'] != '').sum():,}"), ("images", f"{(tiles > 0).sum():,}"),
        ],
        provenance=[
            ("run", str(run.path)), ("target", info.target), ("projection", f"{method}, seed {seed}"),
            ("embedding", f"{info.embedding} numbers per object"), ("scan", info.scan or info.fingerprint),
            *(("model", value) for value in info.model_hashes),
            *((f"store {ref.name}", ref.content_hash) for ref in info.stores),
        ],
        settings=settings, points=packed,
        sprite=f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}" if jpeg else "",
    )  # fmt: skip


def _arrays(
    table: pd.DataFrame, answers: Sequence[str], tiles: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, list[float]], list[str]]:
    """Return the columns of the points as the page reads them, the ranges of the answers, and the names of stores."""
    codes, stores = pd.factorize(table["store"])
    ra, dec = (table[name].to_numpy(np.float64) for name in ("ra", "dec"))
    placed = np.isfinite(ra) & np.isfinite(dec)
    ids = table["id"]
    arrays = {
        "id": ids.to_numpy(np.int64) if pd.api.types.is_integer_dtype(ids) else _text_array(ids),
        "x": table["x"].to_numpy(np.float32), "y": table["y"].to_numpy(np.float32),
        "score": table["score"].to_numpy(np.float32), "rank": table["rank"].to_numpy(np.uint32),
        "ra": np.where(placed, np.round(np.where(placed, ra % 360, 0) / UNIT), NO_POSITION).astype(np.uint32),
        "dec": np.round(np.where(placed, dec, 0) / UNIT).astype(np.int32),
        "store": codes.astype(np.uint16), "tile": tiles,
        "known": table["known"].map(KNOWN.index).to_numpy(np.uint8),
        "grade": table["grade"].map(GRADES.index).to_numpy(np.uint8),
    }  # fmt: skip
    ranges = {}
    for name in answers:
        values = table[name].to_numpy(np.float64)
        finite = np.isfinite(values)
        low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 1.0)
        width = max(high - low, 1e-9)
        codes = np.where(finite, np.round(254 * (np.where(finite, values, low) - low) / width), 255)
        arrays[f"answer {name}"], ranges[name] = codes.astype(np.uint8), [low, low + width]
    return arrays, ranges, [str(name) for name in stores]


def _text_array(ids: pd.Series) -> np.ndarray:
    return np.frombuffer("\0".join(map(str, ids)).encode(), np.uint8)


def _packed(arrays: Mapping[str, np.ndarray]) -> tuple[list[tuple[str, str, int, int]], str]:
    """Return name, type, offset and length of each array, and all of them compressed, in base64."""
    layout, pieces, offset = [], [], 0
    for name, values in arrays.items():
        data = values.astype(values.dtype.newbyteorder("<")).tobytes()
        layout.append((name, values.dtype.name, offset, len(values)))
        pieces.append(data + bytes(-len(data) % 8))  # each begins at a multiple of its item size
        offset += len(pieces[-1])
    return layout, base64.b64encode(zlib.compress(b"".join(pieces), 6)).decode("ascii")


def _range(values: pd.Series) -> list[float]:
    return [float(values.min()), float(values.max())]


def _sentence(points: MapPoints) -> str:
    if len(points.table) == points.scored:
        return f"All {points.scored:,} scored objects, arranged by what the network computes from their images."
    return (
        f"{len(points.table):,} of {points.scored:,} scored objects, arranged by what the network computes from "
        "their images."
    )


def _notes(run: Run, points: MapPoints, method: str, tiles: np.ndarray) -> list[str]:
    notes = []
    if len(points.table) < points.scored:
        notes.append(
            "The points are the candidates, the objects of known label or grade, and a random sample of "
            f"{points.random:,} others; --max-points changes the number."
        )
    if points.explained is not None:
        first, second = points.explained
        notes.append(
            f"The axes are the two principal components of the {run.info.embedding} numbers that the network computes "
            f"for an image. They hold {first:.0%} and {second:.0%} of the variance: objects that are close on the map "
            "may differ in the rest."
        )
    else:
        notes.append(
            "The projection is by UMAP, which keeps neighbours together. Distances between groups, and the sizes of "
            "groups, have no meaning."
        )
    if run.info.is_similarity_list:
        notes.append("The score is the similarity to the examples, known for the ranked objects only.")
    images = int((tiles > 0).sum())
    if images == 0:
        notes.append("There are no images: none were requested, or the stores are missing or have changed.")
    elif images < len(points.table):
        notes.append(
            f"{images:,} points have an image: the best candidates, and random points. --thumbnails changes the number."
        )
    return notes


def _colourings(run: Run, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the values and labels of the menu; what no point has is left out."""
    score = "similarity to the examples" if run.info.is_similarity_list else f"score for {run.info.target}"
    found = [("score", score)] if np.isfinite(table["score"]).any() else []
    found += [("rank", "candidate or not")] if (table["rank"] > 0).any() else []
    found += [("known", "known label")] if (table["known"] != "").any() else []
    found += [("grade", "grade")] if (table["grade"] != "").any() else []
    return found + [(f"answer {name}", f"predicted {name.replace('_', ' ')}") for name in run.info.answers]


def _commands(run: Run) -> list[str]:
    path = shlex.quote(str(run.path))
    return [f"galscan similar --run {path} --like {CSV}", f"galscan vet {path} --objects {CSV}"]


def _text(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['points']:,} of {result['of']:,} objects projected ({result['method']}), {result['images']:,} images",
        f"map          {result['file']} ({result['bytes'] / 1e6:.1f} MB)",
        "next         open it in a browser, draw a lasso, and save the selection for galscan similar or galscan vet",
    ]
    return "\n".join(lines)
