"""Catalog queries through astroquery: SQL of SkyServer, page by page and resumable, and tables of VizieR.

The result is a Parquet file with the columns ``id``, ``ra``, ``dec`` and all others of the query.
"""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pandas as pd

from galscan.core import home, staging
from galscan.core.errors import ConflictError, GalscanError, InputError
from galscan.core.files import atomic_path
from galscan.core.sky import Cone, check_cone
from galscan.labels.schema import load_schema
from galscan.surveys.services.cache import Response
from galscan.surveys.services.client import MAX_REDIRECTS, Client, RequestPolicy
from galscan.surveys.services.configured import Objects, load_survey
from galscan.surveys.services.errors import FetchError, check_status, network_errors
from galscan.surveys.table_files.astropy_tables import from_astropy
from galscan.surveys.tables import find_column

GZ2 = "gz2"
VIZIER = "vizier:"
MAX_QUERY_STRING = 2048  # characters that SkyServer accepts after the question mark
TIMEOUT = 630.0  # seconds; SkyServer ends a query itself after 600
FRAME = "p.run, p.rerun, p.camcol, p.field"  # the frame an object was measured on, for survey sdss-frames
BRIGHT = "p.petroMag_r < 17.77 AND p.petroR90_r > 3"  # default cut of cone queries: resolved galaxies


def objects(
    survey: str, query: str | None, cone: Cone | None, out: Path, *, contact: str = "", download: bool = True
) -> Path | None:
    """Return the path of the table of query results; run the query unless the table exists.

    Parameters
    ----------
    survey : str
        Survey whose file names the SkyServer; without such an entry, that of ``sdss`` is used.
    query : str, optional
        ``gz2``: the main sample of Galaxy Zoo 2 with its votes. ``vizier:TABLE``. ``SELECT ...``: any SQL that returns
        objid (or id), ra and dec. None: the galaxies of `cone`.
    out : path
        The table; pages are files in a staging folder beside it.
    download : bool
        False: send no request, and return None if the table does not exist.

    Notes
    -----
    `InputError` is raised if the query is not valid or astroquery is missing, `ConflictError` if `out` holds the
    objects of another query, `GalscanError` if the service fails: then downloaded pages are kept, and the same call
    resumes.
    """
    database = load_survey(survey).objects or load_survey("sdss").objects
    if database is None:
        raise InputError(f"survey file {survey} has no table [objects], which --query needs")
    source: _SkyServer | _VizieR
    if query is not None and query.lower().startswith(VIZIER):
        source = _VizieR(database, query[len(VIZIER) :].strip(), contact)
    else:
        source = _SkyServer(database, *_sql(query, cone), contact)
    if out.is_file():
        try:
            request = pd.read_parquet(out, columns=["id"]).attrs.get("request")
        except Exception:  # pyarrow raises many types for files that are not Parquet or have no such column
            request = None
        if request != source.request:
            raise ConflictError(f"{out} holds the objects of another query; remove it or choose another --out")
        return out
    if not download:
        return None
    with staging.staging_folder(out, source.request, "query") as work:
        frame = source.fetch(work)
        frame.attrs = {"request": source.request}
        with atomic_path(out) as temporary:
            frame.to_parquet(temporary)
        shutil.rmtree(work)
    print(f"{out}: {len(frame):,} objects from {source.host}", file=sys.stderr)
    return out


def _sql(query: str | None, cone: Cone | None) -> tuple[str, str]:
    """Return the SQL of a query and the id column it is ordered by, "" if that is not known yet."""
    if query is None:
        if cone is None:
            raise InputError("a query is missing: --query or --cone")
        check_cone(cone)
        near = f"dbo.fGetNearbyObjEq({cone[0]:.6f},{cone[1]:.6f},{60 * cone[2]:.6f})"
        return (
            f"SELECT p.objID AS objid, p.ra, p.dec, p.petroR90_r, p.petroMag_r, {FRAME} FROM {near} AS n "
            f"JOIN Galaxy AS p ON p.objID = n.objID WHERE {BRIGHT}"
        ), "objid"
    if query.strip().lower() == GZ2:
        return GZ2, "objid"
    text = " ".join(query.split()).rstrip("; ")
    if not re.match(r"select\s", text, re.IGNORECASE):
        raise InputError(f"--query {text[:40]!r} is not valid; give gz2, vizier:TABLE, or SQL: 'SELECT ...'")
    for word, why in (
        (";", "one statement only"), (r"\binto\b", "no tables are created"),
        (r"\border\s+by\b(?!.*\))", "rows are ordered by id"),
    ):  # fmt: skip
        if found := re.search(word, text, re.IGNORECASE):
            raise InputError(f"--query contains '{found[0].upper()}'; remove it: {why}")
    return text, ""


class _Service:
    """Base of both services: requests of astroquery with the rate limit, retries and errors of our client."""

    request: dict[str, Any]

    def __init__(self, url: str, per_minute: float, contact: str):
        self._url, self.host = url, urlsplit(url).netloc.lower()
        policy = RequestPolicy(hosts=(self.host,), per_minute=per_minute)
        self._client = Client(policy, cache=home.cache_home(), contact=contact)

    def _configure(self, astroquery_client: Any) -> Any:
        """Set the User-Agent and check every response; astroquery has no public way to do it."""
        session = astroquery_client._session
        session.headers["User-Agent"] = f"{self._client.agent} {session.headers['User-Agent']}"
        session.max_redirects = MAX_REDIRECTS
        session.hooks["response"].append(self._check)
        return astroquery_client

    def _check(self, response: Any, *_: Any, **__: Any) -> None:
        """Raise an error for a response that cannot be a table, which astroquery would take for an empty one."""
        if response.is_redirect:
            self._client.redirect(response.url, response.headers["Location"])
            return
        check_status(response.status_code, response.headers)
        result = Response(response.url, response.status_code, "", response.content)
        html = b"<html" in result.body[:1000].lower() and b"error_message" not in result.body
        if result.absent or html:
            raise FetchError(f"the response is not a table: HTTP {result.status} {result.excerpt()}")

    def _query(self, run: Callable[[], Any]) -> Any:
        """Return the result of `run`, which calls astroquery."""
        from astroquery.exceptions import RemoteServiceError
        from requests import RequestException

        def attempt() -> Any:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # units and ids that astropy does not know
                    return run()
            except GalscanError:  # of the check of the response
                raise
            except RemoteServiceError as error:
                message = re.sub(r"#Table1|error_message|<[^>]*>", " ", str(error))
                raise InputError(f"{self.host} rejects the query: {' '.join(message.split())[:300]}") from None
            except RequestException:
                with network_errors():
                    raise
            except Exception as error:  # parsers raise many kinds on other text
                reason = " ".join(str(error).split())[:160]
                raise FetchError(f"the response is not a table ({type(error).__name__}: {reason})") from None

        try:
            return self._client.retry(self._url, attempt)
        except FetchError as error:
            raise GalscanError(f"{self.host}: {error}; downloaded pages are kept, run the same command again") from None


class _SkyServer(_Service):
    """SQL in pages, each starting after the last id of the page before."""

    def __init__(self, database: Objects, sql: str, key: str, contact: str):
        super().__init__(database.skyserver, database.per_minute, contact)
        self._database, self._sql, self._key = database, sql, key
        self.request = {"server": database.skyserver, "release": database.release, "query": sql}

    @cached_property
    def _service(self) -> Any:
        with _astroquery():
            from astroquery.sdss import SDSSClass
        return self._configure(SDSSClass())

    def fetch(self, work: Path) -> pd.DataFrame:
        """Return all rows; pages are written to `work`."""
        files = sorted(work.glob("page-*.parquet"))
        pages = [pd.read_parquet(file) for file in files]
        self._key = self._key or self._find_key()
        while (page := self._page(int(pages[-1]["id"].iloc[-1]) if pages else None)) is not None:
            with atomic_path(work / f"page-{len(pages):05d}.parquet") as temporary:
                page.to_parquet(temporary)
            pages.append(page)
            print(f"{self.host}: {sum(map(len, pages)):,} objects", file=sys.stderr, flush=True)
        if not pages:
            raise InputError("the query returns no rows; widen it")
        return pd.concat(pages, ignore_index=True)

    def _table(self, sql: str) -> pd.DataFrame | None:
        """Return the rows of a statement, None if there are none."""
        release = self._database.release
        parameters = self._service.query_sql(sql, data_release=release, get_query_payload=True)
        if (length := len(urlencode(parameters))) > MAX_QUERY_STRING:
            raise InputError(
                f"the query has {length:,} characters in the URL, at most {MAX_QUERY_STRING:,} are accepted; shorten it"
            )
        from astroquery.sdss import conf

        with conf.set_temp("skyserver_baseurl", self._database.skyserver):
            table = self._query(
                lambda: self._service.query_sql(sql, timeout=TIMEOUT, data_release=release, cache=False)
            )
        return None if table is None else from_astropy(table).apply(_with_nulls)

    def _find_key(self) -> str:
        """Return the id column; refuse a query without ids or positions."""
        row = self._table(f"SELECT TOP 1 * FROM ({self._sql}) AS q")
        if row is None:
            raise InputError("the query returns no rows; widen it")
        lower = {str(c).lower(): str(c) for c in row.columns}
        key = next((lower[k] for k in ("objid", "id") if k in lower), None)
        absent = [k for k in ("ra", "dec") if k not in lower] + ([] if key else ["objid (or id)"])
        if absent or key is None:
            present = ", ".join(map(str, row.columns[:12]))
            raise InputError(f"the query returns {present}; it must also return {' and '.join(absent)}")
        return key

    def _page(self, last: int | None) -> pd.DataFrame | None:
        """Return the rows after `last`, None if there are no more."""
        after, top = -(2**63) if last is None else last, self._database.page
        if self._sql == GZ2:
            # Positions of zoo2MainSpecz are in single precision: use those of the photometry.
            sql = (
                f"SELECT TOP {top} z.dr8objid AS objid, p.ra AS photo_ra, p.dec AS photo_dec, p.petroR90_r, "
                f"{FRAME}, z.* FROM zoo2MainSpecz AS z JOIN PhotoObjAll AS p ON p.objID = z.dr8objid "
                f"WHERE z.dr8objid > {after} ORDER BY z.dr8objid"
            )
        else:
            key = f"q.{self._key}"
            sql = f"SELECT TOP {top} * FROM ({self._sql}) AS q WHERE {key} > {after} ORDER BY {key}"
        page = self._table(sql)
        if page is None:
            return None
        key_column = page.get(self._key, pd.Series(dtype=str))
        if not pd.api.types.is_integer_dtype(key_column.dtype) or key_column.isna().any():
            present = ", ".join(map(str, page.columns[:6]))[:120]
            raise GalscanError(
                f"{self.host} returned '{present}' instead of a table with integers in '{self._key}'; run the same "
                "command again later"
            )
        page = _gz2(page) if self._sql == GZ2 else page
        ids = page[self._key].astype(np.int64)
        if (last is not None and ids.iloc[0] <= last) or not (ids.diff().iloc[1:] > 0).all():
            raise GalscanError(
                f"{self.host} returned values of '{self._key}' that repeat or are not sorted, so rows may be lost; "
                "run the same command again later"
            )
        lower = {str(c).lower(): c for c in page.columns}
        first = {"id": ids, "ra": page[lower["ra"]], "dec": page[lower["dec"]]}
        return pd.concat([pd.DataFrame(first), page.drop(columns=[self._key, lower["ra"], lower["dec"]])], axis=1)


def _with_nulls(column: pd.Series) -> pd.Series:
    """Return a column of numbers in which SkyServer writes ``null``, which astropy reads as text."""
    if not (column.dtype == "str" and (column == "null").any()):
        return column
    column = column.mask(column == "null")
    try:
        return pd.to_numeric(column, dtype_backend="numpy_nullable")  # large integers would lose digits as floats
    except ValueError:
        return column


def _gz2(page: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of Galaxy Zoo 2 that are used, of 230: votes and fractions of every answer, size, sample."""
    answers = load_schema(GZ2).names
    wanted = ["objid", "ra", "dec", "petroR90_r", "dr7objid", "gz2class", "total_classifications", "total_votes"]
    wanted += ["run", "rerun", "camcol", "field"]
    wanted += [f"{a}_{kind}" for a in answers for kind in ("count", "weighted_fraction", "debiased")]
    page = page.drop(columns=["ra", "dec"]).rename(columns={"photo_ra": "ra", "photo_dec": "dec"})
    return page[[c for c in wanted if c in page.columns]]


class _VizieR(_Service):
    """All rows of a table of VizieR."""

    def __init__(self, database: Objects, table: str, contact: str):
        if not re.fullmatch(r"[A-Za-z0-9.+_/ -]{3,80}", table) or ".." in table:
            raise InputError(f"--query vizier:{table}: give the name of a table, as vizier:J/MNRAS/435/2835/table5")
        super().__init__(f"https://{database.vizier}", database.per_minute, contact)
        self._name = table
        self.request = {"server": self.host, "query": VIZIER + table}

    def fetch(self, work: Path) -> pd.DataFrame:
        """Return all rows of the table; positions are computed by VizieR, in degrees."""
        with _astroquery():
            from astroquery import cache_conf
            from astroquery.vizier import VizierClass
        columns = ["*", "_RAJ2000", "_DEJ2000"]
        service = self._configure(VizierClass(columns=columns, row_limit=-1, timeout=TIMEOUT, vizier_server=self.host))
        with cache_conf.set_temp("cache_active", False):
            found = self._query(lambda: service.get_catalogs(self._name))
        if not found:
            raise InputError(f"VizieR has no table '{self._name}', or it has no rows")
        if len(found) > 1:
            raise InputError(
                f"'{self._name}' has {len(found)} tables; choose one: vizier:{', '.join(list(found.keys())[:12])}"
            )
        frame = from_astropy(found[0])
        if "_RAJ2000" not in frame or "_DEJ2000" not in frame:
            raise InputError(f"table '{self._name}' of VizieR has no positions; choose one that has")
        key = find_column(frame, "id", {}, self._name) or "recno"
        if key not in frame:
            frame = frame.assign(recno=np.arange(1, len(frame) + 1))
        first = {"id": frame[key], "ra": frame["_RAJ2000"], "dec": frame["_DEJ2000"]}
        rest = frame.drop(columns=[key, "_RAJ2000", "_DEJ2000"])
        rest = rest.drop(columns=[c for c in rest if str(c).lower() in ("id", "ra", "dec")])
        return pd.concat([pd.DataFrame(first), rest], axis=1)


@contextmanager
def _astroquery() -> Iterator[None]:
    """Raise `InputError` with the install command if astroquery is missing."""
    try:
        yield
    except ImportError:
        raise InputError("--query needs astroquery, which is not installed: pip install 'galscan[services]'") from None
