"""Small files of other formats, with the layout of the programs that write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from astropy.io import fits
from PIL import Image
from zarr.codecs import BloscCodec

from tests.pictures_on_disk import OBJID

BLOSC = {"cname": "lz4", "clevel": 1, "shuffle": "shuffle", "typesize": 1}


def pictures(count: int, size: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, size, size, 3), dtype=np.uint8)


def planes(count: int, bands: int = 3, size: int = 20, seed: int = 0) -> np.ndarray:
    """Return galaxies on noise, shape (count, bands, size, size), a bright strip in the upper part of the sky."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    stack = rng.normal(0, 1, (count, bands, size, size)) + 100 * np.exp(-(x**2 + y**2) / 8)
    stack[:, :, -4:-2] += 60
    return stack.astype(np.float32)


def sky(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 360, count), rng.uniform(-90, 90, count)


def write_cutana(
    root: Path, images: np.ndarray, ids: Sequence[Any] | None = None, batch: int = 100, **columns: Any
) -> pd.DataFrame:
    """Write the output of a Cutana 0.4 run: ``batch_*/images.zarr`` with its metadata, and the mapping."""
    ids = [OBJID + k for k in range(len(images))] if ids is None else ids
    ra, dec = sky(len(images))
    metadata = pd.DataFrame({
        "source_id": [str(i) for i in ids], "ra": ra, "dec": dec, "diameter_arcsec": None, "diameter_pixel": 40,
        "original_cutout_size": 40, "pixel_scale_arcsec_per_pixel": 0.25, "tile": "mosaic-g.fits,mosaic-r.fits",
        "processing_timestamp": 1.8e9, "rescaled_offset_x": 0.1, "rescaled_offset_y": 0.2, "extraction_origin_x": 143,
        "extraction_origin_y": 252, "extraction_size": 40, **columns,
    })  # fmt: skip
    mapping = []
    for start in range(0, len(images), batch):
        rows = slice(start, start + batch)
        folder = root / f"batch_cutout_process_{start // batch:03d}_c5ee1b35"
        folder.mkdir(parents=True)
        group = zarr.open_group(folder / "images.zarr", mode="w", zarr_format=3)
        group.attrs.update(total_images=len(images[rows]), image_shape=list(images.shape[1:]), compressor="lz4")
        group.create_array(
            "images", data=images[rows], chunks=(min(10, batch), *images.shape[1:]), compressors=BloscCodec(**BLOSC)
        )
        metadata[rows].reset_index(drop=True).to_parquet(folder / "images_metadata.parquet")
        mapping += [(i, f"{folder.name}/images.zarr", start // batch) for i in metadata["source_id"][rows]]
    frame = pd.DataFrame(mapping, columns=["SourceID", "zarr_file", "batch_index"])
    frame.to_parquet(root / "source_to_zarr_mapping.parquet")
    return metadata


def write_multimodal(path: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    """Write one file of the Multimodal Universe: each column a dataset, compressed and chunked as its scripts do."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            values = np.asarray(values)
            if values.dtype.kind == "U":
                values = values.astype(f"S{values.dtype.itemsize // 4}")
            file.create_dataset(
                name, data=values, compression="gzip", chunks=True, maxshape=(None, *values.shape[1:]), **options
            )
    return path


def legacysurvey(count: int, first: int = 0, seed: int = 0, size: int = 20) -> dict[str, Any]:
    """Return the columns of ``legacysurvey``: those of the sweeps as well, so that several look like an id."""
    ra, dec = sky(count, seed)
    return {
        "object_id": [f"0012m005-{first + k}" for k in range(count)], "OBJID": np.arange(count), "gid": [0] * count,
        "RA": ra, "DEC": dec, "ra": ra, "dec": dec, "healpix": np.full(count, 1171), "TYPE": ["EXP"] * count,
        "image_band": [["des-g", "des-r", "des-i", "des-z"]] * count, "image_array": planes(count, 4, size, seed),
        "image_scale": np.full((count, 4), 0.262, np.float32), "image_psf_fwhm": np.ones((count, 4)),
        "image_model": pictures(count, size, seed),
    }  # fmt: skip


def image_column(columns: Mapping[str, Any], *, listed: bool = False) -> pa.Array:
    """Return ``image_*`` as the column of the HATS form: a structure of lists, or (`listed`) a list of structures."""
    plane = pa.list_(pa.list_(pa.float32()))
    fields = {"band": pa.string(), "flux": plane, "ivar": plane, "psf_fwhm": pa.float32(), "scale": pa.float32()}
    rows = [
        {
            "band": bands, "flux": [p.tolist() for p in stack], "ivar": [np.ones_like(p).tolist() for p in stack],
            "psf_fwhm": [1.2] * len(bands), "scale": [float(s) for s in scales],
        }
        for bands, stack, scales in zip(
            columns["image_band"], columns["image_array"], columns["image_scale"], strict=True
        )
    ]  # fmt: skip
    if not listed:
        return pa.array(rows, pa.struct([(name, pa.list_(kind)) for name, kind in fields.items()]))
    each = [[dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)] for row in rows]
    return pa.array(each, pa.list_(pa.struct(list(fields.items()))))


def write_hats(root: Path, columns: Mapping[str, Any], *, parts: int = 2, group: int = 5) -> Path:
    """Write a HATS collection: a catalog in `parts` partitions, `group` rows a row group; and a margin, not to be read.

    Beside the partitions are the files that hats-import writes: properties, ``partition_info.csv``, a thumbnail.
    """
    table = pa.table(dict(columns))
    catalog = root / root.name
    for name in (root.name, f"{root.name}_10arcs"):
        dataset = root / name / "dataset"
        for k, rows in enumerate(np.array_split(np.arange(len(table)), parts)):
            file = dataset / "Norder=1" / "Dir=0" / f"Npix={k}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.take(rows), file, row_group_size=group)
        pq.write_table(table.slice(0, 1), dataset / "data_thumbnail.parquet")
    named = {"obs_collection": root.name, "hats_primary_table_url": root.name, "all_margins": f"{root.name}_10arcs"}
    (root / "collection.properties").write_text("".join(f"{key}={value}\n" for key, value in named.items()))
    (catalog / "hats.properties").write_text("dataproduct_type=object\nhats_col_ra=ra\nhats_col_dec=dec\n")
    (root / f"{root.name}_10arcs" / "hats.properties").write_text("dataproduct_type=margin\n")
    (catalog / "partition_info.csv").write_text("Norder,Npix\n1,0\n")
    return root


def encoded(image: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "fits":
        fits.PrimaryHDU(image).writeto(out)
    else:
        Image.fromarray(image).save(out, "JPEG" if kind == "jpg" else "PNG")
    return out.getvalue()


def write_shard(path: Path, members: Sequence[tuple[str, bytes | Mapping[str, Any] | str]], mode: str = "w") -> Path:
    """Write one shard of WebDataset, as its TarWriter does: members in order, names KEY.KIND."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            if not isinstance(data, bytes):
                data = (data if isinstance(data, str) else json.dumps(data)).encode()
            info = tarfile.TarInfo(name)
            info.size, info.uname, info.gname = len(data), "bigdata", "bigdata"
            tar.addfile(info, io.BytesIO(data))
    return path
