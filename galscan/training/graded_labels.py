"""Grades of a scan's objects as labels for the next training.

Graded objects were selected by the scores of a model, so they are used for training only: in calibration or test they
would bias the metrics of the next model. The labelled objects are split before grades are added, and held-out objects
keep their labels and their split, whatever their grades. With cross-fitting all labelled objects are used for
calibration, so all keep both. Objects that the model of a graded scan held out are not trained on either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.core.files import digest
from galscan.models import roles
from galscan.store import identity
from galscan.store.identity import Objects
from galscan.store.layout import Store, open_store


@dataclass(frozen=True)
class GradedLabels:
    """The graded objects of one finished scan (`galscan.vetting.labels.read_labels`).

    Attributes
    ----------
    run : Path
    target : str, or None
        Target of the scan; None for a similarity search, whose grades may be used for any target.
    fingerprint : str
        Fingerprint of the scan.
    table : DataFrame
        Columns store, row, id (text), target: 1, 0, or NaN where graders were unsure or disagreed.
    stores : dict
        Path and content hash of the scanned stores by name.
    held_out : Objects, or None
        Calibration and test objects of the model of the scan; None if that model no longer exists.
    """

    run: Path
    target: str | None
    fingerprint: str
    table: pd.DataFrame
    stores: dict[str, tuple[str, str]]
    held_out: Objects | None

    @property
    def hash(self) -> str:
        """SHA-256 of objects and targets, independent of order and comments."""
        rows = self.table.dropna(subset="target").sort_values(["store", "row"])
        return digest([[str(s), int(r), str(i), int(t)] for s, r, i, t in rows.itertuples(index=False)])


def add_stores(stores: Sequence[Store], graded_scans: Sequence[GradedLabels]) -> list[Store]:
    """Return `stores` and the missing ones among the scanned stores, of which only graded objects are used.

    Stores are identified by content, not by path.
    """
    all_stores = list(stores)
    for scan in graded_scans:
        for name in sorted(set(scan.table["store"])):
            path, content = scan.stores[name]
            if any(s.content_hash == content for s in all_stores):
                continue
            try:
                all_stores.append(open_store(path, content))
            except InputError as error:
                raise InputError(
                    f"{scan.run} graded objects of '{name}', which is not at {path} any more ({error}); give its "
                    "path with --store"
                ) from None
    return all_stores


def add_labels(
    table: pd.DataFrame, stores: Sequence[Store], graded_scans: Sequence[GradedLabels]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Add grades to a table of objects that has been split; all graded objects get the training split.

    Parameters
    ----------
    table : DataFrame
        From `galscan.training.dataset.read_table`, with a column split. It need not have the stores added by
        `add_stores`.
    stores : sequence of Store
        All stores; the column survey is an index into them.

    Returns
    -------
    table : DataFrame
    counts : list of dict
        For each scan: graded, positive and negative (trained on), unsure, new, agreed, contradicted, held_out.
    """
    graded = pd.concat(
        [_with_positions(scan, stores).assign(scan=k) for k, scan in enumerate(graded_scans)], ignore_index=True
    )
    graded["object"] = _object_names(graded, table, identity.radius_of(stores))
    sure = graded.dropna(subset="target")
    # Conflicting grades of one object, from two scans or two stores, are not used.
    consistent = sure.groupby("object")["target"].transform("nunique") == 1
    graded.loc[sure.index[~consistent], "target"] = np.nan
    sure = sure[consistent]

    labelled = table[table["target"].notna()].drop_duplicates("object").set_index("object")
    before = sure["object"].map(labelled["target"].to_dict()).astype(float)
    held_out = roles.calibrates(table["split"]) | roles.tests(table["split"])
    held_out_here = sure["object"].isin(table.loc[held_out, "object"]).to_numpy()  # including ambiguous ones
    held_out_there = np.zeros(len(sure), bool)
    for scan in graded_scans:
        held_out_there |= scan.held_out.find_in(sure) >= 0 if scan.held_out is not None else False
    trained_on = sure[~held_out_here & ~held_out_there]
    outcome = pd.DataFrame({
        "held_out": held_out_here | held_out_there, "new": before.isna(), "agreed": before == sure["target"],
        "contradicted": before.notna() & (before != sure["target"]),
    })  # fmt: skip
    counts = []
    for k in range(len(graded_scans)):
        targets, trained = graded.loc[graded["scan"] == k, "target"], trained_on.loc[trained_on["scan"] == k, "target"]
        values = {"unsure": targets.isna(), "positive": trained == 1, "negative": trained == 0}
        values |= dict(outcome[sure["scan"] == k])
        counts.append({"graded": len(targets)} | {name: int(rows.sum()) for name, rows in values.items()})
    # Objects held out by the model of a scan are not used as unlabelled galaxies either.
    table = table[~table["object"].isin(sure.loc[held_out_there & ~held_out_here, "object"])]
    grades = trained_on.drop_duplicates("object").set_index("object")["target"]
    rows = table["object"].isin(grades.index) & ((table["split"] == "train") | _rows_in(table, trained_on))
    table.loc[rows, "target"] = table.loc[rows, "object"].map(grades.to_dict()).astype(float)
    table.loc[rows, "split"] = "train"
    absent = trained_on[~_rows_in(trained_on, table)].drop_duplicates(["survey", "row"])
    absent = absent.assign(split="train", labelled=False)
    if len(absent):
        absent["store"] = [stores[k].name for k in absent["survey"]]  # store names of this training
        table = pd.concat([table, absent.drop(columns="scan")])
    return table.reset_index(drop=True), counts


def _object_names(graded: pd.DataFrame, table: pd.DataFrame, radius: float) -> np.ndarray:
    """Return the table's object name of each grade; objects that are not in the table get new names."""
    matches = Objects.of(table, radius=radius).find_in(graded)
    new = matches < 0
    names = np.empty(len(graded), object)
    names[~new] = table["object"].to_numpy(object)[matches[~new]]
    taken, unmatched = set(table["object"]), graded[new]
    new_names = zip(unmatched["lineage"], identity.names_of(unmatched, radius=radius), strict=True)
    names[new] = [f"{prefix}/{name}" if name in taken else name for prefix, name in new_names]
    return names


def _with_positions(scan: GradedLabels, stores: Sequence[Store]) -> pd.DataFrame:
    """Return the graded objects with store number, positions and lineage; check that the store has them."""
    of_content = {store.content_hash: k for k, store in reversed([*enumerate(stores)])}
    number = {name: of_content.get(content, -1) for name, (_, content) in scan.stores.items()}
    for name, row, object_id in scan.table[["store", "row", "id"]].itertuples(index=False):
        store = stores[number[name]]
        if not 0 <= row < store.count or str(store.column("id", slice(row, row + 1))[0]) != object_id:
            raise InputError(
                f"{scan.run} graded object '{object_id:.60}' as row {row} of {store.path}, which holds another object "
                "there; use the grade book of this store"
            )
    graded = scan.table.assign(survey=scan.table["store"].map(number), ra=np.nan, dec=np.nan, lineage="")
    for k, rows in graded.groupby("survey")["row"]:
        for name in ("ra", "dec"):
            graded.loc[rows.index, name] = stores[k].column(name)[rows.to_numpy()]
        graded.loc[rows.index, "lineage"] = identity.lineage_of(stores[k])
    return graded


def _rows_in(table: pd.DataFrame, other: pd.DataFrame) -> np.ndarray:
    """Return a mask of the rows of `table` that are in `other`, by store and row."""
    keys = [pd.MultiIndex.from_frame(t[["survey", "row"]].astype(int)) for t in (table, other)]
    return np.asarray(keys[0].isin(keys[1]))


def describe(graded_scans: Sequence[GradedLabels], counts: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines of the plan that summarise the grades."""
    lines = []
    for scan, c in zip(graded_scans, counts, strict=True):
        lines += [
            f"grades       {scan.run}: {c['positive']:,} positive and {c['negative']:,} negative trained on, of "
            f"{c['graded']:,} graded; {c['unsure']:,} left out as unsure or conflicting",
            f"             {c['new']:,} new; {c['agreed']:,} agree with the labels, {c['contradicted']:,} contradict "
            f"and replace them; {c['held_out']:,} are held out and keep their label",
        ]
        if scan.held_out is None:
            lines.append("             the model of that scan is missing: its held-out objects are not known")
    note = "             graded objects were selected by a model's scores, so they are used for training only"
    return [*lines, note] if lines else []
