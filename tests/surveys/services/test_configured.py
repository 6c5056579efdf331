"""Configured surveys: shipped files are valid, and errors name the key."""

from __future__ import annotations

import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.core.home import shipped
from galscan.surveys.services.configured import ConfiguredFrames, fill_url, load_survey, survey_names

GOOD = (shipped("catalogs") / "surveys" / "sdss.toml").read_text(encoding="utf-8")


def load(tmp_path, text):
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    return load_survey(str(path))


def test_shipped_surveys():
    assert survey_names() == [
        "hips",
        "legacy-bricks",
        "legacy-dr10",
        "legacy-dr10-jpeg",
        "panstarrs",
        "panstarrs-fits",
        "sdss",
        "sdss-frames",
    ]
    for name in survey_names():
        survey = load_survey(name)
        assert survey.per_minute <= 60 and survey.url.startswith("https://") and survey.acknowledgement
        assert survey.licence and (survey.rendering or survey.stretch)
        assert isinstance(survey, ConfiguredFrames) or survey.framing.radii == 8.48


def test_frames_have_the_addresses_of_their_archives():
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
        ("frame-{band}", "frame", "url must have the field {band}"),
        ("{run:06d}", "{run!r}/{run.real}", r"url has the field {run.real}"),
        ("{run:06d}", "{run:{camcol}}", "url has the field {run:{camcol}}"),
        ("{run:06d}", "../{run:06d}", "without"),
        ("rerun = 301", "reruns = 301", "defaults has 'reruns', which is no field of url; did you mean 'rerun'"),
        ('bands = "gri"', 'bands = "griz"', "bands = 'griz' must be those of rendering"),
        ('hosts = ["data.', 'hosts = ["dat.', "url is at data.sdss.org, which is not among hosts"),
        ("advice =", "hint =", "unknown key 'hint'|the key 'advice' is missing"),
    ],
)
def test_what_is_wrong_with_frames_is_named(tmp_path, old, new, message):
    text = (shipped("catalogs") / "surveys" / "sdss-frames.toml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(InputError, match=message):
        load(tmp_path, text.replace(old, new))


def test_unknown_names():
    with pytest.raises(NotFoundError, match="unknown survey 'sds'; did you mean 'sdss'"):
        load_survey("sds")
    with pytest.raises(NotFoundError, match=r"survey file ./my.toml does not exist"):
        load_survey("./my.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("connections =", "conections =", "unknown key 'conections'; did you mean 'connections'"),
        ("native_scale = 0.396127", "", "the key 'native_scale' is missing"),
        ("radii = 8.48", "radi = 8.48", "unknown key 'framing.radi'; did you mean 'radii'"),
        ("page = 20000", "pages = 20000", "unknown key 'objects.pages'; did you mean 'page'"),
        ("per_minute = 60", "per_minute = 0", "per_minute: input should be greater than 0"),
        ("hosts = [\"skyserver", "hosts = [\"sky", "url is at skyserver.sdss.org, which is not among hosts"),
        ("{ra}", "{right}", r"url has the field {right}"),
        ("ra={ra}&dec={dec}", "", r"url must have the fields {ra} and {dec}"),
        ("{ra}", "{ra.__class__}", "url has the field {ra.__class__}"),
        ("{ra}", "{ra", "url|expected"),
        ('format = "jpeg"', 'format = "fits"', r"a table \[rendering\] is required with format = 'fits'"),
        ('format = "jpeg"', 'format = "gif"', "format: input should be 'jpeg', 'png' or 'fits'"),
        ("pixels = [64, 2048]", "pixels = [64, 8]", "must increase"),
        ('service = "picture"', 'service = "panstarrs"', "files is required with"),
        ("native_scale = 0.396127", "native_scale = nan", "native_scale: input should be"),
        ("title =", "title", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(InputError, match=message):
        load(tmp_path, GOOD.replace(old, new))


def test_bands_of_colours_must_be_there(tmp_path):
    text = GOOD.replace('"jpeg"', '"fits"') + '[rendering]\nred = "i"\nblue = "k"\nunit = { i = 1.0 }\n'
    with pytest.raises(InputError, match=r"rendering uses band 'k', which is not in bands and rendering.unit"):
        load(tmp_path, text)


def test_a_token_over_http_is_refused(tmp_path):
    assert load(tmp_path, 'token = "T"\n' + GOOD).token == "T"
    with pytest.raises(InputError, match="a token is sent over https only"):
        load(tmp_path, 'token = "T"\n' + GOOD.replace("https://", "http://"))


def test_what_fills_an_address_is_quoted():
    assert fill_url("https://h/x?a={red}&l={layer}", red="/a b&c=d#../", layer="CDS/P/x y") == (
        "https://h/x?a=%2Fa%20b%26c%3Dd%23..%2F&l=CDS/P/x%20y"
    )
