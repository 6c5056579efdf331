"""Objects of a scan whose label is known, because they are in the model's training, calibration or test set.

A network scores its training objects higher than similar unseen ones, so objects of known label are left out of the
score histogram from which prevalence and purity are estimated (`galscan.stats.purity`); they count by their labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from galscan.stats.purity import AMBIGUOUS
from galscan.store.layout import open_store

if TYPE_CHECKING:
    from galscan.models.model import Model
    from galscan.scanning.plan import Plan

CHUNK = 500_000  # rows of a store matched at a time
NAMES = {1.0: "target", AMBIGUOUS: "ambiguous", 0.0: "negative"}


@dataclass(frozen=True, eq=False)
class KnownLabels:
    """For each store of a scan, in the plan's order, the rows of known label (ascending) and their labels.

    Labels are 1 for targets, 0 for negatives, or `galscan.stats.purity.AMBIGUOUS`.
    """

    rows: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]

    @classmethod
    def none(cls, stores: int) -> KnownLabels:
        """Return an instance without known labels, for this number of stores."""
        return cls((np.empty(0, np.int64),) * stores, (np.empty(0),) * stores)

    def any_in(self, store: int, start: int, stop: int) -> bool:
        """Tell whether some row from `start` to below `stop` has a known label."""
        low, high = np.searchsorted(self.rows[store], (start, stop))
        return bool(high > low)

    def of(self, store: int, index: np.ndarray) -> np.ndarray:
        """Return the labels of rows of a store, NaN where unknown; float64 with the shape of `index`."""
        rows, index = self.rows[store], np.asarray(index)
        if not len(rows):
            return np.full(len(index), np.nan)
        at = np.searchsorted(rows, index).clip(max=len(rows) - 1)
        return np.where(rows[at] == index, self.labels[store][at], np.nan)


def names(labels: np.ndarray) -> np.ndarray:
    """Return the names of labels: target, ambiguous, negative, and '' for NaN; object array."""
    return np.array([NAMES.get(value, "") for value in np.asarray(labels, float).tolist()], object)


def numbers(words: np.ndarray) -> np.ndarray:
    """Return labels from their names, the inverse of `names`; float64, NaN for ''."""
    values = {name: value for value, name in NAMES.items()}
    return np.array([values.get(str(word), np.nan) for word in words], np.float64)


def read_labels(candidates: Path) -> np.ndarray | None:
    """Return the labels in the column known of a candidates table (Parquet); None without that column."""
    import pyarrow.compute as pc

    if "known" not in pq.read_schema(candidates).names:
        return None
    words = pq.read_table(candidates, columns=["known"])["known"].cast("string")
    labels = np.full(len(words), np.nan)
    for value, word in NAMES.items():
        labels[pc.equal(words, word).to_numpy()] = value
    return labels


def find_known(plan: Plan, model: Model) -> KnownLabels:
    """Return the objects in a plan's stores whose label a model knows, matched by `galscan.store.identity`.

    A model without stored positions is matched by id alone, and only in the stores it was trained with: the same id in
    another store is another object.
    """
    splits = model.splits()
    trained_with = None if "ra" in splits else set(splits["store"])
    labels = splits["target"].fillna(AMBIGUOUS).to_numpy(np.float64)
    known = model.objects(radius=max(ref.astrometry for ref in plan.stores))
    all_rows, all_labels = [], []
    for ref in plan.stores:
        if trained_with is not None and ref.name not in trained_with:
            all_rows.append(np.empty(0, np.int64))
            all_labels.append(np.empty(0))
            continue
        store, matches = open_store(ref.path), []
        for start in range(0, store.count, CHUNK):
            chunk = slice(start, min(start + CHUNK, store.count))
            ra, dec, ids = (store.column(name, chunk) for name in ("ra", "dec", "id"))
            matches.append(known.find(ra, dec, ref.lineage or ref.name, ids))
        object_of = np.concatenate(matches) if matches else np.empty(0, int)
        rows = np.flatnonzero(object_of >= 0)
        all_rows.append(rows)
        all_labels.append(labels[object_of[rows]])
    return KnownLabels(tuple(all_rows), tuple(all_labels))
