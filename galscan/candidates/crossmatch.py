"""Crossmatch of candidates with reference lists: which candidates are new, and which listed objects were recovered.

Separations are measured on the sphere. A candidate is known if a listed object is within the radius; a listed object
is recovered if a candidate is within the radius.
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
from galscan.candidates.external_catalogs import Position, ServiceMatches
from galscan.candidates.reference_catalog import RADIUS, ReferenceCatalog, check_radius, read_known, titles
from galscan.candidates.run import open_candidates
from galscan.candidates.table_stream import TableStream, has_position
from galscan.core.errors import InputError
from galscan.core.sky import arcseconds, chord, unit_vectors
from galscan.scanning.partitions import of_target
from galscan.scanning.run import astrometry, is_similarity_list, lineages

COLUMNS = ("known_name", "known_ref", "known_sep", "known_type")
NOT_ASKED = "not asked: "  # in known_ref, prefix of the services without a response
FATES = CANDIDATE, BELOW, DISCARDED, QUARANTINED, ELSEWHERE = (
    "candidate", "scored below the list", "discarded by the first look", "quarantined", "not scanned"
)  # fmt: skip
_CONFIDENCE = 0.95
IDENTITY_COLUMNS = ["store", "id", "ra", "dec"]  # columns that identify an object of a scan
_SLACK = 1 + 1e-9  # the tree excludes points exactly at its bound


def annotate(
    rows: TableStream,
    lists: Sequence[ReferenceCatalog],
    radius: float = RADIUS,
    services: Sequence[ServiceMatches] = (),
) -> TableStream:
    """Return the rows with the columns ``known_name``, ``known_ref`` and ``known_sep`` added.

    Name and separation (arcsec) are those of the nearest object in any list or service; ``known_ref`` names all
    sources with an object within the radius, nearest first, then the services that did not respond. Without a match
    they are empty and NaN. With services, ``known_type`` is the type of the nearest object that has one.

    Raises
    ------
    InputError
        If the radius is out of range, or two lists have the same title.
    """
    check_radius(radius)
    names = titles([*lists, *services])

    def add(piece: pa.Table) -> pa.Table:
        piece = piece.drop_columns([name for name in COLUMNS if name in piece.column_names])
        separations, match_names, kinds, missing = _nearest(lists, services, piece, radius)
        name, ref, kind = (np.full(len(piece), "", object) for _ in range(3))
        nearest = separations.min(axis=0, initial=np.inf)
        for row in np.flatnonzero(np.isfinite(nearest) | missing.any(axis=0)):
            order = [int(k) for k in np.argsort(separations[:, row], kind="stable") if np.isfinite(separations[k, row])]
            sources = [names[k] for k in order]
            if order:
                name[row] = match_names[order[0], row]
                kind[row] = next((kinds[k, row] for k in order if kinds[k, row]), "")
            if missing[:, row].any():
                sources.append(NOT_ASKED + ", ".join(names[k] for k in np.flatnonzero(missing[:, row])))
            ref[row] = "; ".join(sources)
        separation = pa.array(np.where(np.isfinite(nearest), nearest, np.nan))
        values = [pa.array(name, pa.string()), pa.array(ref, pa.string()), separation]
        values += [pa.array(kind, pa.string())] if services else []
        before = [name for name in ("in_train", "duplicate") if name in piece.column_names]
        position = piece.column_names.index(before[-1]) + 1 if before else piece.num_columns
        for k, (column, value) in enumerate(zip(COLUMNS, values, strict=False)):
            piece = piece.add_column(position + k, column, value)
        return piece

    return rows.map(add)


def _nearest(
    lists: Sequence[ReferenceCatalog], services: Sequence[ServiceMatches], piece: pa.Table, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return separation, name and type of each row's nearest object by source, and where a service did not respond.

    All have the shape (sources, rows). The separation is in arcseconds, infinite without an object within the radius.
    """
    shape = (len(lists) + len(services), len(piece))
    separations, missing = np.full(shape, np.inf), np.zeros(shape, bool)
    names, kinds = np.full(shape, "", object), np.full(shape, "", object)
    rows = np.flatnonzero(has_position(piece))
    points = _points(piece, rows)
    for k, known in enumerate(lists if len(rows) else ()):
        distance, nearest = known.tree.query(points, distance_upper_bound=chord(radius) * _SLACK)
        matched = np.isfinite(distance)
        separations[k, rows[matched]] = arcseconds(distance[matched])
        names[k, rows[matched]] = known.names[nearest[matched]]
    for k, service in enumerate(services, len(lists)):
        for row, position in zip(rows, _positions(piece, rows), strict=True):
            if position not in service.matches:
                missing[k, row] = True
            elif (match := service.matches[position]) is not None:
                separations[k, row], names[k, row], kinds[k, row] = match
    return separations, names, kinds, missing


def _positions(piece: pa.Table, rows: np.ndarray) -> list[Position]:
    ra, dec = (piece[name].to_numpy()[rows].tolist() for name in ("ra", "dec"))
    return list(zip(ra, dec, strict=True))


def positions(rows: TableStream) -> list[Position]:
    """Return the positions of all rows that have one, in order."""
    return [p for piece in rows.select(["ra", "dec"]) for p in _positions(piece, np.flatnonzero(has_position(piece)))]


def _points(piece: pa.Table, rows: np.ndarray) -> np.ndarray:
    return unit_vectors(piece["ra"].to_numpy()[rows], piece["dec"].to_numpy()[rows])


def count_known(rows: TableStream) -> int:
    """Return the number of annotated rows that are known."""
    return sum(int(pc.sum(pc.not_equal(piece["known_name"], "")).as_py() or 0) for piece in rows.select(["known_name"]))


def count_not_queried(rows: TableStream) -> int:
    """Return the number of annotated rows without a match for which a service did not respond."""
    count = 0
    for piece in rows.select(["known_name", "known_ref"]):
        missing = pc.match_substring(piece["known_ref"], NOT_ASKED)
        count += int(pc.sum(pc.and_(missing, pc.equal(piece["known_name"], ""))).as_py() or 0)
    return count


@dataclass(frozen=True)
class Recovered:
    """Outcome of each object of a reference list in a scan.

    Attributes
    ----------
    title : str
        Title of the list.
    radius : float
        Arcseconds.
    unplaced : int
        Rows of the list without a position.
    objects : DataFrame
        One row per object, in the order of the list: name, ra, dec, fate (one of `FATES`), rank (0 for none), score,
        sep (arcsec), reason (of quarantine), in_train (None if the model is missing). The score is that of the full
        network, or of the prefilter for objects that it discarded.
    least : float
        Score of the last candidate; NaN if there is none.
    """

    title: str
    radius: float
    without_position: int
    objects: pd.DataFrame
    lowest_score: float

    @property
    def missed(self) -> pd.DataFrame:
        """Objects that are not candidates; those that were not scanned come last."""
        missed = self.objects[self.objects["fate"] != CANDIDATE]
        return missed.sort_values("fate", key=lambda fates: fates.map(FATES.index), kind="stable", ignore_index=True)

    def summary(self) -> dict[str, Any]:
        """Return counts and the recovered fraction with its interval, JSON-able; ``text`` holds lines for people."""
        objects = self.objects
        scanned = objects[objects["fate"].isin([CANDIDATE, BELOW, DISCARDED])]
        unknown = scanned["in_train"].isna().any()
        untrained = None if unknown else scanned[~scanned["in_train"].astype(bool)]
        summary: dict[str, Any] = {
            "list": self.title, "radius_arcsec": self.radius, "objects": len(objects),
            "without_position": self.without_position,
            "fates": {fate: int((objects["fate"] == fate).sum()) for fate in FATES},
            "scanned": len(scanned), "recovered": _fraction(scanned),
            "recovered_untrained": None if untrained is None else _fraction(untrained),
            "ranks": sorted(int(rank) for rank in scanned.loc[scanned["rank"] > 0, "rank"]),
            "sharing": int(objects.loc[objects["rank"] > 0, "rank"].duplicated().sum()),
        }  # fmt: skip
        return summary | {"text": "\n".join(_lines(summary))}


def recovered(
    run: str | os.PathLike[str], catalog: str | os.PathLike[str] | ReferenceCatalog, radius: float = RADIUS
) -> Recovered:
    """Match every object of a reference list with all objects of a finished scan.

    If several scanned objects are within the radius, the match is the candidate of the smallest rank, else the nearest
    scored object, else the nearest in quarantine.

    Raises
    ------
    InputError
        If the run is not finished or its scores are missing, the list cannot be read, or the radius is out of range.
    """
    check_radius(radius)
    known = catalog if isinstance(catalog, ReferenceCatalog) else read_known(catalog)
    path = Path(run)
    rows, info = open_candidates(path)
    found, lowest_score = [], float("nan")
    for piece in rows.select(["objid", "store", "ra", "dec", "rank", "score"]):
        pairs = _pairs(known, piece, radius)
        matches = piece.take(pairs["row"].to_numpy()).to_pandas().rename(columns={"objid": "id"})
        found.append(pairs.assign(fate=CANDIDATE, rank=matches["rank"], score=matches["score"], **_identity(matches)))
        lowest_score = float(piece["score"][-1].as_py())
    for file, piece in scan_tables.iter_partitions(path, info, ["ra", "dec"], f"{known.title} among the scored"):
        if len(pairs := _pairs(known, piece, radius)):
            # A similarity list is not ranked by the scan's scores, so these are not read.
            scores = {
                of_target(name, info["target"], info.get("targets", [])): name for name in ("score", "first_look")
            }
            names = IDENTITY_COLUMNS if is_similarity_list(info) else [*IDENTITY_COLUMNS, *scores]
            columns = scan_tables.columns_of(file, names)
            matches = columns.take(pairs["row"].to_numpy()).to_pandas().rename(columns=scores)
            if is_similarity_list(info):
                found.append(pairs.assign(fate=BELOW, **_identity(matches)))
                continue
            discarded = matches["score"].isna()
            found.append(pairs.assign(
                fate=np.where(discarded, DISCARDED, BELOW), score=matches["score"].fillna(matches["first_look"]),
                **_identity(matches),
            ))  # fmt: skip
    for file, piece in scan_tables.iter_partitions(
        path, info, ["ra", "dec"], f"{known.title} in quarantine", quarantined=True
    ):
        if len(pairs := _pairs(known, piece, radius)):
            columns = scan_tables.columns_of(file, [*IDENTITY_COLUMNS, "reason"])
            matches = columns.take(pairs["row"].to_numpy()).to_pandas()
            found.append(pairs.assign(fate=QUARANTINED, reason=matches["reason"], **_identity(matches)))
    return Recovered(known.title, radius, known.without_position, _best(known, found, info), lowest_score)


def _identity(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the columns that identify the scanned objects, under names that do not clash with those of the list."""
    return {"id": rows["id"].astype(str), "store": rows["store"].astype(str), "x": rows["ra"], "y": rows["dec"]}


def _pairs(known: ReferenceCatalog, piece: pa.Table, radius: float) -> pd.DataFrame:
    """Return all pairs of a listed object and a row within the radius: columns object, row, sep."""
    positions = np.flatnonzero(has_position(piece))
    points = _points(piece, positions)
    bound = chord(radius) * _SLACK
    # Few rows have a neighbour, and only for those are all neighbours searched.
    nearest = known.tree.query(points, distance_upper_bound=bound)[0] if len(positions) else np.empty(0)
    objects, rows, chords = [], [], []
    for k in np.flatnonzero(np.isfinite(nearest)):
        for j in known.tree.query_ball_point(points[k], bound):
            objects.append(j)
            rows.append(positions[k])
            chords.append(np.linalg.norm(known.tree.data[j] - points[k]))
    return pd.DataFrame({
        "object": np.array(objects, int), "row": np.array(rows, int), "sep": arcseconds(np.array(chords, float)),
    })  # fmt: skip


def _best(known: ReferenceCatalog, found: list[pd.DataFrame], info: dict[str, Any]) -> pd.DataFrame:
    """Return one row per object of the list, with its best match."""
    listed = pd.DataFrame({"name": known.names, "ra": known.ra, "dec": known.dec})
    columns = ["object", "fate", "rank", "score", "sep", "reason", "id", "store", "x", "y"]
    matches = pd.concat([frame for frame in found if len(frame)] or [pd.DataFrame(columns=columns)], ignore_index=True)
    matches = matches.reindex(columns=columns)
    priority = matches["fate"].map({CANDIDATE: 0, BELOW: 1, DISCARDED: 1, QUARANTINED: 2})
    matches = matches.assign(priority=priority).sort_values(["object", "priority", "rank", "sep"])
    best = matches.drop_duplicates("object").set_index("object").reindex(range(len(known)))
    in_train = _in_train(best, info)
    return listed.assign(
        fate=best["fate"].fillna(ELSEWHERE).to_numpy(object), rank=best["rank"].fillna(0).to_numpy(np.int64),
        score=best["score"].to_numpy(np.float64), sep=best["sep"].to_numpy(np.float64),
        reason=np.where(best["reason"].notna(), best["reason"], ""), in_train=in_train,
    )  # fmt: skip


def _in_train(best: pd.DataFrame, info: dict[str, Any]) -> np.ndarray | None:
    """Return which matches are in the model's training set; None if the model is missing."""
    from galscan.models.model import open_model

    try:
        model = open_model(str(info["model"]))
    except InputError:
        return None
    if model.model_hash != info["identity"]["model"]:
        return None
    matched = best["id"].notna().to_numpy()
    rows = best.rename(columns={"x": "ra", "y": "dec"}).assign(lineage=best["store"].map(lineages(info)))[matched]
    in_train = np.full(len(best), False, object)
    in_train[matched] = model.in_train(rows, astrometry(info))
    return in_train


def _fraction(scanned: pd.DataFrame) -> dict[str, Any]:
    """Return the fraction of scanned objects that are candidates, with its Clopper-Pearson interval."""
    found, count = int((scanned["rank"] > 0).sum()), len(scanned)
    if not count:
        return {"found": 0, "of": 0, "value": None, "low": None, "high": None}
    low, high = binomtest(found, count).proportion_ci(_CONFIDENCE, method="exact")
    return {"found": found, "of": count, "value": found / count, "low": float(low), "high": float(high)}


def _lines(summary: dict[str, Any]) -> list[str]:
    fates = summary["fates"]
    lines = [
        f"{summary['list']}: {summary['objects']:,} objects"
        + (f" (and {summary['without_position']:,} without a position)" if summary["without_position"] else "")
        + f"; {summary['scanned']:,} scanned, {fates[QUARANTINED]:,} quarantined, {fates[ELSEWHERE]:,} not scanned"
    ]
    if not summary["scanned"]:
        return lines
    ranks = ", ".join(map(str, summary["ranks"][:12])) + (", ..." if len(summary["ranks"]) > 12 else "")
    lines.append(f"  candidates    {_percent(summary['recovered'])}" + (f", ranks {ranks}" if ranks else ""))
    if (untrained := summary["recovered_untrained"]) is None:
        lines.append("  trained on    unknown, as the model is missing: training objects bias the recovered fraction")
    elif untrained["of"] < summary["scanned"]:
        lines.append(f"  not trained on {_percent(untrained)}")
    missed = {fate: fates[fate] for fate in (BELOW, DISCARDED) if fates[fate]}
    if missed:
        lines.append("  missed        " + ", ".join(f"{count:,} {fate}" for fate, count in missed.items()))
    if summary["sharing"]:
        lines.append(f"  shared        {summary['sharing']:,} match the same candidate as another object of the list")
    return lines


def _percent(fraction: dict[str, Any]) -> str:
    if not fraction["of"]:
        return "none was scanned"
    return (
        f"{fraction['found']:,} of {fraction['of']:,}: {100 * fraction['value']:.0f} % "
        f"({100 * fraction['low']:.0f}-{100 * fraction['high']:.0f} with 95 % confidence)"
    )
