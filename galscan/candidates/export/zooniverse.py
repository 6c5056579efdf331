"""Candidates as subjects of a Zooniverse project: folders of images with manifests.

    batch-001/manifest.csv    one row per image
    batch-001/000001.jpg ...  at most 1,000, the limit of one upload to the project builder

Volunteers are shown the image alone. Columns that begin with ``#`` are hidden from them. Rank, score and probability
are left out and the order is random over all batches, so that volunteers are blind to the network's ranking. Their
classifications are joined to the catalogue by ``#store`` and ``#index``.

The project builder takes every text with the suffix of a picture for the name of a file to upload, in any column, and
panoptes-cli every text that is the path of a file. So in ids and names such a suffix is written ``_jpg``, and an
absolute path begins with an apostrophe.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from galscan.candidates.export.tables import FORMULA
from galscan.candidates.table_stream import TableStream
from galscan.core import progress
from galscan.core.files import storage_errors
from galscan.core.staging import atomic_folder
from galscan.scanning.run import Run
from galscan.store.layout import read_images

BATCH = 1000
SIDE = 384  # minimum size of an image in pixels; smaller stamps are enlarged
QUALITY = 92
MANIFEST = "manifest.csv"
EMPTY = "none"  # text of empty cells, which panoptes-cli would take for file names
# A file name as the project builder recognises it, and the manifest, for panoptes-cli.
_SUFFIX = re.compile(r"\.(?=jpe?g|png|gif|svg|mp3|m4a|mp4|mpe?g|webm|txt|json|csv)", re.IGNORECASE)
_PATH = re.compile(r"^(?=/|\.*$|\.\.?/)")  # exists, or may do so
_COLUMNS = ("designation", "objid", "store", "index", "ra", "dec", "known_name", "known_ref")


def zooniverse(rows: TableStream, out: Path, run: Run) -> dict[str, Any]:
    """Write the folder, replacing that of an earlier export; return its details."""
    stores = run.stores()
    names = [name for name in _COLUMNS if name in rows.names]
    subjects = pd.concat([piece.to_pandas() for piece in rows.select(names)] or [pd.DataFrame(columns=names)])
    order = np.random.default_rng(run.info.seed).permutation(len(subjects))
    subjects = subjects.iloc[order].reset_index(drop=True)
    texts = [column for column in subjects if not pd.api.types.is_numeric_dtype(subjects[column])]
    like_files = sum(sum(map(_is_like_file, subjects[column].dropna().astype(str))) for column in texts)
    with atomic_folder(out, f"batch-001/{MANIFEST}") as folder:
        batches = max(-(-len(subjects) // BATCH), 1)
        for number in range(batches):
            batch = subjects.iloc[number * BATCH : (number + 1) * BATCH]
            _manifest(batch, number * BATCH, run.info.fingerprint[:16], folder / f"batch-{number + 1:03d}")
        stored = list(zip(subjects["store"].astype(str), subjects["index"].astype(int), strict=True))
        with progress.track("images", len(stored), "images") as advance:
            for k, image in read_images(stores, stored):
                side = _side(len(image))
                enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
                with storage_errors(out):
                    enlarged.save(
                        folder / f"batch-{k // BATCH + 1:03d}" / _file(k), "jpeg", quality=QUALITY, subsampling=0
                    )
                advance()
    details = {"like_files": like_files} if like_files else {}
    return details | {"batches": batches, "pixels": max((_side(store.size) for store in stores.values()), default=0)}


def _manifest(subjects: pd.DataFrame, first: int, run: str, folder: Path) -> None:
    table = {"#image": [_file(first + k) for k in range(len(subjects))], "#galscan_run": run}
    for name in subjects:
        values = subjects[name]
        numeric = pd.api.types.is_numeric_dtype(values)
        cells = ["" if pd.isna(v) else repr(v) if numeric else _harmless(str(v)) for v in values.tolist()]
        table[f"#{name}"] = [cell or EMPTY for cell in cells]
    folder.mkdir()
    with storage_errors(folder):
        pd.DataFrame(table, index=range(len(subjects))).to_csv(folder / MANIFEST, index=False, lineterminator="\n")


def _is_like_file(text: str) -> bool:
    return bool(_SUFFIX.search(text) or (text and _PATH.search(text)))


def _harmless(text: str) -> str:
    """Return text that is neither a formula of a spreadsheet nor the name of a file."""
    if not text:
        return text
    return _PATH.sub("'", re.sub(FORMULA, r"'\1", _SUFFIX.sub("_", text)))


def _file(subject: int) -> str:
    return f"{subject + 1:06d}.jpg"


def _side(size: int) -> int:
    """Return the smallest multiple of a stamp's size that is at least `SIDE`."""
    return max(-(-SIDE // size), 1) * size
