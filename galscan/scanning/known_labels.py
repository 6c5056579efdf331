"""Objects of a scan whose label the model knows, as it was trained, calibrated or tested with them.

They are data: no score tells more of them than their label does, and a network scores what it was trained on higher
than the like of it. So they are no part of the histogram from which prevalence and purity are estimated
(`galscan.stats.purity`), and are counted as what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from galscan.stats.purity import AMBIGUOUS
from galscan.store.layout import open_store

if TYPE_CHECKING:
    from galscan.models.model import Model
    from galscan.scanning.plan import Plan

CHUNK = 500_000  # rows of a store that are compared at a time
NAMES = {1.0: "target", AMBIGUOUS: "ambiguous", 0.0: "negative"}


@dataclass(frozen=True, eq=False)
class KnownLabels:
    """Rows of known label of each store of a scan (in the order of the plan), ascending, and their labels.

    Labels are 1 for targets, 0 for negatives, `galscan.stats.purity.AMBIGUOUS`.
    """

    rows: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]

    @classmethod
    def none(cls, stores: int) -> KnownLabels:
        """Return what a model knows that knows nothing of so many stores."""
        return cls((np.empty(0, np.int64),) * stores, (np.empty(0),) * stores)

    def any_in(self, store: int, start: int, stop: int) -> bool:
        """Tell whether some row from `start` to below `stop` has a known label."""
        low, high = np.searchsorted(self.rows[store], (start, stop))
        return bool(high > low)

    def of(self, store: int, index: np.ndarray) -> np.ndarray:
        """Return the labels of rows of a store, NaN where none is known; float64, as `index`."""
        rows, index = self.rows[store], np.asarray(index)
        if not len(rows):
            return np.full(len(index), np.nan)
        at = np.searchsorted(rows, index).clip(max=len(rows) - 1)
        return np.where(rows[at] == index, self.labels[store][at], np.nan)


def names(labels: np.ndarray) -> np.ndarray:
    """Return labels in words: target, ambiguous, negative, and '' for NaN; object array."""
    return np.array([NAMES.get(value, "") for value in np.asarray(labels, float).tolist()], object)


def numbers(words: np.ndarray) -> np.ndarray:
    """Return the labels that `names` wrote as words; float64, NaN for ''."""
    values = {name: value for value, name in NAMES.items()}
    return np.array([values.get(str(word), np.nan) for word in words], np.float64)


def read_labels(candidates: Path) -> np.ndarray | None:
    """Return the labels that a table of candidates (Parquet) has in its column known; None without the column."""
    if "known" not in pq.read_schema(candidates).names:
        return None
    words = pq.read_table(candidates, columns=["known"])["known"].cast("string")
    labels = np.full(len(words), np.nan)
    for value, word in NAMES.items():
        labels[pc.equal(words, word).to_numpy()] = value
    return labels


def find_known(plan: Plan, bundle: Model) -> KnownLabels:
    """Return the objects in the stores of a plan whose label a model knows, by `galscan.store.identity`.

    A model that kept no positions knows ids alone, and these of the stores it was trained with: a number that another
    store uses as well is another object there, whose label is not known.
    """
    splits = bundle.splits()
    trained_with = None if "ra" in splits else set(splits["store"])
    labels = splits["target"].fillna(AMBIGUOUS).to_numpy(np.float64)
    known = bundle.objects(radius=max(ref.astrometry for ref in plan.stores))
    rows, found = [], []
    for ref in plan.stores:
        if trained_with is not None and ref.name not in trained_with:
            rows.append(np.empty(0, np.int64))
            found.append(np.empty(0))
            continue
        store, here = open_store(ref.path), []
        for start in range(0, store.count, CHUNK):
            some = slice(start, min(start + CHUNK, store.count))
            ra, dec, ids = (store.column(name, some) for name in ("ra", "dec", "id"))
            here.append(known.find(ra, dec, ref.lineage or ref.name, ids))
        object_of = np.concatenate(here) if here else np.empty(0, int)
        rows.append(np.flatnonzero(object_of >= 0))
        found.append(labels[object_of[rows[-1]]])
    return KnownLabels(tuple(rows), tuple(found))
