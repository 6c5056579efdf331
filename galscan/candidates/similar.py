"""Exact nearest-neighbour search of a scan's embeddings for objects similar to examples.

Similarity is the mean, over the examples, of the cosine between the embeddings of an object and an example, both
centred on the mean of the survey. Uncentred embeddings of all galaxies are similar, as the common mean dominates them.
On real galaxies the centred cosine found more objects of the examples' class than the plain cosine, except for rings.
Standardised or whitened embeddings found no more; the maximum over the examples instead of the mean found fewer,
except for perturbed galaxies (benchmark: ``python -m tests.benchmarks.similar --model MODEL``). The examples should
therefore be of one class; the cost does not depend on their number.

The search is exact and needs no index: a million objects are read and compared in seconds. Each thread holds one piece
of a partition, and the top list is kept in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from galscan.core import progress
from galscan.core.concurrency import ordered_map
from galscan.core.errors import InputError
from galscan.scanning.cluster import cores
from galscan.scanning.partitions import EMBEDDING, embeddings_path, scores_path
from galscan.scanning.run import Run

T = TypeVar("T")
PIECE = 4096  # objects compared at a time
CENTRE = 256  # maximum number of partitions for the mean of the survey
DIGITS = 6  # of a similarity, so that equal images have equal similarities in spite of rounding errors


class EmbeddingSpace:
    """The embeddings of a finished scan; `info` is the content of its ``run.json``."""

    def __init__(self, run: Run):
        info = run.info
        if not info.embedding:
            options = [f"--store {ref.path}" for ref in info.stores] + [f"--model {model}" for model in info.models]
            raise InputError(
                f"{run.path} has no embeddings; scan with them: galscan scan {' '.join(options)} --embeddings --out NEW"
            )
        self.run = run
        self.dimension = info.embedding
        self.parts = info.parts
        self.threads = min(cores(), 8)

    def read(self, part: int) -> np.ndarray:
        """Read the embeddings of a partition, float16 of shape (n, dimension)."""
        path = embeddings_path(self.run.tables, part)
        try:
            column = self.run.partition(part, [EMBEDDING], path=path)[EMBEDDING].combine_chunks()
            valid = column.type == pa.binary(2 * self.dimension)
            valid &= len(column) == pq.read_metadata(scores_path(self.run.tables, part)).num_rows
        except InputError as error:
            raise InputError(f"{error}; remove that file and run its scan command again") from error
        except (OSError, pa.ArrowException):
            valid = False
        if not valid:
            raise InputError(f"{path} does not match its scores; remove it and run its scan command again")
        start = column.offset * self.dimension
        values = np.frombuffer(column.buffers()[1], "<f2") if len(column) else np.empty(0, "<f2")
        return values[start : start + len(column) * self.dimension].reshape(-1, self.dimension)

    def locate(self, ids: Sequence[str]) -> pd.DataFrame:
        """Return part, row, store, index, id (text), ra, dec of objects given by id, in the survey's order.

        An id that is in several stores has several rows.
        """
        integers = {i: int(i) for i in ids if re.fullmatch("[+-]?[0-9]{1,18}", i)}
        names = pa.array(list(ids), pa.string()), pa.array(list(integers.values()), pa.int64())

        def search(part: int) -> pd.DataFrame:
            column = self.run.partition(part, ["id"])["id"]
            wanted = names[pa.types.is_integer(column.type)]
            rows = np.flatnonzero(pc.is_in(column, value_set=wanted).to_numpy())
            if not len(rows):
                return pd.DataFrame()
            table = self.run.partition(part, ["store", "index", "id", "ra", "dec"]).take(rows)
            return table.to_pandas().astype({"store": str, "id": str}).assign(part=part, row=rows)

        found = pd.concat(self._each(search, "examples"), ignore_index=True)
        known = set(found["id"]) if len(found) else set()
        if missing := [i for i in ids if not known & {i, str(integers.get(i, i))}]:
            raise InputError(self._not_scored(missing[0]))
        return found

    def _not_scored(self, wanted: str) -> str:
        for table in self.run.quarantined(["id", "reason"]):
            rows = np.flatnonzero(pc.equal(table["id"].cast(pa.string()), wanted).to_numpy())
            if len(rows):
                why = table["reason"][int(rows[0])].as_py()
                return f"--like {wanted}: the object was quarantined ({why}) and has no embedding; name another"
        table = next((t for t in self.run.scores(["id"], "ids") if len(t)), None)
        example = f", whose ids look like '{table['id'][0].as_py()}'" if table is not None else ""
        return f"--like {wanted}: not one of the {self.run.info.scanned:,} objects scored by {self.run.path}{example}"

    def at(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the embeddings of rows given by part and row, float64 of shape (n, dimension)."""
        vectors = np.empty((len(rows), self.dimension))
        for part, group in rows.reset_index(drop=True).groupby("part"):
            vectors[group.index] = self.read(int(part))[group["row"].to_numpy()]
        return vectors

    def centre(self) -> np.ndarray:
        """Return the mean embedding of the survey, from at most `CENTRE` partitions."""
        chosen = np.unique(np.linspace(0, self.parts - 1, min(self.parts, CENTRE)).round().astype(int))

        def add(part: int) -> tuple[np.ndarray, int]:
            vectors = self.read(part)
            pieces = (vectors[k : k + PIECE].astype(np.float64).sum(0) for k in range(0, len(vectors), PIECE))
            return sum(pieces, np.zeros(self.dimension)), len(vectors)

        sums, counts = zip(*self._each(add, "mean of the survey", chosen.tolist()), strict=True)
        if not sum(counts):
            raise InputError(f"{self.run.path} has no scored objects to search; scan another store")
        return np.asarray(sum(sums) / sum(counts))

    def nearest(self, examples: np.ndarray, top: int) -> pd.DataFrame:
        """Return similarity, part and row of the `top` objects most similar to examples (k, dimension).

        The examples may be among them. Ties are in the order of the survey.
        """
        centre = self.centre()
        direction = unit(examples.astype(np.float64) - centre).mean(0)
        floor = -np.inf  # lowest similarity of the top list so far; threads may use an older, lower one

        def search(part: int) -> pd.DataFrame:
            vectors = self.read(part)
            pieces = [similarity(vectors[k : k + PIECE], centre, direction) for k in range(0, len(vectors), PIECE)]
            similarities = np.concatenate([np.empty(0), *pieces])
            rows = np.flatnonzero(similarities >= floor)
            return _best([pd.DataFrame({"similarity": similarities[rows], "part": part, "row": rows})], top)

        waiting: list[pd.DataFrame] = []
        for found in self._each(search, "search"):
            waiting.append(found)
            if sum(map(len, waiting)) > 4 * top:
                waiting = [_best(waiting, top)]
                floor = waiting[0]["similarity"].iloc[-1]
        return _best(waiting, top)

    def rows(self, best: pd.DataFrame) -> pd.DataFrame:
        """Return position, id, flags and answers of the nearest neighbours, in their order."""
        columns = ["store", "index", "id", "ra", "dec", "flags", *self.run.info.answers]

        def take(part: int) -> pa.Table:
            positions = np.flatnonzero(best["part"] == part)
            table = self.run.partition(part, columns)
            table = table.take(best["row"].to_numpy()[positions])
            table = table.set_column(0, "store", table["store"].cast(pa.string()))
            return table.append_column("_order", pa.array(positions))

        found = list(ordered_map(take, np.unique(best["part"]).tolist(), self.threads))
        # Ids are integers in one survey, text in another.
        if len({table.schema.field("id").type for table in found}) > 1:
            found = [table.set_column(2, "id", table["id"].cast(pa.string())) for table in found]
        return pa.concat_tables(found).sort_by("_order").drop_columns("_order").to_pandas()

    def _each(self, work: Callable[[int], T], label: str, parts: Sequence[int] | None = None) -> Iterator[T]:
        """Yield ``work(part)`` for partitions (by default all), in order, with a progress bar."""
        chosen = range(self.parts) if parts is None else parts
        with progress.track(label, len(chosen), "partitions") as advance:
            for result in ordered_map(work, chosen, self.threads):
                yield result
                advance()


def similarity(vectors: np.ndarray, centre: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return the mean cosine of embeddings (n, d) with examples whose mean direction is `direction`; float64, (n,)."""
    centred = vectors - centre
    length = np.sqrt(np.einsum("ij,ij->i", centred, centred))
    return np.round(centred @ direction / np.maximum(length, 1e-12), DIGITS)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (n, d) normalised to length one; zero vectors stay zero."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _best(waiting: Sequence[pd.DataFrame], top: int) -> pd.DataFrame:
    """Return the `top` nearest of several lists, which are in the order of the survey."""
    merged = pd.concat(waiting, ignore_index=True)
    return merged.sort_values("similarity", ascending=False, kind="stable", ignore_index=True).head(top)
