"""What services have at the places of candidates, asked of a real server that misbehaves on demand."""

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

from galscan.candidates import external_catalogs as asking
from galscan.candidates.export.formats import export as export_run
from galscan.core import home
from galscan.core.errors import InputError
from galscan.surveys.services.client import RequestPolicy
from tests.candidate_tables import candidates, write_run

ARCSEC = 1 / 3600
PGC = "vizier:VII/237/pgc"


def loopback_services(url: str, **changes: object) -> dict[str, asking.Service]:
    settings = {"per_minute": 60_000, "connections": 1, "timeout": 2.0, "tries": 2, "give_up": 2} | changes
    policy = RequestPolicy(hosts=(url.removeprefix("http://"),), **settings)
    return {
        "XMATCH": asking.Service(f"{url}/xmatch/api/v1/sync", 5, policy),
        "NED": asking.Service(f"{url}/tap/sync", 5, policy),
    }


@pytest.fixture
def sky(service, monkeypatch):
    """The loopback services in the place of CDS and NED; five places go in one request."""
    for name, value in loopback_services(service.url).items():
        monkeypatch.setattr(asking, name, value)
    service.have()
    return service


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run", candidates(text=True))


def table(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


def at(rank: int) -> tuple[float, float]:
    row = candidates().iloc[rank - 1]
    return float(row["ra"]), float(row["dec"])


def near(service: str, name: str, rank: int, arcsec: float, kind: str = "") -> tuple[str, str, float, float, str]:
    ra, dec = at(rank)
    return service, name, ra, dec + arcsec * ARCSEC, kind


def test_the_nearest_of_all_services_and_lists(run, tmp_path, sky):
    sky.have(
        near("simbad", "NGC 1", 1, 1.0, "Galaxy"), near("ned", "MESSIER 1", 1, 0.5, "G"), near(PGC, "7", 1, 2.0),
        near("simbad", "2MASX J1", 3, 2.9, "AGN"), near("simbad", "far", 4, 3.1, "Star"), near(PGC, "77", 18, 0.1),
    )  # fmt: skip
    ra, dec = at(3)
    pd.DataFrame({"name": ["mine"], "ra": [ra], "dec": [dec]}).to_csv(tmp_path / "list.csv", index=False)
    done = export_run(
        run, tmp_path / "c.parquet", crossmatch=f"simbad, NED,{PGC}", known=[tmp_path / "list.csv"], contact="me@x.org"
    )
    found = table(done.path).set_index("rank")
    columns = ["known_name", "known_ref", "known_type"]
    assert found.loc[1, columns].tolist() == ["MESSIER 1", f"ned; simbad; {PGC}", "G"]
    assert found.loc[3, columns].tolist() == ["mine", "list; simbad", "AGN"]
    assert found.loc[18, columns].tolist() == ["PGC 77", PGC, ""]
    assert found.loc[1, "known_sep"] == pytest.approx(0.5, abs=1e-3)
    assert found.loc[18, "known_sep"] == pytest.approx(0.1, abs=1e-3)
    others = found.drop([1, 3, 18])
    assert (others["known_name"] == "").all() and (others["known_ref"] == "").all()
    assert (done.known, done.new) == (3, 15) and done.details["unmatched"] == 2 and done.details["not_asked"] == 0
    said = done.summary()["text"]
    assert f"known objects are within 3 arcsec of an object of list, simbad, ned, {PGC}" in said
    assert len(sky.log()) == 3 * 4  # 18 places, five a request
    assert list(found.columns).index("known_type") == list(found.columns).index("known_sep") + 1


def test_a_second_run_asks_nothing_until_answers_are_old(run, tmp_path, sky):
    sky.have(near("simbad", "NGC 1", 1, 1.0, "Galaxy"))
    first = table(export_run(run, tmp_path / "a.parquet", crossmatch="simbad,ned").path)
    asked = len(sky.log())
    pd.testing.assert_frame_equal(first, table(export_run(run, tmp_path / "b.parquet", crossmatch="simbad,ned").path))
    assert len(sky.log()) == asked == 8
    export_run(run, tmp_path / "c.parquet", crossmatch="simbad", radius=2.0)  # another question
    assert len(sky.log()) == 12
    old = time.time() - 86_400 * (asking.DAYS + 1)
    for file in (home.cache_home() / "answers").glob("??/*"):
        os.utime(file, (old, old))
    export_run(run, tmp_path / "d.parquet", crossmatch="simbad")
    assert len(sky.log()) == 16


@pytest.mark.parametrize("mode", ["500", "html", "truncated", "columns", "breaks", "strange", "empty", "slow", "404"])
@pytest.mark.parametrize("name", ["simbad", "ned"])
def test_what_was_not_answered_is_not_new(run, tmp_path, sky, name, mode):
    sky.have(near(name, "NGC 1", 1, 1.0, "G"), near(name, "NGC 9", 9, 1.0, "G"))
    sky.behave(mode, well=1, slow=2.5)
    for key, value in loopback_services(sky.url, timeout=0.3).items():
        setattr(asking, key, value)
    done = export_run(run, tmp_path / "c.parquet", crossmatch=name)
    found = table(done.path).set_index("rank")
    assert (done.known, done.new, done.details["not_asked"]) == (1, 4, 13)
    assert found.loc[1, "known_name"] == "NGC 1" and found.loc[2, "known_ref"] == ""
    assert (found.loc[6:18, "known_ref"] == f"not asked: {name}").all() and (found.loc[6:18, "known_name"] == "").all()
    assert (found.loc[19:, "known_ref"] == "").all()  # no position: nobody could be asked
    assert (
        f"{name}: 13 candidates were not queried (" in done.warnings[0]
        and "13 were not queried" in done.summary()["text"]
    )
    sky.behave()
    again = export_run(run, tmp_path / "c.parquet", crossmatch=name)
    assert (again.known, again.new, again.warnings) == (2, 16, []) and len(sky.log()) == 3  # the first was kept


def test_known_from_one_and_open_at_another(run, tmp_path, sky):
    sky.have(near("simbad", "NGC 1", 1, 1.0, "G"))
    export_run(run, tmp_path / "c.parquet", crossmatch="simbad")
    sky.behave("500")
    done = export_run(run, tmp_path / "c.csv", crossmatch="simbad,ned")
    found = pd.read_csv(done.path).set_index("rank")
    assert found.loc[1, "known_ref"] == "simbad; not asked: ned"
    assert (done.known, done.new, done.details["not_asked"]) == (1, 0, 17)


def test_a_table_that_is_not_there_is_said(run, tmp_path, sky):
    done = export_run(run, tmp_path / "c.csv", crossmatch="vizier:NO/SUCH")
    assert "HTTP 400: table vizier:NO/SUCH not found" in done.warnings[0] and done.new == 0


def test_a_pause_that_is_asked_for_is_kept(run, tmp_path, sky):
    sky.behave("429-after", share=0.3, after=1, seed=2)
    for key, value in loopback_services(sky.url, tries=5).items():
        setattr(asking, key, value)
    assert export_run(run, tmp_path / "c.csv", crossmatch="simbad").details["not_asked"] == 0
    modes = [mode for *_, mode in sky.log()]
    at = [when for when, *_ in sky.log()]
    k = modes.index("429-after")
    assert at[k + 1] - at[k] > 0.9


def test_one_place_and_none(run, tmp_path, sky):
    sky.have(near("simbad", "NGC 1", 1, 1.0, "G"))
    assert export_run(run, tmp_path / "c.csv", crossmatch="simbad", top=1).known == 1  # XMatch refuses a single row
    blind = write_run(tmp_path / "blind", candidates(2))
    sky.behave()
    done = export_run(blind, tmp_path / "d.csv", crossmatch="simbad,ned")
    assert (done.known, done.new, done.details["unmatched"]) == (0, 0, 2) and sky.log() == []


def test_two_candidates_side_by_side(tmp_path, sky):
    frame = candidates().head(4)
    frame.loc[1, ["ra", "dec"]] = [frame["ra"][0], frame["dec"][0] + 2 * ARCSEC]
    sky.have(near("ned", "both", 1, 1.5, "G"), near("ned", "nearer", 1, 0.2, "G"))
    found = table(export_run(write_run(tmp_path / "r", frame), tmp_path / "c.parquet", crossmatch="ned").path)
    assert found["known_name"].tolist() == ["nearer", "both", "", ""]


HOSTILE = "=cmd|' /C calc'!A0</TD><script>alert(1)</script>\x07\u202e" + "x" * 500


def test_names_of_strangers_stay_text(run, tmp_path, sky):
    sky.have(near("simbad", HOSTILE, 1, 1.0, "@SUM(1)"), near("ned", HOSTILE, 2, 1.0, "+1"))
    lines = export_run(run, tmp_path / "c.csv", crossmatch="simbad,ned").path.read_text()
    assert ",'=cmd" in lines and ",=cmd" not in lines and ",'@SUM" in lines and ",'+1" in lines
    markup = export_run(run, tmp_path / "c.vot", crossmatch="simbad,ned").path.read_text()
    assert "<script>" not in markup and "&lt;script&gt;" in markup
    name = table(export_run(run, tmp_path / "c.parquet", crossmatch="simbad,ned").path)["known_name"][0]
    assert len(name) == asking.MAX_NAME_LENGTH and name.isprintable()


def test_more_than_was_meant_is_refused_with_number_and_time(tmp_path, sky):
    run = write_run(tmp_path / "many", candidates(asking.MAX_CANDIDATES + 1))
    with pytest.raises(InputError, match=r"5,001 candidates, .* minutes .*give --top 5000 .*or --top 5001"):
        export_run(run, tmp_path / "c.csv", crossmatch="simbad,ned")
    assert sky.log() == [] and not (tmp_path / "c.csv").exists()
    assert asking.minutes(["simbad", "ned"], 10) == pytest.approx(2 * 2 / 60_000)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("simbat", "did you mean 'simbad'"), ("", "is unknown"), ("simbad,", "is unknown"), ("ned,NED", "ned twice"),
        ("vizier:", "name of a table"), ("vizier:../x", "name of a table"), ("vizier:a&b=c", "name of a table"),
    ],
)  # fmt: skip
def test_what_is_no_service(text, words):
    with pytest.raises(InputError, match=words):
        asking.parse_services(text)


def test_places_survive_the_journey(sky):
    """What is sent is as exact as what is compared: at the pole, at zero hours, anywhere."""
    rng = np.random.default_rng(3)
    ra = np.concatenate([[0.0, 359.9999999, 123.0, 5.0], rng.uniform(0, 360, 30)])
    dec = np.concatenate([[0.0, -1e-7, 90.0, -89.99999], rng.uniform(-90, 90, 30)])
    places = list(zip(ra.tolist(), dec.tolist(), strict=True))
    for name in ("simbad", "ned"):
        sky.have(*((name, f"o{k}", a, d, "G") for k, (a, d) in enumerate(places)))
        result = asking.query_service(name, places, 1.0)
        assert result.error == "" and all(result.matches[p].name == f"o{k}" for k, p in enumerate(places))
        assert max(result.matches[p].sep for p in places) < 0.001


SCRIPT = """
import sys
from galscan.candidates import external_catalogs
from galscan.cli import main
from tests.candidates.test_external_catalogs import loopback_services
for name, value in loopback_services(sys.argv[1], per_minute=200).items():
    setattr(external_catalogs, name, value)
sys.exit(main.run(sys.argv[2:]))
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_stopped_in_the_middle_it_goes_on(run, tmp_path, sky, ending):
    sky.have(near("simbad", "NGC 1", 1, 1.0, "Galaxy"), near("ned", "N 18", 18, 1.0, "G"))
    sky.behave()
    words = ["export", str(run), "--out", str(tmp_path / "c.csv"), "--crossmatch", "simbad,ned", "--json"]
    command = [sys.executable, "-c", SCRIPT, sky.url, *words]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while sky.count() < 3 and started.poll() is None:
        time.sleep(0.01)
    started.send_signal(ending)
    _, said = started.communicate(timeout=60)
    assert started.returncode in (130, -ending) and "Traceback" not in said and not (tmp_path / "c.csv").exists()
    subprocess.run(command, check=True, capture_output=True)
    questions = [path for _, path, _ in sky.log()]
    assert 8 <= len(questions) <= 9  # at most the one under way is asked twice
    assert pd.read_csv(tmp_path / "c.csv")["known_name"].dropna().tolist() == ["NGC 1", "N 18"]


@pytest.mark.network
@pytest.mark.parametrize("name", ["simbad", "ned", PGC])
def test_the_real_services(name):
    centaurus, nothing = (201.365063, -43.019113), (10.0, 89.0)
    result = asking.query_service(name, [centaurus, nothing], 20.0)
    assert result.error == "" and result.matches[centaurus] is not None and result.matches[nothing] is None
    assert name == PGC or result.matches[centaurus].kind
