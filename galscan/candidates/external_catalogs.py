"""What SIMBAD, NED and the tables of VizieR have at the places of candidates: asked politely, kept, never guessed.

Many places go in one request, so that a thousand candidates are one question to CDS. Each answer is kept on disk before
the next is asked for: whatever stops this, the same call goes on. A place for which no answer came is *not asked*,
which is another thing than nothing being there.

How the services are asked, and where that was read (none was asked live when this was written; the tests marked
``network`` do):

CDS XMatch (SIMBAD, VizieR)
    ``POST`` of a form with the file ``cat1``; parameters and limits (180 arcsec, 100 MB) from its own documentation,
    cdsxmatch.u-strasbg.fr/xmatch/doc/API-calls.html, the same as astroquery/xmatch/core.py sends. The columns of the
    CSV (``angDist``, those sent, those of the table) are as in astroquery's recorded answer; ``main_id`` and
    ``main_type`` of SIMBAD as clients of it read them. A file of one row was refused (astroquery issue 1376), so
    there are two at least. An empty body is taken for no answer, as a header alone says that nothing was found.
NED
    ``GET`` of its TAP service, ``NEDTAP.objdir`` with ``prefname`` and ``prefphytype``: many circles in one query, as
    in clients of it and in Gnuastro; a query is ended after 60 s.
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
from galscan.surveys import tables
from galscan.surveys.services.cache import Response
from galscan.surveys.services.client import Client, RequestPolicy
from galscan.surveys.services.errors import FetchError, ServiceUnavailableError

MOST = 5_000  # candidates asked for unless --top says how many
DAYS = 30.0  # after which an answer is asked for again: these services grow
LONGEST = 80  # characters of a name
VIZIER = "vizier:"
NAMES_OF_SERVICES = ("simbad", "ned", VIZIER + "TABLE")
_SLACK = 0.01  # arcsec: services round
_ROW, _RA, _DEC = "galscan_row", "galscan_ra", "galscan_dec"

Place = tuple[float, float]


class Match(NamedTuple):
    """The nearest object that a service has: arcseconds away, its name, its type ("" where none is given)."""

    sep: float
    name: str
    kind: str


@dataclass(frozen=True)
class Service:
    """Where something is asked for, how many places a request, and how often."""

    url: str
    places: int
    policy: RequestPolicy


XMATCH = Service(
    "http://cdsxmatch.u-strasbg.fr/xmatch/api/v1/sync",
    1_000,
    RequestPolicy(
        ("cdsxmatch.u-strasbg.fr", "cdsxmatch.cds.unistra.fr"),
        per_minute=6,
        connections=1,
        timeout=120,
        tries=3,
        give_up=3,
    ),
)
NED = Service(
    "https://ned.ipac.caltech.edu/tap/sync",
    40,
    RequestPolicy(("ned.ipac.caltech.edu",), per_minute=12, connections=1, timeout=90, tries=3, give_up=3),
)


@dataclass
class ServiceMatches:
    """What a service said.

    Attributes
    ----------
    title : str
        ``simbad``, ``ned`` or ``vizier:TABLE``.
    answers : dict
        The match at each place that was answered, None where nothing is there. A place that is missing was not asked.
    trouble : str
        Why places are missing.
    """

    title: str
    answers: dict[Place, Match | None] = field(default_factory=dict)
    trouble: str = ""


def parse_services(text: str | Sequence[str]) -> list[str]:
    """Return the services of ``simbad,ned,vizier:TABLE``.

    Raises
    ------
    InputError
        If one is unknown, or named twice.
    """
    given = text.split(",") if isinstance(text, str) else list(text)
    names: list[str] = []
    for raw in given:
        name = raw.strip()
        if name.lower().startswith(VIZIER):
            name = VIZIER + name[len(VIZIER) :].strip()
            if not re.fullmatch(r"[A-Za-z0-9.+_/-]{3,80}", name[len(VIZIER) :]) or ".." in name:
                raise InputError(f"--crossmatch {name}: give the name of a table, as vizier:VII/118/ngc2000")
        else:
            name = name.lower()
            if name not in ("simbad", "ned"):
                raise InputError(
                    f"--crossmatch {raw.strip()!r} is unknown{nearest(name, NAMES_OF_SERVICES)}; "
                    "give simbad, ned or vizier:TABLE, with commas between"
                )
        if name in names:
            raise InputError(f"--crossmatch names {name} twice; once will do")
        names.append(name)
    return names


def _service(name: str) -> Service:
    return NED if name == "ned" else XMATCH


def minutes(names: Sequence[str], count: int) -> float:
    """Return how long it takes to ask for so many places, at the pace that is kept."""
    return sum(math.ceil(count / (s := _service(name)).places) / s.policy.per_minute for name in names)


def check_count(names: Sequence[str], count: int, top: int | None) -> None:
    """Refuse to ask for many unless that is what was wanted.

    Raises
    ------
    InputError
        With the number that would do, and the time.
    """
    if top is None and count > MOST:
        raise InputError(
            f"--crossmatch would ask for {count:,} candidates, {minutes(names, count):,.1f} minutes at the pace these "
            f"services are asked; give --top {MOST} ({minutes(names, MOST):,.1f} minutes), or --top {count} to "
            "insist"
        )


def ask(name: str, places: Iterable[Place], radius: float, contact: str = "") -> ServiceMatches:
    """Ask one service what it has within `radius` (arcsec) of each place; what was answered before is not asked again.

    Never raises for a service that fails: the places it left open are missing.
    """
    service, asked = _service(name), ServiceMatches(name)
    client = Client(service.policy, cache=home.cache_home(), contact=contact)
    client.answers.prune()
    todo = list(dict.fromkeys(places))
    with track(name, len(todo), "candidates") as advance:
        for start in range(0, len(todo), service.places):
            some = todo[start : start + service.places]
            url, form, read = (_ned if name == "ned" else _xmatch)(service.url, name, some, radius)
            try:
                found = client.get(url, read, form, DAYS)
            except ServiceUnavailableError as error:
                asked.trouble = str(error).partition("; what was fetched")[0]
                break
            except FetchError as error:
                asked.trouble = f"{urlsplit(url).netloc}: {error}"
            else:
                asked.answers |= {place: found.get(k) for k, place in enumerate(some)}
            advance(len(some))
    return asked


Question = tuple[str, Mapping[str, object] | None, Callable[[Response], dict[int, Match]]]


def _xmatch(url: str, name: str, places: Sequence[Place], radius: float) -> Question:
    """Return address, form and reader of a question to CDS XMatch."""
    lines = [f"{k},{ra:.8f},{dec:.8f}" for k, (ra, dec) in enumerate(places)]
    table = "\n".join([f"{_ROW},{_RA},{_DEC}", *lines, *lines[: 2 - len(lines)]]) + "\n"
    form = {
        "request": "xmatch", "distMaxArcsec": f"{radius:g}", "selection": "best", "RESPONSEFORMAT": "csv",
        "cat1": ("cat1.csv", table), "colRA1": _RA, "colDec1": _DEC, "cat2": name,
    }  # fmt: skip

    def read(answer: Response) -> dict[int, Match]:
        columns, rows = _csv(answer, (_ROW, "angDist"))
        own = [c for c in columns if c not in (_ROW, _RA, _DEC, "angDist")]
        titled = _name_column(own)
        found: dict[int, Match] = {}
        for row in rows:
            k, sep = _number(row[_ROW]), _number(row["angDist"])
            if k not in range(len(places)) or not 0 <= sep <= radius + _SLACK:
                raise FetchError(f"an object {row['angDist'][:20]} arcsec from row {row[_ROW][:20]}, never asked for")
            kind = _text(row.get("main_type", "")) if name == "simbad" else ""
            if sep <= radius:
                _nearer(found, int(k), Match(sep, _called(row, titled) or name, kind))
        return found

    return url, form, read


def _ned(url: str, name: str, places: Sequence[Place], radius: float) -> Question:
    """Return address and reader of a question to NED."""
    size = f"{radius / 3600:.8f}"
    circles = " OR ".join(
        f"CONTAINS(POINT('J2000',ra,dec),CIRCLE('J2000',{ra:.7f},{dec:.7f},{size}))=1" for ra, dec in places
    )
    query = f"SELECT prefname,ra,dec,prefphytype FROM NEDTAP.objdir WHERE {circles}"
    there = unit_vectors(*np.array(places).T)

    def read(answer: Response) -> dict[int, Match]:
        found: dict[int, Match] = {}
        for row in _csv(answer, ("prefname", "ra", "dec", "prefphytype"))[1]:
            ra, dec = _number(row["ra"]), _number(row["dec"])
            apart = arcseconds(np.linalg.norm(there - unit_vectors(np.array(ra), np.array(dec)), axis=1))
            near = np.flatnonzero(apart <= radius)
            if not len(near) and not apart.min() <= radius + 0.1:  # also NaN
                raise FetchError(f"an object at {row['ra'][:20]}, {row['dec'][:20]}, never asked for")
            called, kind = _text(row["prefname"]) or name, _text(row["prefphytype"])
            for k in near:  # of two candidates side by side it may be both
                _nearer(found, int(k), Match(float(apart[k]), called, kind))
        return found

    asked = {"REQUEST": "doQuery", "LANG": "ADQL", "FORMAT": "csv", "QUERY": query}
    return f"{url}?{urlencode(asked)}", None, read


def _csv(answer: Response, wanted: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    """Return columns and rows of an answer that is CSV, whole, and has the columns that were asked for.

    Raises
    ------
    FetchError
        If it is anything else.
    """
    if answer.absent:
        raise FetchError(f"HTTP {answer.status}")
    try:
        text = answer.body.decode("utf-8")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error):
        raise FetchError(f"no table but {answer.words()}") from None
    columns = [c.strip() for c in lines[0]] if lines else []
    if absent := [c for c in wanted if c not in columns]:
        raise FetchError(f"no table with the column {absent[0]} but {answer.words() or 'nothing'}")
    rows = [line for line in lines[1:] if line]
    if rows and (not text.endswith("\n") or any(len(line) != len(columns) for line in rows)):
        raise FetchError("a table that breaks off")
    # The first of two columns of one name counts: a column of the service must not stand for one that was sent.
    return columns, [dict(zip(reversed(columns), reversed(line), strict=True)) for line in rows]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _text(text: str) -> str:
    """Return text of a stranger in one line of bearable length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def _name_column(columns: Sequence[str]) -> str:
    """Return the column that names an object: a usual one, else the first that is no position."""
    lower = {c.lower(): c for c in reversed(columns)}
    if usual := next((lower[n] for n in NAMES if n in lower), None):
        return usual
    positions = {*tables.ROLES["ra"], *tables.ROLES["dec"]}
    return next((c for c in columns if c.lower() not in positions), "")


def _called(row: Mapping[str, str], column: str) -> str:
    """Return what an object is called: a number says nothing without its column."""
    value = _text(row.get(column, ""))
    named = column.lower() in NAMES and any(c.isalpha() for c in value)
    return value if named or not value else _text(f"{column} {value}")


def _nearer(found: dict[int, Match], k: int, match: Match) -> None:
    if k not in found or match.sep < found[k].sep:
        found[k] = match


def tell(asked: ServiceMatches, count: int) -> str:
    """Return what people are told of a service that did not answer for `count` candidates."""
    return (
        f"{asked.title}: {count:,} candidates were not asked ({asked.trouble}); they are told neither known nor new; "
        "what came is kept, the same command asks for the rest"
    )
