"""Surveys of the Multimodal Universe: HDF5, as Galaxy10 is too, and Parquet, as in its HATS catalogs.

HDF5 (``healpix=NNN/001-of-001.hdf5``): each object is a row of every dataset: ``object_id, ra, dec``, and
``image_array`` (object, band, y, x; row 0 at the bottom) with ``image_band`` and ``image_scale``; or ``images``
(object, y, x, colour), RGB images in uint8.

Parquet (HATS since version 1.5): each object is a row. ``image`` is a structure of lists, or a list of structures, with
``band``, ``flux`` (y, x; row 0 at the bottom) and ``scale`` for each band; or ``image`` or ``rgb_image`` has the bytes
of a JPEG or PNG, as in data sets of Hugging Face.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from galscan.core.errors import InputError
from galscan.labels.galaxy10 import check_galaxy10
from galscan.surveys.base import Failed, Flag
from galscan.surveys.file_names import band_of
from galscan.surveys.files.arrays import ArraySurvey, Pixels, as_picture
from galscan.surveys.files.packed import BATCH
from galscan.surveys.files.planes import MAX_PLANES
from galscan.surveys.table_files import parquet

ARRAYS = ("image_array", "images", "rgb_image", "image_rgb", "rgb", "image")  # best first
COLUMNS = ("image", "rgb_image", "image_rgb", "rgb", "images")  # of images in Parquet, best first
BUFFER = 1 << 20  # bytes read ahead per column, so that a row group of thousands of images is not held in memory


class MultimodalSurvey(ArraySurvey):
    """A folder of HDF5 files, or one of them. See `galscan.surveys.files.packed.PackedSurvey`.

    In a single file without ids, as those of Galaxy10, row numbers are the ids.
    """

    format: ClassVar[str] = "multimodal"
    suffixes: ClassVar[tuple[str, ...]] = (".hdf5", ".h5")
    format_columns: ClassVar[Mapping[str, str]] = {
        "id": "object_id", "ra": "ra", "dec": "dec", "pixel_scale": "pxscale",
    }  # fmt: skip

    def _connect(self, file_number: int) -> Any:
        try:
            import h5py
        except ImportError:
            raise InputError("HDF5 files need h5py, which is not installed: pip install 'galscan[hdf5]'") from None
        return h5py.File(self._path(file_number), "r", locking="best-effort")

    def _array(self, file_number: int) -> Any:
        file = self._opened(file_number)
        found = next((file[name] for name in ARRAYS if name in file and file[name].ndim == 4), None)
        if found is None:
            raise InputError(
                f"{self._path(file_number)} has no images; it needs image_array or images, with 4 dimensions"
            )
        return found

    def _table(self, file_number: int) -> pd.DataFrame:
        file, count = self._opened(file_number), self._array(file_number).shape[0]
        columns: dict[str, Any] = {}
        units: dict[str, str] = {}
        for name, data in file.items():
            if getattr(data, "shape", None) == (count,) and data.dtype.kind in "iufbSO":
                columns[name] = [_text(v) for v in data[:]] if data.dtype.kind in "SO" else data[:]
                units[name] = _text(data.attrs.get("unit", data.attrs.get("units", "")))
        if "image_scale" in file and file["image_scale"].shape[:1] == (count,):
            columns["pxscale"] = file["image_scale"][:].reshape(count, -1)[:, 0]
        table = pd.DataFrame(columns, index=range(count))
        table.attrs["unit"] = units
        return table

    def _check_labels(self, file_number: int, table: pd.DataFrame, labels: Sequence[str]) -> None:
        check_galaxy10(labels, table.columns, self._array(file_number).shape[1], str(self._path(file_number)))

    def _pixels(self, file_number: int, first: int, last: int) -> Iterator[Pixels]:
        file, data = self._opened(file_number), self._array(file_number)
        images = data[first:last]
        names = file["image_band"][first:last] if "image_band" in file else None
        for k, image in enumerate(images):
            if image.dtype == np.uint8:
                yield as_picture(image)
            elif image.shape[0] > MAX_PLANES:
                yield Failed(f"{image.shape[0]} planes, at most {MAX_PLANES} bands are allowed", Flag.WRONG_SHAPE)
            else:
                bands = [str(b) for b in range(len(image))] if names is None else [_band(_text(b)) for b in names[k]]
                yield dict(zip(bands, image.astype(np.float32), strict=True))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace").strip("\0 ") if isinstance(value, bytes) else str(value)


def _band(name: str) -> str:
    """Return ``g`` for ``des-g`` and ``HSC-G``; other names as they are."""
    return band_of(name) or name.lower()


class ParquetSurvey(ArraySurvey):
    """A Parquet file with images, a folder of them, or a HATS catalog. See `PackedSurvey`.

    In a single file without ids, row numbers are the ids.
    """

    format: ClassVar[str] = "parquet"
    suffixes: ClassVar[tuple[str, ...]] = parquet.SUFFIXES
    format_columns: ClassVar[Mapping[str, str]] = {"id": "object_id", "pixel_scale": "pxscale"}

    def _find(self) -> dict[str, int]:
        files, self._positions = parquet.object_files(self.root)
        if self.root.is_file():
            return {self.root.name: self.root.stat().st_size}
        return {str(file.relative_to(self.root)): file.stat().st_size for file in files}

    def _connect(self, file_number: int) -> _Rows:
        return _Rows(str(self._path(file_number)))

    def _table(self, file_number: int) -> pd.DataFrame:
        rows = self._opened(file_number)
        table = parquet.read_parquet(self._path(file_number), without=COLUMNS)
        if (scales := rows.pixel_scales()) is not None:
            table["pxscale"] = scales
        elif "rgb_pixel_scale" in table:
            table["pxscale"] = table["rgb_pixel_scale"]
        if self._positions is not None and set(self._positions) <= set(table.columns):
            table.attrs["positions"] = self._positions
        return table

    def _check_labels(self, file_number: int, table: pd.DataFrame, labels: Sequence[str]) -> None:
        check_galaxy10(labels, table.columns, None, str(self._path(file_number)))

    def _pixels(self, file_number: int, first: int, last: int) -> Iterator[Pixels]:
        rows = self._opened(file_number)
        for cell in rows.read(first, last):
            yield rows.pixels(cell) if cell.is_valid else Failed("no image in this row", Flag.MISSING)


class _Rows:
    """The images of a Parquet file, read in order of the rows; going back starts again at a row group."""

    def __init__(self, path: str):
        self._file = pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
        schema = self._file.schema_arrow
        kinds = {name: _kind(schema.field(name).type) for name in COLUMNS if name in schema.names}
        self._name = next((name for name, kind in kinds.items() if kind), "")
        if not self._name:
            listed = ", ".join(schema.names[:12])
            raise InputError(
                f"{path} has no images (its columns are {listed}); they are in a column 'image' with flux and band, or "
                "with the bytes of a JPEG or PNG; give a table without images with --catalog"
            )
        self._kind = kinds[self._name]
        counts = [self._file.metadata.row_group(k).num_rows for k in range(self._file.metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._start, self._end = 0, -1  # of the rows that are held
        self._held: list[pa.RecordBatch] = []
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def close(self) -> None:
        self._held, self._batches = [], iter(())
        self._file.close()

    def _leaves(self, *fields: str) -> list[str]:
        """Return the paths of some fields of the images, so that masks and variances are not read."""
        found = []
        for k in range(len(self._file.schema)):
            path = self._file.schema.column(k).path
            parts = [part for part in path.split(".") if part not in ("list", "element", "item", "array")]
            if parts[0] == self._name and (len(parts) == 1 or parts[1] in fields):
                found.append(path)
        return found

    def pixel_scales(self) -> np.ndarray | None:
        """Return arcsec per pixel of the first band of each object; None if there are none."""
        if self._kind != "planes" or not (leaves := self._leaves("scale")):
            return None
        cells = self._file.read(columns=leaves)[self._name].to_pylist()
        first = [_first(cell) for cell in cells]
        return np.array([np.nan if scale is None else scale for scale in first], np.float64)

    def read(self, first: int, last: int) -> pa.ChunkedArray:
        """Return the images of rows `first` to `last`."""
        if not self._start <= first <= self._end:
            group = int(np.searchsorted(self._starts, first, "right")) - 1
            self._start = self._end = int(self._starts[group])
            self._held = []
            groups = range(group, len(self._starts) - 1)
            self._batches = self._file.iter_batches(BATCH, groups, self._leaves("flux", "band", "bytes"))
        try:
            while self._end < last:
                piece = next(self._batches, None)
                if piece is None:
                    raise ValueError(f"the file ends before row {last:,}")
                self._held.append(piece)
                self._end += len(piece)
                self._drop(first)
        except Exception:
            self._start, self._end = 0, -1  # read again from a row group on
            raise
        self._drop(first)
        return pa.Table.from_batches(self._held)[self._name].slice(first - self._start, last - first)

    def _drop(self, first: int) -> None:
        """Drop the held rows before row `first`, in pieces."""
        while self._held and self._start + len(self._held[0]) <= first:
            self._start += len(self._held.pop(0))

    def pixels(self, cell: Any) -> Pixels:
        if self._kind == "picture":
            data = cell.as_py()
            data = data.get("bytes") if isinstance(data, dict) else data
            return data if data else Failed("no image in this row", Flag.MISSING)
        if self._kind == "array":
            rows = cell.values
            channels = rows.flatten().flatten().to_numpy(zero_copy_only=False).astype(np.uint8)
            return as_picture(channels.reshape(len(rows), len(rows.flatten()) // max(len(rows), 1), -1))
        return _planes(cell)


def _kind(kind: pa.DataType) -> str:
    """Return how a column holds images: ``planes``, ``picture``, ``array``; "" if it holds none."""
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if pa.types.is_struct(inner):
        names = {inner.field(k).name for k in range(inner.num_fields)}
        return "planes" if "flux" in names else "picture" if "bytes" in names and inner is kind else ""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "picture"
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind, depth = kind.value_type, depth + 1
    return "array" if depth == 3 and pa.types.is_uint8(kind) else ""


def _first(cell: Any) -> float | None:
    """Return the scale of the first band of a structure of lists, or of a list of structures."""
    if isinstance(cell, dict):
        return next(iter(cell["scale"] or ()), None)
    return next((band["scale"] for band in cell or () if band), None)


def _planes(cell: Any) -> Pixels:
    """Return the planes of an object by band."""
    if isinstance(cell, pa.StructScalar):  # of lists
        flux = cell["flux"].values
        names = cell["band"].as_py() if "band" in cell else None
    else:  # a list of structures
        flux = cell.values.field("flux")
        names = cell.values.field("band").to_pylist() if cell.values.type.get_field_index("band") >= 0 else None
    count = 0 if flux is None else len(flux)
    if count > MAX_PLANES:
        return Failed(f"{count} planes, at most {MAX_PLANES} bands are allowed", Flag.WRONG_SHAPE)
    if not count:
        return Failed("no image in this row", Flag.MISSING)
    bands = [str(b) for b in range(count)] if names is None else [_band(str(name)) for name in names]
    if len(bands) != count:
        raise ValueError(f"{count} planes of {len(bands)} bands")
    planes = {band: _plane(plane.values) for band, plane in zip(bands, flux, strict=True) if plane.is_valid}
    return planes if planes else Failed("no image in this row", Flag.MISSING)


def _plane(rows: pa.Array) -> np.ndarray:
    """Return a plane from its list of rows, or from a list of the pixels of a square."""
    if not pa.types.is_nested(rows.type):
        side = int(len(rows) ** 0.5)
        if side * side != len(rows):
            raise ValueError(f"a plane of {len(rows):,} pixels is not square")
        return rows.to_numpy(zero_copy_only=False).astype(np.float32).reshape(side, side)
    if len(pc.unique(pc.list_value_length(rows))) != 1:
        raise ValueError("the rows of a plane have different lengths")
    return rows.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(rows), -1)
