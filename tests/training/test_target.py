from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import galscan
from galscan.cli import main
from galscan.core.errors import ConflictError, InputError
from galscan.labels.recipe import load_recipe, recipe_names
from galscan.store.build import ingest_survey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.training.target import (
    GREEN,
    GREY,
    RED,
    _synthetic_kinds,
    check_target,
    first_sentence,
    list_targets,
    new_target,
)
from tests.helpers import tiny_store

RARE = {"dustlane", "ring", "merger", "edge_on_no_bulge", "barred_early", "strong_bar", "bulge_spiral"}


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    size = max(load_recipe(target).size for target in RARE)
    survey = SimulatedSurvey(count=1200, size=size, seed=1, rare_fraction=0.05)
    return ingest_survey(survey, tmp_path_factory.mktemp("target") / "sky.zarr", workers=1).path


def test_new_writes_a_recipe_that_can_be_checked_and_overwrites_none(tmp_path, monkeypatch, sky):
    monkeypatch.chdir(tmp_path)
    result = new_target("mine", schema=["simulated", "efigi"], answer="bar")
    assert result["recipe"] == "mine.toml" and result["next"] == "galscan target check mine.toml --store STORE"
    assert load_recipe("mine.toml").schemas["simulated"].positive == "bar >= 0.5"
    assert check_target("mine.toml", store=sky)["error"] is None
    before = (tmp_path / "mine.toml").read_bytes()
    with pytest.raises(ConflictError, match=r"mine\.toml"):
        new_target("mine")
    assert (tmp_path / "mine.toml").read_bytes() == before
    with pytest.raises(InputError, match="mine "):
        new_target("mine", out="mine")
    new_target("mine", out=tmp_path / "deep" / "other.toml")
    assert load_recipe(str(tmp_path / "deep" / "other.toml")).name == "mine"


def test_list_has_all_shipped_targets():
    result = list_targets()
    json.dumps(result)
    assert [t["name"] for t in result["targets"]] == recipe_names()
    for target in result["targets"]:
        assert target["science"].endswith(".")
        assert f"{target['title']} ({', '.join(target['schemas'])})" in result["text"]
    made = {target["name"]: target["synthetic"] for target in result["targets"]}
    assert made["ring"] == ["feature ring injected into real galaxies"] and made["strong_bar"] == ["whole images"]
    assert made["dustlane"][0].startswith("feature dust_lane ") and len(made["dustlane"]) == 1
    assert result["text"].count("Synthetic positives: ") == len(made)


def test_list_says_which_labels_have_an_injection():
    recipe = load_recipe("ring")
    schemas = recipe.schemas | {"gz2": recipe.schemas["gz2"].model_copy(update={"inject": None})}
    half = recipe.model_copy(update={"schemas": schemas})
    assert _synthetic_kinds(half) == ["feature ring injected into real galaxies (efigi, simulated)"]
    none = recipe.synthetic.model_copy(update={"injected": 0})
    assert _synthetic_kinds(recipe.model_copy(update={"synthetic": none})) == []


def test_first_sentence():
    assert first_sentence("\nOne thing (Ma et al. 2025, X 1)\nis so. Another.") == "One thing is so."
    assert first_sentence("One thing. Two.") == "One thing." and first_sentence("One") == "One."


@pytest.mark.parametrize("target", sorted(RARE))
def test_shipped_targets_can_be_trained_on_the_simulated_sky(target, sky):
    result = check_target(target, store=sky)
    json.dumps(result)
    assert result["schema"] == "simulated" and result["error"] is None, result["error"]
    smallest = min(result["split"].values(), key=lambda part: part["negative"])  # a fold, or what calibrates or tests
    assert smallest["positive"] >= 5 and smallest["negative"] >= 100
    assert not [w for w in result["warnings"] if "satisfy the positive rule" in w or "nothing ambiguous" in w]


def test_results_and_text(sky):
    result = check_target("barred_early", store=sky)
    text = result["text"]
    assert "target       barred_early: Barred lenticular galaxy\nlabels       simulated" in text
    assert "positive, all of" in text and "negative, any of" in text and text.endswith("trainable    yes")
    assert text.count("<- excludes most") == 1 and "not asked" in text and result["synthetic"] in text
    assert result["synthetic"] == "300 positives and 600 negatives generated"
    assert result["sources"][0]["key"] == "synthetic.from"
    steps = result["positive"]["steps"]
    assert steps[-1]["so_far"] == result["objects"][0]["positive"]


def test_injected_features_are_summarised(sky):
    result = check_target("dustlane", store=sky)
    assert result["synthetic"].startswith("2,000 positives and 500 negatives injected into real galaxies")
    assert "drawn" not in result["synthetic"] and f"synthetic    {result['synthetic']}" in result["text"]
    found = {entry["key"]: entry for entry in result["sources"]}
    rules = load_recipe("dustlane").schemas["simulated"]
    assert found["inject.hosts"]["rule"] == rules.inject.hosts and found["inject.hosts"]["training"] > 100
    assert found["inject.measure"]["training"] > 12  # below which there is nothing to fine-tune on
    assert {"inject_negatives.0.hosts", "inject_negatives.1.hosts"} <= found.keys()
    assert not [w for w in result["warnings"] if "nothing is made" in w]


def test_a_contact_sheet_shows_each_kind(sky, tmp_path):
    result = check_target("edge_on_no_bulge", store=sky, sheet=tmp_path / "sheet.png")
    assert result["sheet"] == str(tmp_path / "sheet.png") and f"sheet        {result['sheet']}" in result["text"]
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).reshape(-1, 3)
    for colour in (GREEN, RED, GREY):
        assert (pixels == colour).all(1).sum() > 24 * 4 * 128  # the frames of 24 images
    again = check_target("edge_on_no_bulge", store=sky, sheet=tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sheet.png").read_bytes() and again["error"] is None


def test_a_sheet_of_stores_of_several_sizes(tmp_path):
    stores = [
        ingest_survey(SimulatedSurvey(count=300, size=size, seed=size), tmp_path / f"{size}.zarr", workers=1).path
        for size in (64, 72)
    ]
    result = check_target("edge_on_no_bulge", store=stores, sheet=tmp_path / "sheet.png")
    assert result["error"] is None and (tmp_path / "sheet.png").stat().st_size > 1000


def test_stores_that_cannot_be_checked(sky, tmp_path):
    with pytest.raises(InputError, match="--store"):
        check_target("ring")
    with pytest.raises(InputError, match=r"gz2 .*simulated"):
        check_target("lens", store=sky)
    bare = tiny_store(tmp_path / "bare.zarr").path
    assert check_target("ring", store=[sky, bare])["objects"][1]["unlabelled"] == 600


def test_the_command(sky, tmp_path, capsys):
    path = tmp_path / "few.toml"
    assert main.run(["target", "new", "few", "--schema", "simulated", "--answer", "merger", "--out", str(path)]) == 0
    capsys.readouterr()
    text = path.read_text().replace('positive = "merger >= 0.5"', 'positive = "merger >= 0.5 and ring >= 0.5"')
    path.write_text(text)
    assert main.run(["target", "check", str(path), "--store", str(sky), "--json"]) == 2
    out, err = capsys.readouterr()
    assert "examples of 'few'" in json.loads(out)["error"] and "trainable    no: 0 positive" in err
    assert main.run(["target", "check", "ring", "--store", str(sky)]) == 0
    assert "trainable    yes" in capsys.readouterr().out
    assert main.run(["target", "list"]) == 0 and "dustlane" in capsys.readouterr().out
    assert galscan.check_target is check_target
