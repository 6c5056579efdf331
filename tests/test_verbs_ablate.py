from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import galscan
from galscan.classify import train as training
from galscan.classify import trial
from galscan.errors import ConflictError, GalscanError, InputError, Interrupted
from galscan.generate import judge
from galscan.store.ingest import ingest_survey
from galscan.store.layout import open_store
from galscan.surveys.simulated import SimulatedSurvey
from galscan.verbs.ablate import ablate
from tests.helpers import keep_all, tiny_recipe
from tests.pages import check_page

OPTIONS = {"seeds": 2, "positives": 12, "max_test": 40, "arms": ["plain", "oversampled", "dreams_70", "dreamt_only"],
           "prevalence": 0.02, "device": "cpu", "seed": 5}  # fmt: skip


SCREEN = judge.screen


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ablate")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    """Galaxies of which a tenth are dusty early types; 240 or so have no labels."""
    sky = SimulatedSurvey(count=560, size=32, seed=1, rare_fraction=0.1, labelled=0.55)
    return ingest_survey(sky, folder / "sky.zarr", workers=1).path


@pytest.fixture(scope="module")
def recipe(folder) -> str:
    return str(tiny_recipe(folder / "dustlane.toml"))


@pytest.fixture(scope="module")
def lenient():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "screen", keep_all)
        yield


@pytest.fixture(scope="module")
def result(folder, store, recipe, lenient) -> dict:
    return ablate(recipe, store=store, out=folder / "out", **OPTIONS)


def read(path: Path) -> dict:
    told = json.loads((path / "ablation.json").read_text())
    return {k: v for k, v in told.items() if k != "seconds"}


def test_the_folder_is_whole(folder, result):
    out = folder / "out"
    assert {"ablation.json", "ablation.csv", "curves.png", "report.html", "common.safetensors"} <= {
        p.name for p in out.iterdir()
    }
    assert list(result["arms"]) == ["plain", "oversampled", "attributes", "dreams_70", "dreamt_only"]
    table = pd.read_csv(out / "ablation.csv")
    assert list(table["arm"]) == list(result["arms"])
    assert (table["ap_lo"] <= table["ap_hi"]).all() and table["ap"].between(0, 1).all()
    assert "dreams_70" in result["text"] and "the same network without dreams" in result["text"]
    assert set(result["gains"]) == {"attributes", "dreams_70", "dreamt_only"}
    assert "curves" not in result and json.dumps(result, allow_nan=False)
    for told in result["repeats"]:
        assert told["train"]["positives"] == 12 and told["test"]["negatives"] == 40
        assert told["dreams"]["made"] == told["dreams"]["kept"] == 14 and told["generator"]["common"]


def test_the_page_asks_for_nothing_and_says_what_it_rests_on(folder, result):
    page = (folder / "out" / "report.html").read_text()
    check_page(page)
    assert "augmentation" in page and "Purity against completeness" in page
    assert result["text"].splitlines()[-1][:40] in html.unescape(page)


def test_no_test_object_taught_a_generator_and_each_repeat_has_its_own(folder, result):
    tests = []
    for number in (0, 1):
        part = folder / "out" / f"repeat-{number:02d}"
        taught = set((part / "generator_ids.txt").read_text().split())
        tests.append(set(pd.read_parquet(part / "plain.parquet")["id"]))
        assert len(taught) > 200 and not taught & tests[-1]
    assert tests[0] != tests[1]


def test_arms_are_scored_on_the_same_objects_and_differ(folder, result):
    part = folder / "out" / "repeat-00"
    tables = {name: pd.read_parquet(part / f"{name}.parquet") for name in result["arms"]}
    for name, table in tables.items():
        assert table["id"].equals(tables["plain"]["id"])
        assert name == "plain" or not np.allclose(table["score"], tables["plain"]["score"])


def test_an_object_that_would_be_taught_and_tested_stops_it(folder, store, recipe, lenient, monkeypatch):
    monkeypatch.setattr(trial, "without_labels", lambda galaxies: np.ones(len(galaxies.table), bool))
    with pytest.raises(GalscanError, match=r"test objects.*would be trained on"):
        ablate(recipe, store=store, out=folder / "leak", **OPTIONS)
    assert not (folder / "leak.partial" / "repeat-00" / "generator.safetensors").exists()


def test_interrupted_goes_on_to_the_same_figures(folder, store, recipe, result, monkeypatch):
    train, calls = training.train_classifier, []

    def stop(*args, **kwargs):
        calls.append(kwargs["label"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(training, "train_classifier", stop)
    out = folder / "again"
    with pytest.raises(Interrupted, match="same command"):
        ablate(recipe, store=store, out=out, **OPTIONS)
    assert not out.exists()
    with pytest.raises(ConflictError, match="unfinished ablation with other seed"):
        ablate(recipe, store=store, out=out, **{**OPTIONS, "seed": 6})
    assert ablate(recipe, store=store, out=out, **OPTIONS)["arms"] == result["arms"]
    assert read(out) == read(folder / "out")
    assert len(calls) == 4 + 7  # five networks in each of two repeats, one of them twice


def test_the_same_again_is_returned_another_is_refused(folder, store, recipe, result, capsys):
    assert ablate(recipe, store=store, out=folder / "out", **OPTIONS)["text"] == result["text"]
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(ConflictError, match="another ablation"):
        ablate(recipe, store=store, out=folder / "out", **{**OPTIONS, "purity": 0.5})


def test_folds_without_unlabelled_galaxies_and_where_no_dream_is_left(tmp_path, monkeypatch):
    """The first fold has the real screen, but for one dream of either kind; in the second all dreams failed."""
    kept = []

    def screen(*given):
        judged = SCREEN(*given)
        judged.loc[[0, len(judged) - 1], "kept"] = True  # of noise it may leave none of a kind
        judged["kept"] &= not kept
        kept.append(judged["kept"].sum())
        return judged.assign(reason=judged["reason"].where(judged["kept"], "failed"))

    monkeypatch.setattr(judge, "screen", screen)
    sky = SimulatedSurvey(count=150, size=32, seed=2, rare_fraction=0.15)
    store = ingest_survey(sky, tmp_path / "s.zarr", workers=1).path
    result = ablate(
        str(tiny_recipe(tmp_path / "r.toml")), store=store, out=tmp_path / "o", seeds=1, folds=2, device="cpu",
        arms=["weighted", "dreams_first"], method="dreams_first",
    )  # fmt: skip
    first, second = result["repeats"]
    assert not first["generator"]["common"] and not (tmp_path / "o" / "common.safetensors").exists()
    assert first["dreams"]["kept"] >= 2
    assert first["dreams"]["made"] == first["dreams"]["kept"] + sum(first["dreams"]["dropped"].values())
    assert second["dreams"]["kept"] == 0 and any("repeat 1 no dream was left" in n for n in result["notes"])
    scores = {arm: pd.read_parquet(tmp_path / "o" / "repeat-01" / f"{arm}.parquet") for arm in result["arms"]}
    pd.testing.assert_frame_equal(scores["dreams_first"], scores["attributes"])
    assert first["test"]["positives"] + second["test"]["positives"] == (
        first["train"]["positives"] + first["test"]["positives"]
    )


def test_a_plan_is_printed_and_nothing_written(folder, store, recipe, capsys):
    request = galscan.verbs.ablate.ablate(recipe, store=store, out=folder / "no", dry_run=True, seeds=2, members=3)
    text = capsys.readouterr().err
    assert request["seeds"] == 2 and not list(folder.glob("no*"))
    assert "networks     72," in text and "2 steps on" in text and "galaxies without labels" in text
    assert "6 positive and 8 negative drawn a repeat" in text
    assert ablate(recipe, store=store, dry_run=True)["method"] == "dreams_70"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seeds": 0}, "--seeds 0: give at least 1"),
        ({"max_test": 1}, "--max-test 1: give at least 2"),
        ({"prevalence": 1.0}, "above 0 and below 1"),
        ({"arms": ["dreams_5"]}, "did you mean 'dreams_"),
        ({"arms": ["dreams_30"]}, "add a baseline"),
        ({"method": "plain"}, "is a baseline"),
        ({"positives": 4000}, "may train"),
        ({"folds": 400}, "use at most"),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(store, recipe, wrong, words):
    with pytest.raises(InputError, match=words):
        ablate(recipe, store=store, **wrong)


@pytest.mark.slow
def test_laid_dreams_need_no_generator_and_repeats_go_side_by_side(tmp_path):
    sky = SimulatedSurvey(count=300, size=32, seed=2, rare_fraction=0.2)
    store = ingest_survey(sky, tmp_path / "s.zarr", workers=1).path
    recipe = tiny_recipe(tmp_path / "r.toml")
    recipe.write_text(recipe.read_text().replace("laid = 0", "laid = 30"))
    options = {"store": store, "seeds": 2, "device": "cpu", "arms": ["weighted", "laid"], "method": "laid"}
    one = ablate(str(recipe), out=tmp_path / "one", **options)
    two = ablate(str(recipe), out=tmp_path / "two", workers=2, **options)
    assert list(one["arms"]) == ["weighted", "laid"] and not list((tmp_path / "one").glob("**/generator*"))
    assert {"classifiers", "scores"} <= set(two["seconds"])
    for told, again in zip(one["repeats"], two["repeats"], strict=True):
        assert told == again and 0 < told["dreams"]["kept_positive"] <= 30 and told["dreams"]["drawn"] == 0
    assert any("lane of another training galaxy" in note for note in one["notes"])
    scores = [pd.read_parquet(tmp_path / name / "repeat-01" / "laid.parquet") for name in ("one", "two")]
    assert scores[0]["id"].equals(scores[1]["id"])
    assert scores[0]["score"].equals(scores[1]["score"])


def test_nothing_of_a_test_object_is_laid(tmp_path, monkeypatch):
    """Checked by pixels: what lanes are lifted off, and laid over, is of the training objects."""
    from galscan.generate import lanes

    sky = SimulatedSurvey(count=300, size=32, seed=2, rare_fraction=0.2)
    store = open_store(ingest_survey(sky, tmp_path / "s.zarr", workers=1).path)
    owner = {image.tobytes(): name for image, name in zip(store.images(), store.column("id").astype(str), strict=True)}
    used: set[str] = set()
    lift, lay = lanes.lift, lanes.lay
    note = lambda images: used.update(owner[image.tobytes()] for image in images)  # noqa: E731
    monkeypatch.setattr(lanes, "lift", lambda images: (note(images), lift(images))[1])
    monkeypatch.setattr(lanes, "lay", lambda images, *rest: (note(images), lay(images, *rest))[1])
    recipe = tiny_recipe(tmp_path / "r.toml")
    recipe.write_text(recipe.read_text().replace("laid = 0", "laid = 30"))
    ablate(
        str(recipe), store=store.path, out=tmp_path / "o", seeds=1, device="cpu", arms=["plain", "laid"], method="laid"
    )
    tested = set(pd.read_parquet(tmp_path / "o" / "repeat-00" / "laid.parquet")["id"])
    assert len(used) > 20 and tested and not used & tested
