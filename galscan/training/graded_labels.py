"""What people said of a scan's objects, as labels for the next training.

They were graded because a model had scored them high, or low: they may teach, and never calibrate or test, where they
would make the next model look as good as the last one was at choosing them. So the split of the labelled objects is
made first and without them, and what it holds out keeps its label and its place, whatever people say of it. Under
cross-fitting all labelled objects calibrate, and so keep both. What the models of the scans themselves held out of
training is not trained on either.
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
        What was looked for; None where nothing was but what is like some examples, which may teach any target.
    fingerprint : str
        Which scan it was.
    table : DataFrame
        Columns store, row, id (text), target: 1, 0, or NaN where people were unsure or contradicted each other.
    stores : dict
        By name: path and content hash of the stores that were scanned.
    held_out : Objects, or None
        What the model of the scan was calibrated or tested on; None where that model is gone.
    """

    run: Path
    target: str | None
    fingerprint: str
    table: pd.DataFrame
    stores: dict[str, tuple[str, str]]
    held_out: Objects | None

    @property
    def hash(self) -> str:
        """SHA-256 of what is taught: objects and targets, in any order, whatever else people wrote."""
        rows = self.table.dropna(subset="target").sort_values(["store", "row"])
        return digest([[str(s), int(r), str(i), int(t)] for s, r, i, t in rows.itertuples(index=False)])


def add_stores(stores: Sequence[Store], vetted: Sequence[GradedLabels]) -> list[Store]:
    """Return the stores, and those of the scans that are not among them: of these only what was graded is used.

    A store is known by its content, wherever it lies by now.

    Raises
    ------
    InputError
        If a graded store is gone, or another one by now.
    """
    found = list(stores)
    for one in vetted:
        for name in sorted(set(one.table["store"])):
            path, content = one.stores[name]
            if any(s.content_hash == content for s in found):
                continue
            try:
                store = open_store(path)
            except InputError as error:
                raise InputError(
                    f"{one.run} graded objects of '{name}', which is not at {path} any more ({error}); say where it is "
                    "with --store"
                ) from None
            if store.content_hash != content:
                raise InputError(
                    f"{path} was built again since {one.run} scanned it: its rows may be other objects than those that "
                    "were graded; scan and grade it again"
                )
            found.append(store)
    return found


def add_labels(
    table: pd.DataFrame, stores: Sequence[Store], vetted: Sequence[GradedLabels]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Put grades into a table of objects that has been split.

    Parameters
    ----------
    table : DataFrame
        As `galscan.training.dataset.read_table` gives it, with a column split. Stores that only grades named need not
        be in it.
    stores : sequence of Store
        All of them; their order is the column survey.

    Returns
    -------
    table : DataFrame
        With the new targets, all of them in the training split.
    counts : list of dict
        For each scan: graded, positive and negative (taught), unsure, new, agreed, contradicted, held_out.

    Raises
    ------
    InputError
        If a grade names an object that is not where it says.
    """
    graded = pd.concat([_placed(one, stores).assign(scan=k) for k, one in enumerate(vetted)], ignore_index=True)
    graded["object"] = _objects(graded, table, identity.radius_of(stores))
    sure = graded.dropna(subset="target")
    # The same object in two scans, or in two stores: what they contradict each other in is nobody's label.
    one_mind = sure.groupby("object")["target"].transform("nunique") == 1
    graded.loc[sure.index[~one_mind], "target"] = np.nan
    sure = sure[one_mind]

    labelled = table[table["target"].notna()].drop_duplicates("object").set_index("object")
    before = sure["object"].map(labelled["target"].to_dict()).astype(float)
    fixed = roles.calibrates(table["split"]) | roles.tests(table["split"])
    kept_out = sure["object"].isin(table.loc[fixed, "object"]).to_numpy()  # ambiguous ones as well
    theirs = np.zeros(len(sure), bool)
    for one in vetted:
        theirs |= one.held_out.find_in(sure) >= 0 if one.held_out is not None else False
    taught = sure[~kept_out & ~theirs]
    fate = pd.DataFrame({
        "held_out": kept_out | theirs, "new": before.isna(), "agreed": before == sure["target"],
        "contradicted": before.notna() & (before != sure["target"]),
    })  # fmt: skip
    counts = [
        {
            "graded": int((graded["scan"] == k).sum()),
            "unsure": int((graded["target"].isna() & (graded["scan"] == k)).sum()),
            "positive": int(((taught["scan"] == k) & (taught["target"] == 1)).sum()),
            "negative": int(((taught["scan"] == k) & (taught["target"] == 0)).sum()),
            **{name: int(fate.loc[sure["scan"] == k, name].sum()) for name in fate},
        }
        for k in range(len(vetted))
    ]
    # Nobody is to see them, also as galaxies without labels; but the split of the labelled stands.
    table = table[~table["object"].isin(sure.loc[theirs & ~kept_out, "object"])]
    said = taught.drop_duplicates("object").set_index("object")["target"]
    here = table["object"].isin(said.index) & ((table["split"] == "train") | _rows_in(table, taught))
    table.loc[here, "target"] = table.loc[here, "object"].map(said.to_dict()).astype(float)
    table.loc[here, "split"] = "train"
    absent = taught[~_rows_in(taught, table)].drop_duplicates(["survey", "row"]).assign(split="train", labelled=False)
    if len(absent):
        absent["store"] = [stores[k].name for k in absent["survey"]]  # as this training calls it
        table = pd.concat([table, absent.drop(columns="scan")])
    return table.reset_index(drop=True), counts


def _objects(graded: pd.DataFrame, table: pd.DataFrame, radius: float) -> np.ndarray:
    """Return what the table calls the object of each grade; what it does not have gets a name of its own."""
    found = Objects.of(table, radius=radius).find_in(graded)
    new = found < 0
    names = np.empty(len(graded), object)
    names[~new] = table["object"].to_numpy(object)[found[~new]]
    taken = set(table["object"])
    own = identity.names_of(graded[new], radius=radius)
    lineage = graded.loc[new, "lineage"]
    names[new] = [f"{of}/{name}" if name in taken else name for of, name in zip(lineage, own, strict=True)]
    return names


def _placed(one: GradedLabels, stores: Sequence[Store]) -> pd.DataFrame:
    """Return the graded objects with their store's number and what it knows of them; it must have them there."""
    number = {name: _number(content, stores) for name, (_, content) in one.stores.items()}
    for name, row, named in one.table[["store", "row", "id"]].itertuples(index=False):
        store = stores[number[name]]
        if not 0 <= row < store.count or str(store.column("id", slice(row, row + 1))[0]) != named:
            raise InputError(
                f"{one.run} graded object '{named:.60}' as row {row} of {store.path}, which holds another there; "
                "its grade book does not belong to it"
            )
    graded = one.table.assign(survey=one.table["store"].map(number), ra=np.nan, dec=np.nan, lineage="")
    for k, rows in graded.groupby("survey")["row"]:
        for name in ("ra", "dec"):
            graded.loc[rows.index, name] = stores[k].column(name)[rows.to_numpy()]
        graded.loc[rows.index, "lineage"] = identity.lineage_of(stores[k])
    return graded


def _number(content: str, stores: Sequence[Store]) -> int:
    return next((k for k, s in enumerate(stores) if s.content_hash == content), -1)


def _rows_in(table: pd.DataFrame, other: pd.DataFrame) -> np.ndarray:
    """Return which rows of a table are in another one, by store and row."""
    keys = [pd.MultiIndex.from_frame(t[["survey", "row"]].astype(int)) for t in (table, other)]
    return np.asarray(keys[0].isin(keys[1]))


def describe(vetted: Sequence[GradedLabels], counts: Sequence[dict[str, Any]]) -> list[str]:
    """Return in words what the grades bring, for the plan."""
    lines = []
    for one, c in zip(vetted, counts, strict=True):
        lines += [
            f"grades       {one.run}: {c['positive']:,} positive and {c['negative']:,} negative train, of "
            f"{c['graded']:,} graded; {c['unsure']:,} left out as unsure or contradicting",
            f"             {c['new']:,} new; {c['agreed']:,} agree with the labels, {c['contradicted']:,} contradict "
            f"and replace them; {c['held_out']:,} calibrate or test, and keep their label",
        ]
        if one.held_out is None:
            lines.append("             the model of that scan is gone: what it held out is not known")
    if lines:
        lines.append("             a model's scores chose them: graded objects train, and never calibrate or test")
    return lines
