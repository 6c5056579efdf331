"""Matches with external catalogs, requested from a real server that fails on demand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galscan.candidates import external_catalogs
from galscan.candidates.export.formats import export
from galscan.core import home
from galscan.core.errors import InputError
from galscan.surveys.services.client import RequestPolicy
from tests.candidate_tables import candidates, write_run

ARCSEC = 1 / 3600
PGC = "vizier:VII/237/pgc"


def loopback_services(url: str, **changes) -> dict[str, external_catalogs.Service]:
    settings = {"per_minute": 60_000, "connections": 1, "timeout": 2.0, "tries": 2, "give_up": 2} | changes
    policy = RequestPolicy(hosts=(url.removeprefix("http://"),), **settings)
    return {
        "XMATCH": external_catalogs.Service(f"{url}/xmatch/api/v1/sync", 5, policy),
        "NED": external_catalogs.Service(f"{url}/tap/sync", 5, policy),
    }


@pytest.fixture
def sky(service, monkeypatch):
    """The loopback services in the place of CDS and NED; a request holds five positions."""
    for name, value in loopback_services(service.url).items():
        monkeypatch.setattr(external_catalogs, name, value)
    service.have()
    return service


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run", candidates(text=True))


def export_table(run: Path, out: Path, **options) -> pd.DataFrame:
    return pd.read_parquet(export(run, out, **options)).set_index("rank")


def near(service: str, name: str, rank: int, arcsec: float, kind: str = "") -> tuple[str, str, float, float, str]:
    row = candidates().iloc[rank - 1]
    return service, name, float(row["ra"]), float(row["dec"]) + arcsec * ARCSEC, kind


def test_nearest_of_all_services_and_lists(run, tmp_path, sky):
    sky.have(
        near("simbad", "NGC 1", 1, 1.0, "Galaxy"), near("ned", "MESSIER 1", 1, 0.5, "G"), near(PGC, "7", 1, 2.0),
        near("simbad", "2MASX J1", 3, 2.9, "AGN"), near("simbad", "far", 4, 3.1, "Star"), near(PGC, "77", 18, 0.1),
    )  # fmt: skip
    candidates().loc[[2], ["ra", "dec"]].assign(name="mine").to_csv(tmp_path / "list.csv", index=False)
    done = export(
        run, tmp_path / "c.parquet", crossmatch=f"simbad, NED,{PGC}", known=tmp_path / "list.csv", contact="me@x.org"
    )
    found = pd.read_parquet(done).set_index("rank")
    columns = ["known_name", "known_ref", "known_type"]
    assert found.loc[1, columns].tolist() == ["MESSIER 1", f"ned; simbad; {PGC}", "G"]
    assert found.loc[3, columns].tolist() == ["mine", "list; simbad", "AGN"]
    assert found.loc[18, columns].tolist() == ["PGC 77", PGC, ""]
    assert found.loc[[1, 18], "known_sep"].tolist() == pytest.approx([0.5, 0.1], abs=1e-3)
    unmatched = found.drop([1, 3, 18])
    assert (unmatched["known_name"] == "").all() and (unmatched["known_ref"] == "").all()
    assert (done.known, done.new) == (3, 15) and done.details["unmatched"] == 2 and done.details["not_asked"] == 0
    assert f"within 3 arcsec of an object of list, simbad, ned, {PGC}" in done.summary()["text"]
    assert len(sky.log()) == 3 * 4  # 18 positions, five a request
    assert list(found.columns).index("known_type") == list(found.columns).index("known_sep") + 1


def test_cached_responses_are_reused_until_they_expire(run, tmp_path, sky):
    sky.have(near("simbad", "NGC 1", 1, 1.0, "Galaxy"))
    first = export_table(run, tmp_path / "a.parquet", crossmatch="simbad,ned")
    assert len(sky.log()) == 8
    pd.testing.assert_frame_equal(first, export_table(run, tmp_path / "b.parquet", crossmatch="simbad,ned"))
    assert len(sky.log()) == 8
    export(run, tmp_path / "c.csv", crossmatch="simbad", radius=2.0)  # other requests
    assert len(sky.log()) == 12
    old = time.time() - 86_400 * (external_catalogs.DAYS + 1)
    for file in (home.cache_home() / "answers").glob("??/*"):
        os.utime(file, (old, old))
    export(run, tmp_path / "d.csv", crossmatch="simbad")
    assert len(sky.log()) == 16


MODES = ["500", "html", "truncated", "columns", "breaks", "strange", "empty", "slow", "404"]


@pytest.mark.parametrize(
    ("name", "mode"), [*(("simbad", mode) for mode in MODES), *(("ned", mode) for mode in ("truncated", "strange"))]
)
def test_candidates_without_a_response_are_not_new(run, tmp_path, sky, name, mode, monkeypatch):
    sky.have(near(name, "NGC 1", 1, 1.0, "G"), near(name, "NGC 9", 9, 1.0, "G"))
    sky.behave(mode, well=1, slow=1.0)
    for key, value in loopback_services(sky.url, timeout=0.3).items():
        monkeypatch.setattr(external_catalogs, key, value)
    done = export(run, tmp_path / "c.parquet", crossmatch=name)
    found = pd.read_parquet(done).set_index("rank")
    assert (done.known, done.new, done.details["not_asked"]) == (1, 4, 13)
    assert found.loc[1, "known_name"] == "NGC 1" and found.loc[2, "known_ref"] == ""
    assert (found.loc[6:18, "known_ref"] == f"not asked: {name}").all() and (found.loc[6:18, "known_name"] == "").all()
    assert (found.loc[19:, "known_ref"] == "").all()  # no position to query
    assert done.warnings[0].startswith(f"{name}: 13 ") and "13 were not queried" in done.summary()["text"]
    sky.behave()
    again = export(run, tmp_path / "c.parquet", crossmatch=name)
    assert (again.known, again.new, again.warnings) == (2, 16, []) and len(sky.log()) == 3  # the first was cached


def test_match_in_one_service_without_a_response_of_another(run, tmp_path, sky):
    sky.have(near("simbad", "NGC 1", 1, 1.0, "G"))
    export(run, tmp_path / "c.csv", crossmatch="simbad")
    sky.behave("500")
    done = export(run, tmp_path / "c.csv", crossmatch="simbad,ned")
    assert pd.read_csv(done)["known_ref"][0] == "simbad; not asked: ned"
    assert (done.known, done.new, done.details["not_asked"]) == (1, 0, 17)


def test_unknown_vizier_table(run, tmp_path, sky):
    done = export(run, tmp_path / "c.csv", crossmatch="vizier:NO/SUCH")
    assert "HTTP 400: table vizier:NO/SUCH not found" in done.warnings[0] and done.new == 0


def test_requested_pause(run, tmp_path, sky, monkeypatch):
    sky.behave("429-after", share=0.3, after=1, seed=2)
    for key, value in loopback_services(sky.url, tries=5).items():
        monkeypatch.setattr(external_catalogs, key, value)
    assert export(run, tmp_path / "c.csv", crossmatch="simbad").details["not_asked"] == 0
    times, _, modes = zip(*sky.log(), strict=True)
    k = modes.index("429-after")
    assert times[k + 1] - times[k] > 0.9


def test_one_position_and_none(run, tmp_path, sky):
    sky.have(near("simbad", "NGC 1", 1, 1.0, "G"))
    assert export(run, tmp_path / "c.csv", crossmatch="simbad", top=1).known == 1  # XMatch rejects a single row
    sky.behave()
    done = export(write_run(tmp_path / "other", candidates(2)), tmp_path / "d.csv", crossmatch="simbad,ned")
    assert (done.known, done.new, done.details["unmatched"]) == (0, 0, 2) and sky.log() == []


def test_nearest_of_two_objects_at_two_candidates(tmp_path, sky):
    frame = candidates().head(4)
    frame.loc[1, ["ra", "dec"]] = [frame["ra"][0], frame["dec"][0] + 2 * ARCSEC]
    sky.have(near("ned", "both", 1, 1.5, "G"), near("ned", "nearer", 1, 0.2, "G"))
    found = export_table(write_run(tmp_path / "r", frame), tmp_path / "c.parquet", crossmatch="ned")
    assert found["known_name"].tolist() == ["nearer", "both", "", ""]


HOSTILE = "=cmd|' /C calc'!A0</TD><script>alert(1)</script>\x07\u202e" + "x" * 500


def test_hostile_names_stay_text(run, tmp_path, sky):
    sky.have(near("simbad", HOSTILE, 1, 1.0, "@SUM(1)"), near("ned", HOSTILE, 2, 1.0, "+1"))
    lines = export(run, tmp_path / "c.csv", crossmatch="simbad,ned").path.read_text()
    assert ",'=cmd" in lines and ",=cmd" not in lines and ",'@SUM" in lines and ",'+1" in lines
    markup = export(run, tmp_path / "c.vot", crossmatch="simbad,ned").path.read_text()
    assert "<script>" not in markup and "&lt;script&gt;" in markup
    name = export_table(run, tmp_path / "c.parquet", crossmatch="simbad,ned")["known_name"][1]
    assert len(name) == external_catalogs.MAX_NAME_LENGTH and name.isprintable()


def test_number_of_candidates_is_limited(tmp_path, sky, monkeypatch):
    monkeypatch.setattr(external_catalogs, "MAX_CANDIDATES", 50)
    run = write_run(tmp_path / "many", candidates(51))
    with pytest.raises(InputError, match="--top 51"):
        export(run, tmp_path / "c.csv", crossmatch="simbad,ned")
    assert sky.log() == [] and not (tmp_path / "c.csv").exists()
    assert external_catalogs.minutes(["simbad", "ned"], 10) == pytest.approx(2 * 2 / 60_000)


@pytest.mark.parametrize("text", ["simbat", "", "simbad,", "ned,NED", "vizier:", "vizier:../x", "vizier:a&b=c"])
def test_invalid_services(text):
    with pytest.raises(InputError, match="--crossmatch"):
        external_catalogs.parse_services(text)


def test_positions_are_exact(sky):
    """Positions that are sent are as exact as those that are compared, also at the pole and at zero hours."""
    rng = np.random.default_rng(3)
    ra = np.concatenate([[0.0, 359.9999999, 123.0, 5.0], rng.uniform(0, 360, 11)])
    dec = np.concatenate([[0.0, -1e-7, 90.0, -89.99999], rng.uniform(-90, 90, 11)])
    positions = list(zip(ra.tolist(), dec.tolist(), strict=True))
    for name in ("simbad", "ned"):
        sky.have(*((name, f"o{k}", *position, "G") for k, position in enumerate(positions)))
        result = external_catalogs.query_service(name, positions, 1.0)
        assert result.error == "" and [result.matches[p].name for p in positions] == [f"o{k}" for k in range(15)]
        assert max(result.matches[p].sep for p in positions) < 0.001


SCRIPT = """
import sys
from galscan.candidates import external_catalogs
from galscan.cli import main
from tests.candidates.test_external_catalogs import loopback_services
for name, value in loopback_services(sys.argv[1], per_minute=200).items():
    setattr(external_catalogs, name, value)
sys.exit(main.run(sys.argv[2:]))
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_killed_and_resumed(run, tmp_path, sky, kill):
    sky.have(near("simbad", "NGC 1", 1, 1.0, "Galaxy"), near("ned", "N 18", 18, 1.0, "G"))
    sky.behave()
    arguments = ["export", str(run), "--out", str(tmp_path / "c.csv"), "--crossmatch", "simbad,ned", "--json"]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, sky.url, *arguments], stderr=subprocess.PIPE, text=True)
    while sky.count() < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(kill)
    _, error = process.communicate(timeout=60)
    assert process.returncode in (130, -kill) and "Traceback" not in error and not (tmp_path / "c.csv").exists()
    found = pd.read_csv(export(run, tmp_path / "c.csv", crossmatch="simbad,ned"))
    assert 8 <= len(sky.log()) <= 9  # at most the last request is repeated
    assert found["known_name"].dropna().tolist() == ["NGC 1", "N 18"]


@pytest.mark.network
@pytest.mark.parametrize("name", ["simbad", "ned", PGC])
def test_real_services(name):
    centaurus, nothing = (201.365063, -43.019113), (10.0, 89.0)
    result = external_catalogs.query_service(name, [centaurus, nothing], 20.0)
    assert result.error == "" and result.matches[centaurus] is not None and result.matches[nothing] is None
    assert name == PGC or result.matches[centaurus].kind
