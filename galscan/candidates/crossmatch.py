"""Crossmatch of candidates with reference lists: which candidates are new, and which listed objects were recovered.

Separations are measured on the sphere. A candidate is known if a listed object is within the radius; a listed object
is recovered if a candidate is within the radius.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.spatial import KDTree
from scipy.stats import binomtest

from galscan.candidates.external_catalogs import Match, Position, ServiceMatches
from galscan.candidates.reference_catalog import RADIUS, ReferenceCatalog, check_radius, read_known
from galscan.candidates.run import open_candidates
from galscan.candidates.table_stream import TableStream, has_position
from galscan.core.errors import InputError
from galscan.core.sky import arcseconds, chord, unit_vectors
from galscan.scanning.partitions import of_target
from galscan.scanning.run import Run

COLUMNS = ("known_name", "known_ref", "known_sep", "known_type")
NOT_ASKED = "not asked: "  # in known_ref, prefix of the services without a response
FATES = CANDIDATE, BELOW, DISCARDED, QUARANTINED, ELSEWHERE = (
    "candidate", "scored below the list", "rejected by the prefilter", "quarantined", "not scanned"
)  # fmt: skip
_CONFIDENCE = 0.95
IDENTITY_COLUMNS = ["store", "id", "ra", "dec"]  # columns that identify an object of a scan
_SLACK = 1 + 1e-9  # an object exactly at the radius matches in spite of rounding


def annotate(
    rows: TableStream, lists: Sequence[ReferenceCatalog], radius: float, services: Sequence[ServiceMatches] = ()
) -> TableStream:
    """Return the rows with the columns ``known_name``, ``known_ref`` and ``known_sep`` added.

    Name and separation (arcsec) are those of the nearest object in any list or service; ``known_ref`` names all
    sources with an object within the radius, nearest first, then the services that did not respond. Without a match
    they are empty and NaN. With services, ``known_type`` is the type of the nearest object that has one.
    """
    check_radius(radius)
    titles = [*(known.title for known in lists), *(service.title for service in services)]
    if repeated := next((title for title in titles if titles.count(title) > 1), None):
        raise InputError(
            f"two reference lists have the name '{repeated}'; rename one of the files, as matches refer to it"
        )

    def add(piece: pa.Table) -> pa.Table:
        piece = piece.drop_columns([name for name in COLUMNS if name in piece.column_names])
        name, ref, kind = (np.full(len(piece), "", object) for _ in range(3))
        separation = np.full(len(piece), np.nan)
        matches, missing = _matches(piece, lists, services, radius)
        for row in {*matches, *missing}:
            found = sorted(matches[row], key=lambda match: match[1].sep)
            sources = [title for title, _ in found]
            if found:
                separation[row], name[row] = found[0][1].sep, found[0][1].name
                kind[row] = next((match.kind for _, match in found if match.kind), "")
            if missing[row]:
                sources.append(NOT_ASKED + ", ".join(missing[row]))
            ref[row] = "; ".join(sources)
        values = [pa.array(name, pa.string()), pa.array(ref, pa.string()), pa.array(separation)]
        values += [pa.array(kind, pa.string())] if services else []
        before = [name for name in ("in_train", "duplicate") if name in piece.column_names]
        position = piece.column_names.index(before[-1]) + 1 if before else piece.num_columns
        for k, (column, value) in enumerate(zip(COLUMNS, values, strict=False)):
            piece = piece.add_column(position + k, column, value)
        return piece

    return rows.map(add)


def _matches(
    piece: pa.Table, lists: Sequence[ReferenceCatalog], services: Sequence[ServiceMatches], radius: float
) -> tuple[dict[int, list[tuple[str, Match]]], dict[int, list[str]]]:
    """Return by row the nearest object of each source, and the services that did not respond."""
    matches, missing = defaultdict(list), defaultdict(list)
    for known in lists:
        nearest = _pairs(known, piece, radius).sort_values("sep").drop_duplicates("row")
        for k, row, sep in nearest.itertuples(index=False):
            matches[row].append((known.title, Match(sep, known.names[k], "")))
    for row, position in _positions(piece) if services else ():
        for service in services:
            if position not in service.matches:
                missing[row].append(service.title)
            elif (match := service.matches[position]) is not None:
                matches[row].append((service.title, match))
    return matches, missing


def _positions(piece: pa.Table) -> list[tuple[int, Position]]:
    """Return row number and position of the rows that have one."""
    ra, dec = (piece[name].to_numpy().tolist() for name in ("ra", "dec"))
    return [(row, (ra[row], dec[row])) for row in np.flatnonzero(has_position(piece)).tolist()]


def positions(rows: TableStream) -> list[Position]:
    """Return the positions of all rows that have one, in order."""
    return [position for piece in rows.select(["ra", "dec"]) for _, position in _positions(piece)]


def count(rows: TableStream) -> dict[str, int]:
    """Return the numbers of annotated rows that are known, without a position (unmatched), and not asked.

    A row is not asked if it has no match and a service did not respond.
    """
    counts = dict.fromkeys(("known", "unmatched", "not_asked"), 0)
    for piece in rows.select(["ra", "dec", "known_name", "known_ref"]):
        known = pc.not_equal(piece["known_name"], "").to_numpy()
        counts["known"] += int(known.sum())
        counts["unmatched"] += int((~has_position(piece)).sum())
        counts["not_asked"] += int((~known & pc.match_substring(piece["known_ref"], NOT_ASKED).to_numpy()).sum())
    return counts


@dataclass(frozen=True)
class Recovered:
    """Outcome of each object of a reference list in a scan.

    Attributes
    ----------
    title : str
        Title of the list.
    radius : float
        Arcseconds.
    without_position : int
        Rows of the list without a position.
    objects : DataFrame
        One row per object, in the order of the list: name, ra, dec, fate (one of `FATES`), rank (0 for none), score,
        sep (arcsec), reason (of quarantine), in_train (None if the model is missing). The score is that of the full
        network, or of the prefilter for objects that it discarded.
    lowest_score : float
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
        summary: dict[str, Any] = {
            "list": self.title, "radius_arcsec": self.radius, "objects": len(objects),
            "without_position": self.without_position,
            "fates": {fate: int((objects["fate"] == fate).sum()) for fate in FATES},
            "scanned": len(scanned), "recovered": _fraction(scanned),
            "recovered_untrained": None if unknown else _fraction(scanned[~scanned["in_train"].astype(bool)]),
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
    rows, opened = open_candidates(run)
    info = opened.info
    found, lowest_score = [], float("nan")
    for piece in rows.select(["objid", "store", "ra", "dec", "rank", "score"]):
        found.append(_matched(known, piece, radius).rename(columns={"objid": "id"}).assign(fate=CANDIDATE))
        lowest_score = float(piece["score"][-1].as_py())
    # A similarity list is not ranked by the scan's scores, so these are not read.
    scores = {
        of_target(name, info.target, info.targets): name
        for name in ("score", "first_look")
        if not info.is_similarity_list
    }
    for piece in opened.scores([*IDENTITY_COLUMNS, *scores], f"{known.title} among the scored"):
        matches = _matched(known, piece, radius).rename(columns=scores).assign(fate=BELOW)
        if scores:
            matches.loc[matches["score"].isna(), "fate"] = DISCARDED
            matches["score"] = matches["score"].fillna(matches["first_look"])
        found.append(matches)
    for piece in opened.quarantined([*IDENTITY_COLUMNS, "reason"], f"{known.title} in quarantine"):
        found.append(_matched(known, piece, radius).assign(fate=QUARANTINED))
    return Recovered(known.title, radius, known.without_position, _best(known, found, opened), lowest_score)


def _matched(known: ReferenceCatalog, piece: pa.Table, radius: float) -> pd.DataFrame:
    """Return all pairs of a listed object and a row within the radius: object, sep, and the columns of the row."""
    pairs = _pairs(known, piece, radius)
    return pairs.join(piece.take(pairs["row"].to_numpy()).to_pandas())


def _pairs(known: ReferenceCatalog, piece: pa.Table, radius: float) -> pd.DataFrame:
    """Return all pairs of a listed object and a row within the radius: columns object, row, sep."""
    rows = np.flatnonzero(has_position(piece))
    points = unit_vectors(piece["ra"].to_numpy()[rows], piece["dec"].to_numpy()[rows])
    pairs = known.tree.sparse_distance_matrix(KDTree(points), chord(radius) * _SLACK, output_type="ndarray")
    return pd.DataFrame({"object": pairs["i"], "row": rows[pairs["j"]], "sep": arcseconds(pairs["v"])})


def _best(known: ReferenceCatalog, found: list[pd.DataFrame], run: Run) -> pd.DataFrame:
    """Return one row per object of the list, with its best match."""
    columns = ["object", "fate", "rank", "score", "sep", "reason", "id", "store", "ra", "dec"]
    # Text, as missing values would turn integers into floating-point numbers, which have too few digits for ids.
    frames = [frame.astype({"id": str, "store": str}) for frame in found if len(frame)]
    frames = frames or [pd.DataFrame(columns=columns)]
    matches = pd.concat(frames, ignore_index=True).reindex(columns=columns)
    priority = matches["fate"].map({CANDIDATE: 0, BELOW: 1, DISCARDED: 1, QUARANTINED: 2})
    matches = matches.assign(priority=priority).sort_values(["object", "priority", "rank", "sep"])
    best = matches.drop_duplicates("object").set_index("object").reindex(range(len(known)))
    return pd.DataFrame({
        "name": known.names, "ra": known.ra, "dec": known.dec, "fate": best["fate"].fillna(ELSEWHERE).to_numpy(object),
        "rank": best["rank"].fillna(0).to_numpy(np.int64), "score": best["score"].to_numpy(np.float64),
        "sep": best["sep"].to_numpy(np.float64), "reason": np.where(best["reason"].notna(), best["reason"], ""),
        "in_train": _in_train(best, run),
    })  # fmt: skip


def _in_train(best: pd.DataFrame, run: Run) -> np.ndarray | None:
    """Return which matches are in the model's training set; None if the model is missing."""
    if (model := run.model_if_unchanged()) is None:
        return None
    matched = best["id"].notna().to_numpy()
    rows = best[matched]
    in_train = np.full(len(best), False, object)
    in_train[matched] = model.in_train(rows.assign(lineage=rows["store"].map(run.info.lineages)), run.info.astrometry)
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
