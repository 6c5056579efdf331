"""Score and quarantine tables of a finished scan, read partition by partition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from galscan.core import progress
from galscan.core.errors import InputError
from galscan.scanning.partitions import FINGERPRINT, quarantine_path, scores_path
from galscan.scanning.run import tables
from galscan.store.layout import CHUNK, Store, open_store


def iter_partitions(
    run: Path, info: Mapping[str, Any], columns: Sequence[str], label: str, *, quarantined: bool = False
) -> Iterator[tuple[Path, pa.Table]]:
    """Yield the file of each partition and columns of it, with a progress bar.

    Raises
    ------
    InputError
        If a partition is missing, damaged, or of another scan.
    """
    path_of = quarantine_path if quarantined else scores_path
    with progress.track(label, int(info["parts"]), "partitions") as advance:
        for number in range(int(info["parts"])):
            path = path_of(tables(run, info), number)
            yield path, read_partition(path, info, columns)
            advance()


def read_partition(path: Path, info: Mapping[str, Any], columns: Sequence[str]) -> pa.Table:
    """Read columns of a partition, after checking that it is of the run's scan; checksums are verified.

    Raises
    ------
    InputError
        If it is missing, damaged, or of another scan.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        file = None
    # A similarity list has the tables of the scan that was searched.
    scan = str(info.get("scan", info["fingerprint"])).encode()
    if file is None or (file.metadata.metadata or {}).get(FINGERPRINT) != scan:
        raise InputError(f"{path} is missing, or of another scan; run its scan command again")
    with file:
        try:
            table = file.read(list(columns))
        except (OSError, pa.ArrowException) as error:
            raise InputError(_damaged(path, str(error))) from error
    if absent := sorted(set(columns) - set(table.column_names)):
        raise InputError(_damaged(path, f"no column {absent[0]}"))
    return table


def columns_of(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a partition; checksums are verified.

    Raises
    ------
    InputError
        If it is damaged.
    """
    try:
        return pq.read_table(path, columns=list(columns), page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise InputError(_damaged(path, str(error))) from error


def _damaged(path: Path, why: str) -> str:
    return f"{path} is damaged ({why.splitlines()[0]}); remove it and run its scan command again"


def open_stores(info: Mapping[str, Any]) -> dict[str, Store]:
    """Open the stores of a run, after checking that they have not changed since the scan.

    Raises
    ------
    InputError
        If a store is missing or has changed.
    """
    return {str(entry["name"]): open_store(entry["path"], entry["content_hash"]) for entry in info["stores"]}


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
