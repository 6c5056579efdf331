"""Survey of HDF5 files of the Multimodal Universe (``healpix=NNN/001-of-001.hdf5``) and of Galaxy10.

Each object is a row of every dataset: ``object_id, ra, dec``, and ``image_array`` (object, band, y, x; row 0 at the
bottom) with ``image_band`` and ``image_scale``; or ``images`` (object, y, x, colour), RGB images in uint8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.labels.galaxy10 import check_galaxy10
from galscan.surveys.base import Failed, Flag
from galscan.surveys.file_names import band_of
from galscan.surveys.files.arrays import ArraySurvey, Pixels, as_picture

ARRAYS = ("image_array", "images", "rgb_image", "image_rgb", "rgb", "image")  # best first


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
            elif image.shape[0] > 8:
                yield Failed(f"{image.shape[0]} planes, at most 8 bands are allowed", Flag.WRONG_SHAPE)
            else:
                bands = [str(b) for b in range(len(image))] if names is None else [_band(_text(b)) for b in names[k]]
                yield dict(zip(bands, image.astype(np.float32), strict=True))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace").strip("\0 ") if isinstance(value, bytes) else str(value)


def _band(name: str) -> str:
    """Return ``g`` for ``des-g`` and ``HSC-G``; other names as they are."""
    return band_of(name) or name.lower()
