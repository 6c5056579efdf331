from __future__ import annotations

import functools
import html
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import galscan
from galscan.commands.ablate import ablate
from galscan.core.errors import ConflictError, GalscanError, InputError, Interrupted
from galscan.stats import metrics
from galscan.store.build import ingest_survey
from galscan.store.layout import open_store
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis import evaluation
from galscan.synthesis.features import artefact, dust_lane
from galscan.training import train
from galscan.training.ablation import experiment
from galscan.training.ablation.arms import BASELINES, REFERENCE
from tests.helpers import keep_all, tiny_recipe
from tests.pages import check_page

OPTIONS = {"seeds": 2, "positives": 12, "max_test": 40, "arms": ["plain", "prior", "images"], "method": "images",
           "prevalence": 0.02, "device": "cpu", "seed": 5}  # fmt: skip
FILTER = evaluation.filter_synthetic


@pytest.fixture(scope="module", autouse=True)
def few_bootstrap_samples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "bootstrap", functools.partial(metrics.bootstrap, count=40))
        yield


@pytest.fixture
def no_page(monkeypatch):
    monkeypatch.setattr("galscan.reports.ablation.write_ablation_report", lambda path: None)


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
    """A recipe that injects dust lanes and generates whole images."""
    recipe = tiny_recipe(folder / "dustlane.toml", whole=True)
    recipe.write_text(recipe.read_text().replace("injected = 0", "injected = 32"))
    return str(recipe)


@pytest.fixture(scope="module")
def keep_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "filter_synthetic", keep_all)
        yield


@pytest.fixture(scope="module")
def measured() -> dict[tuple[int, str], set[bytes]]:
    """The images that `result` measured or changed, by repeat and function."""
    return {}


@pytest.fixture(scope="module")
def result(folder, store, recipe, keep_images, measured) -> dict:
    repeat, injected = [0], experiment.Repetition._injected

    def inject(self, *arguments):
        repeat[0] = self.repeat.number
        return injected(self, *arguments)

    def record(function, key, images, *arguments, **options):
        measured.setdefault((repeat[0], key), set()).update(image.tobytes() for image in images)
        return function(images, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.Repetition, "_injected", inject)
        for module, name in ((dust_lane, "measure"), (dust_lane, "inject"), (artefact, "inject")):
            function, key = getattr(module, name), f"{module.__name__}.{name}"
            patch.setattr(module, name, functools.partial(record, function, key))
        return ablate(recipe, store=store, out=folder / "out", **OPTIONS)


def read(path: Path) -> dict:
    result = json.loads((path / "ablation.json").read_text())
    return {k: v for k, v in result.items() if k != "seconds"}


def test_the_folder_is_complete(folder, result):
    out = folder / "out"
    names = {p.name for p in out.iterdir()}
    assert names >= {"ablation.json", "ablation.csv", "curves.png", "report.html", "common.safetensors"}
    assert list(result["arms"]) == ["plain", "attributes", "prior", "images"]
    table = pd.read_csv(out / "ablation.csv")
    assert list(table["arm"]) == list(result["arms"])
    assert (table["ap_lo"] <= table["ap_hi"]).all() and table["ap"].between(0, 1).all()
    assert "images" in result["text"] and "the same network without synthetic galaxies" in result["text"]
    assert set(result["gains"]) == {"attributes", "prior", "images"} and result["method"] == "images"
    assert "curves" not in result and json.dumps(result, allow_nan=False)
    for repeat in result["repeats"]:
        assert repeat["train"]["positives"] == 12 and repeat["test"]["negatives"] == 40
        assert set(repeat["synthetic"]) == {"prior", "images"} and repeat["generator"]["common"]
        assert repeat["synthetic"]["images"]["made"] == repeat["synthetic"]["images"]["kept"] == 14
        injected = repeat["synthetic"]["prior"]
        assert injected["maps"] == "prior" and 0 < injected["kept_positive"] == injected["injected"] <= 32
        assert injected["made"] == injected["kept"]
        assert injected["kept"] == sum(injected[key] for key in ("injected", "injected_negatives", "too_faint"))


def test_the_page_is_self_contained_and_lists_assumptions(folder, result):
    page = (folder / "out" / "report.html").read_text()
    check_page(page)
    assert "augmentation" in page and "Purity against completeness" in page
    assert result["text"].splitlines()[-1][:40] in html.unescape(page)


def test_no_test_object_trains_a_generator_or_is_a_host_or_measured(folder, store, result, measured):
    """Hosts and measured galaxies are checked by pixels."""
    opened = open_store(store)
    owner = dict(zip([i.tobytes() for i in opened.images()], opened.column("id").astype(str), strict=True))
    tests = []
    for number in (0, 1):
        repeat = folder / "out" / f"repeat-{number:02d}"
        trained = set((repeat / "generator_ids.txt").read_text().split())
        tests.append(set(pd.read_parquet(repeat / "plain.parquet")["id"]))
        assert len(trained) > 200 and not trained & tests[-1]
        used = {key: {owner[image] for image in images} for (n, key), images in measured.items() if n == number}
        assert len(used) == 3 and all(used.values()) and len(set.union(*used.values())) > 20
        assert not set.union(*used.values()) & tests[-1]
    assert tests[0] != tests[1]


def test_arms_are_scored_on_the_same_objects_and_differ(folder, result):
    repeat = folder / "out" / "repeat-00"
    tables = {name: pd.read_parquet(repeat / f"{name}.parquet") for name in result["arms"]}
    for name, table in tables.items():
        assert table["id"].equals(tables["plain"]["id"])
        assert name == "plain" or not np.allclose(table["score"], tables["plain"]["score"])


def test_training_on_a_test_object_stops_it(folder, store, recipe, keep_images, monkeypatch):
    monkeypatch.setattr(experiment, "without_labels", lambda galaxies: np.ones(len(galaxies.table), bool))
    with pytest.raises(GalscanError, match="repeat 0"):
        ablate(recipe, store=store, out=folder / "leak", **OPTIONS)
    assert not (folder / "leak.partial" / "repeat-00" / "generator.safetensors").exists()


def test_an_interrupted_ablation_resumes_to_the_same_metrics(folder, store, recipe, result, monkeypatch, no_page):
    train_classifier, calls = train.train_classifier, []

    def stop(*args, **kwargs):
        calls.append(kwargs["label"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train_classifier(*args, **kwargs)

    monkeypatch.setattr(train, "train_classifier", stop)
    out = folder / "again"
    with pytest.raises(Interrupted, match="same command"):
        ablate(recipe, store=store, out=out, **OPTIONS)
    assert not out.exists()
    with pytest.raises(ConflictError, match="unfinished ablation with other seed"):
        ablate(recipe, store=store, out=out, **{**OPTIONS, "seed": 6})
    assert ablate(recipe, store=store, out=out, **OPTIONS)["arms"] == result["arms"]
    assert read(out) == read(folder / "out")
    assert len(calls) == 4 + 5  # four networks in each of two repeats, one of them twice


def test_the_same_request_is_done_another_is_a_conflict(folder, store, recipe, result, capsys):
    assert ablate(recipe, store=store, out=folder / "out", **OPTIONS)["text"] == result["text"]
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(ConflictError, match="another ablation"):
        ablate(recipe, store=store, out=folder / "out", **{**OPTIONS, "purity": 0.5})


def test_folds_without_unlabelled_galaxies_and_where_no_image_is_left(tmp_path, monkeypatch, no_page):
    """The first fold has the real filter, but for one image of either kind; in the second all images failed."""
    kept = []

    def first_fold_only(*arguments):
        filtered = FILTER(*arguments)
        filtered.loc[[0, len(filtered) - 1], "kept"] = True  # of noise it may leave none of a kind
        filtered["kept"] &= not kept
        kept.append(filtered["kept"].sum())
        return filtered.assign(reason=filtered["reason"].where(filtered["kept"], "failed"))

    monkeypatch.setattr(evaluation, "filter_synthetic", first_fold_only)
    sky = SimulatedSurvey(count=150, size=32, seed=2, rare_fraction=0.15)
    store = ingest_survey(sky, tmp_path / "s.zarr", workers=1).path
    result = ablate(
        str(tiny_recipe(tmp_path / "r.toml", whole=True)), store=store, out=tmp_path / "o", seeds=1, folds=2,
        device="cpu", arms=["weighted", "images"], method="images",
    )  # fmt: skip
    first, second = result["repeats"]
    assert not first["generator"]["common"] and not (tmp_path / "o" / "common.safetensors").exists()
    made, none = first["synthetic"]["images"], second["synthetic"]["images"]
    assert made["kept"] >= 2 and made["made"] == made["kept"] + sum(made["dropped"].values())
    words = "In repeat 1 no synthetic target of kind 'images' was left"
    assert none["kept"] == 0 and any(words in note for note in result["notes"])
    scores = {arm: pd.read_parquet(tmp_path / "o" / "repeat-01" / f"{arm}.parquet") for arm in result["arms"]}
    pd.testing.assert_frame_equal(scores["images"], scores["attributes"])
    assert first["test"]["positives"] + second["test"]["positives"] == (
        first["train"]["positives"] + first["test"]["positives"]
    )


def test_a_feature_with_only_a_prior_has_no_arms_of_a_diffusion_model(store, recipe, tmp_path):
    text = Path(recipe).read_text().replace('feature = "dust_lane"', 'feature = "ring"')
    (tmp_path / "rings.toml").write_text(text)
    recipe = str(tmp_path / "rings.toml")
    request = ablate(recipe, store=store, dry_run=True)
    assert request["method"] == "prior"
    assert request["arms"] == [*BASELINES, REFERENCE, "prior", "images"]
    for wrong in ({"arms": ["prior", "maps"]}, {"method": "both"}, {"arms": ["fewer"]}):
        with pytest.raises(InputError, match="'ring'"):
            ablate(recipe, store=store, dry_run=True, **wrong)


def test_a_dry_run_writes_nothing(folder, store, recipe, capsys):
    request = galscan.ablate(recipe, store=store, out=folder / "no", dry_run=True, seeds=2, members=3)
    text = capsys.readouterr().err
    assert request["seeds"] == 2 and not list(folder.glob("no*"))
    assert "networks     54," in text and "2 steps on" in text and "galaxies without labels" in text
    assert "32 positives and 8 negatives injected into real galaxies; " in text
    assert "6 positives and 8 negatives generated per repeat" in text
    assert request["method"] == ablate(recipe, store=store, dry_run=True)["method"] == "both"
    assert request["arms"] == [*BASELINES, REFERENCE, "prior", "maps", "both", "images"] and request["reserved"] == 0
    alone = ablate(recipe, store=store, dry_run=True, arms=["fewer"], method="fewer")
    assert alone["arms"] == [REFERENCE, "fewer"]  # its network chooses hosts, and is what it is compared with
    capsys.readouterr()


def test_a_recipe_without_an_inject_rule_is_compared_by_whole_images(folder, store, capsys):
    text = tiny_recipe(folder / "no rule.toml", whole=True).read_text()
    kept = text[: text.index("[schemas.simulated.inject]")] + text[text.index("[generator]") :]
    (folder / "no rule.toml").write_text(kept)
    bare = str(folder / "no rule.toml")
    request = ablate(bare, store=store, out=folder / "no", dry_run=True, seeds=1)
    assert request["method"] == "images" and request["arms"] == [*BASELINES, REFERENCE, "images"]
    assert "injected" not in capsys.readouterr().err
    with pytest.raises(InputError, match="'maps'"):
        ablate(bare, store=store, out=folder / "no", arms=["plain", "maps"])
    with pytest.raises(InputError, match="'prior'"):
        ablate(bare, store=store, out=folder / "no", method="prior")


def test_whole_images_are_as_many_as_by_default_if_the_recipe_has_none(folder, store, capsys):
    ablate(str(tiny_recipe(folder / "injecting.toml")), store=store, out=folder / "no", dry_run=True, seeds=1)
    assert "300 positives and 600 negatives generated per repeat" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seeds": 0}, "--seeds 0"),
        ({"max_test": 1}, "--max-test 1"),
        ({"prevalence": 1.0}, "--prevalence 1"),
        ({"arms": ["map"]}, "did you mean 'maps'"),
        ({"method": "plain"}, "--method plain"),
        ({"method": "attributes"}, "--method attributes"),
        ({"positives": 4000}, "--positives 4000"),
        ({"reserved": -1}, "--reserved -1"),
    ],
)
def test_wrong_options(store, recipe, wrong, words):
    with pytest.raises(InputError, match=words):
        ablate(recipe, store=store, **wrong)


@pytest.mark.slow
def test_injected_features_need_no_generator_and_repeats_run_in_parallel(tmp_path):
    sky = SimulatedSurvey(count=300, size=32, seed=2, rare_fraction=0.2)
    store = ingest_survey(sky, tmp_path / "s.zarr", workers=1).path
    recipe = str(tiny_recipe(tmp_path / "r.toml"))
    options = {"store": store, "seeds": 2, "device": "cpu", "arms": ["weighted", "prior"], "method": "prior"}
    one = ablate(recipe, out=tmp_path / "one", **options)
    # Two repeats, and two networks of each, in processes of their own.
    two = ablate(recipe, out=tmp_path / "two", workers=4, **options)
    assert list(one["arms"]) == ["weighted", "attributes", "prior"]
    assert not list((tmp_path / "one").glob("**/generator.*")) and not list(
        (tmp_path / "one").glob("**/feature_maps.*")
    )
    assert {"classifiers", "scores", "synthetic"} <= set(two["seconds"])
    assert one["repeats"] == two["repeats"]
    for repeat in one["repeats"]:
        assert repeat["generator"] is None and 0 < repeat["synthetic"]["prior"]["kept_positive"] <= 32
    assert any("Features are injected into real training galaxies" in note for note in one["notes"])
    scores = [pd.read_parquet(tmp_path / name / "repeat-01" / "prior.parquet") for name in ("one", "two")]
    assert scores[0]["id"].equals(scores[1]["id"])
    assert scores[0]["score"].equals(scores[1]["score"])


@pytest.mark.slow
def test_without_a_positive_maps_are_sampled_by_a_diffusion_model_of_measured_ones(tmp_path, monkeypatch):
    """Lanes are measured on dusty galaxies of any type; arms of one kind share what is injected."""
    monkeypatch.setattr("galscan.synthesis.diffusion.maps.LEAST_MEASURED", 2)
    sky = SimulatedSurvey(count=400, size=32, seed=2, rare_fraction=0.2)
    store = ingest_survey(sky, tmp_path / "s.zarr", workers=1).path
    recipe = tiny_recipe(tmp_path / "r.toml")
    text = recipe.read_text().replace('maps = "prior"', 'start = "none"\nsteps = 2\nbatch = 4\nwidths = [16, 32]')
    recipe.write_text(text)
    result = ablate(
        str(recipe), store=store, out=tmp_path / "o", seeds=1, device="cpu", positives=0, reserved=20, negatives=100,
        arms=["plain", "maps", "both", "without_hosts"], method="both",
    )  # fmt: skip
    (repeat,) = result["repeats"]
    assert repeat["train"]["positives"] == 0 and repeat["synthetic"].keys() == {"maps", "both"}
    for kind, maps in (("maps", "diffusion"), ("both", "both")):
        made = repeat["synthetic"][kind]
        assert made["maps"] == maps and made["measured_maps"] >= 2 and made["map_training"]["steps"] == 2
    assert (tmp_path / "o" / "repeat-00" / "feature_maps.safetensors").is_file()
    scores = {arm: pd.read_parquet(tmp_path / "o" / "repeat-00" / f"{arm}.parquet")["score"] for arm in result["arms"]}
    assert not np.allclose(scores["both"], scores["without_hosts"])
