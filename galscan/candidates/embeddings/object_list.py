"""Lists of objects of a scan: tables of ids, as saved from a map or exported, and where the scan has their objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from galscan.core import progress
from galscan.core.concurrency import cores, ordered_map
from galscan.core.errors import InputError, NotFoundError
from galscan.scanning.run import Run
from galscan.surveys.tables import find_column, read_table

T = TypeVar("T")
SUFFIXES = (".csv", ".tsv", ".txt", ".ecsv", ".fits", ".fit", ".vot", ".xml", ".parquet", ".pq")
POSITION = ["store", "index", "id", "ra", "dec"]  # columns of a located object


def is_object_list(text: str) -> bool:
    """Return whether `text` is the path of an existing file with the suffix of a table, not an id."""
    return text.lower().endswith(SUFFIXES) and Path(text).is_file()


def read_object_list(path: str | Path) -> pd.DataFrame:
    """Read the ids in a table of objects, in its order and each once.

    Parameters
    ----------
    path : path
        CSV, FITS, VOTable or Parquet with a column of ids (``id``, ``objid`` or another usual name) and, where ids are
        not unique over the stores of the scan, a column ``store``.

    Returns
    -------
    DataFrame
        Columns id and store, both text; store is '' where it is not given.

    Raises
    ------
    NotFoundError
        If the file does not exist.
    InputError
        If it is no table, or has no ids.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist; save a selection from the page of galscan map, or export a list")
    table = read_table(path, {})
    column = find_column(table, "id", {}, str(path))
    if column is None:
        names = ", ".join(map(str, table.columns[:12]))
        raise InputError(f"{path} has no column of ids (it has {names}); name the column of the ids 'id'")
    frame = pd.DataFrame({"id": [_plain(value) for value in table[column]]})
    frame["store"] = [_plain(value) for value in table["store"]] if "store" in table else ""
    frame = frame[frame["id"] != ""].drop_duplicates(ignore_index=True)
    if frame.empty:
        raise InputError(f"{path} holds no ids; select at least one object")
    return frame


def _plain(value: object) -> str:
    """Return an id as text: without blanks, and without the quote that keeps a spreadsheet from running a formula."""
    text = "" if value is None or value != value else str(value).strip()
    return text[1:] if re.match("'[-=+@']", text) else text


def locate(run: Run, wanted: pd.DataFrame, option: str) -> pd.DataFrame:
    """Return part, row, store, index, id (text), ra, dec of objects given by id, in the survey's order.

    Parameters
    ----------
    run : Run
        A finished scan; its score tables are searched.
    wanted : DataFrame
        Columns id and store, text. Where store is '', an id that is in several stores has several rows.
    option : str
        Of the command line, for the error message.

    Raises
    ------
    InputError
        If an object was not scored.
    """
    ids = wanted["id"].unique().tolist()
    integers = {i: int(i) for i in ids if re.fullmatch("[+-]?[0-9]{1,18}", i)}
    names = pa.array(ids, pa.string()), pa.array(list(integers.values()), pa.int64())

    def search(part: int) -> pd.DataFrame:
        column = run.partition(part, ["id"])["id"]
        rows = np.flatnonzero(pc.is_in(column, value_set=names[pa.types.is_integer(column.type)]).to_numpy())
        if not len(rows):
            return pd.DataFrame()
        table = run.partition(part, POSITION).take(rows)
        return table.to_pandas().astype({"store": str, "id": str}).assign(part=part, row=rows)

    found = pd.concat(each(run, search, "objects"), ignore_index=True)
    pairs = list(zip(found["id"], found["store"], strict=True)) if len(found) else []
    present = {*pairs, *((name, "") for name, _ in pairs)}
    chosen: set[tuple[str, str]] = set()
    for name, store in zip(wanted["id"], wanted["store"], strict=True):
        either = {(name, store), (str(integers.get(name, name)), store)}  # 0104 is 104 in a survey of integers
        if not either & present:
            raise InputError(_not_scored(run, name, option))
        chosen |= either
    keep = [(name, store) in chosen or (name, "") in chosen for name, store in pairs]
    return found[keep].reset_index(drop=True)


def _not_scored(run: Run, wanted: str, option: str) -> str:
    for table in run.quarantined(["id", "reason"]):
        rows = np.flatnonzero(pc.equal(table["id"].cast(pa.string()), wanted).to_numpy())
        if len(rows):
            why = table["reason"][int(rows[0])].as_py()
            return f"{option} {wanted:.60}: the object was quarantined ({why}) and was not scored; name another"
    table = next((t for t in run.scores(["id"], "ids") if len(t)), None)
    example = f", whose ids look like '{table['id'][0].as_py()}'" if table is not None else ""
    return f"{option} {wanted:.60}: not one of the {run.info.scanned:,} objects scored by {run.path}{example}"


def rows(run: Run, places: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of the scores of objects given by part and row, in their order; ids are text if any is."""

    def take(part: int) -> pa.Table:
        positions = np.flatnonzero(places["part"] == part)
        table = run.partition(part, columns).take(places["row"].to_numpy()[positions])
        at = table.schema.get_field_index("store")
        table = table.set_column(at, "store", table["store"].cast(pa.string()))
        return table.append_column("_order", pa.array(positions))

    found = list(ordered_map(take, np.unique(places["part"]).tolist(), threads()))
    # Ids are integers in one survey, text in another.
    if len({table.schema.field("id").type for table in found}) > 1:
        at = found[0].schema.get_field_index("id")
        found = [table.set_column(at, "id", table["id"].cast(pa.string())) for table in found]
    return pa.concat_tables(found).sort_by("_order").drop_columns("_order").to_pandas()


def threads() -> int:
    """Return the number of threads that read partitions."""
    return min(cores(), 8)


def each(run: Run, work: Callable[[int], T], label: str, parts: Sequence[int] | None = None) -> Iterator[T]:
    """Yield ``work(part)`` for partitions of a run (by default all), in order, with a progress bar."""
    chosen = range(run.info.parts) if parts is None else parts
    with progress.track(label, len(chosen), "partitions") as advance:
        for result in ordered_map(work, chosen, threads()):
            yield result
            advance()
