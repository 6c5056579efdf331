"""``galscan feature measure``: on rings of the simulated sky, a feature that is known from labelled galaxies alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from galscan.cli import main
from galscan.core.errors import InputError
from galscan.labels.recipe import load_recipe
from galscan.store.build import ingest_survey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.training.measure_feature import measure_feature

RECIPE = """
name = "mine"
title = "mine"
science = "A feature of one's own."
size = 64
[generator]
kind = "maps"
[synthetic]
positives = 0
[schemas.simulated]
positive = "ring >= 0.5"
negative = "ring < 0.25"
[schemas.simulated.synthetic]
from = "ring >= 0.5"
[schemas.simulated.inject]
feature = "residual"
hosts = "ring == 0 and edge_on < 0.5 and artefact < 0.5"
values = { ring = [0.4, 1.0] }
measure = "ring >= 0.25"
"""


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    survey = SimulatedSurvey(count=240, size=64, seed=4, rare_fraction=0.6)
    return ingest_survey(survey, tmp_path_factory.mktemp("feature") / "sky.zarr", workers=1).path


def recipe(folder, **changes: str) -> str:
    text = RECIPE
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


def test_rings_are_measured_and_injected(sky, tmp_path):
    result = measure_feature(recipe(tmp_path), store=sky, sheet=tmp_path / "sheet.png")
    json.dumps(result)
    assert result["error"] is None and result["labelled"] >= result["measured"] >= result["needed"] > 0
    assert result["labelled"] == result["measured"] + sum(result["left_out"].values())
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 8 * 128 and np.asarray(sheet).std() > 10


def test_too_few_examples_are_an_error(sky, tmp_path, capsys):
    path = recipe(tmp_path, **{'measure = "ring >= 0.25"': 'measure = "ring >= 0.5 and ring < 0.5001"'})
    assert main.run(["feature", "measure", "--target", path, "--store", str(sky), "--json"]) == 2
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["measured"] < result["needed"] and result["error"]


def test_a_feature_that_is_not_measured_is_an_error(sky):
    for target in ("ring", "lens"):
        with pytest.raises(InputError) as caught:
            measure_feature(target, store=sky)
        assert caught.value.exit_code == 2


def test_a_recipe_names_the_examples_of_a_feature_without_a_prior(tmp_path):
    with pytest.raises(InputError, match=r"inject\.measure") as caught:
        load_recipe(recipe(tmp_path, **{'measure = "ring >= 0.25"': ""}))
    assert caught.value.exit_code == 2
    negative = '[[schemas.simulated.inject_negatives]]\nfeature = "residual"\nhosts = "ring == 0"\n'
    path = tmp_path / "other.toml"
    path.write_text(RECIPE + negative)
    assert load_recipe(str(path)).name == "mine"
    path.write_text(RECIPE.replace('"residual"', '"ring"') + negative)
    with pytest.raises(InputError, match=r"inject_negatives\.0\.feature"):
        load_recipe(str(path))
