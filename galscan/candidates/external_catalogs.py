"""Queries of SIMBAD, NED and VizieR for known objects at the positions of candidates.

One request holds many positions: a thousand candidates take one request to CDS. Each response is cached on disk before
the next request, so that an interrupted call can be resumed. Positions without a response are marked "not asked",
which differs from an empty result.

Sources of the request formats (written without live requests; tests marked ``network`` make them):

CDS XMatch (SIMBAD, VizieR)
    ``POST`` of a form with the file ``cat1``; parameters and limits (180 arcsec, 100 MB) from its documentation,
    cdsxmatch.u-strasbg.fr/xmatch/doc/API-calls.html, as in astroquery/xmatch/core.py. The columns of the CSV
    (``angDist``, those sent, those of the table) are as in astroquery's recorded response; ``main_id`` and
    ``main_type`` of SIMBAD as its clients read them. The service rejected a file of one row (astroquery issue 1376),
    so at least two are sent. An empty body counts as no response, as an empty result has a header.
NED
    ``GET`` of its TAP service, ``NEDTAP.objdir`` with ``prefname`` and ``prefphytype``: many circles in one query, as
    in other clients and in Gnuastro; the service ends a query after 60 s.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

import numpy as np

from galscan.candidates.reference_catalog import NAMES
from galscan.core import home
from galscan.core.errors import InputError, nearest
from galscan.core.progress import track
from galscan.core.sky import arcseconds, unit_vectors
from galscan.surveys.columns.angles import plain
from galscan.surveys.columns.names import ROLES, columns_of
from galscan.surveys.services.cache import Response
from galscan.surveys.services.client import Client, RequestPolicy
from galscan.surveys.services.errors import FetchError, ServiceUnavailableError

MAX_CANDIDATES = 5_000  # queried without --top
DAYS = 30.0  # after which a cached response expires, as the services add objects
MAX_NAME_LENGTH = 80  # characters
VIZIER = "vizier:"
NAMES_OF_SERVICES = ("simbad", "ned", VIZIER + "TABLE")
_SLACK = 0.01  # arcsec: services round
_ROW, _RA, _DEC = "galscan_row", "galscan_ra", "galscan_dec"

Position = tuple[float, float]  # right ascension and declination in degrees


class Match(NamedTuple):
    """Nearest object in a service: separation in arcseconds, name, and type ("" if unknown)."""

    sep: float
    name: str
    kind: str


@dataclass(frozen=True)
class Service:
    """URL of a service, maximum number of positions per request, and request policy."""

    url: str
    batch: int
    policy: RequestPolicy


XMATCH = Service(
    "http://cdsxmatch.u-strasbg.fr/xmatch/api/v1/sync", 1_000,
    RequestPolicy(
        hosts=("cdsxmatch.u-strasbg.fr", "cdsxmatch.cds.unistra.fr"), per_minute=6, connections=1, timeout=120,
        tries=3,
        give_up=3,
    ),
)  # fmt: skip
NED = Service(
    "https://ned.ipac.caltech.edu/tap/sync",
    40,
    RequestPolicy(hosts=("ned.ipac.caltech.edu",), per_minute=12, connections=1, timeout=90, tries=3, give_up=3),
)


@dataclass
class ServiceMatches:
    """Matches from a service: ``simbad``, ``ned`` or ``vizier:TABLE``."""

    title: str
    #: The match at each position with a response, None for an empty result.
    matches: dict[Position, Match | None] = field(default_factory=dict)
    error: str = ""  # why positions are missing


def parse_services(text: str | Sequence[str]) -> list[str]:
    """Return the services named in a text like ``simbad,ned,vizier:TABLE``."""
    names: list[str] = []
    for given in text.split(",") if isinstance(text, str) else text:
        name = given.strip().lower()
        if name.startswith(VIZIER):
            table = given.strip()[len(VIZIER) :].strip()  # names of tables have capital letters
            name = VIZIER + table
            if not re.fullmatch(r"[A-Za-z0-9.+_/-]{3,80}", table) or ".." in table:
                raise InputError(f"--crossmatch {name}: give the name of a table, as vizier:VII/118/ngc2000")
        elif name not in ("simbad", "ned"):
            raise InputError(
                f"--crossmatch {given.strip()!r} is unknown{nearest(name, NAMES_OF_SERVICES)}; "
                "give simbad, ned or vizier:TABLE, separated by commas"
            )
        if name in names:
            raise InputError(f"--crossmatch names {name} twice; name it once")
        names.append(name)
    return names


def minutes(names: Sequence[str], count: int) -> float:
    """Return the minutes that queries of `count` positions take at the services' rate limits."""
    services = [NED if name == "ned" else XMATCH for name in names]
    return sum(math.ceil(count / service.batch) / service.policy.per_minute for service in services)


def check_count(names: Sequence[str], count: int, top: int | None) -> None:
    """Require `top` for queries of more than `MAX_CANDIDATES` candidates."""
    if top is None and count > MAX_CANDIDATES:
        raise InputError(
            f"--crossmatch would query {count:,} candidates, {minutes(names, count):,.1f} minutes at the services' "
            f"rate limits; give --top {MAX_CANDIDATES} ({minutes(names, MAX_CANDIDATES):,.1f} minutes), or --top "
            f"{count} for all of them"
        )


def query_service(name: str, positions: Iterable[Position], radius: float, contact: str = "") -> ServiceMatches:
    """Query a service for the nearest object within `radius` (arcsec) of each position; cached responses are reused.

    If the service fails no error is raised; its positions are missing in the result.
    """
    service, request = (NED, _ned) if name == "ned" else (XMATCH, _xmatch)
    result = ServiceMatches(name)
    client = Client(service.policy, cache=home.cache_home(), contact=contact)
    client.cache.prune()
    remaining = list(dict.fromkeys(positions))
    with track(name, len(remaining), "candidates") as advance:
        for start in range(0, len(remaining), service.batch):
            batch = remaining[start : start + service.batch]
            url, form, read = request(service.url, name, batch, radius)
            try:
                found = client.get(url, read, form, DAYS)
            except ServiceUnavailableError as error:
                result.error = str(error).partition("; downloaded data are kept")[0]
                break
            except FetchError as error:
                result.error = f"{urlsplit(url).netloc}: {error}"
            else:
                nearest_first = sorted(found, key=lambda entry: entry[1].sep)
                matches = {batch[k]: match for k, match in reversed(nearest_first)}
                result.matches |= dict.fromkeys(batch) | matches
            advance(len(batch))
    return result


Found = list[tuple[int, Match]]  # number of the position, and an object there
Request = tuple[str, Mapping[str, object] | None, Callable[[Response], Found]]  # URL, form, parser of the response


def _xmatch(url: str, name: str, positions: Sequence[Position], radius: float) -> Request:
    """Return a request to CDS XMatch."""
    lines = [f"{k},{ra:.8f},{dec:.8f}" for k, (ra, dec) in enumerate(positions)]
    table = "\n".join([f"{_ROW},{_RA},{_DEC}", *lines, *lines[: 2 - len(lines)]]) + "\n"
    form = {
        "request": "xmatch", "distMaxArcsec": f"{radius:g}", "selection": "best", "RESPONSEFORMAT": "csv",
        "cat1": ("cat1.csv", table), "colRA1": _RA, "colDec1": _DEC, "cat2": name,
    }  # fmt: skip

    def read(response: Response) -> Found:
        columns, rows = _csv(response, (_ROW, "angDist"))
        name_column = _name_column([c for c in columns if c not in (_ROW, _RA, _DEC, "angDist")])
        found = []
        for row in rows:
            k, sep = _number(row[_ROW]), _number(row["angDist"])
            if k not in range(len(positions)) or not 0 <= sep <= radius + _SLACK:
                raise FetchError(
                    f"the response has an object that was not requested, {row['angDist'][:20]} arcsec from row "
                    f"{row[_ROW][:20]}"
                )
            kind = _text(row.get("main_type", "")) if name == "simbad" else ""
            if sep <= radius:
                found.append((int(k), Match(sep, _object_name(row, name_column) or name, kind)))
        return found

    return url, form, read


def _ned(url: str, name: str, positions: Sequence[Position], radius: float) -> Request:
    """Return a request to NED."""
    size = f"{radius / 3600:.8f}"
    circles = " OR ".join(
        f"CONTAINS(POINT('J2000',ra,dec),CIRCLE('J2000',{ra:.7f},{dec:.7f},{size}))=1" for ra, dec in positions
    )
    query = f"SELECT prefname,ra,dec,prefphytype FROM NEDTAP.objdir WHERE {circles}"
    points = unit_vectors(*np.array(positions).T)

    def read(response: Response) -> Found:
        found = []
        for row in _csv(response, ("prefname", "ra", "dec", "prefphytype"))[1]:
            ra, dec = _number(row["ra"]), _number(row["dec"])
            separation = arcseconds(np.linalg.norm(points - unit_vectors(np.array(ra), np.array(dec)), axis=1))
            near = np.flatnonzero(separation <= radius)
            if not len(near) and not separation.min() <= radius + 0.1:  # also NaN
                raise FetchError(
                    f"the response has an object that was not requested, at {row['ra'][:20]}, {row['dec'][:20]}"
                )
            object_name, kind = _text(row["prefname"]) or name, _text(row["prefphytype"])
            # An object may match several candidates.
            found += [(k, Match(float(separation[k]), object_name, kind)) for k in near.tolist()]
        return found

    parameters = {"REQUEST": "doQuery", "LANG": "ADQL", "FORMAT": "csv", "QUERY": query}
    return f"{url}?{urlencode(parameters)}", None, read


def _csv(response: Response, required: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    """Return columns and rows of a response, which must be complete CSV with the required columns."""
    if response.absent:
        raise FetchError(f"HTTP {response.status}")
    try:
        text = response.body.decode("utf-8")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error):
        raise FetchError(f"the response is not a table: {response.excerpt()}") from None
    columns = [c.strip() for c in lines[0]] if lines else []
    if absent := [c for c in required if c not in columns]:
        raise FetchError(f"the response is not a table with the column {absent[0]}: {response.excerpt() or 'empty'}")
    rows = [line for line in lines[1:] if line]
    if rows and (not text.endswith("\n") or any(len(line) != len(columns) for line in rows)):
        raise FetchError("the response is truncated")
    # Of two columns with one name the first is used: the columns that were sent come before those of the service.
    return columns, [dict(zip(reversed(columns), reversed(line), strict=True)) for line in rows]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _text(text: str) -> str:
    """Return text from a service as one printable line of at most `MAX_NAME_LENGTH` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_NAME_LENGTH else line[: MAX_NAME_LENGTH - 3] + "..."


def _name_column(columns: list[str]) -> str:
    """Return the column with the names of objects: a usual one, else the first that is not a position."""
    positions = {plain(name) for name in (*ROLES["ra"], *ROLES["dec"])}
    return next(iter([*columns_of(NAMES, columns), *(c for c in columns if plain(c) not in positions)]), "")


def _object_name(row: Mapping[str, str], column: str) -> str:
    """Return the name of an object; a mere number is prefixed with the column's name."""
    value = _text(row.get(column, ""))
    is_name = column.lower() in NAMES and any(c.isalpha() for c in value)
    return value if is_name or not value else _text(f"{column} {value}")
