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

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from galscan.candidates.embeddings import object_list
from galscan.core.errors import InputError
from galscan.scanning.partitions import EMBEDDING, embeddings_path, scores_path
from galscan.scanning.run import Run

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

    def locate(self, objects: pd.DataFrame) -> pd.DataFrame:
        """Return part, row, store, index, id (text), ra, dec of objects given by id and store ('' for any store)."""
        return object_list.locate(self.run, objects, "--like")

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

        sums, counts = zip(*object_list.each(self.run, add, "mean of the survey", chosen.tolist()), strict=True)
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
        for found in object_list.each(self.run, search, "search"):
            waiting.append(found)
            if sum(map(len, waiting)) > 4 * top:
                waiting = [_best(waiting, top)]
                floor = waiting[0]["similarity"].iloc[-1]
        return _best(waiting, top)

    def rows(self, best: pd.DataFrame) -> pd.DataFrame:
        """Return position, id, flags and answers of the nearest neighbours, in their order."""
        return object_list.rows(self.run, best, [*object_list.POSITION, "flags", *self.run.info.answers])


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
