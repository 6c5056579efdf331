from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import galscan
from galscan.commands import train_rare as module
from galscan.core import home
from galscan.core.errors import ConflictError, InputError, Interrupted, NotFoundError
from galscan.labels.recipe import load_recipe
from galscan.labels.settings import InjectRule
from galscan.models import ensemble
from galscan.stats import crossfit
from galscan.store.build import ingest_survey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis import evaluation
from galscan.synthesis import synthetic_set as dreaming
from galscan.synthesis.diffusion import galaxy_training as generators
from galscan.synthesis.diffusion.galaxy_model import load_generator, save_generator
from galscan.synthesis.galaxies import MEASURED, measure
from galscan.training import train as classifiers
from galscan.training.split import reserved
from tests import grading
from tests.helpers import keep_all, tiny_recipe, tiny_store


@pytest.fixture(scope="module", autouse=True)
def few_are_enough():
    """Cross-fit with the hundred unlabelled galaxies there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossfit, "LEAST", 60)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    """Galaxies of which some are dusty early types, rings and mergers; half of them labelled."""
    sky = SimulatedSurvey(count=800, size=32, seed=1, rare_fraction=0.1, labelled=0.8)
    return ingest_survey(sky, folder / "sky.zarr", workers=1).path


def most(dreams, *_) -> pd.DataFrame:
    """Stand in for the filter: drop one image of either kind."""
    kept = np.ones(len(dreams), bool)
    kept[[0, -1]] = False
    return pd.DataFrame({"kept": kept, "reason": np.where(kept, "", ["copy"] + ["looks positive"] * (len(dreams) - 1))})


@pytest.fixture(scope="module")
def taught() -> list:
    """Record the training set of the generator of `model`."""
    return []


@pytest.fixture(scope="module")
def model(folder, store, taught) -> galscan.Model:
    """Train with whole images, which a tiny generator draws."""
    recipe, real = tiny_recipe(folder / "dustlane.toml", whole=True), generators.train_generator

    def spy(galaxies, *arguments, **options):
        taught.append(galaxies)
        return real(galaxies, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "filter_synthetic", most)
        patch.setattr(generators, "train_generator", spy)
        return galscan.train_rare(str(recipe), store=store, out=folder / "model", device="cpu", seed=3)


@pytest.fixture(scope="module")
def injected(folder, store) -> galscan.Model:
    """Train with dust lanes injected into real galaxies; maps are the prior's."""
    recipe = str(tiny_recipe(folder / "injected.toml"))
    return galscan.train_rare(recipe, store=store, out=folder / "injected", device="cpu", seed=3)


def test_the_bundle_is_whole(model):
    assert (model.target, model.schema.name, model.size) == ("dustlane", "simulated", 32)
    assert (model.seed, model.members) == (3, 2)
    names = {p.name for p in model.path.iterdir()}
    assert {
        "model.json",
        "recipe.toml",
        "splits.parquet",
        "synthetic.png",
        "report.html",
        "generator.safetensors",
        "conditions.parquet",
        "synthetic.zarr",
    } <= names
    assert not [n for n in names if n.startswith(("steps", "request", "synthetic", "feature_maps", "generator.json"))]
    (other,) = {*module.TRAINING_SETS} - {model.metrics["chosen"]}  # to compare with what is delivered
    assert {n for n in names if n.startswith("real_")} == {f"{other}-{k}.safetensors" for k in range(2)}
    assert not model.path.with_name("model.partial").exists()


def test_a_first_look_learns_with_the_model(folder, store, monkeypatch, model):
    from galscan.models.model import PREFILTER_FILE
    from galscan.models.prefilter import load_prefilter, may_train_prefilter

    assert model.prefilter is None
    monkeypatch.setattr(module, "MIN_PREFILTER_IMAGES", 100)
    recipe = tiny_recipe(folder / "looking.toml", whole=True)
    recipe.write_text(recipe.read_text().replace("[prefilter]\nsteps = 0", "[prefilter]\nsteps = 3\nsample = 300"))
    seen, member_scores = [], ensemble.member_scores
    spy = lambda networks, images, device: seen.append(images) or member_scores(networks, images, device)  # noqa: E731
    monkeypatch.setattr(ensemble, "member_scores", spy)
    taught = galscan.train_rare(str(recipe), store=store, out=folder / "looking", device="cpu", seed=3, synthetic=False)
    assert taught.prefilter == taught.path / PREFILTER_FILE and taught.model_hash != model.model_hash
    sky = galscan.open_store(store)
    owner = {image.tobytes(): k for k, image in enumerate(sky.images())}
    assert len(seen[-1]) == 300 and may_train_prefilter(sky.column("id"))[[owner[i.tobytes()] for i in seen[-1]]].all()
    assert load_prefilter(taught.prefilter).cut == -np.inf
    taught.prefilter.write_bytes(b"another")
    with pytest.raises(InputError, match="not the file the model was written with"):
        _ = taught.prefilter


def test_real_only_and_synthetic_stand_side_by_side(model):
    metrics = model.metrics
    assert len(metrics["real_only"]["ap"]) == len(metrics["real_plus_synthetic"]["ap"]) == 2
    assert metrics["gain"]["lo"] <= metrics["gain"]["mean"] <= metrics["gain"]["hi"]
    assert metrics["chosen"] == ("real_plus_synthetic" if metrics["calibration_gain"]["lo"] > 0 else "real_only")
    assert "calibration set shows" in metrics["delivery_rule"]
    text = model.summary()["text"]
    assert "real only" in text and "real + synthetic" in text and "gain" in text and "<- chosen" in text
    assert metrics["delivery_rule"] in (model.path / "report.html").read_text()


def plan_of(feature: str | None, positives: int = 0) -> SimpleNamespace:
    rule = feature and InjectRule(feature=feature, hosts="t > 0")
    recipe = SimpleNamespace(synthetic=SimpleNamespace(positives=positives))
    return SimpleNamespace(rules=SimpleNamespace(inject=rule), recipe=recipe)


UNSURE, GAIN, HARM = ({"mean": m, "lo": m - 0.1, "hi": m + 0.1} for m in (0.05, 0.2, -0.2))


@pytest.mark.parametrize(
    ("plans", "gains", "chosen", "words"),
    [
        ([plan_of("dust_lane")], [], "real_only", "no synthetic galaxies"),
        ([plan_of("dust_lane")], [HARM], "real_only", "shows harm"),
        ([plan_of(None, 300)], [GAIN], "real_plus_synthetic", "shows a gain"),
        ([plan_of("dust_lane")], [UNSURE], "real_plus_synthetic", "a feature proven by the benchmark"),
        ([plan_of(None, 300)], [UNSURE], "real_only", "no feature proven by the benchmark"),
        ([plan_of(None)], [UNSURE], "real_only", "no feature proven"),
        ([plan_of("dust_lane", 300)], [UNSURE], "real_only", "no feature proven"),  # whole images as well
        ([plan_of("artefact")], [UNSURE], "real_only", "no feature proven"),
        # Of several targets, harm to one decides before a gain of another; and each needs a proven feature.
        ([plan_of("dust_lane")] * 2, [HARM, GAIN], "real_only", "shows harm"),
        ([plan_of("dust_lane")] * 2, [UNSURE, GAIN], "real_plus_synthetic", "shows a gain"),
        ([plan_of("dust_lane")] * 2, [UNSURE, UNSURE], "real_plus_synthetic", "a feature proven"),
        ([plan_of("dust_lane"), plan_of(None, 300)], [UNSURE, UNSURE], "real_only", "no feature proven"),
    ],
)
def test_which_networks_are_delivered(plans, gains, chosen, words, monkeypatch):
    monkeypatch.setattr(module, "PROVEN", ("dust_lane",))
    delivered, rule = module._delivered(plans, gains)
    assert delivered == chosen and words in rule


@pytest.mark.parametrize("kind", ["model", "injected"])
def test_splits_hold_each_object_once_and_synthetic_ones_in_none(kind, store, request):
    model = request.getfixturevalue(kind)
    splits = model.splits()
    assert splits["id"].is_unique
    assert set(splits["split"]) == {"train", "calibration", "test"} if kind == "model" else {"fold 0", "fold 1"}
    real = set(galscan.open_store(store).column("id").astype(str))
    assert set(splits["id"]) <= real
    calibrates = splits["split"] == "calibration" if kind == "model" else splits["split"] != ""
    # Cross-fitted, as many quantiles calibrate as the out-of-fold scores are worth.
    used, unclear = len(model.calibration.scores), model.calibration.ambiguous.sum()
    there, ambiguous = calibrates.sum(), (calibrates & splits["target"].isna()).sum()
    assert (used, unclear) == (there, ambiguous) if kind == "model" else used <= there and 0 < unclear <= ambiguous


def test_cross_fitting_uses_every_labelled_galaxy_for_everything(injected):
    splits, whole = injected.splits(), {"positive": 1, "negative": 0}
    for use in ("train", "calibration", "test"):
        assert injected.info["splits"][use] == {
            **{kind: (splits["target"] == value).sum() for kind, value in whole.items()},
            "ambiguous": splits["target"].isna().sum(),
        }
    assert injected.folds == 2 and set(injected.objects("train").id) == set(splits["id"])
    test, crossfitted = injected.metrics["test"], injected.metrics["crossfit"]
    assert test["positives"] == (splits["target"] == 1).sum()
    assert crossfitted["folds"] == 2 and set(crossfitted["factors"]) == {"targets", "negatives", "ambiguous"}
    assert injected.metrics["gain"] == injected.metrics["calibration_gain"]
    assert "the out-of-fold scores show" in injected.metrics["delivery_rule"]
    page = (injected.path / "report.html").read_text()
    assert "Average precision" in page and "out-of-fold, on real galaxies" in page
    assert "held-out" not in page and "calibrated nor" not in page
    assert "Cross-fitted in 2 folds: every labelled object trained all networks but one" in page
    assert "real, out-of-fold:" in injected.summary()["text"]


def test_each_labelled_galaxy_is_scored_by_the_network_that_did_not_see_it(folder, store, monkeypatch):
    """Checked with the networks that are kept: scores that calibrate are theirs, where they are not corrected."""
    monkeypatch.setattr(crossfit, "scatter_of", lambda scores: None)
    recipe = str(tiny_recipe(folder / "plain.toml"))
    model = galscan.train_rare(recipe, store=store, out=folder / "plain", device="cpu", seed=3, synthetic=False)
    sky, splits = galscan.open_store(store), model.splits()
    rows = pd.Index(sky.column("id").astype(str)).get_indexer(splits["id"])
    each = ensemble.member_scores(ensemble.load_networks(model), sky.images()[rows], torch.device("cpu"))[..., 0]
    own = each[splits["split"].str.removeprefix("fold ").astype(int), np.arange(len(rows))]
    np.testing.assert_allclose(np.sort(model.calibration.scores), np.sort(own), atol=1e-5)
    np.testing.assert_array_equal(model.calibration.targets.sum(), (splits["target"] == 1).sum())


def test_scores_are_corrected_by_unlabelled_galaxies_that_train_nothing(folder, store, monkeypatch):
    real, given = classifiers.train_classifier, []
    spy = lambda *a, **k: (given.extend(e for e in a[:2] if e), real(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr(classifiers, "train_classifier", spy)
    recipe = str(tiny_recipe(folder / "corrected.toml"))
    model = galscan.train_rare(recipe, store=store, out=folder / "corrected", device="cpu", seed=3)
    told = model.metrics["crossfit"]
    assert told["objects"] > 60 and set(told["factors"]) == {"targets", "negatives", "ambiguous"}
    assert all(np.sqrt(1 / 2) - 1e-9 <= factor <= 1 for factor in told["factors"].values())
    plan = module.make_plans([recipe], (), store, None, None, True, 3)[0]
    sky, unused = galscan.open_store(store), reserved(plan.table, synthetic=True, seed=3)
    images = {image.tobytes() for image in sky.images()[unused["row"]]}
    assert len(images) == told["objects"] and len(given) == 6
    assert not any(image.tobytes() in images for examples in given for image in examples.images)
    assert "The standard deviation changed by" in (model.path / "report.html").read_text()


def test_no_network_has_to_do_with_its_fold(folder, store, monkeypatch):
    """Checked by pixels, of real galaxies and of hosts; and each synthetic set is chosen by a network of its own."""
    real, given = classifiers.train_classifier, []
    spy = lambda *a, seed, **k: (given.append((seed, *a[:2])), real(*a, seed=seed, **k))[1]  # noqa: E731
    monkeypatch.setattr(classifiers, "train_classifier", spy)
    recipe = str(tiny_recipe(folder / "apart.toml"))
    model = galscan.train_rare(recipe, store=store, out=folder / "apart", device="cpu", seed=3)
    sky, splits = galscan.open_store(store), model.splits()
    fold = dict(zip(splits["id"], splits["split"], strict=True))
    owner = {
        image.tobytes(): fold.get(name) for image, name in zip(sky.images(), sky.column("id").astype(str), strict=True)
    }
    assert [seed for seed, *_ in given] == [3000, 3001, 3000, 3001]
    for seed, examples, made in given:
        member = seed - 3000
        assert {owner[i.tobytes()] for i in examples.images} == {f"fold {1 - member}"}
        assert len(examples.images) == (splits["split"] == f"fold {1 - member}").sum()
        if made is not None:
            hosts = made.images[made.host[made.host >= 0]]
            assert len(hosts) > 10
            found = {owner[i.tobytes()] for i in made.images if i.tobytes() in owner}
            assert f"fold {1 - member}" in found and f"fold {member}" not in found
            assert all(i.tobytes() in owner for i in hosts)
    assert not list(model.path.glob("fold-*"))


def test_no_object_held_out_ever_reaches_the_generator(model, store, taught):
    """Checked by id: the images of the training set of the generator are looked up in the store."""
    sky, splits = galscan.open_store(store), model.splits()
    split = dict(zip(splits["id"], splits["split"], strict=True))
    owner = {image.tobytes(): name for image, name in zip(sky.images(), sky.column("id").astype(str), strict=True)}
    assert len(owner) == sky.count  # no two pictures are the same
    (galaxies,) = taught
    ids = {owner[image.tobytes()] for image in galaxies.images}
    held_out = {name for name, part in split.items() if part != "train"}
    assert len(held_out) > 100 and not ids & held_out
    assert ids == set(owner.values()) - held_out  # and all others do, also those without labels
    assert len(galaxies.images) == len(ids) == model.metrics["generator"]["galaxies"]


def test_dreams_start_from_training_galaxies_only(model, store):
    conditions, target, survey = dreaming.read_conditions(model.path / "conditions.parquet")
    sky, splits = galscan.open_store(store), model.splits()
    train = splits[splits["split"] == "train"]
    rows = pd.Index(sky.column("id").astype(str)).get_indexer(train["id"])
    assert (rows >= 0).all() and set(survey) == {"simulated"} == set(train["store"])
    np.testing.assert_array_equal(target, train["target"])
    labels = sky.labels("simulated").iloc[rows]
    np.testing.assert_array_equal(conditions[labels.columns], labels)
    np.testing.assert_allclose(conditions[list(MEASURED)], measure(sky.images()[rows]), atol=1e-6)


def test_dreams_are_kept_with_their_conditions(model):
    dreams = galscan.open_store(model.path / "synthetic.zarr")
    labels, target = dreams.labels("simulated"), dreams.column("truth/target")
    assert dreams.count == 12 and target.sum() == 5  # of 14 and 6: one of each was dropped
    assert (labels["dust_lane"][:5] >= 0.6).all() and (labels["early_type"][:5] >= 0.5).all()
    assert np.isfinite(labels.to_numpy()).all()


def test_what_was_dropped_is_counted_and_told(model):
    assert model.metrics["synthetic"] == {
        "all": 14, "dropped": {"copy": 1, "looks positive": 1}, "kept": 12, "kept_positive": 5,
    }  # fmt: skip
    assert model.metrics["generator"]["start"] == "none" and model.metrics["generator"]["steps"] == 3
    page = (model.path / "report.html").read_text()
    assert "12 synthetic galaxies were used, 5 of them targets; dropped: 1 copy, 1 looks positive." in page


def test_the_filter_has_a_network_trained_on_real_galaxies(folder, store, model, monkeypatch):
    """The order: real-only networks, the generator, its images filtered by the first of these networks, the others."""
    order, seen = [], {}
    real, generator = classifiers.train_classifier, generators.train_generator

    def train(examples, made, *arguments, label, seed, **options):
        network = real(examples, made, *arguments, label=label, seed=seed, **options)
        order.append((label, seed, made is not None))
        seen.setdefault(order[-1], network)
        return network

    def screen(dreams, images, critic, *_):
        order.append("filter")
        first = seen["real only networks", 3000, False].state_dict()
        assert all(v.equal(first[k]) for k, v in critic.network.state_dict().items())
        assert len(images) == (model.splits()["split"] == "train").sum()
        return keep_all(dreams)

    monkeypatch.setattr(classifiers, "train_classifier", train)
    monkeypatch.setattr(
        generators, "train_generator", lambda *a, **k: (order.append("generator"), generator(*a, **k))[1]
    )
    monkeypatch.setattr(evaluation, "filter_synthetic", screen)
    galscan.train_rare(str(folder / "dustlane.toml"), store=store, out=folder / "order", device="cpu", seed=3)
    assert order == [
        ("real only networks", 3000, False), ("real only networks", 3001, False), "generator", "filter",
        ("real plus synthetic networks", 3000, True), ("real plus synthetic networks", 3001, True),
    ]  # fmt: skip


@pytest.mark.parametrize("left", ["none", "negatives only"])
def test_where_no_dream_of_a_kind_is_left_the_real_galaxies_alone_count(tmp_path, store, monkeypatch, left):
    def screen(dreams, *_):
        kept = (dreams.target == 0) & (left != "none")
        return pd.DataFrame({"kept": kept, "reason": np.where(kept, "", "unlike any galaxy")})

    monkeypatch.setattr(evaluation, "filter_synthetic", screen)
    out, recipe = tmp_path / "m", str(tiny_recipe(tmp_path / "r.toml", whole=True))
    metrics = galscan.train_rare(recipe, store=store, out=out, device="cpu").metrics
    assert metrics["real_plus_synthetic"] is None and metrics["gain"] is None and metrics["chosen"] == "real_only"
    kept = 0 if left == "none" else 8
    assert (metrics["synthetic"]["kept"], metrics["synthetic"]["kept_positive"]) == (kept, 0)
    assert metrics["synthetic"]["dropped"] == {"unlike any galaxy": 14 - kept}
    assert not (out / "synthetic.zarr").exists() and (out / "generator.safetensors").is_file()


def test_the_generator_starts_from_the_recipes_weights(tmp_path, folder, store, model, monkeypatch):
    """Weights of another training are adapted; with steps so small that they stay, they are what is kept."""
    started = []
    real = generators.train_generator
    spy = lambda *a, start, **k: (started.append(start), real(*a, start=start, **k))[1]  # noqa: E731
    monkeypatch.setattr(generators, "train_generator", spy)
    before = load_generator(model.path / "generator.safetensors")
    save_generator(before, before.state_dict(), tmp_path / "mine.safetensors")
    recipe = tiny_recipe(tmp_path / "r.toml", whole=True)
    recipe.write_text(recipe.read_text().replace('start = "none"', f'start = "{tmp_path}/mine.safetensors"'))
    out = galscan.train_rare(str(recipe), store=store, out=tmp_path / "m", device="cpu", seed=3)
    assert started[0].config == before.config
    assert out.metrics["generator"]["start"] == f"{tmp_path}/mine.safetensors"


def test_the_same_again_is_returned_another_is_refused(model, store, folder, capsys):
    recipe = str(folder / "dustlane.toml")
    again = galscan.train_rare(recipe, store=store, out=model.path, device="cpu", seed=3)
    assert again.model_hash == model.model_hash
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(ConflictError, match="another model"):
        galscan.train_rare(recipe, store=store, out=model.path, device="cpu", seed=4)


@pytest.mark.parametrize("whole", [True, False])
def test_no_synthetic_trains_no_generator(tmp_path, store, whole):
    out, recipe = tmp_path / "plain", str(tiny_recipe(tmp_path / "r.toml", whole=whole))
    model = galscan.train_rare(recipe, store=store, out=out, synthetic=False, device="cpu")
    assert model.metrics["real_plus_synthetic"] is None and model.metrics["chosen"] == "real_only"
    assert model.metrics["synthetic"] is None and model.metrics["generator"] is None
    kept = {p.name for p in out.iterdir()}
    assert not kept & {"generator.safetensors", "conditions.parquet", "synthetic.zarr", "synthetic.png"}


@pytest.mark.parametrize("where", ["synthetic", "real plus synthetic networks 3001"])
def test_interrupted_goes_on_to_the_same_model(folder, store, model, monkeypatch, where):
    out, recipe = folder / f"again at {where}", str(folder / "dustlane.toml")
    train, generator, generate_set = classifiers.train_classifier, generators.train_generator, dreaming.generate_set
    stop, done = [True], []

    def maybe(label):
        if label == where and stop:
            stop.clear()
            raise KeyboardInterrupt
        done.append(label)

    monkeypatch.setattr(evaluation, "filter_synthetic", most)
    monkeypatch.setattr(
        classifiers, "train_classifier", lambda *a, **k: (maybe(f"{k['label']} {k['seed']}"), train(*a, **k))[1]
    )
    monkeypatch.setattr(generators, "train_generator", lambda *a, **k: (maybe("generator"), generator(*a, **k))[1])
    monkeypatch.setattr(dreaming, "generate_set", lambda *a, **k: (maybe("synthetic"), generate_set(*a, **k))[1])
    with pytest.raises(Interrupted, match="same command"):
        galscan.train_rare(recipe, store=store, out=out, device="cpu", seed=3)
    assert not out.exists()
    with pytest.raises(ConflictError, match="unfinished training with other seed"):
        galscan.train_rare(recipe, store=store, out=out, device="cpu", seed=4)
    again = galscan.train_rare(recipe, store=store, out=out, device="cpu", seed=3)
    assert again.model_hash == model.model_hash
    assert galscan.open_store(out / "synthetic.zarr").content_hash == (
        galscan.open_store(model.path / "synthetic.zarr").content_hash
    )
    assert len(done) == len(set(done)) == 6  # nothing was done twice: two and two networks, generator, dreams
    timeless = lambda m: {k: v for k, v in m.items() if k not in ("seconds", "generator")}  # noqa: E731
    assert timeless(again.metrics) == timeless(model.metrics)


def test_interrupted_between_the_images_and_the_note_of_them(tmp_path, store, monkeypatch):
    monkeypatch.setattr(evaluation, "filter_synthetic", keep_all)
    recipe, write = str(tiny_recipe(tmp_path / "r.toml", whole=True)), module.write_json

    def stop(path, value):
        if path.name == module.SYNTHETIC:
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", stop)
        with pytest.raises(Interrupted):
            galscan.train_rare(recipe, store=store, out=tmp_path / "m", device="cpu")
    assert (tmp_path / "m.partial" / "synthetic.zarr").is_dir()
    metrics = galscan.train_rare(recipe, store=store, out=tmp_path / "m", device="cpu").metrics
    assert metrics["synthetic"]["kept"] == galscan.open_store(tmp_path / "m" / "synthetic.zarr").count == 14


@pytest.mark.parametrize("target", ["ring", "merger"])
def test_other_targets_run_by_recipe_alone(folder, store, target, monkeypatch):
    monkeypatch.setattr(evaluation, "filter_synthetic", keep_all)
    recipe = tiny_recipe(folder / f"{target}.toml", target)
    model = galscan.train_rare(str(recipe), store=store, out=folder / target, device="cpu")
    assert model.target == target and model.metrics["real_plus_synthetic"] is not None


def test_a_plan_is_printed_and_nothing_written(folder, store, capsys):
    assert galscan.train_rare(str(folder / "dustlane.toml"), store=store, out=folder / "no", dry_run=True) is None
    text = capsys.readouterr().err
    assert "calibration" in text and "positive" in text and "3 steps" in text
    assert not (folder / "no").exists() and not (folder / "no.partial").exists()


def test_a_plan_without_a_host_is_refused_before_anything_is_trained(folder):
    # Every galaxy is labelled: of unlabelled ones only a trained network can tell.
    store = galscan.ingest(
        "simulated", out=folder / "all.zarr", count=400, size=32, seed=9, rare_fraction=0.1, labelled=1.0
    ).path
    recipe = folder / "no-host.toml"
    text = tiny_recipe(recipe).read_text(encoding="utf-8")
    hosts = load_recipe("dustlane").schemas["simulated"].inject.hosts
    recipe.write_text(text.replace(hosts, "early_type >= 0.5 and size > 0.249"), encoding="utf-8")
    with pytest.raises(InputError, match=r"inject\.hosts"):
        galscan.train_rare(str(recipe), store=store, out=folder / "no-host", dry_run=True)
    assert not (folder / "no-host").exists()


def test_all_surveys_of_the_home_are_the_default(store, capsys):
    home.survey_path("sky").parent.mkdir(parents=True)
    home.survey_path("sky").symlink_to(store)
    tiny = tiny_recipe(store.parent / "default.toml")
    assert galscan.train_rare(str(tiny), dry_run=True) is None
    assert "models/dustlane" in capsys.readouterr().err


def test_mistakes_are_one_line_with_a_remedy(folder, store, tmp_path):
    recipe = str(folder / "dustlane.toml")
    with pytest.raises(NotFoundError, match="did you mean 'dustlane'"):
        galscan.train_rare("dustlan", store=store)
    with pytest.raises(InputError, match=r"no labelled survey.*galscan ingest"):
        galscan.train_rare(recipe)
    with pytest.raises(NotFoundError, match="galscan ingest"):
        galscan.train_rare(recipe, survey="nowhere")
    with pytest.raises(InputError, match="named twice"):
        galscan.train_rare(recipe, store=[store, store])
    with pytest.raises(InputError, match="minutes above 0"):
        galscan.train_rare(recipe, store=store, budget=0)
    unlabelled = tiny_store(tmp_path / "u.zarr")
    with pytest.raises(InputError, match="the stores have none"):
        galscan.train_rare(recipe, store=unlabelled.path)
    with pytest.raises(InputError, match="--size 96"):
        galscan.train_rare("dustlane", store=store, out=tmp_path / "m", device="cpu")
    assert not (tmp_path / "m").exists()


def test_no_positives_says_how_many_and_what_helps(tmp_path):
    sky = SimulatedSurvey(count=300, size=32, seed=5, rare_fraction=0.0)
    store = ingest_survey(sky, tmp_path / "s.zarr", workers=1).path
    with pytest.raises(InputError, match="0 positive examples of 'dustlane' among 300 labelled"):
        galscan.train_rare(str(tiny_recipe(tmp_path / "r.toml")), store=store, out=tmp_path / "m")


def test_a_plan_of_maps_that_draws_whole_images_as_well_is_refused_before_anything_is_written(tmp_path, store):
    recipe = tiny_recipe(tmp_path / "r.toml")
    recipe.write_text(recipe.read_text().replace("positives = 0", "positives = 4"))
    with pytest.raises(InputError, match=r"'maps' generates no whole images: set synthetic\.positives = 0") as error:
        galscan.train_rare(str(recipe), store=store, out=tmp_path / "m", device="cpu")
    assert "\n" not in str(error.value) and [p.name for p in tmp_path.iterdir()] == ["r.toml"]


def test_weights_of_maps_that_are_not_there_are_refused_before_anything_is_written(tmp_path, store):
    recipe = tiny_recipe(tmp_path / "r.toml")
    text = recipe.read_text().replace('maps = "prior"', f'maps = "diffusion"\nstart = "{tmp_path}/no.safetensors"')
    recipe.write_text(text)
    with pytest.raises(InputError, match=r"no\.safetensors"):
        galscan.train_rare(str(recipe), store=store, out=tmp_path / "m", device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["r.toml"]


def test_injected_features_need_no_generator(injected):
    made = injected.metrics["synthetic"]
    assert injected.metrics["generator"] is None and injected.metrics["real_plus_synthetic"] is not None
    names = {p.name for p in injected.path.iterdir()}
    assert {"synthetic.zarr", "synthetic.png", "report.html"} <= names
    assert not names & {
        "generator.safetensors",
        "conditions.parquet",
        "feature_maps.safetensors",
        "feature_maps.json",
        module.SYNTHETIC,
    }
    assert made["maps"] == "prior" and made["map_training"] is None and made["dropped"] == {}
    assert 4 < made["kept_positive"] == made["injected"] <= 32 and 0 < made["injected_negatives"] <= 8
    assert made["kept"] == made["all"] == made["injected"] + made["injected_negatives"] + made["too_faint"]
    assert made["hosts"] > 20 and made["too_faint"] > 0 and made["hosts_unlabelled"] < made["hosts"]
    page = (injected.path / "report.html").read_text()
    words = "for the first network; each network has its own set, made without galaxies of its fold"
    assert f"{made['kept']} synthetic galaxies were used, {made['injected']} of them targets, {words}. Features" in page
    assert f"injected into {made['hosts']} real galaxies" in page and "maps from the prior" in page


def test_injected_galaxies_keep_the_labels_of_their_hosts_but_for_the_feature(injected):
    made = dreaming.read_synthetic_set(injected.path / "synthetic.zarr", "simulated")
    positive = np.flatnonzero(made.target == 1)
    host = made.host[positive]
    assert (made.origin[positive] == dreaming.INJECTED).all() and (made.origin[host] == dreaming.HOST).all()
    assert (made.target[host] == 0).all() and (made.host[made.origin != dreaming.INJECTED] == -1).all()
    labels, theirs = made.labels.iloc[positive], made.labels.iloc[host]
    assert labels["dust_lane"].between(0.5, 1).all()  # as the positive rule wants it
    assert labels["dusty"].equals(labels["dust_lane"])  # both follow the depth
    labelled = theirs["early_type"].notna().to_numpy()
    assert (
        labelled.any() and (theirs["early_type"][labelled] >= 0.5).all() and (theirs["dust_lane"][labelled] == 0).all()
    )
    others = [name for name in made.labels if name not in ("dust_lane", "dusty")]
    np.testing.assert_array_equal(labels[others].to_numpy(), theirs[others].to_numpy())
    changed = (made.images[positive] != made.images[host]).any(axis=(1, 2, 3))
    assert changed.all() and (made.depth[positive] > 0).all()


def test_no_object_held_out_is_a_host_or_a_mined_negative(injected, store):
    """Checked by pixels."""
    sky, splits = galscan.open_store(store), injected.splits()
    owner = {image.tobytes(): name for image, name in zip(sky.images(), sky.column("id").astype(str), strict=True)}
    made = dreaming.read_synthetic_set(injected.path / "synthetic.zarr", "simulated")
    ids = {owner[image.tobytes()] for image in made.images[~made.synthetic]}
    held_out = set(splits.loc[splits["split"] == "fold 0", "id"])  # what is kept was made for the first network
    assert len(ids) > 4 and len(held_out) > 100 and not ids & held_out
    assert not {image.tobytes() for image in made.images[made.synthetic]} & owner.keys()


def test_hosts_train_in_the_batches_of_what_is_made_of_them(folder, store, injected, monkeypatch):
    real, given = classifiers.train_classifier, []
    spy = lambda *a, **k: (given.append(a[1]), real(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr(classifiers, "train_classifier", spy)
    recipe = str(folder / "injected.toml")
    again = galscan.train_rare(recipe, store=store, out=folder / "injected again", device="cpu", seed=3)
    assert again.model_hash == injected.model_hash
    made = dreaming.read_synthetic_set(injected.path / "synthetic.zarr", "simulated")
    assert given[:2] == [None, None] and len(given) == 4
    np.testing.assert_array_equal(given[2].host, made.host)
    np.testing.assert_array_equal(given[2].target[:, 0], made.target)
    assert len(given[3].images) != len(given[2].images) or (given[3].images != given[2].images).any()


@pytest.fixture(scope="module")
def graded(folder, model, scans_here, no_pages) -> Path:
    """A scan of another sky with `model`, of which the best twenty are graded: the odd ranks are targets."""
    survey = SimulatedSurvey(count=300, size=32, seed=9, labelled=0.0, name="another sky")
    sky = ingest_survey(survey, folder / "new.zarr", workers=1)
    run = galscan.scan(store=sky.path, model=model.path, out=folder / "run", top=40, workers=1).path
    galscan.vet(run, serve=False, best=20, size=20)
    with grading.book(run) as book:
        for row in book.items().itertuples():
            if row.kind == "survey" and row.stratum == "best":
                book.record(f"grade-{row.item:04d}", row.item, "ann", "A" if row.rank % 2 else "not")
    return run


def test_grades_of_a_scan_teach_the_next_model(tmp_path, folder, store, model, graded, monkeypatch, capsys):
    """Ten objects of another sky become targets, ten become negatives; the held-out objects do not change."""
    fixed, seen = tiny_recipe(tmp_path / "fixed.toml", whole=True), []
    fixed.write_text(fixed.read_text() + "[split]\nmethod = 'fixed'\n")
    recipe, real = str(fixed), classifiers.train_classifier
    spy = lambda examples, *a, **k: (seen.append(examples), real(examples, *a, **k))[1]  # noqa: E731
    monkeypatch.setattr(classifiers, "train_classifier", spy)
    options = {"store": store, "device": "cpu", "seed": 3, "synthetic": False}
    assert galscan.train_rare(recipe, out=tmp_path / "taught", grades=graded, dry_run=True, **options) is None
    assert "10 positive and 10 negative trained on, of 20 graded" in capsys.readouterr().err
    taught = galscan.train_rare(recipe, out=tmp_path / "taught", grades=[graded], **options)
    before, after = model.splits().set_index("id"), seen[-1]
    assert len(seen) == 2
    for value in (1, 0):
        trained = (before["split"] == "train") & (before["target"] == value)
        assert (after.target == value).sum() == trained.sum() + 10
    best = galscan.open_run(graded).candidates.head(20)
    sky = galscan.open_store(folder / "new.zarr")
    told = {image.tobytes(): target for image, target in zip(after.images, after.target, strict=True)}
    for rank, index in zip(best["rank"], best["index"], strict=True):
        assert told[sky.images(slice(index, index + 1))[0].tobytes()] == rank % 2
    # All other objects are the same, and so are the calibration and test sets.
    splits, names = taught.splits().set_index("id"), best["objid"].astype(str)
    assert splits.drop(names)["split"].sort_index().equals(before["split"].sort_index())
    assert set(splits.loc[names, "split"]) == {"train"}
    (source,) = taught.info["grades"]
    assert source["run"] == str(graded) and source["fingerprint"] == galscan.open_run(graded).info["fingerprint"]
    assert source["positive"] == source["negative"] == 10 and len(source["sha256"]) == 64
    assert taught.info["request"]["grades"] == [[source["fingerprint"], source["sha256"]]]
    assert "grades" not in model.info and "grades" not in model.info["request"]
    # Scanned again they are marked: finding them is no discovery. And of that sky the calibration knows nothing still.
    again = galscan.scan(store=sky.path, model=taught.path, out=tmp_path / "again", top=300, workers=1)
    assert set(again.candidates.loc[again.candidates["in_train"], "objid"]) == set(best["objid"])
    assert any("has no object of" in note for note in again.info["purity"]["notes"])


def test_synthetic_galaxies_come_with_grades_too(tmp_path, folder, store, graded, monkeypatch):
    monkeypatch.setattr(evaluation, "filter_synthetic", keep_all)
    out = galscan.train_rare(
        str(folder / "dustlane.toml"), store=store, out=tmp_path / "m", device="cpu", seed=3, grades=graded
    )
    assert out.metrics["real_plus_synthetic"] is not None and out.info["grades"][0]["positive"] == 10


def test_several_targets_are_learnt_by_one_network(folder, store, monkeypatch):
    recipes = [str(tiny_recipe(folder / f"{t}.toml", t)) for t in ("dustlane", "ring")]
    monkeypatch.setattr(evaluation, "filter_synthetic", keep_all)
    both = galscan.train_rare(recipes, store=store, out=folder / "both", device="cpu", seed=3)
    assert (
        [b.target for b in both]
        == ["dustlane", "ring"]
        == [p.parent.name for p in sorted(both[0].path.parent.glob("*/model.json"))]
    )
    trunks = [n.trunk_hash() for b in both for n in ensemble.load_networks(b)]
    assert trunks[:2] == trunks[2:] and len(set(trunks)) == 2
    answers = set(both[0].recipe.schemas["simulated"].morphology) | set(both[1].recipe.schemas["simulated"].morphology)
    assert set(both[0].answers) == set(both[1].answers) == answers
    # Objects held out for one target train none, and both sets have a fraction of the rare ones.
    lane, ring = (b.splits().set_index("id") for b in both)
    assert lane["split"].equals(ring["split"])
    for split in (lane, ring):
        assert (split[split["target"] == 1].groupby("split").size() >= 2).all()
        assert set(split["split"]) == {"train", "calibration", "test"}
    assert not list((folder / "both").glob("**/real_*"))
    # One injects, the other draws: each has its own synthetic galaxies, and one generator is all there is.
    lane, ring = (b.metrics["synthetic"] for b in both)
    assert lane["injected"] > 0 and "injected" not in ring and ring["kept"] == 14
    assert (
        both[0].metrics["generator"] == both[1].metrics["generator"] and both[1].metrics["generator"]["kind"] == "flow"
    )
    assert both[0].metrics["chosen"] == both[1].metrics["chosen"] and (both[1].path / "report.html").is_file()
    assert galscan.train_rare(recipes, store=store, out=folder / "both", device="cpu", seed=3)[1].path == both[1].path
    drawn = galscan.generate(recipes[1], model=both[1].path, out=folder / "drawn", count=4, steps=2, device="cpu")
    assert drawn["count"] == 4


def test_several_targets_are_cross_fitted_together(folder, store):
    recipes = [str(tiny_recipe(folder / f"{t}-folds.toml", t)) for t in ("dustlane", "ring")]
    both = galscan.train_rare(recipes, store=store, out=folder / "folds", device="cpu", seed=3, synthetic=False)
    lane, ring = (b.splits().set_index("id") for b in both)
    assert lane["split"].equals(ring["split"]) and set(lane["split"]) == {"fold 0", "fold 1"}
    for model, splits in zip(both, (lane, ring), strict=True):
        assert (splits[splits["target"] == 1].groupby("split").size() >= 2).all()
        assert model.folds == 2 and 0 < model.calibration.targets.sum() <= (splits["target"] == 1).sum()


def test_targets_that_cannot_be_learnt_together_are_refused(folder, store, tmp_path):
    lane, ring = (tiny_recipe(tmp_path / f"{t}.toml", t) for t in ("dustlane", "ring"))
    with pytest.raises(InputError, match="named twice: dustlane, dustlane"):
        galscan.train_rare([str(lane), str(lane)], store=store, out=tmp_path / "m", device="cpu")
    text = ring.read_text().replace("[schemas.simulated", "[schemas.simulated") + "\n"
    other = tmp_path / "other.toml"
    other.write_text(text.replace("[schemas.efigi]", "[schemas.efigi]"))
    with pytest.raises(InputError, match="--grades apply to a single target"):
        module.make_plans([str(lane), str(ring)], (), store, tmp_path / "m", None, False, 0, [object()])
