"""Catalog queries: astroquery's clients against SkyServer and VizieR on loopback."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import angular_separation

from galscan.core.errors import ConflictError, GalscanError, InputError
from galscan.surveys import tables
from galscan.surveys.services import queries
from galscan.surveys.services.queries import objects
from tests.services.database import positions
from tests.services.loopback import over_tls

pytest.importorskip("astroquery", reason="needs the extra services")

OBJECT_KEYS = 2000  # of the loopback services
IDS, RA, DEC = positions(OBJECT_KEYS)


@pytest.fixture
def sdss(service, tmp_path: Path):
    """Return the survey file of a SkyServer on loopback that gives 400 rows a page."""

    def write(page: int = 400) -> str:
        path = service.survey("sdss", tmp_path, page=page)
        path.write_text(path.read_text().replace("per_minute = 20", "per_minute = 60000"))
        return str(path)

    return write


def page_requests(service) -> list[str]:
    return [path for _, path, _ in service.log() if "x_results" in path]


def test_galaxy_zoo_2(service, sdss, tmp_path: Path) -> None:
    """1,500 galaxies have votes; positions are those of the photometry, to the last digit; pages are in order."""
    out = objects(sdss(), "gz2", None, tmp_path / "gz2.objects.parquet")
    table = pd.read_parquet(out)
    voted = np.arange(OBJECT_KEYS) % 4 > 0
    order = np.argsort(IDS[voted])
    assert table["id"].dtype == np.int64 and table["id"].tolist() == IDS[voted][order].tolist()
    np.testing.assert_array_equal(table["ra"], RA[voted][order])
    np.testing.assert_array_equal(table["dec"], DEC[voted][order])
    assert len(page_requests(service)) == 5, "four pages, and one that is empty"
    assert {"run", "rerun", "camcol", "field"} <= set(table)
    assert len(table.columns) < 130 and "t08_odd_feature_a38_dust_lane_debiased" in table
    schemas, labels = tables.read_labels(tables.read_table(out, {}), ["gz2"])
    assert len(schemas["gz2"]) == 37 + 11 and labels.notna().any(axis=None)
    assert [p.name for p in tmp_path.iterdir() if "objects" in p.name] == ["gz2.objects.parquet"]
    service.behave()
    assert objects(sdss(), "gz2", None, out) == out and not service.log()
    with pytest.raises(ConflictError):
        objects(sdss(), "SELECT objid, ra, dec FROM Galaxy", None, out)
    out.write_text("another file")
    with pytest.raises(ConflictError):
        objects(sdss(), "gz2", None, out)


def test_pages_are_kept_after_a_failure(service, sdss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "o.parquet"
    page = queries._SkyServer._page
    starts: list[int | None] = []

    def fails(self, last):
        starts.append(last)
        if len(starts) == 3:
            service.behave("500")
        return page(self, last)

    monkeypatch.setattr(queries._SkyServer, "_page", fails)
    with pytest.raises(GalscanError, match="HTTP 500"):
        objects(sdss(), "gz2", None, out)
    assert not out.exists() and len(list((tmp_path / "o.parquet.partial").glob("page-*"))) == 2
    service.behave()
    again = pd.read_parquet(objects(sdss(), "gz2", None, out))
    assert starts[3] == starts[2] is not None and len(page_requests(service)) == 3
    assert again["id"].is_unique and len(again) == 1500 and not (tmp_path / "o.parquet.partial").exists()


def test_a_server_that_recovers(service, sdss, tmp_path: Path) -> None:
    service.behave("500", "reset", "truncated", "429-after", share=0.4, seed=1, after=0)
    assert len(pd.read_parquet(objects(sdss(300), "gz2", None, tmp_path / "o.parquet"))) == 1500


def test_sql_of_the_user(service, sdss, tmp_path: Path) -> None:
    sql = "SELECT objID, ra, dec, petroR90_r FROM Galaxy WHERE petroMag_r < 16; "
    table = pd.read_parquet(objects(sdss(300), sql, None, tmp_path / "o.parquet"))
    assert table["id"].is_monotonic_increasing and 800 < len(table) < 1200
    row = int(np.flatnonzero(table["id"].iloc[0] == IDS)[0])
    assert table["ra"].iloc[0] == RA[row] and list(table.columns) == ["id", "ra", "dec", "petroR90_r"]


def test_integers_with_missing_values(service, sdss, tmp_path: Path) -> None:
    """They keep all digits."""
    sql = "SELECT objID, ra, dec, CASE WHEN petroMag_r < 16 THEN 'null' ELSE objID END AS other FROM Galaxy"
    table = pd.read_parquet(objects(sdss(2000), sql, None, tmp_path / "o.parquet"))
    given = table["other"].notna()
    assert 800 < given.sum() < 1200 and table["other"].dtype == "Int64"
    assert (table["other"] == table["id"])[given].all()


def test_cone(service, sdss, tmp_path: Path) -> None:
    table = pd.read_parquet(objects(sdss(), None, (180.0, 10.0, 20.0), tmp_path / "o.parquet"))
    inside = IDS[angular_separation(*np.radians([RA, DEC, 180 + 0 * RA, 10 + 0 * RA])) < np.radians(20)]
    assert 0 < len(table) <= len(inside) and set(table["id"]) <= set(inside.tolist()) and "petroR90_r" in table
    assert {"run", "rerun", "camcol", "field"} <= set(table)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("gz3", "'gz3'"),
        ("DROP TABLE Galaxy", "'DROP TABLE Galaxy'"),
        ("SELECT objid, ra, dec FROM Galaxy; DROP TABLE Galaxy", "';'"),
        ("SELECT objid, ra, dec INTO mydb FROM Galaxy", "'INTO'"),
        ("SELECT objid, ra, dec FROM Galaxy ORDER BY ra", "'ORDER BY'"),
        ("SELECT ra, dec FROM Galaxy", r"objid \(or id\)"),
        ("SELECT objid FROM Galaxy", "ra and dec"),
        ("SELECT objid, ra, dec FROM Galaxy WHERE ra > 400", "no rows"),
        ("SELECT objid, ra, dec FROM Galxy", "Galxy"),
        ("SELECT objid, ra, dec FROM Galaxy WHERE " + " OR ".join(f"objid = {n}" for n in range(300)), "2,048"),
        ("vizier:", "vizier:"),
        ("vizier:../../etc", "etc"),
    ],
)
def test_invalid_queries(service, sdss, tmp_path: Path, query: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        objects(sdss(), query, None, tmp_path / "o.parquet")
    assert not (tmp_path / "o.parquet").exists()


def test_invalid_cone(sdss, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="10,95,1"):
        objects(sdss(), None, (10.0, 95.0, 1.0), tmp_path / "o.parquet")


@pytest.mark.parametrize(("mode", "reason"), [("html", "We are back soon"), ("redirect", "localhost"), ("404", "404")])
def test_other_responses_are_refused(service, sdss, tmp_path: Path, mode: str, reason: str) -> None:
    service.behave(mode)
    with pytest.raises(GalscanError, match=reason):
        objects(sdss(), "gz2", None, tmp_path / "o.parquet")
    assert not list(tmp_path.rglob("page-*"))


def test_a_dry_run_sends_no_request(service, sdss, tmp_path: Path) -> None:
    assert objects(sdss(), "gz2", None, tmp_path / "o.parquet", download=False) is None and not service.log()


def test_without_astroquery(service, sdss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("astroquery.sdss", "astroquery.vizier"):
        monkeypatch.setitem(sys.modules, name, None)
    for k, query in enumerate(("gz2", "vizier:VII/118/ngc2000")):
        with pytest.raises(InputError, match=r"pip install 'galscan\[services\]'"):
            objects(sdss(), query, None, tmp_path / f"{k}.parquet")
    assert not service.log()


def test_vizier(service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS: astroquery has no other way to VizieR."""
    with over_tls(tmp_path) as host:
        if host is None:
            pytest.skip("needs openssl, which makes the certificate")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "certificate.pem"))
        survey = str(service.survey("sdss", tmp_path, vizier=host))
        table = pd.read_parquet(objects(survey, "vizier:VII/118/ngc2000", None, tmp_path / "ngc.parquet"))
        assert table["id"].tolist() == ["N0001", "N0002", "N0007"] and table["dec"].iloc[2] == -29.915
        assert table["ra"].dtype == float and "RAJ2000" in table
        with pytest.raises(InputError, match="VII/999/none"):
            objects(survey, "vizier:VII/999/none", None, tmp_path / "none.parquet")
        service.behave("html")
        with pytest.raises(GalscanError, match="We are back soon"):
            objects(survey, "vizier:VII/118/ngc2000", None, tmp_path / "html.parquet")
        service.behave()
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(GalscanError, match="CERTIFICATE"):
            objects(survey, "vizier:VII/118/ngc2000", None, tmp_path / "unknown.parquet")


@pytest.mark.parametrize("ids", [[5, 4], [4, 4], pd.array([4, None]), ["a", "b"]])
def test_pages_must_be_sorted_by_id(sdss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids) -> None:
    rows = pd.DataFrame({"objid": ids, "ra": 1.0, "dec": 1.0})
    monkeypatch.setattr(queries._SkyServer, "_table", lambda self, sql: rows)
    with pytest.raises(GalscanError, match="'objid'"):
        objects(sdss(), "SELECT objid, ra, dec FROM Galaxy", None, tmp_path / "o.parquet")


@pytest.mark.network
def test_the_real_skyserver(tmp_path: Path) -> None:
    sql = "SELECT TOP 5 objid, ra, dec, petroR90_r FROM Galaxy WHERE ra BETWEEN 180 AND 180.1 AND dec BETWEEN 0 AND 0.1"
    assert len(pd.read_parquet(objects("sdss", sql, None, tmp_path / "o.parquet"))) == 5


@pytest.mark.network
def test_the_real_vizier(tmp_path: Path) -> None:
    table = pd.read_parquet(objects("sdss", "vizier:VII/118/names", None, tmp_path / "o.parquet"))
    assert len(table) > 100
