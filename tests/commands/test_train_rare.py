"""Options and recipes of train-rare; its stages are tested in tests/training/test_pipeline.py."""

from __future__ import annotations

import pytest

import galscan
from galscan.core import home
from galscan.core.errors import InputError, NotFoundError
from galscan.labels.recipe import load_recipe
from galscan.store.build import ingest_survey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.training.plan import make_plans
from tests.helpers import tiny_recipe, tiny_store
from tests.training.test_pipeline import run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    sky = SimulatedSurvey(count=300, size=32, seed=1, rare_fraction=0.1, labelled=0.8)
    return ingest_survey(sky, tmp_path_factory.mktemp("train") / "sky.zarr", workers=1).path


def test_a_dry_run_writes_nothing_and_uses_all_surveys_of_the_home(tmp_path, store, capsys):
    home.survey_path("sky").parent.mkdir(parents=True)
    home.survey_path("sky").symlink_to(store)
    recipe = tiny_recipe(tmp_path / "r.toml", whole=True)
    assert galscan.train_rare(str(recipe), dry_run=True) is None
    text = capsys.readouterr().err
    assert "calibration" in text and "positive" in text and "3 steps" in text and "models/dustlane" in text
    assert [p.name for p in tmp_path.iterdir()] == ["r.toml"] and not list(home.data_home().glob("models/*"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("positives = 0", "positives = 4", r"synthetic\.positives = 0"),  # maps are no whole images
        ('maps = "prior"', 'maps = "diffusion"\nstart = "/no.safetensors"', r"no\.safetensors"),
    ],
)
def test_recipes_that_cannot_be_trained_are_refused_before_anything_is_written(tmp_path, store, old, new, words):
    recipe = tiny_recipe(tmp_path / "r.toml")
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(InputError, match=words) as error:
        run(recipe, store, tmp_path / "m")
    assert "\n" not in str(error.value) and [p.name for p in tmp_path.iterdir()] == ["r.toml"]


def test_a_recipe_without_a_host_is_refused(tmp_path):
    # Every galaxy is labelled: of unlabelled ones only a trained network can tell.
    sky = SimulatedSurvey(count=300, size=32, seed=9, rare_fraction=0.1, labelled=1.0)
    store = ingest_survey(sky, tmp_path / "s.zarr", workers=1).path
    recipe, hosts = tiny_recipe(tmp_path / "r.toml"), load_recipe("dustlane").schemas["simulated"].inject.hosts
    recipe.write_text(recipe.read_text().replace(hosts, "early_type >= 0.5 and size > 0.249"), encoding="utf-8")
    with pytest.raises(InputError, match=r"inject\.hosts"):
        run(recipe, store, tmp_path / "m", dry_run=True)


def test_wrong_options(store, tmp_path):
    recipe = tiny_recipe(tmp_path / "r.toml", whole=True)
    with pytest.raises(NotFoundError, match="'dustlane'"):
        galscan.train_rare("dustlan", store=store)
    with pytest.raises(InputError, match="galscan ingest"):
        galscan.train_rare(str(recipe))
    with pytest.raises(NotFoundError, match="nowhere"):
        galscan.train_rare(str(recipe), survey="nowhere")
    with pytest.raises(InputError, match="named twice"):
        run(recipe, [store, store], None)
    with pytest.raises(InputError, match="--budget 0"):
        run(recipe, store, None, budget=0)
    with pytest.raises(InputError, match="none"):
        run(recipe, tiny_store(tmp_path / "u.zarr", 20).path, None)
    with pytest.raises(InputError, match="--size 96"):
        run("dustlane", store, tmp_path / "m")
    with pytest.raises(InputError, match="dustlane, dustlane"):
        run([recipe, recipe], store, tmp_path / "m")
    with pytest.raises(InputError, match="--grades"):
        make_plans([str(recipe), "ring"], (), store, tmp_path / "m", None, False, 0, [object()])
    assert not (tmp_path / "m").exists()
