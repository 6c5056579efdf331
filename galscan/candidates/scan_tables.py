"""What a finished scan left of everything it looked at: its tables of scores and of the quarantined, part by part."""

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


def parts(
    run: Path, info: Mapping[str, Any], columns: Sequence[str], label: str, *, quarantined: bool = False
) -> Iterator[tuple[Path, pa.Table]]:
    """Yield the file of each part and some columns of it, with a bar of progress.

    Raises
    ------
    InputError
        If a part is missing, damaged, or of another scan.
    """
    where = quarantine_path if quarantined else scores_path
    with progress.track(label, int(info["parts"]), "parts") as advance:
        for number in range(int(info["parts"])):
            path = where(tables(run, info), number)
            yield path, part(path, info, columns)
            advance()


def part(path: Path, info: Mapping[str, Any], columns: Sequence[str]) -> pa.Table:
    """Read columns of a part, which must be of the scan of a run, with its checksums verified.

    Raises
    ------
    InputError
        If it is missing, damaged, or of another scan.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        file = None
    # The tables of a list of what is like some examples are those of the scan that was searched.
    scan = str(info.get("scan", info["fingerprint"])).encode()
    if file is None or (file.metadata.metadata or {}).get(FINGERPRINT) != scan:
        raise InputError(f"{path} is not there any more, or of another scan; what was scanned is not known")
    with file:
        try:
            table = file.read(list(columns))
        except (OSError, pa.ArrowException) as error:
            raise InputError(_damaged(path, str(error))) from error
    if absent := sorted(set(columns) - set(table.column_names)):
        raise InputError(_damaged(path, f"no column {absent[0]}"))
    return table


def columns_of(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a part, with its checksums verified.

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
    return f"{path} is damaged ({why.splitlines()[0]}); what was scanned is not known"


def open_stores(info: Mapping[str, Any]) -> dict[str, Store]:
    """Open the stores of a run, which must be as they were when it was scanned.

    Raises
    ------
    InputError
        If one has gone, or holds other pictures now.
    """
    stores = {}
    for entry in info["stores"]:
        store = open_store(entry["path"])
        if store.content_hash != entry["content_hash"]:
            raise InputError(f"{entry['path']} changed since the scan: its pictures are others now; scan it again")
        stores[str(entry["name"])] = store
    return stores


def pictures(stores: Mapping[str, Store], where: Sequence[tuple[str, int]]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number in `where`, image) for rows of stores, in the order in which they lie there.

    A chunk is decoded once, whether one picture of it is wanted or all.
    """
    order = sorted(range(len(where)), key=lambda k: where[k])
    for (name, _), group in groupby(order, key=lambda k: (where[k][0], where[k][1] // CHUNK)):
        wanted = list(group)
        first, last = where[wanted[0]][1], where[wanted[-1]][1]
        images = stores[name].images(slice(first, last + 1))
        for k in wanted:
            yield k, images[where[k][1] - first].copy()  # a view would keep the whole chunk
