"""What of a scan is most like some examples: exactly, part by part, by what the network saw (its embeddings).

Likeness is the mean, over the examples, of the cosine between an object and an example, both taken from the mean of the
survey. Without that, all galaxies look much alike to a network: what they have in common is most of the vector. On real
galaxies this found more of the examples' kind than the plain cosine did, but for rings; scaling each number by its
spread, or whitening, found no more; and the best of the examples instead of their mean found fewer, but for perturbed
galaxies (``python -m tests.benchmarks.similar --model MODEL`` counts them again). So the examples should be of one
kind, and a search costs the same with one example or a hundred.

Nothing is approximate and there is no index: a million objects are read and compared in seconds. What is held is one
piece of a part a thread, and the best so far.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from galscan.candidates import scan_tables
from galscan.core import progress
from galscan.core.concurrency import ordered_map
from galscan.core.errors import InputError
from galscan.scanning.cluster import cores
from galscan.scanning.partitions import EMBEDDING, embeddings_path, scores_path
from galscan.scanning.run import tables

T = TypeVar("T")
PIECE = 4096  # objects compared at a time
CENTRE = 256  # parts that the survey's mean is taken over, at most
DIGITS = 6  # of a similarity: more are noise, and equal pictures shall have equal ones


@dataclass(frozen=True)
class Nearest:
    """The nearest of a survey, best first; what is equally near is in the order of the survey.

    Attributes
    ----------
    similarity : ndarray of float64, shape (n,)
    part, row : ndarray of int64, shape (n,)
        Where it is in the tables of scores.
    """

    similarity: np.ndarray
    part: np.ndarray
    row: np.ndarray


class EmbeddingSpace:
    """The embeddings of a finished scan.

    Parameters
    ----------
    run : Path
    info : mapping
        What its ``run.json`` says.

    Raises
    ------
    InputError
        If it wrote none.
    """

    def __init__(self, run: Path, info: Mapping[str, Any]):
        if not info.get("embedding"):
            models = info["model"] if isinstance(info["model"], list) else [info["model"]]
            words = [f"--store {s['path']}" for s in info["stores"]] + [f"--model {model}" for model in models]
            raise InputError(
                f"{run} has no embeddings; make a scan that has: galscan scan {' '.join(words)} --embeddings --out NEW"
            )
        self.run, self.info = run, info
        self.tables = tables(run, info)
        self.numbers = int(info["embedding"])
        self.parts = int(info["parts"])
        self.threads = min(cores(), 8)

    def read(self, part: int) -> np.ndarray:
        """Read the embeddings of a part, float16 of shape (n, numbers).

        Raises
        ------
        InputError
            If they are missing, damaged, of another scan, or not those of its scores.
        """
        path = embeddings_path(self.tables, part)
        try:
            column = scan_tables.part(path, self.info, [EMBEDDING])[EMBEDDING].combine_chunks()
            whole = column.type == pa.binary(2 * self.numbers)
            whole &= len(column) == pq.read_metadata(scores_path(self.tables, part)).num_rows
        except InputError as error:
            raise InputError(f"{error}; remove that file and run its scan command again") from error
        except (OSError, pa.ArrowException):
            whole = False
        if not whole:
            raise InputError(f"{path} does not belong to the scores beside it; remove it, run its scan command again")
        start = column.offset * self.numbers
        values = np.frombuffer(column.buffers()[1], "<f2") if len(column) else np.empty(0, "<f2")
        return values[start : start + len(column) * self.numbers].reshape(-1, self.numbers)

    def locate(self, ids: Sequence[str]) -> pd.DataFrame:
        """Return where the objects of some ids are: part, row, store, index, id (text), ra, dec; in the survey's order.

        One that is in several stores is there several times.

        Raises
        ------
        InputError
            If there is none of some id; was it set aside, why.
        """
        numbers = {i: int(i) for i in ids if re.fullmatch("[+-]?[0-9]{1,18}", i)}
        names = pa.array(list(ids), pa.string()), pa.array(list(numbers.values()), pa.int64())

        def look(part: int) -> pd.DataFrame:
            path = scores_path(self.tables, part)
            column = scan_tables.part(path, self.info, ["id"])["id"]
            wanted = names[pa.types.is_integer(column.type)]
            rows = np.flatnonzero(pc.is_in(column, value_set=wanted).to_numpy())
            if not len(rows):
                return pd.DataFrame()
            found = scan_tables.part(path, self.info, ["store", "index", "id", "ra", "dec"]).take(rows).to_pandas()
            return found.astype({"store": str, "id": str}).assign(part=part, row=rows)

        found = pd.concat(self._each(look, "examples"), ignore_index=True)
        known = set(found["id"]) if len(found) else set()
        if missing := [i for i in ids if not known & {i, str(numbers.get(i, i))}]:
            raise InputError(self._unknown(missing[0]))
        return found

    def _unknown(self, wanted: str) -> str:
        for _, table in scan_tables.parts(self.run, self.info, ["id", "reason"], "set aside", quarantined=True):
            where = np.flatnonzero(pc.equal(table["id"].cast(pa.string()), wanted).to_numpy())
            if len(where):
                why = table["reason"][int(where[0])].as_py()
                return f"--like {wanted}: the scan set it aside ({why}), so that nothing is known of it; name another"
        table = next((t for _, t in scan_tables.parts(self.run, self.info, ["id"], "ids") if len(t)), None)
        such = f", which are called like '{table['id'][0].as_py()}'" if table is not None else ""
        return f"--like {wanted}: it is none of the {self.info['scanned']:,} objects that {self.run} scored{such}"

    def at(self, places: pd.DataFrame) -> np.ndarray:
        """Return the embeddings of some rows, float64 of shape (n, numbers)."""
        vectors = np.empty((len(places), self.numbers))
        for part, some in places.reset_index(drop=True).groupby("part"):
            vectors[some.index] = self.read(int(part))[some["row"].to_numpy()]
        return vectors

    def centre(self) -> np.ndarray:
        """Return the mean embedding of the survey, by at most `CENTRE` parts of it.

        Raises
        ------
        InputError
            If nothing was scored.
        """
        chosen = np.unique(np.linspace(0, self.parts - 1, min(self.parts, CENTRE)).round().astype(int))

        def add(part: int) -> tuple[np.ndarray, int]:
            vectors = self.read(part)
            pieces = (vectors[k : k + PIECE].astype(np.float64).sum(0) for k in range(0, len(vectors), PIECE))
            return sum(pieces, np.zeros(self.numbers)), len(vectors)

        sums, counts = zip(*self._each(add, "mean of the survey", chosen.tolist()), strict=True)
        if not sum(counts):
            raise InputError(f"{self.run} scored nothing that could be like something")
        return np.asarray(sum(sums) / sum(counts))

    def nearest(self, examples: np.ndarray, top: int) -> Nearest:
        """Return the `top` objects most like some examples (k, numbers), which may be among them."""
        centre = self.centre()
        towards = unit(examples.astype(np.float64) - centre).mean(0)
        floor = -np.inf  # the similarity of the last of the best so far; old ones let pass a few too many

        def search(part: int) -> tuple[np.ndarray, np.ndarray]:
            vectors = self.read(part)
            pieces = [similarity(vectors[k : k + PIECE], centre, towards) for k in range(0, len(vectors), PIECE)]
            all_ = np.concatenate(pieces) if pieces else np.empty(0)
            rows = np.flatnonzero(all_ >= floor)
            rows = rows[_first(all_[rows], top)]
            return all_[rows], rows

        best = Nearest(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))
        waiting = [best]
        with progress.track("search", self.parts, "parts") as advance:
            for part, (found, rows) in enumerate(ordered_map(search, range(self.parts), self.threads)):
                waiting.append(Nearest(found, np.full(len(rows), part), rows))
                if sum(len(some.row) for some in waiting) > 4 * top:
                    waiting = [_best(waiting, top)]
                    floor = waiting[0].similarity[-1]
                advance()
        return _best(waiting, top)

    def rows(self, best: Nearest) -> pd.DataFrame:
        """Return what the tables of scores say of the best, in their order: position, id, flags and answers."""
        columns = ["store", "index", "id", "ra", "dec", "flags", *self.info["answers"]]

        def take(part: int) -> pa.Table:
            places = np.flatnonzero(best.part == part)
            found = scan_tables.part(scores_path(self.tables, part), self.info, columns).take(best.row[places])
            found = found.set_column(0, "store", found["store"].cast(pa.string()))
            return found.append_column("place", pa.array(places))

        found = list(ordered_map(take, np.unique(best.part).tolist(), self.threads))
        if len({table.schema.field("id").type for table in found}) > 1:  # one survey numbers its objects, another not
            found = [table.set_column(2, "id", table["id"].cast(pa.string())) for table in found]
        frame = pa.concat_tables(found).to_pandas().sort_values("place", ignore_index=True)
        return frame.drop(columns="place")

    def _each(self, work: Callable[[int], T], label: str, parts: Sequence[int] | None = None) -> list[T]:
        """Return ``work(part)`` of some parts (all by default), in their order, with a bar of progress."""
        chosen = range(self.parts) if parts is None else parts
        done = []
        with progress.track(label, len(chosen), "parts") as advance:
            for result in ordered_map(work, chosen, self.threads):
                done.append(result)
                advance()
        return done


def similarity(vectors: np.ndarray, centre: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Return the mean cosine of embeddings (n, d) with examples whose mean direction is `towards`; float64, (n,)."""
    away = vectors - centre
    length = np.sqrt(np.einsum("ij,ij->i", away, away))
    return np.round(away @ towards / np.maximum(length, 1e-12), DIGITS)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (n, d) of length one; what has none stays zero."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _first(values: np.ndarray, top: int) -> np.ndarray:
    """Return where the `top` largest are, largest first; equal ones stay in their order."""
    if len(values) > top:  # to sort all would take longer than to compare them did
        least = np.partition(values, -top)[-top]
        some = np.flatnonzero(values >= least)
        return some[np.argsort(-values[some], kind="stable")[:top]]
    return np.argsort(-values, kind="stable")


def _best(waiting: Sequence[Nearest], top: int) -> Nearest:
    """Return the best of several lists, whose parts rise from list to list."""
    whole = Nearest(*(np.concatenate([getattr(b, name) for b in waiting]) for name in ("similarity", "part", "row")))
    order = _first(whole.similarity, top)
    return Nearest(whole.similarity[order], whole.part[order], whole.row[order])
