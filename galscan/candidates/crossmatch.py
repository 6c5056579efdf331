"""Candidates against what is known: which are new, and how much of a known list the scan found again.

Positions are compared on the sphere. A candidate is known if an object of a list is within the radius, and an object
is found again if a candidate is: both say the same of a pair.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binomtest

from galscan.candidates import scan_tables
from galscan.candidates.external_catalogs import Place, ServiceMatches
from galscan.candidates.reference_catalog import RADIUS, ReferenceCatalog, check_radius, read_known, titles
from galscan.candidates.run import open_candidates
from galscan.candidates.table_stream import TableStream, placed
from galscan.core.errors import InputError
from galscan.core.sky import arcseconds, chord, unit_vectors
from galscan.scanning.partitions import of_target
from galscan.scanning.run import astrometry, is_like, lineages

COLUMNS = ("known_name", "known_ref", "known_sep", "known_type")
NOT_ASKED = "not asked: "  # begins, in known_ref, the services that did not answer
FATES = CANDIDATE, BELOW, DISCARDED, QUARANTINED, ELSEWHERE = (
    "candidate", "scored below the list", "discarded by the first look", "quarantined", "not scanned"
)  # fmt: skip
_CONFIDENCE = 0.95
PLACE = ["store", "id", "ra", "dec"]  # by which an object of a scan is recognised
_SLACK = 1 + 1e-9  # the tree leaves out what is exactly at its bound


def annotate(
    rows: TableStream,
    lists: Sequence[ReferenceCatalog],
    radius: float = RADIUS,
    services: Sequence[ServiceMatches] = (),
) -> TableStream:
    """Return the rows with ``known_name``, ``known_ref`` and ``known_sep``, after what is said of the object itself.

    The name and the separation (arcsec) are those of the nearest object of all lists and services; ``known_ref`` names
    every one that has an object within the radius, the nearest first, and at last those services that did not answer.
    Where there is none they are empty, and NaN. With services there is ``known_type`` as well, of the nearest object
    that has one.

    Raises
    ------
    InputError
        If the radius is out of range, or two lists have one name.
    """
    check_radius(radius)
    names = titles([*lists, *services])

    def add(piece: pa.Table) -> pa.Table:
        piece = piece.drop_columns([name for name in COLUMNS if name in piece.column_names])
        apart, called, kinds, silent = _nearest(lists, services, piece, radius)
        name, ref, kind = (np.full(len(piece), "", object) for _ in range(3))
        nearest = apart.min(axis=0, initial=np.inf)
        for row in np.flatnonzero(np.isfinite(nearest) | silent.any(axis=0)):
            order = [int(k) for k in np.argsort(apart[:, row], kind="stable") if np.isfinite(apart[k, row])]
            told = [names[k] for k in order]
            if order:
                name[row] = called[order[0], row]
                kind[row] = next((kinds[k, row] for k in order if kinds[k, row]), "")
            if silent[:, row].any():
                told.append(NOT_ASKED + ", ".join(names[k] for k in np.flatnonzero(silent[:, row])))
            ref[row] = "; ".join(told)
        separation = pa.array(np.where(np.isfinite(nearest), nearest, np.nan))
        values = [pa.array(name, pa.string()), pa.array(ref, pa.string()), separation]
        values += [pa.array(kind, pa.string())] if services else []
        before = [name for name in ("in_train", "duplicate") if name in piece.column_names]
        place = piece.column_names.index(before[-1]) + 1 if before else piece.num_columns
        for k, (column, value) in enumerate(zip(COLUMNS, values, strict=False)):
            piece = piece.add_column(place + k, column, value)
        return piece

    return rows.changed(add)


def _nearest(
    lists: Sequence[ReferenceCatalog], services: Sequence[ServiceMatches], piece: pa.Table, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return of each source and row, (sources, rows): separation, name and type of the nearest, and what is unanswered.

    The separation is in arcseconds, infinite where there is none within the radius.
    """
    shape = (len(lists) + len(services), len(piece))
    apart, silent = np.full(shape, np.inf), np.zeros(shape, bool)
    called, kinds = np.full(shape, "", object), np.full(shape, "", object)
    rows = np.flatnonzero(placed(piece))
    points = _points(piece, rows)
    for k, known in enumerate(lists if len(rows) else ()):
        distance, which = known.tree.query(points, distance_upper_bound=chord(radius) * _SLACK)
        there = np.isfinite(distance)
        apart[k, rows[there]] = arcseconds(distance[there])
        called[k, rows[there]] = known.names[which[there]]
    for k, asked in enumerate(services, len(lists)):
        for row, place in zip(rows, _places(piece, rows), strict=True):
            if place not in asked.answers:
                silent[k, row] = True
            elif (match := asked.answers[place]) is not None:
                apart[k, row], called[k, row], kinds[k, row] = match
    return apart, called, kinds, silent


def _places(piece: pa.Table, rows: np.ndarray) -> list[Place]:
    ra, dec = (piece[name].to_numpy()[rows].tolist() for name in ("ra", "dec"))
    return list(zip(ra, dec, strict=True))


def places(rows: TableStream) -> list[Place]:
    """Return the positions of all rows that have one, in order."""
    return [p for piece in rows.select(["ra", "dec"]) for p in _places(piece, np.flatnonzero(placed(piece)))]


def _points(piece: pa.Table, rows: np.ndarray) -> np.ndarray:
    return unit_vectors(piece["ra"].to_numpy()[rows], piece["dec"].to_numpy()[rows])


def count_known(rows: TableStream) -> int:
    """Return how many of annotated rows are known."""
    return sum(int(pc.sum(pc.not_equal(piece["known_name"], "")).as_py() or 0) for piece in rows.select(["known_name"]))


def count_not_asked(rows: TableStream) -> int:
    """Return how many of annotated rows are not known, and a service that might know them did not answer."""
    count = 0
    for piece in rows.select(["known_name", "known_ref"]):
        silent = pc.match_substring(piece["known_ref"], NOT_ASKED)
        count += int(pc.sum(pc.and_(silent, pc.equal(piece["known_name"], ""))).as_py() or 0)
    return count


@dataclass(frozen=True)
class Recovered:
    """What became of the objects of a known list.

    Attributes
    ----------
    title : str
        Of the list.
    radius : float
        Arcseconds.
    unplaced : int
        Rows of the list without a position.
    objects : DataFrame
        One row an object, in the order of the list: name, ra, dec, fate (one of `FATES`), rank (0 for none), score,
        sep (arcsec), reason (why it is in quarantine), in_train (None where the model is gone). The score is that of
        the full network, or that of the first look where this discarded it.
    least : float
        The score of the last candidate of the list; NaN where there is none.
    """

    title: str
    radius: float
    unplaced: int
    objects: pd.DataFrame
    least: float

    @property
    def missed(self) -> pd.DataFrame:
        """The objects that are no candidates; those that were never scanned last."""
        rest = self.objects[self.objects["fate"] != CANDIDATE]
        return rest.sort_values("fate", key=lambda fates: fates.map(FATES.index), kind="stable", ignore_index=True)

    def summary(self) -> dict[str, Any]:
        """Return counts and the recovered fraction with its interval, JSON-able; ``text`` is the same for people."""
        objects = self.objects
        looked = objects[objects["fate"].isin([CANDIDATE, BELOW, DISCARDED])]
        learnt = looked["in_train"].isna().any()
        unseen = None if learnt else looked[~looked["in_train"].astype(bool)]
        told: dict[str, Any] = {
            "list": self.title, "radius_arcsec": self.radius, "objects": len(objects),
            "without_position": self.unplaced,
            "fates": {fate: int((objects["fate"] == fate).sum()) for fate in FATES},
            "scanned": len(looked), "recovered": _fraction(looked),
            "recovered_untrained": None if unseen is None else _fraction(unseen),
            "ranks": sorted(int(rank) for rank in looked.loc[looked["rank"] > 0, "rank"]),
            "sharing": int(objects.loc[objects["rank"] > 0, "rank"].duplicated().sum()),
        }  # fmt: skip
        return told | {"text": "\n".join(_lines(told))}


def recovered(
    run: str | os.PathLike[str], catalog: str | os.PathLike[str] | ReferenceCatalog, radius: float = RADIUS
) -> Recovered:
    """Look up every object of a known list in everything that a finished scan looked at.

    An object within the radius of several that were scanned is told by the best: the candidate of the smallest rank,
    else the nearest that was scored, else the nearest in quarantine.

    Raises
    ------
    InputError
        If the run is not finished or lost its scores, the list cannot be read, or the radius is out of range.
    """
    check_radius(radius)
    known = catalog if isinstance(catalog, ReferenceCatalog) else read_known(catalog)
    path = Path(run)
    rows, info = open_candidates(path)
    found, least = [], float("nan")
    for piece in rows.select(["objid", "store", "ra", "dec", "rank", "score"]):
        pairs = _pairs(known, piece, radius)
        here = piece.take(pairs["row"].to_numpy()).to_pandas()
        same = here.rename(columns={"objid": "id"})
        found.append(pairs.assign(fate=CANDIDATE, rank=here["rank"], score=here["score"], **_of(same)))
        least = float(piece["score"][-1].as_py())
    for file, piece in scan_tables.parts(path, info, ["ra", "dec"], f"{known.title} among the scored"):
        if len(pairs := _pairs(known, piece, radius)):
            # A list of what is like some examples is not in the order of the scan's scores.
            own = {of_target(name, info["target"], info.get("targets", [])): name for name in ("score", "first_look")}
            columns = scan_tables.columns_of(file, PLACE if is_like(info) else [*PLACE, *own])
            here = columns.take(pairs["row"].to_numpy()).to_pandas().rename(columns=own)
            if is_like(info):
                found.append(pairs.assign(fate=BELOW, **_of(here)))
                continue
            discarded = here["score"].isna()
            found.append(pairs.assign(
                fate=np.where(discarded, DISCARDED, BELOW), score=here["score"].fillna(here["first_look"]),
                **_of(here),
            ))  # fmt: skip
    for file, piece in scan_tables.parts(path, info, ["ra", "dec"], f"{known.title} in quarantine", quarantined=True):
        if len(pairs := _pairs(known, piece, radius)):
            here = scan_tables.columns_of(file, [*PLACE, "reason"]).take(pairs["row"].to_numpy()).to_pandas()
            found.append(pairs.assign(fate=QUARANTINED, reason=here["reason"], **_of(here)))
    return Recovered(known.title, radius, known.unplaced, _best(known, found, info), least)


def _of(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the columns by which rows of a scan are recognised: those of the object, and not of the list's."""
    return {"id": rows["id"].astype(str), "store": rows["store"].astype(str), "x": rows["ra"], "y": rows["dec"]}


def _pairs(known: ReferenceCatalog, piece: pa.Table, radius: float) -> pd.DataFrame:
    """Return every pair of a known object and a row within the radius: columns object, row, sep."""
    places = np.flatnonzero(placed(piece))
    points = _points(piece, places)
    reach = chord(radius) * _SLACK
    # Few rows have anything near, and only those are asked for all of it.
    nearest = known.tree.query(points, distance_upper_bound=reach)[0] if len(places) else np.empty(0)
    objects, rows, chords = [], [], []
    for k in np.flatnonzero(np.isfinite(nearest)):
        for j in known.tree.query_ball_point(points[k], reach):
            objects.append(j)
            rows.append(places[k])
            chords.append(np.linalg.norm(known.tree.data[j] - points[k]))
    return pd.DataFrame({
        "object": np.array(objects, int), "row": np.array(rows, int), "sep": arcseconds(np.array(chords, float)),
    })  # fmt: skip


def _best(known: ReferenceCatalog, found: list[pd.DataFrame], info: dict[str, Any]) -> pd.DataFrame:
    """Return one row an object of the list: what the best of its matches says."""
    empty = pd.DataFrame({"name": known.names, "ra": known.ra, "dec": known.dec})
    columns = ["object", "fate", "rank", "score", "sep", "reason", "id", "store", "x", "y"]
    every = pd.concat([frame for frame in found if len(frame)] or [pd.DataFrame(columns=columns)], ignore_index=True)
    every = every.reindex(columns=columns)
    worth = every["fate"].map({CANDIDATE: 0, BELOW: 1, DISCARDED: 1, QUARANTINED: 2})
    every = every.assign(worth=worth).sort_values(["object", "worth", "rank", "sep"])
    best = every.drop_duplicates("object").set_index("object").reindex(range(len(known)))
    in_train = _in_train(best, info)
    return empty.assign(
        fate=best["fate"].fillna(ELSEWHERE).to_numpy(object), rank=best["rank"].fillna(0).to_numpy(np.int64),
        score=best["score"].to_numpy(np.float64), sep=best["sep"].to_numpy(np.float64),
        reason=np.where(best["reason"].notna(), best["reason"], ""), in_train=in_train,
    )  # fmt: skip


def _in_train(best: pd.DataFrame, info: dict[str, Any]) -> np.ndarray | None:
    """Return which matches the model was trained on; None if it has gone."""
    from galscan.models.model import open_model

    try:
        bundle = open_model(str(info["model"]))
    except InputError:
        return None
    if bundle.model_hash != info["identity"]["model"]:
        return None
    there = best["id"].notna().to_numpy()
    rows = best.rename(columns={"x": "ra", "y": "dec"}).assign(lineage=best["store"].map(lineages(info)))[there]
    in_train = np.full(len(best), False, object)
    in_train[there] = bundle.in_train(rows, astrometry(info))
    return in_train


def _fraction(looked: pd.DataFrame) -> dict[str, Any]:
    """Return how many of the scanned are candidates, with the interval of Clopper and Pearson."""
    found, of = int((looked["rank"] > 0).sum()), len(looked)
    if not of:
        return {"found": 0, "of": 0, "value": None, "low": None, "high": None}
    low, high = binomtest(found, of).proportion_ci(_CONFIDENCE, method="exact")
    return {"found": found, "of": of, "value": found / of, "low": float(low), "high": float(high)}


def _lines(told: dict[str, Any]) -> list[str]:
    fates = told["fates"]
    lines = [
        f"{told['list']}: {told['objects']:,} objects"
        + (f" (and {told['without_position']:,} without a position)" if told["without_position"] else "")
        + f"; {told['scanned']:,} scanned, {fates[QUARANTINED]:,} quarantined, {fates[ELSEWHERE]:,} not scanned"
    ]
    if not told["scanned"]:
        return lines
    ranks = ", ".join(map(str, told["ranks"][:12])) + (", ..." if len(told["ranks"]) > 12 else "")
    lines.append(f"  candidates    {_percent(told['recovered'])}" + (f", ranks {ranks}" if ranks else ""))
    if (unseen := told["recovered_untrained"]) is None:
        lines.append("  trained on    not known, the model is gone: what it was trained on proves nothing")
    elif unseen["of"] < told["scanned"]:
        lines.append(f"  not trained on {_percent(unseen)}")
    missed = {fate: fates[fate] for fate in (BELOW, DISCARDED) if fates[fate]}
    if missed:
        lines.append("  missed        " + ", ".join(f"{count:,} {fate}" for fate, count in missed.items()))
    if told["sharing"]:
        lines.append(f"  twice         {told['sharing']:,} share their candidate with another object of the list")
    return lines


def _percent(part: dict[str, Any]) -> str:
    if not part["of"]:
        return "none was scanned"
    return (
        f"{part['found']:,} of {part['of']:,}: {100 * part['value']:.0f} % "
        f"({100 * part['low']:.0f}-{100 * part['high']:.0f} with 95 % confidence)"
    )
