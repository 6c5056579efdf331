"""A small copy of SkyServer's database: SQLite, with TOP and fGetNearbyObjEq translated."""

from __future__ import annotations

import csv
import io
import re
import sqlite3

import numpy as np
from astropy.coordinates import angular_separation

from galscan.labels.schema import load_schema

FIRST_ID = 1237645879551066262  # an objID of DR8 and later
ROW_LIMIT = 500_000
SUFFIXES = ("count", "weight", "fraction", "weighted_fraction", "debiased", "flag")


def positions(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids and positions of the galaxies in the database; ids are not sorted."""
    rng = np.random.default_rng(11)
    ids = FIRST_ID + 7 * np.arange(count)
    return rng.permutation(ids), rng.uniform(0, 360, count).round(8), rng.uniform(-30, 60, count).round(8)


class Database:
    """Photometry of `count` galaxies, and votes for three of four."""

    def __init__(self, count: int):
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        self._db.create_function("separation", 4, separation)
        rng = np.random.default_rng(12)
        ids, ra, dec = positions(count)
        radius, magnitude = rng.uniform(3, 15, count).round(5), rng.uniform(13, 19, count).round(4)
        photo = "objID INTEGER, ra REAL, dec REAL, petroR90_r REAL, petroMag_r REAL, type INTEGER, mode INTEGER"
        photo += ", run INTEGER, rerun INTEGER, camcol INTEGER, field INTEGER"
        self._db.execute(f"CREATE TABLE PhotoObjAll ({photo})")
        rows = zip(ids.tolist(), ra.tolist(), dec.tolist(), radius.tolist(), magnitude.tolist(), strict=True)
        self._db.executemany("INSERT INTO PhotoObjAll VALUES (?,?,?,?,?,3,1,756,301,2,206)", rows)
        self._db.execute("CREATE VIEW Galaxy AS SELECT * FROM PhotoObjAll WHERE type = 3 AND mode = 1")
        answers = [f"{a}_{s}" for a in load_schema("gz2").names for s in SUFFIXES]
        head = ["specobjid", "dr8objid", "dr7objid", "ra", "dec", "gz2class", "total_classifications", "total_votes"]
        self._db.execute(f"CREATE TABLE zoo2MainSpecz ({', '.join([*head, *answers])})")
        voted = np.arange(count) % 4 > 0
        for k in np.flatnonzero(voted):
            votes = self._votes(np.random.default_rng(k))
            # Positions of this table are in single precision, as in SkyServer, and must not be used.
            rough = float(np.float32(ra[k])), float(np.float32(dec[k]))
            values = [10**18 + int(k), int(ids[k]), 587 * 10**15 + int(k), *rough, "Sb", 45, 200, *votes]
            self._db.execute(f"INSERT INTO zoo2MainSpecz VALUES ({','.join('?' * len(values))})", values)

    @staticmethod
    def _votes(rng: np.random.Generator) -> list[float]:
        values: list[float] = []
        for task in load_schema("gz2").tasks:
            counts = rng.integers(0, 20, len(task.answers))
            fraction = (counts / max(counts.sum(), 1)).round(3)
            for n, f in zip(counts.tolist(), fraction.tolist(), strict=True):
                values += [n, n, f, f, f, 0]
        return values

    def answer(self, sql: str) -> str:
        """Return SkyServer's CSV: a comment, the header, the rows."""
        try:
            cursor = self._db.cursor().execute(_in_sqlite(sql))
            rows = cursor.fetchmany(ROW_LIMIT)
        except sqlite3.Error as error:
            return f"#Table1\nerror_message\n{error}\n"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column[0] for column in cursor.description])
        writer.writerows(rows)
        return "#Table1\n" + text.getvalue()


def _in_sqlite(sql: str) -> str:
    top = re.match(r"\s*SELECT\s+TOP\s+(\d+)\s", sql, re.IGNORECASE)
    if top:
        sql = "SELECT " + sql[top.end() :] + f" LIMIT {top[1]}"
    near = r"dbo\.fGetNearbyObjEq\(([-\d.]+),\s*([-\d.]+),\s*([-\d.]+)\)"
    disk = r"(SELECT objID FROM PhotoObjAll WHERE separation(ra, dec, \1, \2) * 60 <= \3)"
    return re.sub(near, disk, sql, flags=re.IGNORECASE)


def separation(ra: float, dec: float, ra0: float, dec0: float) -> float:
    return float(np.degrees(angular_separation(*np.radians([ra, dec, ra0, dec0]))))
