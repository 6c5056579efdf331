"""Cutouts from services: the right image at the right scale, or the right reason for none."""

from __future__ import annotations

import dataclasses
import pickle
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError
from galscan.core.home import shipped
from galscan.surveys.base import Cutout, Failed, Flag, NoCoverage, Outcome
from galscan.surveys.services.cache import Response
from galscan.surveys.services.cutouts import ServiceSurvey
from galscan.surveys.services.errors import ServiceUnavailableError
from tests.services import sky
from tests.services.loopback import galaxies

HERE = (150.1, 2.2)  # covered


def table(path: Path, rows: list[tuple[float, float]], **columns: object) -> Path:
    frame = pd.DataFrame({"id": range(len(rows)), "ra": [r for r, _ in rows], "dec": [d for _, d in rows]} | columns)
    frame.to_csv(path / "objects.csv", index=False)
    return path / "objects.csv"


def outcomes(survey: ServiceSurvey) -> list[Outcome]:
    return list(survey.cutouts(0, len(survey)))


@pytest.mark.parametrize("name", ["sdss", "legacy-dr10", "legacy-dr10-jpeg", "hips", "panstarrs", "panstarrs-fits"])
def test_each_object_gets_its_own_image(service, tmp_path, name):
    survey = ServiceSurvey(str(service.survey(name, tmp_path)), galaxies(tmp_path / "o.csv", 30), size=64)
    covered = 0
    for (ra, dec), outcome in zip(zip(survey.ra, survey.dec, strict=True), outcomes(survey), strict=True):
        if sky.covered(ra, dec):
            assert isinstance(outcome, Cutout) and sky.read_code(outcome.image) == sky.code(ra, dec)
            assert outcome.pixel_scale == pytest.approx(survey.config.framing.pixel_scale)
            covered += 1
        else:
            assert isinstance(outcome, NoCoverage)
    assert 20 < covered < 30


def test_requests_to_each_service(service, tmp_path):
    """A cutout of 8.48 radii of 5 arcsec is 42.4 arcsec wide."""
    path = table(tmp_path, [HERE], petroR90_r=5.0)
    requests = {
        "sdss": "getjpeg?ra=150.1000000&dec=2.2000000&scale=0.396262&width=107&height=107",
        "legacy-dr10": "fits-cutout?ra=150.1000000&dec=2.2000000&layer=ls-dr10&pixscale=0.331250&size=128&bands=grz",
        "legacy-dr10-jpeg": "jpeg-cutout?ra=150.1000000&dec=2.2000000&layer=ls-dr10&pixscale=0.331250&size=128",
        "hips": "hips2fits?hips=CDS/P/DSS2/color&width=42&height=42&projection=TAN&coordsys=icrs&ra=150.1000000"
        "&dec=2.2000000&fov=0.01177778&format=jpg",
        "panstarrs": "ps1filenames.py?ra=150.1000000&dec=2.2000000&filters=gri&type=stack",
    }
    for name, line in requests.items():
        service.behave()
        survey = ServiceSurvey(str(service.survey(name, tmp_path)), path, size=64)
        (outcome,) = outcomes(survey)
        log = [entry for _, entry, _ in service.log()]
        assert isinstance(outcome, Cutout) and log[0].endswith(line)
        assert outcome.pixel_scale == pytest.approx(42.4 / 64)
        assert bool(outcome.flags & Flag.UPSCALED) == (name == "hips"), "42 native pixels do not make 64"
    name = "%2Frings.v3.skycell%2F1234%2F056%2Frings.v3.skycell.1234.056.stk.{}.unconv.fits"
    cut = "fitscut.cgi?ra=150.1000000&dec=2.2000000&size=170&output_size=128"
    files = "".join(f"&{c}={name.format(b)}" for c, b in (("red", "i"), ("green", "r"), ("blue", "g")))
    assert log[1].endswith(f"{cut}{files}&format=jpg&asinh=True&autoscale=99.75")


def test_stacks_are_requested_by_band(service, tmp_path):
    path = table(tmp_path, [HERE], petroR90_r=5.1)
    survey = ServiceSurvey(str(service.survey("panstarrs-fits", tmp_path)), path, size=64)
    (outcome,) = outcomes(survey)
    names, *cuts = [entry for _, entry, _ in service.log()]
    assert names.endswith("ps1filenames.py?ra=150.1000000&dec=2.2000000&filters=gri&type=stack")
    name = "%2Frings.v3.skycell%2F1234%2F056%2Frings.v3.skycell.1234.056.stk.{}.unconv.fits"
    cut = "fitscut.cgi?ra=150.1000000&dec=2.2000000&size=173&format=fits&red="
    assert [c.rpartition("/")[2] for c in cuts] == [cut + name.format(band) for band in "gri"]
    assert isinstance(outcome, Cutout) and outcome.flags == Flag.OK
    assert outcome.pixel_scale == pytest.approx(173 * 0.25 / 64), "43.248 arcsec are 172.99 of its pixels"
    assert survey.plan()["requests"] == 4
    wide = ServiceSurvey(str(service.survey("panstarrs-fits", tmp_path)), tmp_path / "objects.csv", frame=500)
    assert outcomes(wide) == [Failed("10,200 pixels across; the service delivers 8 to 4,000", Flag.WRONG_SHAPE)]


def test_stacks_are_as_bright_as_other_surveys(service, tmp_path):
    """Counts become nanomaggies by each band's exposure: colours are those of Legacy Surveys' nanomaggies."""
    path = table(tmp_path, [HERE])
    stacks = ServiceSurvey(str(service.survey("panstarrs-fits", tmp_path)), path, size=64)
    config = service.survey("legacy-dr10", tmp_path, bands="gri", native_scale=0.25)
    rendering = (
        (shipped("catalogs/surveys") / "panstarrs-fits.toml").read_text(encoding="utf-8").split("[rendering]")[1]
    )
    config.write_text(config.read_text().split("[rendering]")[0] + "[rendering]" + rendering)
    legacy = ServiceSurvey(str(config), path, size=64, pixel_scale=0.5)
    (one,), (other,) = outcomes(stacks), outcomes(legacy)
    assert isinstance(one, Cutout) and isinstance(other, Cutout) and one.image.std() > 10
    assert np.abs(one.image.astype(int) - other.image).max() <= 1


@pytest.mark.parametrize(
    ("mode", "kind", "reason"),
    [
        ("black", NoCoverage, "blank"),
        ("404", NoCoverage, "no image"),
        ("html", Failed, "list of files|text/html"),
        ("shorter", Failed, "list of files|image/jpeg"),
    ],
)
@pytest.mark.parametrize("well", [0, 1, 3])
def test_bad_responses_of_stacks(service, tmp_path, mode, kind, reason, well):
    """To the list of files, the first band or the last; valid responses are not requested again."""
    config = service.survey("panstarrs-fits", tmp_path, tries=2, timeout=2.0)
    survey = ServiceSurvey(str(config), table(tmp_path, [HERE, (150.2, 2.2)]), size=32)
    next(survey.cutouts(1, 2))
    service.behave(mode, well=well)
    (outcome,) = survey.cutouts(0, 1)
    if mode == "404" and well == 0:
        kind, reason = Failed, "list of files"  # a position that is not covered has an empty list
    assert isinstance(outcome, kind) and re.search(reason, outcome.reason), outcome
    service.behave()
    if kind is Failed:
        assert isinstance(next(survey.cutouts(0, 1)), Cutout) and len(service.log()) == 4 - well


def test_framing(service, tmp_path):
    config = str(service.survey("sdss", tmp_path))
    path = table(tmp_path, [HERE, HERE], petroR90_r=[5.0, 10.0], size_r=[1.0, 2.0])

    def scales(**given: object) -> list[float]:
        return (ServiceSurvey(config, path, **{"size": 64} | given).sides / 64).round(6).tolist()  # type: ignore[arg-type]

    assert scales() == [0.6625, 1.325]
    assert scales(frame=4.24) == [0.33125, 0.6625]
    assert scales(pixel_scale=0.5) == [0.5, 0.5]
    assert scales(columns={"radius": "size_r"}, frame=64) == [1.0, 2.0]
    for given, value in (
        ({"frame": 2, "pixel_scale": 1}, "--frame 2"),
        ({"frame": -1.0}, "--frame -1"),
        ({"columns": {"radius": "size"}}, "'size'"),
        ({"columns": {"file": "x"}}, "'file'"),
        ({"layer": "dr9"}, "dr9"),
        ({"size": 4}, "4 pixels"),
    ):
        with pytest.raises(InputError, match=value):
            scales(**given)
    with pytest.raises(InputError, match="--frame"):
        ServiceSurvey(config, table(tmp_path, [HERE]), frame=8.48)


def test_objects_without_position_or_size(service, tmp_path):
    rows = [HERE, (np.nan, 2.0), (3.0, np.nan), HERE, HERE, HERE]
    path = table(tmp_path, rows, petroR90_r=[5.0, 5.0, 5.0, np.nan, -1.0, 1e4])
    first, *others = outcomes(ServiceSurvey(str(service.survey("sdss", tmp_path)), path))
    assert isinstance(first, Cutout) and len(service.log()) == 1
    assert [o.reason.split(";")[0] for o in others if isinstance(o, Failed)] == [
        "no position", "no position", "no radius", "a cutout of -8.48 arcsec", "a cutout of 84800 arcsec",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "kind", "reason"),
    [
        ("black", NoCoverage, "blank"),
        ("404", NoCoverage, "no image"),
        ("html", Failed, "text/html"),
        ("bomb", Failed, "1 MB"),
        ("redirect", Failed, "localhost"),
        ("500", Failed, "HTTP 500"),
        ("truncated", Failed, "truncated"),
        ("shorter", Failed, "truncated|OSError"),
        ("longer", Failed, "truncated"),
        ("slow", Failed, "timed out"),
        ("drip", Failed, "0.5 s"),
    ],
)
def test_bad_responses(service, tmp_path, mode, kind, reason):
    config = service.survey("sdss", tmp_path, tries=2, timeout=0.5, max_mb=1.0)
    survey = ServiceSurvey(str(config), table(tmp_path, [HERE, (150.2, 2.2)]), size=32)
    next(survey.cutouts(1, 2))
    service.behave(mode)
    (outcome,) = survey.cutouts(0, 1)
    assert isinstance(outcome, kind) and re.search(reason, outcome.reason), outcome
    service.behave()
    if kind is Failed:
        assert isinstance(next(survey.cutouts(0, 1)), Cutout)
        return
    assert next(survey.cutouts(0, 1)) == outcome and not service.log()
    retrying = ServiceSurvey(str(config), survey.catalog, size=32, retry_not_found=True)
    assert isinstance(next(retrying.cutouts(0, 1)), Cutout if mode == "404" else NoCoverage)


def test_smaller_images_than_requested_are_refused(service, tmp_path):
    config = service.survey("legacy-dr10-jpeg", tmp_path, pixels=[3100, 4000], timeout=30.0)
    survey = ServiceSurvey(str(config), table(tmp_path, [HERE]), size=64, pixel_scale=1.0)
    assert outcomes(survey) == [Failed("3000 x 3000 pixels, not the 3100 requested", Flag.WRONG_SHAPE)]


def test_fits_of_one_band_and_of_none(service, tmp_path):
    text = service.survey("hips", tmp_path).read_text()
    text = text.replace("format=jpg", "format=fits").replace('format = "jpeg"', 'format = "fits"')
    text = text.replace('bands = "as the HiPS has them"', 'bands = "r"').replace("CDS/P/DSS2/color", "CDS/P/SDSS9/r")
    path = tmp_path / "r.toml"
    path.write_text(f'{text}\n[rendering]\nred = "r"\ngreen = "r"\nblue = "r"\nunit = {{ r = 0.01 }}\n')
    survey = ServiceSurvey(str(path), table(tmp_path, [HERE, (1.0, -60.0)]), size=64)
    first, second = outcomes(survey)
    assert isinstance(first, Cutout) and sky.read_code(first.image) == sky.code(*HERE)
    assert (first.image[..., 0] == first.image[..., 2]).all()
    assert second == NoCoverage("blank image (no finite pixel in band r)")
    with pytest.raises(ServiceUnavailableError, match="CDS/P/NO"):
        survey = ServiceSurvey(str(path), galaxies(tmp_path / "many.csv", 30), layer="CDS/P/NO")
        outcomes(survey)


def test_real_galaxies_arrive_upright(service, tmp_path):
    if not sky.real_galaxies():
        pytest.skip("no real galaxies; set GALSCAN_TEST_DATA")
    ra, dec, scale = sky.real_galaxies()["PGC0000218"]
    config = service.survey("legacy-dr10", tmp_path, bands="gri")
    text = config.read_text().replace('red = "z"', 'red = "i"').replace("z = 0.0125", "i = 0.0125")
    config.write_text(text)
    survey = ServiceSurvey(str(config), table(tmp_path, [(ra, dec)]), size=64, pixel_scale=scale * 255 / 64)
    (outcome,) = outcomes(survey)
    # NGC 7814 lies from south-east to north-west: with north up and east left, from lower left to upper right.
    y, x = np.mgrid[:64, :64] - 31.5
    light = outcome.image.astype(float).sum(axis=2)[8:56, 8:56]
    assert (light * (x * -y)[8:56, 8:56]).sum() > 0


def test_black_edge(service, tmp_path):
    survey = ServiceSurvey(str(service.survey("sdss", tmp_path)), table(tmp_path, [HERE]), size=64)
    image = np.full((128, 128, 3), 60, np.uint8)
    image[:, :10] = 0
    outcome = survey._read(Response("", 200, "image/jpeg", sky.jpeg(image)), 50.0, 128)
    assert isinstance(outcome, Cutout) and outcome.flags == Flag.EDGE


def test_metadata_depend_on_the_settings(service, tmp_path):
    config, path = str(service.survey("legacy-dr10", tmp_path)), table(tmp_path, [HERE])
    survey = ServiceSurvey(config, path, contact="me@example.org")
    assert survey.describe() == ServiceSurvey(config, path).describe()
    assert survey.describe()["rendering"]["unit"] == {"g": 0.0033, "r": 0.0069, "z": 0.0125}
    assert survey.describe()["orientation"] == "north up, east left" and "me@" not in str(survey.describe())
    for other in ({"layer": "ls-dr9"}, {"pixel_scale": 2.0}, {"size": 32}):
        assert ServiceSurvey(config, path, **other).describe() != survey.describe()
    with pytest.raises(InputError, match="ls-dr11"):
        ServiceSurvey(config, path, layer="ls-dr11")
    table(tmp_path, [(1.0, 2.0)])
    assert ServiceSurvey(config, path).describe() != survey.describe()


def test_plan(service, tmp_path):
    path = table(tmp_path, [HERE, HERE, (np.nan, 1.0)])
    plan = ServiceSurvey("sdss", path).plan()
    assert plan["requests"] == 2 and plan["seconds"] == pytest.approx(2 * 1.03) and plan["megabytes"] == 0.016
    assert ServiceSurvey("panstarrs", path).plan()["requests"] == 4


def test_credentials(service, tmp_path, monkeypatch):
    config = service.survey("sdss", tmp_path, token="SKY_TOKEN", needs_contact=True)
    path = table(tmp_path, [HERE])
    with pytest.raises(InputError, match="--contact"):
        ServiceSurvey(str(config), path)
    with pytest.raises(InputError, match="SKY_TOKEN"):
        ServiceSurvey(str(config), path, contact="me@example.org")
    monkeypatch.setenv("SKY_TOKEN", "s3cret")
    survey = ServiceSurvey(str(config), path, contact="me@example.org")
    assert isinstance(outcomes(survey)[0], Cutout)
    assert "s3cret" not in str(survey.describe()) and b"s3cret" not in pickle.dumps(survey)


def test_rate_limit_holds_for_all_connections(service, tmp_path):
    """10 a second, by four threads, measured at the server."""
    config = service.survey("sdss", tmp_path, per_minute=600, connections=4)
    outcomes(ServiceSurvey(str(config), galaxies(tmp_path / "o.csv", 15)))
    times = [t for t, *_ in service.log()]
    assert len(times) == 15 and max(times) - min(times) >= 14 * 0.1


def test_ctrl_c_does_not_wait_for_a_slow_server(service, tmp_path, monkeypatch):
    survey = ServiceSurvey(str(service.survey("sdss", tmp_path, timeout=60.0)), galaxies(tmp_path / "o.csv", 40))
    service.behave("slow", slow=30)
    threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        outcomes(survey)
    assert time.monotonic() - started < 25
    assert survey._client is None
    service.behave()
    assert dataclasses.is_dataclass(next(survey.cutouts(0, 1)))
