"""Configured surveys: shipped files are valid, and errors name the key."""

from __future__ import annotations

import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.core.home import shipped
from galscan.surveys.services.configured import ConfiguredFrames, fill_url, load_survey, survey_names

GOOD = (shipped("catalogs/surveys") / "sdss.toml").read_text(encoding="utf-8")


def load(tmp_path, text):
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    return load_survey(str(path))


def test_shipped_surveys():
    assert {"sdss", "hips", "legacy-dr10", "panstarrs-fits", "sdss-frames"} <= set(survey_names())
    for name in survey_names():
        survey = load_survey(name)
        assert survey.per_minute <= 60 and survey.url.startswith("https://") and survey.acknowledgement
        assert survey.licence and (survey.rendering or survey.stretch)
        assert isinstance(survey, ConfiguredFrames) or survey.framing.radii == 8.48


def test_urls_of_frames():
    """Of frames that are there: names as the archives give them."""
    sdss, legacy = load_survey("sdss-frames"), load_survey("legacy-bricks")
    assert isinstance(sdss, ConfiguredFrames) and isinstance(legacy, ConfiguredFrames)
    assert sdss.keys == ["rerun", "run", "camcol", "field"] and sdss.integer_keys == {"run", "field"}
    assert sdss.file("r", {"rerun": 301, "run": 2505, "camcol": 3, "field": 38}) == (
        "data.sdss.org/sas/dr17/eboss/photoObj/frames/301/2505/3/frame-r-002505-3-0038.fits.bz2"
    )
    assert legacy.keys == ["brickname"] and legacy.file("g", {"brickname": "0001m002"}) == (
        "portal.nersc.gov/cfs/cosmo/data/legacysurvey/dr10/south/coadd/000/0001m002/legacysurvey-0001m002-image-g.fits.fz"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("frame-{band}", "frame", "{band}"),
        ("{run:06d}", "{run!r}/{run.real}", "{run.real}"),
        ("{run:06d}", "{run:{camcol}}", "{run:{camcol}}"),
        ("{run:06d}", "../{run:06d}", "without"),
        ("rerun = 301", "reruns = 301", "'reruns'"),
        ('bands = "gri"', 'bands = "griz"', "'griz'"),
        ('hosts = ["data.', 'hosts = ["dat.', "data.sdss.org"),
        ("advice =", "hint =", "'hint'|'advice'"),
    ],
)
def test_errors_in_frames_are_named(tmp_path, old, new, message):
    text = (shipped("catalogs/surveys") / "sdss-frames.toml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(InputError, match=message):
        load(tmp_path, text.replace(old, new))


def test_unknown_names():
    with pytest.raises(NotFoundError, match="'sds'"):
        load_survey("sds")
    with pytest.raises(NotFoundError, match=r"my\.toml"):
        load_survey("./my.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("connections =", "conections =", "'conections'"),
        ("native_scale = 0.396127", "", "'native_scale'"),
        ("radii = 8.48", "radi = 8.48", "'framing.radi'"),
        ("page = 20000", "pages = 20000", "'objects.pages'"),
        ("per_minute = 60", "per_minute = 0", "per_minute"),
        ("hosts = [\"skyserver", "hosts = [\"sky", "skyserver.sdss.org"),
        ("{ra}", "{right}", "{right}"),
        ("ra={ra}&dec={dec}", "", "{ra} and {dec}"),
        ("{ra}", "{ra.__class__}", "{ra.__class__}"),
        ("{ra}", "{ra", "url|expected"),
        ('format = "jpeg"', 'format = "fits"', "rendering"),
        ('format = "jpeg"', 'format = "gif"', "format"),
        ("pixels = [64, 2048]", "pixels = [64, 8]", "must increase"),
        ('service = "picture"', 'service = "panstarrs"', "files"),
        ("native_scale = 0.396127", "native_scale = nan", "native_scale"),
        ("title =", "title", "cannot be read"),
    ],
)  # fmt: skip
def test_errors_are_named(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(InputError, match=message):
        load(tmp_path, GOOD.replace(old, new))


def test_bands_of_colours_must_be_there(tmp_path):
    text = GOOD.replace('"jpeg"', '"fits"') + '[rendering]\nred = "i"\nblue = "k"\nunit = { i = 1.0 }\n'
    with pytest.raises(InputError, match="'k'"):
        load(tmp_path, text)


def test_a_token_over_http_is_refused(tmp_path):
    assert load(tmp_path, 'token = "T"\n' + GOOD).token == "T"
    with pytest.raises(InputError, match="https"):
        load(tmp_path, 'token = "T"\n' + GOOD.replace("https://", "http://"))


def test_values_in_urls_are_quoted():
    assert fill_url("https://h/x?a={red}&l={layer}", red="/a b&c=d#../", layer="CDS/P/x y") == (
        "https://h/x?a=%2Fa%20b%26c%3Dd%23..%2F&l=CDS/P/x%20y"
    )
