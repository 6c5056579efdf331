"""The cutout store: one Zarr v3 group a survey, sharded for streaming, open to xarray.

    images            (N, S, S, 3) uint8      id      (N,) int64 or text
    ra, dec           (N,) float64, deg       pixel_scale (N,) float64, arcsec/pixel
    flags             (N,) uint8              labels/<schema>/<answer> (N,) float32, NaN = not asked
    truth/<name>      (N,) float32            (simulations only)

Attributes: ``complete``, ``content_hash``, ``shard`` (objects a shard), ``provenance`` (of the survey); ``appended``,
where the store has grown: of each time rows, count and provenance.

Every array has the same shard boundaries, so one shard is one unit of work from ingest to scan.
Chunks of 256 and zstd level 1 without filters streamed fastest of the layouts measured.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import ZstdCodec

from galscan.core.errors import InputError, NotFoundError, nearest
from galscan.core.files import storage_errors

# zarrs decodes in Rust, where it is installed; of object stores, and of text, it knows nothing.
FAR, FAST = "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"
NEAR = FAST if importlib.util.find_spec("zarrs") is not None else FAR
warnings.filterwarnings("ignore", message="Array is unsupported by ZarrsCodecPipeline")
warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")  # of text, wherever it is met

FORMAT = 1
CHUNK = 256  # objects a chunk
MAX_SHARD = 4096  # objects a shard
RETRY = {"max_retries": 8, "retry_timeout": timedelta(minutes=3)}  # of a store far away, with growing pauses
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)


def shard_size(count: int) -> int:
    """Return the objects per shard: at most 4096, fewer for a small survey so that every worker has some."""
    return int(min(MAX_SHARD, max(CHUNK, -(-count // (8 * CHUNK)) * CHUNK)))


def roomy(dtype: np.dtype) -> np.dtype:
    """Return the type that ids of `dtype` are stored as: text has room for longer ids, as a store may grow."""
    return np.dtype(f"<U{max(32, (dtype.itemsize // 4 // 16 + 1) * 16)}") if dtype.kind == "U" else dtype


class Store:
    """A cutout store opened for reading. Cheap to open; nothing is read before it is asked for."""

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
        """Where it is, for others to open: an absolute path, or a URL."""
        return self.path if isinstance(self.path, str) else str(self.path.absolute())

    @property
    def content_hash(self) -> str:
        """SHA-256 over all shards, written when ingest ended."""
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
        with zarr.config.set({"codec_pipeline.path": FAR if isinstance(self.path, str) else NEAR}):
            array = self.group[name]
        if not isinstance(array, zarr.Array):
            raise InputError(f"'{name}' of {self.path} is a group, not a column")
        return array

    def _read(self, name: str, rows: slice) -> np.ndarray:
        with _far_away(self.path):
            return np.asarray(self._array(name)[rows])

    def images(self, rows: slice = slice(None)) -> np.ndarray:
        """Read cutouts, shape (n, size, size, 3), uint8."""
        return self._read("images", rows)

    def column(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Read one of ``id, ra, dec, pixel_scale, flags``, or ``labels/<schema>/<answer>``, ``truth/<name>``."""
        return self._read(name, rows)

    def labels(self, schema: str, rows: slice = slice(None)) -> pd.DataFrame:
        """Read all answers of one label schema; columns are answer names, NaN = not asked.

        Raises
        ------
        InputError
            If the store has no labels of that schema.
        """
        if schema not in self.schemas:
            raise InputError(f"{self.path} has no '{schema}' labels{nearest(schema, self.schemas)}")
        return pd.DataFrame({a: self.column(f"labels/{schema}/{a}", rows) for a in self.schemas[schema]})

    def truth(self, rows: slice = slice(None)) -> pd.DataFrame:
        """Read the truth of a simulated store (no columns for a real one)."""
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
    """Create an empty store whose attribute ``complete`` is false, in place of whatever is at `path`.

    Raises
    ------
    StorageError
        If the place cannot be written.
    """
    shard = shard_size(count)
    compressor = ZstdCodec(level=1)

    with storage_errors(Path(path)), _no_spec_warnings():
        empty(Path(path))
        group = zarr.create_group(path, zarr_format=3)
        group.attrs.update(
            format=FORMAT, survey=survey, shard=shard, schemas={k: list(v) for k, v in schemas.items()},
            truth=list(truth), provenance=dict(provenance), complete=False,
        )  # fmt: skip

        def column(name: str, dtype: Any, fill: Any, **attributes: Any) -> None:
            # One chunk a shard: columns are small and always read whole.
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


def overlay(base: Store, path: Path, count: int, **attributes: Any) -> None:
    """Create at `path` a store of `count` objects like `base`, without data, to be laid over it.

    Arrays keep the shards and codecs they have, so that a shard written here fits there; and as the last shard of
    `base` has room, one with more rows in it is as good for readers who do not know of them yet.

    Raises
    ------
    StorageError
        If the place cannot be written.
    """
    source = Path(base.path)
    with storage_errors(path), _no_spec_warnings():
        empty(path)
        for name in ["", *(name for name, _ in base.group.members(max_depth=None))]:
            (path / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name / "zarr.json", path / name / "zarr.json")
        group = zarr.open_group(path, mode="r+", use_consolidated=False)
        for _, member in group.members(max_depth=None):
            if isinstance(member, zarr.Array):
                member.resize((count, *member.shape[1:]))
        group.attrs.update(complete=False, **attributes)


def empty(path: Path) -> None:
    """Remove what is in the folder `path` but keep the folder: ingest holds a lock on it."""
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


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a complete store for reading.

    Parameters
    ----------
    path : path or str
        A folder, or a URL: ``s3://``, ``gs://``, ``az://``, ``https://``. Credentials are taken from the environment
        as the cloud's own tools do; without any, S3 is read anonymously.

    Raises
    ------
    NotFoundError
        If there is no store at `path`.
    InputError
        If it is not a galscan store, not complete, or empty; for a URL, if it cannot be reached.
    """
    far = "://" in str(path)
    path = str(path).rstrip("/") if far else Path(path)
    if isinstance(path, Path) and not path.is_dir():
        raise NotFoundError(f"no store at {path}; build one with: galscan ingest --out {path} ...")
    source: Any = _object_store(str(path)) if far else path
    try:
        with _no_spec_warnings(), _far_away(path):
            group = zarr.open_group(source, mode="r")
    except FileNotFoundError as error:
        if far:
            raise NotFoundError(
                f"no store at {path}; copy one there as it is, a folder with zarr.json in it"
            ) from error
        raise InputError(f"{path} is not a Zarr group; build a store with: galscan ingest") from error
    except ConnectionError as error:
        raise InputError(str(error)) from error
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is not a Zarr group; build a store with: galscan ingest") from error
    if group.attrs.get("format") != FORMAT or "images" not in group:
        raise InputError(f"{path} is not a galscan store of format {FORMAT}; build one with: galscan ingest")
    if not group.attrs.get("complete"):
        raise InputError(f"{path} is not complete; run its galscan ingest command again, it goes on where it stopped")
    store = Store(path, group)
    if store.count == 0:
        raise InputError(f"{path} holds no objects; ingest a catalog with at least one row")
    return store


def _object_store(url: str) -> Any:
    """Return the object store behind a URL, as zarr takes it; nothing is asked of it yet."""
    try:
        from obstore.store import from_url
    except ImportError:
        raise InputError(f"{url} needs obstore, which is not installed: pip install 'galscan[cloud]'") from None
    from zarr.storage import ObjectStore

    options: dict[str, Any] = {"retry_config": RETRY}
    plain = url.startswith("http://") or os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    options["client_options"] = {"allow_http": plain, "timeout": "60s"}
    if url.startswith("s3://") and not any(name in os.environ for name in CREDENTIALS):
        options["skip_signature"] = True
    try:
        return ObjectStore(from_url(url, **options), read_only=True)
    except Exception as error:  # obstore's own kinds, and pyo3's
        raise InputError(f"{url} is not a URL that can be read ({_first_line(error)})") from error


@contextmanager
def _far_away(path: Path | str) -> Iterator[None]:
    """Turn what an object store raises into `ConnectionError`: it may heal, and the data are not bad."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("obstore"):
            raise
        raise ConnectionError(
            f"{path} cannot be read ({_first_line(error)}); is it there, reachable and allowed?"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class _no_spec_warnings(warnings.catch_warnings):
    """Silence zarr's notes that text arrays and consolidated metadata are young parts of the v3 format."""

    def __enter__(self) -> None:  # type: ignore[override]
        super().__enter__()
        warnings.filterwarnings("ignore", category=Warning, module=r"zarr\..*")
        warnings.filterwarnings("ignore", message=".*Consolidated metadata.*")
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification.*")
