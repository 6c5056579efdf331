from __future__ import annotations

from pathlib import Path

import pytest

from galscan.core import home
from galscan.core.errors import InputError, NotFoundError


def test_the_home_moves(monkeypatch, galscan_home):
    assert home.data_home() == galscan_home
    monkeypatch.setenv("GALSCAN_HOME", "~/elsewhere")
    assert home.data_home() == Path.home() / "elsewhere"
    monkeypatch.delenv("GALSCAN_HOME")
    assert home.data_home().name == "galscan" and home.data_home().is_absolute()


def test_places(galscan_home):
    assert home.survey_path("sdss") == galscan_home / "surveys" / "sdss.zarr"
    assert home.model_path("dustlane") == galscan_home / "models" / "dustlane"
    assert home.run_path("a-1") == galscan_home / "runs" / "a-1"
    assert not any(galscan_home.iterdir())  # asking makes nothing


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "a b", "-x", "x" * 65, "a\n"])
def test_a_name_is_no_path(name):
    for place in (home.survey_path, home.model_path, home.run_path):
        with pytest.raises(InputError, match="use 1-64 letters"):
            place(name)


def test_what_is_absent_says_what_makes_it(galscan_home):
    with pytest.raises(NotFoundError, match="galscan ingest"):
        home.find_survey("sdss")
    home.survey_path("sdss").mkdir(parents=True)
    assert home.find_survey("sdss") == home.survey_path("sdss")
    with pytest.raises(NotFoundError, match="did you mean 'sdss'"):
        home.find_survey("sds")
    home.model_path("ring").mkdir(parents=True)
    with pytest.raises(NotFoundError, match="galscan train-rare --target ring"):
        home.find_model("ring")
    (home.model_path("ring") / "model.json").write_text("{}")
    assert home.find_model("ring") == home.model_path("ring")


@pytest.mark.parametrize("name", [*home.toml_names("catalogs/surveys"), "simulated", "frames", "mine"])
def test_advice_for_a_survey_without_store_is_a_command_that_fetches_it(name, galscan_home):
    with pytest.raises(NotFoundError) as caught:
        home.find_survey(name)
    command = str(caught.value).partition("galscan ingest ")[2]
    assert command.startswith(f"--survey {'local' if name == 'mine' else name}")
    assert ("--cone" in command) == (name not in ("legacy-bricks", "simulated", "frames", "mine"))


def test_stores_by_name_then_by_path():
    for name in ("a", "b"):
        home.survey_path(name).mkdir(parents=True)
    a, b = home.survey_path("a"), home.survey_path("b")
    assert home.find_stores("a", "x.zarr") == [a, Path("x.zarr")]
    assert home.find_stores(["b", "a"], [Path("y.zarr"), "x.zarr"]) == [b, a, Path("y.zarr"), Path("x.zarr")]
    assert home.find_stores((), Path("nowhere.zarr")) == [Path("nowhere.zarr")]  # whoever opens it will say so
    assert home.find_stores((), ()) == []
    with pytest.raises(NotFoundError, match="'c' has no store"):
        home.find_stores(["a", "c"], ())


def test_who_asks(monkeypatch):
    monkeypatch.delenv("GALSCAN_CONTACT", raising=False)
    assert home.contact(None) == ""
    monkeypatch.setenv("GALSCAN_CONTACT", "me@example.org")
    assert home.contact(None) == "me@example.org" and home.contact("you@example.org") == "you@example.org"
