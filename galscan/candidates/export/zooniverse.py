"""Candidates as subjects of a Zooniverse project: folders of pictures, each with its manifest.

    batch-001/manifest.csv    one row a picture
    batch-001/000001.jpg ...  at most 1,000, what the project builder takes at a time

Volunteers see the picture alone. Columns that begin with ``#`` are hidden from them; rank, score and probability are
not even there, and the order is random over all batches, so that nothing tells which picture the network liked. What
comes back is joined to the catalogue by ``#store`` and ``#index``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from galscan.candidates import scan_tables
from galscan.candidates.export.tables import FORMULA
from galscan.candidates.table_stream import TableStream
from galscan.core import progress
from galscan.core.files import storage_errors
from galscan.core.staging import whole_folder

BATCH = 1000
SIDE = 384  # pixels that a picture has at least: stamps are small on a screen
QUALITY = 92
MANIFEST = "manifest.csv"
NOTHING = "none"  # no cell is empty: panoptes-cli takes one for the name of a file
_COLUMNS = ("designation", "objid", "store", "index", "ra", "dec", "known_name", "known_ref")


def zooniverse(rows: TableStream, out: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """Write the folder; one of an earlier export is replaced.

    Returns
    -------
    dict
        batches, pixels: how many folders, and how wide the pictures are.

    Raises
    ------
    InputError
        If a store has gone or changed since the scan.
    ConflictError
        If `out` is a folder of something else.
    """
    stores = scan_tables.open_stores(info)
    names = [name for name in _COLUMNS if name in rows.names]
    subjects = pd.concat([piece.to_pandas() for piece in rows.select(names)] or [pd.DataFrame(columns=names)])
    order = np.random.default_rng(int(info.get("seed") or 0)).permutation(len(subjects))
    subjects = subjects.iloc[order].reset_index(drop=True)
    with whole_folder(out, f"batch-001/{MANIFEST}") as folder:
        batches = max(-(-len(subjects) // BATCH), 1)
        for number in range(batches):
            some = subjects.iloc[number * BATCH : (number + 1) * BATCH]
            _manifest(some, number * BATCH, str(info["fingerprint"])[:16], folder / f"batch-{number + 1:03d}")
        places = list(zip(subjects["store"].astype(str), subjects["index"].astype(int), strict=True))
        with progress.track("pictures", len(places), "pictures") as advance:
            for k, image in scan_tables.pictures(stores, places):
                path = folder / f"batch-{k // BATCH + 1:03d}" / _file(k)
                with storage_errors(out):
                    _enlarged(image).save(path, "jpeg", quality=QUALITY, subsampling=0)
                advance()
    return {"batches": batches, "pixels": max((_factor(s.size) * s.size for s in stores.values()), default=0)}


def _manifest(subjects: pd.DataFrame, first: int, run: str, folder: Path) -> None:
    told = {"#image": [_file(first + k) for k in range(len(subjects))], "#galscan_run": run}
    for name in subjects:
        values = subjects[name]
        numbers = pd.api.types.is_numeric_dtype(values)
        words = ["" if pd.isna(v) else repr(v) if numbers else re.sub(FORMULA, r"'\1", str(v)) for v in values.tolist()]
        told[f"#{name}"] = [word or NOTHING for word in words]
    folder.mkdir()
    with storage_errors(folder):
        pd.DataFrame(told, index=range(len(subjects))).to_csv(folder / MANIFEST, index=False, lineterminator="\n")


def _file(subject: int) -> str:
    return f"{subject + 1:06d}.jpg"


def _factor(size: int) -> int:
    return max(-(-SIDE // size), 1)


def _enlarged(image: np.ndarray) -> Image.Image:
    side = _factor(len(image)) * len(image)
    return Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
