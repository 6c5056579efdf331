"""Zarr layout of a cutout store: one Zarr v3 group per survey, sharded for streaming, readable by xarray.

    images            (N, S, S, 3) uint8      id      (N,) int64 or text
    ra, dec           (N,) float64, deg       pixel_scale (N,) float64, arcsec/pixel
    flags             (N,) uint8              labels/<schema>/<answer> (N,) float32, NaN = not asked
    truth/<name>      (N,) float32            (simulations only)

Attributes: ``complete``, ``content_hash``, ``shard`` (objects per shard), ``provenance`` (of the survey); ``appended``
after appends: rows, count and provenance of each.

All arrays have the same shard boundaries, so a shard is the unit of work from ingest to scan. Chunks of 256 and zstd
level 1 without filters streamed fastest of the layouts measured.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from galscan.core.errors import InputError, NotFoundError, first_line, nearest
from galscan.core.files import storage_errors
from galscan.store.views import Views

if TYPE_CHECKING:
    import pandas as pd

# zarrs decodes in Rust, where it is installed; it supports neither object stores nor text arrays.
ZARR_PIPELINE, ZARRS_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"
LOCAL_PIPELINE = ZARRS_PIPELINE if importlib.util.find_spec("zarrs") is not None else ZARR_PIPELINE
warnings.filterwarnings("ignore", message="Array is unsupported by ZarrsCodecPipeline")
warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")  # for text arrays

FORMAT = 1
CHUNK = 256  # objects per chunk
MAX_SHARD = 4096  # objects per shard
RETRY = {"max_retries": 8, "retry_timeout": timedelta(minutes=3)}  # for a remote store, with exponential backoff
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)


def shard_size(count: int) -> int:
    """Return the objects per shard: at most 4096, fewer for a small survey so that all workers are used."""
    return int(min(MAX_SHARD, max(CHUNK, -(-count // (8 * CHUNK)) * CHUNK)))


def padded_id_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which ids are stored: text is padded, so that longer ids can be appended."""
    return np.dtype(f"<U{max(32, (dtype.itemsize // 4 // 16 + 1) * 16)}") if dtype.kind == "U" else dtype


class Store(Views):
    """A cutout store opened for reading. Opening is cheap; data are read on access.

    ``store[row]`` and `cutout` return one object as `astropy.nddata.NDData`; ``len(store)`` is the number of objects.
    """

    def __init__(self, path: Path | str, group: zarr.Group):
        self.path = path
        self.group = group
        self.attrs: dict[str, Any] = dict(group.attrs)
        self.count, self.size = self._array("images").shape[:2]
        self.shard: int = int(self.attrs["shard"])

    @property
    def name(self) -> str:
        """The survey's name, as written by ingest."""
        return str(self.attrs["survey"])

    @property
    def location(self) -> str:
        """Absolute path or URL of the store."""
        return self.path if isinstance(self.path, str) else str(self.path.absolute())

    @property
    def content_hash(self) -> str:
        """SHA-256 over all shards, written at the end of ingest."""
        return str(self.attrs["content_hash"])

    @property
    def n_shards(self) -> int:
        return -(-self.count // self.shard)

    @property
    def schemas(self) -> dict[str, list[str]]:
        """Label schemas in the store: name -> answers."""
        return {k: list(v) for k, v in self.attrs["schemas"].items()}

    def rows(self, shard: int) -> slice:
        """Return the rows of shard number `shard`."""
        return slice(shard * self.shard, min(self.count, (shard + 1) * self.shard))

    def _array(self, name: str) -> zarr.Array[Any]:
        with zarr.config.set({"codec_pipeline.path": ZARR_PIPELINE if isinstance(self.path, str) else LOCAL_PIPELINE}):
            array = self.group[name]
        if not isinstance(array, zarr.Array):
            raise InputError(f"'{name}' of {self.path} is a group, not a column")
        return array

    def images(self, rows: slice = slice(None)) -> np.ndarray:
        """Read cutouts, shape (n, size, size, 3), uint8."""
        return self.column("images", rows)

    def column(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Read one of ``id, ra, dec, pixel_scale, flags``, or ``labels/<schema>/<answer>``, ``truth/<name>``."""
        with _remote_errors(self.path):
            return np.asarray(self._array(name)[rows])

    def labels(self, schema: str, rows: slice = slice(None)) -> pd.DataFrame:
        """Read all answers of one label schema; columns are answer names, NaN = not asked.

        Raises
        ------
        InputError
            If the store has no labels of that schema.
        """
        import pandas as pd

        if schema not in self.schemas:
            raise InputError(f"{self.path} has no '{schema}' labels{nearest(schema, self.schemas)}")
        return pd.DataFrame({a: self.column(f"labels/{schema}/{a}", rows) for a in self.schemas[schema]})

    def truth(self, rows: slice = slice(None)) -> pd.DataFrame:
        """Read the truth of a simulated store (no columns for a real one)."""
        import pandas as pd

        return pd.DataFrame({t: self.column(f"truth/{t}", rows) for t in self.attrs["truth"]})


def create(
    path: str | os.PathLike[str],
    *,
    survey: str,
    count: int,
    size: int,
    id_dtype: np.dtype,
    schemas: Mapping[str, Sequence[str]],
    truth: Sequence[str] = (),
    provenance: Mapping[str, Any],
) -> zarr.Group:
    """Create an empty store with the attribute ``complete`` false, replacing the content of `path`.

    Raises `StorageError` if `path` cannot be written.
    """
    shard = shard_size(count)
    compressor = ZstdCodec(level=1)

    with storage_errors(Path(path)), _no_spec_warnings():
        clear_folder(Path(path))
        group = zarr.create_group(path, zarr_format=3)
        group.attrs.update(
            format=FORMAT, survey=survey, shard=shard, schemas={k: list(v) for k, v in schemas.items()},
            truth=list(truth), provenance=dict(provenance), complete=False,
        )  # fmt: skip

        def column(name: str, dtype: Any, fill: Any, **attributes: Any) -> None:
            # One chunk per shard: columns are small and always read completely.
            group.create_array(
                name, shape=(count,), dtype=dtype, chunks=(shard,), compressors=compressor, filters=None,
                fill_value=fill, dimension_names=("object",), attributes=attributes,
            )  # fmt: skip

        group.create_array(
            "images", shape=(count, size, size, 3), dtype="uint8", chunks=(CHUNK, size, size, 3),
            shards=(shard, size, size, 3), compressors=compressor, filters=None, fill_value=0,
            dimension_names=("object", "y", "x", "band"),
        )  # fmt: skip
        column("id", id_dtype, 0 if np.issubdtype(id_dtype, np.integer) else "")
        column("ra", "float64", np.nan, units="deg")
        column("dec", "float64", np.nan, units="deg")
        column("pixel_scale", "float64", np.nan, units="arcsec / pixel")
        column("flags", "uint8", 0)
        for schema, answers in schemas.items():
            for answer in answers:
                column(f"labels/{schema}/{answer}", "float32", np.nan)
        for name in truth:
            column(f"truth/{name}", "float32", np.nan)
    return group


def create_extension(base: Store, path: Path, count: int, **attributes: Any) -> None:
    """Create at `path` the metadata of `base` extended to `count` objects, without data, to be moved over it.

    Arrays keep their shards and codecs, so that a shard written here is valid in `base`. The last shard of `base` may
    be replaced by one with more rows: readers of the old metadata ignore them. Raises `StorageError` if `path` cannot
    be written.
    """
    source = Path(base.path)
    with storage_errors(path), _no_spec_warnings():
        clear_folder(path)
        for name in ["", *(name for name, _ in base.group.members(max_depth=None))]:
            (path / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name / "zarr.json", path / name / "zarr.json")
        group = zarr.open_group(path, mode="r+", use_consolidated=False)
        for _, member in group.members(max_depth=None):
            if isinstance(member, zarr.Array):
                member.resize((count, *member.shape[1:]))
        group.attrs.update(complete=False, **attributes)


def clear_folder(path: Path) -> None:
    """Remove the content of the folder `path` but keep the folder: ingest holds a lock on it."""
    for entry in path.iterdir() if path.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def finish(path: str | os.PathLike[str], content_hash: str) -> None:
    """Mark a store complete, and consolidate its metadata so that one read opens it."""
    with storage_errors(Path(path)), _no_spec_warnings():
        group = zarr.open_group(path, mode="r+")
        group.attrs.update(complete=True, content_hash=content_hash)
        zarr.consolidate_metadata(group.store)


def open_store(path: str | os.PathLike[str], content_hash: str | None = None) -> Store:
    """Open a complete store for reading.

    Parameters
    ----------
    path : path or str
        A folder, or a URL: ``s3://``, ``gs://``, ``az://``, ``https://``. Credentials are read from the environment as
        by the cloud provider's own tools; without any, S3 is read anonymously.
    content_hash : str, optional
        Hash of the store that was scanned.

    Raises
    ------
    NotFoundError
        If there is no store at `path`.
    InputError
        If it is not a galscan store, not complete, or empty, or does not have the given hash; for a URL, if it cannot
        be reached.
    """
    remote = "://" in str(path)
    path = str(path).rstrip("/") if remote else Path(path)
    if isinstance(path, Path) and not path.is_dir():
        raise NotFoundError(f"no store at {path}; build one with: galscan ingest --out {path} ...")
    source: Any = _object_store(str(path)) if remote else path
    try:
        with _no_spec_warnings(), _remote_errors(path):
            group = zarr.open_group(source, mode="r")
    except FileNotFoundError as error:
        if remote:
            raise NotFoundError(
                f"no store at {path}; copy a store there unchanged, a folder with zarr.json in it"
            ) from error
        raise InputError(f"{path} is not a Zarr group; build a store with: galscan ingest") from error
    except ConnectionError as error:
        raise InputError(str(error)) from error
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is not a Zarr group; build a store with: galscan ingest") from error
    if group.attrs.get("format") != FORMAT or "images" not in group:
        raise InputError(f"{path} is not a galscan store of format {FORMAT}; build one with: galscan ingest")
    if not group.attrs.get("complete"):
        raise InputError(f"{path} is not complete; run its galscan ingest command again to resume")
    store = Store(path, group)
    if store.count == 0:
        raise InputError(f"{path} holds no objects; ingest a catalog with at least one row")
    if content_hash is not None and store.content_hash != content_hash:
        raise InputError(f"{path} changed since the scan: its rows may be other objects; scan it again")
    return store


def _object_store(url: str) -> Any:
    """Return the object store of a URL, as zarr takes it; no request is sent yet."""
    try:
        from obstore.store import from_url
    except ImportError:
        raise InputError(f"{url} needs obstore, which is not installed: pip install 'galscan[cloud]'") from None
    from zarr.storage import ObjectStore

    options: dict[str, Any] = {"retry_config": RETRY}
    allow_http = url.startswith("http://") or os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    options["client_options"] = {"allow_http": allow_http, "timeout": "60s"}
    if url.startswith("s3://") and not any(name in os.environ for name in CREDENTIALS):
        options["skip_signature"] = True
    try:
        return ObjectStore(from_url(url, **options), read_only=True)
    except Exception as error:  # exceptions of obstore and pyo3 share no base class
        raise InputError(f"{url} is not a URL that can be read ({first_line(error)})") from error


@contextmanager
def _remote_errors(path: Path | str) -> Iterator[None]:
    """Turn errors of an object store into `ConnectionError`: they may be temporary, and the data are not damaged."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("obstore"):
            raise
        raise ConnectionError(
            f"{path} cannot be read ({first_line(error)}); check its URL, the network and your access rights"
        ) from error


@contextmanager
def _no_spec_warnings() -> Iterator[None]:
    """Silence zarr's warnings that text arrays and consolidated metadata are not yet part of the v3 specification."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=Warning, module=r"zarr\..*")
        warnings.filterwarnings("ignore", message=".*Consolidated metadata.*|.*does not have a Zarr V3 specification.*")
        yield


def read_images(stores: Mapping[str, Store], rows: Sequence[tuple[str, int]]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number in `rows`, image) for rows given as (store, index), in their order in the stores.

    Each chunk is decoded only once.
    """
    order = sorted(range(len(rows)), key=lambda k: rows[k])
    for (name, _), group in groupby(order, key=lambda k: (rows[k][0], rows[k][1] // CHUNK)):
        numbers = list(group)
        first, last = rows[numbers[0]][1], rows[numbers[-1]][1]
        images = stores[name].images(slice(first, last + 1))
        for k in numbers:
            yield k, images[rows[k][1] - first].copy()  # a view would keep the chunk in memory
