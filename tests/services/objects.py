"""Responses of CDS XMatch and NED for the objects of a test: {"in": "simbad", "name", "ra", "dec", "type"}."""

from __future__ import annotations

import csv
import email
import io
import re
from typing import Any

from tests.services.database import separation

Object = dict[str, Any]

# Responses that are CSV but invalid.
WRONG = {
    "columns": b"recno,RAJ2000,DEJ2000\n1,10.0,20.0\n",
    "breaks": b"angDist,galscan_row,prefname,ra,dec,prefphytype,main_id,main_type\n0.5,0,NGC 1,10.0,20",
    "strange": b"angDist,galscan_row,prefname,ra,dec,prefphytype,main_id,main_type\n9e9,999999,NGC 1,10,-89.9,G,N,G\n",
    "empty": b"",
}


def xmatch(known: list[Object], kind: str, body: bytes) -> bytes:
    """Respond to a form with a file: the nearest object of each row, its columns after those of the request."""
    message = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    form = {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True).decode()  # type: ignore
        for part in message.get_payload()
    }
    if form["request"] != "xmatch" or form["RESPONSEFORMAT"] != "csv" or form["selection"] != "best":
        raise ValueError("not a request of this kind")
    table, radius = form["cat2"], float(form["distMaxArcsec"])
    if table != "simbad" and not any(o["in"] == table for o in known):
        raise ValueError(f"table {table} not found")
    rows = list(csv.DictReader(io.StringIO(form["cat1"])))
    if len(rows) < 2 or radius > 180:
        raise ValueError("Mauvaise Requete")
    theirs = ["main_id", "ra", "dec", "main_type"] if table == "simbad" else ["PGC", "RAJ2000", "DEJ2000"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["angDist", *rows[0], *theirs])
    for row in rows:
        ra, dec = float(row[form["colRA1"]]), float(row[form["colDec1"]])
        near = [(3600 * separation(o["ra"], o["dec"], ra, dec), o) for o in known if o["in"] == table]
        sep, best = min(near, key=lambda pair: pair[0], default=(999.0, {}))
        if sep <= radius:
            more = [best["type"]] if table == "simbad" else []
            writer.writerow([f"{sep:.6f}", *row.values(), best["name"], best["ra"], best["dec"], *more])
    return text.getvalue().encode()


def ned(known: list[Object], query: str) -> bytes:
    """Return all objects in at least one of the circles."""
    if "FROM NEDTAP.objdir" not in query:
        return b"<VOTABLE><INFO>no such table</INFO></VOTABLE>"
    circles = [tuple(map(float, c)) for c in re.findall(r"CIRCLE\('J2000',([-\d.]+),([-\d.]+),([-\d.]+)\)\)=1", query)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["prefname", "ra", "dec", "prefphytype"])
    for o in known:
        if o["in"] == "ned" and any(separation(o["ra"], o["dec"], ra, dec) <= r for ra, dec, r in circles):
            writer.writerow([o["name"], o["ra"], o["dec"], o["type"]])
    return text.getvalue().encode()
