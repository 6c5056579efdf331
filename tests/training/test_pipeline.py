from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import galscan
from galscan.core.errors import ConflictError, InputError, Interrupted
from galscan.labels.settings import InjectRule
from galscan.models import ensemble
from galscan.models.model import PREFILTER_FILE
from galscan.models.prefilter import load_prefilter, may_train_prefilter
from galscan.stats import crossfit
from galscan.store.build import ingest_survey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis import evaluation, synthetic_set
from galscan.synthesis.diffusion import galaxy_training
from galscan.synthesis.diffusion.galaxy_model import Generator
from galscan.synthesis.galaxies import MEASURED, measure
from galscan.training import pipeline, train
from galscan.training.plan import make_plans
from galscan.training.split import reserved
from tests import grading
from tests.helpers import keep_all, tiny_recipe


@pytest.fixture(scope="module", autouse=True)
def fast():
    """Cross-fit with the hundred unlabelled galaxies there are; few bootstrap samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossfit, "LEAST", 60)
        patch.setattr("galscan.stats.metrics.BOOTSTRAP", 40)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def store(folder) -> Path:
    """Galaxies of which some are dusty early types, rings and mergers; half of them labelled."""
    sky = SimulatedSurvey(count=800, size=32, seed=1, rare_fraction=0.1, labelled=0.8)
    return ingest_survey(sky, folder / "sky.zarr", workers=1).path


@pytest.fixture(scope="module")
def sky(store) -> SimpleNamespace:
    """The images of the store, and a dict of the id of each image by its bytes."""
    opened = galscan.open(store)
    images, ids = opened.images(), opened.column("id").astype(str)
    return SimpleNamespace(images=images, ids=ids, owner=dict(zip([i.tobytes() for i in images], ids, strict=True)))


def run(recipe, store, out, *, page: bool = False, **options):
    """Train on the CPU with seed 3; without `page`, write no report, which takes longer than a tiny training."""
    recipe = [str(r) for r in recipe] if isinstance(recipe, list) else str(recipe)
    with pytest.MonkeyPatch.context() as patch:
        if not page:
            patch.setattr("galscan.reports.model.write_model_report", lambda path: (path / "report.html").touch())
        return galscan.train_rare(recipe, store=store, out=out, device="cpu", **{"seed": 3} | options)


def all_but_two(synthetic, *_) -> pd.DataFrame:
    """Replace the filter: drop one image of either kind."""
    kept = np.ones(len(synthetic), bool)
    kept[[0, -1]] = False
    reasons = ["copy"] + ["looks positive"] * (len(synthetic) - 1)
    return pd.DataFrame({"kept": kept, "reason": np.where(kept, "", reasons)})


class Recorder:
    """Records the calls of the expensive stages, in order; raises KeyboardInterrupt before the stage `stop_at`."""

    def __init__(self, patch: pytest.MonkeyPatch, keep=keep_all, stop_at: str = ""):
        self.stages: list[str] = []
        self.networks, self.real, self.synthetic, self.filters, self.generator_sets = [], [], [], [], []
        self.keep, self.stop_at = keep, stop_at
        self.functions = train.train_classifier, galaxy_training.train_generator, synthetic_set.generate_set
        patch.setattr(train, "train_classifier", self.train_classifier)
        patch.setattr(galaxy_training, "train_generator", self.train_generator)
        patch.setattr(synthetic_set, "generate_set", self.generate_set)
        patch.setattr(evaluation, "filter_synthetic", self.filter)

    def enter(self, stage: str) -> None:
        if stage == self.stop_at:
            raise KeyboardInterrupt
        self.stages.append(stage)

    def train_classifier(self, real, synthetic, *arguments, label, seed, **options):
        self.enter(f"{label} {seed}")
        self.real.append(real)
        self.synthetic.append(synthetic)
        self.networks.append(self.functions[0](real, synthetic, *arguments, label=label, seed=seed, **options))
        return self.networks[-1]

    def train_generator(self, galaxies, *arguments, start, **options):
        self.enter("generator")
        self.generator_sets.append(galaxies)
        self.start = start
        return self.functions[1](galaxies, *arguments, start=start, **options)

    def generate_set(self, *arguments, **options):
        self.enter("images")
        return self.functions[2](*arguments, **options)

    def filter(self, synthetic, images, classifier, *_):
        self.enter("filter")
        self.filters.append((images, classifier))
        return self.keep(synthetic)


STAGES = [
    "real only networks 3000", "real only networks 3001", "generator", "images", "filter",
    "real plus synthetic networks 3000", "real plus synthetic networks 3001",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(folder, store) -> tuple[galscan.Model, Recorder]:
    """Train with whole images of a tiny generator; return the model and what its stages were called with."""
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch, all_but_two)
        recipe = tiny_recipe(folder / "dustlane.toml", whole=True)
        return run(recipe, store, folder / "model", page=True), recorder


@pytest.fixture(scope="module")
def model(whole) -> galscan.Model:
    return whole[0]


@pytest.fixture(scope="module")
def crossfitted(folder, store) -> tuple[galscan.Model, Recorder]:
    """Train with dust lanes injected into real galaxies; maps are the prior's."""
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        recipe = tiny_recipe(folder / "injected.toml")
        return run(recipe, store, folder / "injected", page=True), recorder


@pytest.fixture(scope="module")
def injected(crossfitted) -> galscan.Model:
    return crossfitted[0]


# -- a fixed split, with whole images ------------------------------------------------------------------


def test_the_model_folder_is_complete(model):
    assert (model.target, model.schema.name, model.size) == ("dustlane", "simulated", 32)
    assert (model.seed, model.members) == (3, 2)
    names = {p.name for p in model.path.iterdir()}
    assert names >= {
        "model.json", "recipe.toml", "splits.parquet", "synthetic.png", "report.html", "generator.safetensors",
        "conditions.parquet", "synthetic.zarr",
    }  # fmt: skip
    assert not [n for n in names if n.startswith(("steps", "request", "synthetic.json", "feature_maps", "generator.j"))]
    (other,) = {*pipeline.TRAINING_SETS} - {model.metrics["chosen"]}  # to compare with what is delivered
    assert {n for n in names if n.startswith("real_")} == {f"{other}-{k}.safetensors" for k in range(2)}
    assert not model.path.with_name("model.partial").exists()


def test_metrics_of_both_training_sets(model):
    metrics = model.metrics
    assert len(metrics["real_only"]["ap"]) == len(metrics["real_plus_synthetic"]["ap"]) == 2
    assert metrics["gain"]["lo"] <= metrics["gain"]["mean"] <= metrics["gain"]["hi"]
    assert metrics["chosen"] == ("real_plus_synthetic" if metrics["calibration_gain"]["lo"] > 0 else "real_only")
    assert "calibration set shows" in metrics["delivery_rule"]
    text = model.summary()["text"]
    assert "real only" in text and "real + synthetic" in text and "gain" in text and "<- chosen" in text
    assert metrics["delivery_rule"] in (model.path / "report.html").read_text()


def test_order_of_the_stages_and_what_they_use(whole, sky):
    """The images are filtered by the first network that was trained on real galaxies alone."""
    model, recorder = whole
    assert recorder.stages == STAGES
    assert [made is not None for made in recorder.synthetic] == [False, False, True, True]
    ((images, classifier),) = recorder.filters
    first = recorder.networks[0].state_dict()
    assert all(value.equal(first[name]) for name, value in classifier.network.state_dict().items())
    assert len(images) == (model.splits()["split"] == "train").sum()
    # No held-out object reaches the generator, by pixels, and all others do, also those without labels.
    assert len(sky.owner) == len(sky.ids)
    (galaxies,) = recorder.generator_sets
    splits = model.splits()
    held_out = set(splits.loc[splits["split"] != "train", "id"])
    assert len(held_out) > 100 and {sky.owner[i.tobytes()] for i in galaxies.images} == {*sky.ids} - held_out
    assert len(galaxies.images) == len(sky.ids) - len(held_out) == model.metrics["generator"]["galaxies"]


def test_conditions_are_those_of_training_galaxies(model, store, sky):
    conditions, target, survey = synthetic_set.read_conditions(model.path / "conditions.parquet")
    splits = model.splits()
    training = splits[splits["split"] == "train"]
    rows = pd.Index(sky.ids).get_indexer(training["id"])
    assert (rows >= 0).all() and set(survey) == {"simulated"} == set(training["store"])
    np.testing.assert_array_equal(target, training["target"])
    labels = galscan.open(store).labels("simulated").iloc[rows]
    np.testing.assert_array_equal(conditions[labels.columns], labels)
    np.testing.assert_allclose(conditions[list(MEASURED)], measure(sky.images[rows]), atol=1e-6)


def test_synthetic_galaxies_are_kept_and_dropped_ones_counted(model):
    made = galscan.open(model.path / "synthetic.zarr")
    labels, target = made.labels("simulated"), made.column("truth/target")
    assert made.count == 12 and target.sum() == 5  # of 14 and 6: one of each was dropped
    assert (labels["dust_lane"][:5] >= 0.6).all() and (labels["early_type"][:5] >= 0.5).all()
    assert np.isfinite(labels.to_numpy()).all()
    counts = {"all": 14, "dropped": {"copy": 1, "looks positive": 1}, "kept": 12, "kept_positive": 5}
    assert model.metrics["synthetic"] == counts
    assert model.metrics["generator"]["start"] == "none" and model.metrics["generator"]["steps"] == 3
    page = (model.path / "report.html").read_text()
    assert "12 synthetic galaxies were used, 5 of them targets; dropped: 1 copy, 1 looks positive." in page


def test_the_same_request_is_done_another_is_a_conflict(model, store, folder, capsys):
    again = run(folder / "dustlane.toml", store, model.path)
    assert again.model_hash == model.model_hash and "nothing to do" in capsys.readouterr().err
    with pytest.raises(ConflictError, match="another model"):
        run(folder / "dustlane.toml", store, model.path, seed=4)


def test_an_interrupted_training_resumes_to_the_same_model(folder, store, model, monkeypatch):
    """Stopped in turn before the images, between the images and their counts, and in the last network."""
    out, recipe, write_json = folder / "again", folder / "dustlane.toml", pipeline.write_json
    recorder = Recorder(monkeypatch, all_but_two, "images")

    def attempt() -> None:
        with pytest.raises(Interrupted, match="same command"):
            run(recipe, store, out)

    def stop(path, value):
        if path.name == pipeline.SYNTHETIC:
            raise KeyboardInterrupt
        write_json(path, value)

    attempt()
    assert not out.exists()
    with pytest.raises(ConflictError, match="unfinished training with other seed"):
        run(recipe, store, out, seed=4)
    recorder.stop_at = STAGES[-1]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_json", stop)
        attempt()
    assert (folder / "again.partial" / "synthetic.zarr").is_dir()
    attempt()
    assert recorder.stages == [*STAGES[:5], *STAGES[3:6]]  # only the images, without their counts, are made twice
    # Version 0.1 had another name for the networks, and another for their metrics.
    for path in (folder / "again.partial").glob("real_plus_synthetic-*"):
        path.rename(path.with_name(path.name.replace("synthetic", "dreamt")))
    recorder.stop_at = ""
    again = run(recipe, store, out)
    assert recorder.stages[8:] == STAGES[-1:] and again.model_hash == model.model_hash
    made, before = (galscan.open(m.path / "synthetic.zarr") for m in (again, model))
    assert made.content_hash == before.content_hash
    timeless = lambda m: {k: v for k, v in m.items() if k not in ("seconds", "generator")}  # noqa: E731
    assert timeless(again.metrics) == timeless(model.metrics)
    info = out / "model.json"
    info.write_text(info.read_text().replace("real_plus_synthetic", "real_plus_dreamt"))
    assert galscan.open(out).metrics == again.metrics


def test_the_generator_starts_from_given_weights_and_no_image_may_be_left(tmp_path, store, model, monkeypatch):
    recorder = Recorder(monkeypatch, lambda made: pd.DataFrame({"kept": np.zeros(len(made), bool), "reason": "copy"}))
    weights = Generator.load(model.path / "generator.safetensors")
    weights.save(tmp_path / "mine.safetensors")
    recipe = tiny_recipe(tmp_path / "r.toml", whole=True)
    recipe.write_text(recipe.read_text().replace('start = "none"', f'start = "{tmp_path}/mine.safetensors"'))
    metrics = run(recipe, store, tmp_path / "m").metrics
    assert recorder.start.config == weights.config
    assert metrics["generator"]["start"] == f"{tmp_path}/mine.safetensors"
    assert metrics["real_plus_synthetic"] is None and metrics["gain"] is None and metrics["chosen"] == "real_only"
    assert metrics["synthetic"] == {"all": 14, "dropped": {"copy": 14}, "kept": 0, "kept_positive": 0}
    assert not (tmp_path / "m" / "synthetic.zarr").exists() and (tmp_path / "m" / "generator.safetensors").is_file()


def test_synthetic_negatives_alone_are_not_trained_on(tmp_path, store, monkeypatch):
    def negatives(made):
        return pd.DataFrame({"kept": made.target == 0, "reason": np.where(made.target == 0, "", "unlike any galaxy")})

    recorder = Recorder(monkeypatch, negatives)
    metrics = run(tiny_recipe(tmp_path / "r.toml", whole=True), store, tmp_path / "m").metrics
    assert metrics["real_plus_synthetic"] is None and recorder.stages == STAGES[:5]
    assert metrics["synthetic"]["kept"] == 8 and metrics["synthetic"]["kept_positive"] == 0
    assert metrics["synthetic"]["dropped"] == {"unlike any galaxy": 6}


def test_a_prefilter_is_trained_on_scores_of_the_delivered_networks(folder, store, sky, monkeypatch, model):
    """Without synthetic galaxies no generator is trained."""
    monkeypatch.setattr(pipeline, "MIN_PREFILTER_IMAGES", 100)
    recipe = tiny_recipe(folder / "prefilter.toml", whole=True)
    recipe.write_text(recipe.read_text().replace("[prefilter]\nsteps = 0", "[prefilter]\nsteps = 3\nsample = 300"))
    used, member_scores = [], ensemble.member_scores
    monkeypatch.setattr(ensemble, "member_scores", lambda *a: used.append(a[1]) or member_scores(*a))
    trained = run(recipe, store, folder / "prefilter", synthetic=False)
    assert model.prefilter is None and trained.prefilter == trained.path / PREFILTER_FILE
    assert trained.model_hash != model.model_hash
    rows = pd.Index(sky.ids).get_indexer([sky.owner[image.tobytes()] for image in used[-1]])
    ids = galscan.open(store).column("id")[rows]
    assert len(used[-1]) == 300 and may_train_prefilter(ids).all()
    assert load_prefilter(trained.prefilter).cut == -np.inf
    assert (
        trained.metrics["real_plus_synthetic"] is trained.metrics["synthetic"] is trained.metrics["generator"] is None
    )
    names = {p.name for p in trained.path.iterdir()}
    assert not names & {"generator.safetensors", "conditions.parquet", "synthetic.zarr", "synthetic.png"}
    old = trained.prefilter.rename(trained.path / "first-look.safetensors")
    assert galscan.open(trained.path).prefilter == old  # its name in version 0.1
    old.write_bytes(b"another")
    with pytest.raises(InputError, match=old.name):
        _ = trained.prefilter


# -- which networks are delivered ---------------------------------------------------------------------


def plan_of(feature: str | None, positives: int = 0) -> SimpleNamespace:
    rule = feature and InjectRule(feature=feature, hosts="t > 0")
    recipe = SimpleNamespace(synthetic=SimpleNamespace(positives=positives))
    return SimpleNamespace(rules=SimpleNamespace(inject=rule), recipe=recipe, folds=0)


LANE, IMAGES = plan_of("dust_lane"), plan_of(None, 300)
UNSURE, GAIN, HARM = ({"mean": m, "lo": m - 0.1, "hi": m + 0.1} for m in (0.05, 0.2, -0.2))


@pytest.mark.parametrize(
    ("plans", "gains", "synthetic", "words"),
    [
        ([LANE], [], False, "no synthetic galaxies"),
        ([LANE], [HARM], False, "shows harm"),
        ([IMAGES], [GAIN], True, "shows a gain"),
        ([LANE], [UNSURE], True, "a feature proven by the benchmark"),
        ([IMAGES], [UNSURE], False, "no feature proven by the benchmark"),
        ([plan_of(None)], [UNSURE], False, "no feature proven"),
        ([plan_of("dust_lane", 300)], [UNSURE], False, "no feature proven"),  # whole images as well
        ([plan_of("artefact")], [UNSURE], False, "no feature proven"),
        # Of several targets, harm to one decides before a gain of another; and each needs a proven feature.
        ([LANE] * 2, [HARM, GAIN], False, "shows harm"),
        ([LANE] * 2, [UNSURE, GAIN], True, "shows a gain"),
        ([LANE] * 2, [UNSURE, UNSURE], True, "a feature proven"),
        ([LANE, IMAGES], [UNSURE, UNSURE], False, "no feature proven"),
    ],
)
def test_which_networks_are_delivered(plans, gains, synthetic, words, monkeypatch):
    monkeypatch.setattr(pipeline, "PROVEN", ("dust_lane",))
    chosen, rule = pipeline.delivered(plans, gains)
    assert chosen == pipeline.TRAINING_SETS[synthetic] and words in rule


# -- cross-fitting, with injected features -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "injected"])
def test_splits_hold_each_real_object_once(kind, sky, request):
    model = request.getfixturevalue(kind)
    splits = model.splits()
    assert splits["id"].is_unique and set(splits["id"]) <= {*sky.ids}
    assert set(splits["split"]) == {"train", "calibration", "test"} if kind == "model" else {"fold 0", "fold 1"}
    calibrates = splits["split"] == "calibration" if kind == "model" else splits["split"] != ""
    # Cross-fitted, as many quantiles calibrate as the out-of-fold scores are worth.
    used, unclear = len(model.calibration.scores), model.calibration.ambiguous.sum()
    there, ambiguous = calibrates.sum(), (calibrates & splits["target"].isna()).sum()
    assert (used, unclear) == (there, ambiguous) if kind == "model" else used <= there and 0 < unclear <= ambiguous


def test_cross_fitting_uses_every_labelled_galaxy_for_everything(injected):
    splits = injected.splits()
    for use in ("train", "calibration", "test"):
        counts = {"positive": (splits["target"] == 1).sum(), "negative": (splits["target"] == 0).sum()}
        assert injected.info["splits"][use] == counts | {"ambiguous": splits["target"].isna().sum()}
    assert injected.folds == 2 and set(injected.objects("train").id) == set(splits["id"])
    metrics = injected.metrics
    assert metrics["test"]["positives"] == (splits["target"] == 1).sum()
    assert metrics["gain"] == metrics["calibration_gain"] and "out-of-fold" in metrics["delivery_rule"]
    page = (injected.path / "report.html").read_text()
    assert "Average precision" in page and "out-of-fold, on real galaxies" in page and "held-out" not in page
    assert "Cross-fitted in 2 folds: every labelled object trained all networks but one" in page
    assert "real, out-of-fold:" in injected.summary()["text"]


def test_each_labelled_galaxy_is_scored_by_the_network_not_trained_on_it(tmp_path, store, sky, monkeypatch):
    """Without the correction, the scores that calibrate are those of the delivered networks."""
    monkeypatch.setattr(crossfit, "scatter_of", lambda scores: None)
    model = run(tiny_recipe(tmp_path / "r.toml"), store, tmp_path / "m", synthetic=False)
    splits = model.splits()
    rows = pd.Index(sky.ids).get_indexer(splits["id"])
    each = ensemble.member_scores(ensemble.load_networks(model), sky.images[rows], torch.device("cpu"))[..., 0]
    own = each[splits["split"].str.removeprefix("fold ").astype(int), np.arange(len(rows))]
    np.testing.assert_allclose(np.sort(model.calibration.scores), np.sort(own), atol=1e-5)
    assert model.calibration.targets.sum() == (splits["target"] == 1).sum()
    assert model.metrics["real_plus_synthetic"] is model.metrics["synthetic"] is None


def test_scores_are_corrected_by_unlabelled_galaxies_that_train_nothing(crossfitted, folder, store, sky):
    model, recorder = crossfitted
    correction = model.metrics["crossfit"]
    assert correction["folds"] == 2 and correction["objects"] > 60
    assert set(correction["factors"]) == {"targets", "negatives", "ambiguous"}
    assert all(np.sqrt(1 / 2) - 1e-9 <= factor <= 1 for factor in correction["factors"].values())
    plan = make_plans([str(folder / "injected.toml")], (), store, None, None, True, 3)[0]
    unused = sky.images[reserved(plan.table, synthetic=True, seed=3)["row"]]
    unused = {image.tobytes() for image in unused}
    trained = [e for e in (*recorder.real, *recorder.synthetic) if e is not None]
    assert len(unused) == correction["objects"] and len(trained) == 6
    assert not any(image.tobytes() in unused for examples in trained for image in examples.images)
    assert "The standard deviation changed by" in (model.path / "report.html").read_text()


def test_no_network_depends_on_its_fold(crossfitted, sky):
    """Checked by pixels, of real galaxies and of hosts; each network has its own synthetic set."""
    model, recorder = crossfitted
    splits = model.splits()
    fold = dict(zip(splits["id"], splits["split"], strict=True))
    assert recorder.stages == [STAGES[0], STAGES[1], STAGES[5], STAGES[6]]
    for call, (real, made) in enumerate(zip(recorder.real, recorder.synthetic, strict=True)):
        own, other = f"fold {call % 2}", f"fold {1 - call % 2}"
        assert {fold[sky.owner[i.tobytes()]] for i in real.images} == {other}
        assert len(real.images) == (splits["split"] == other).sum()
        assert (made is None) == (call < 2)
        if made is not None:
            hosts = made.images[made.host[made.host >= 0]]
            assert len(hosts) > 10 and all(i.tobytes() in sky.owner for i in hosts)
            found = {fold.get(sky.owner[i.tobytes()]) for i in made.images if i.tobytes() in sky.owner}
            assert other in found and own not in found
    first, second = recorder.synthetic[2:]
    assert len(first.images) != len(second.images) or (first.images != second.images).any()
    assert not list(model.path.glob("fold-*"))


def test_injected_features_need_no_generator(injected):
    made = injected.metrics["synthetic"]
    assert injected.metrics["generator"] is None and injected.metrics["real_plus_synthetic"] is not None
    names = {p.name for p in injected.path.iterdir()}
    assert names >= {"synthetic.zarr", "synthetic.png", "report.html"} and not names & {
        "generator.safetensors", "conditions.parquet", "feature_maps.safetensors", "feature_maps.json",
        pipeline.SYNTHETIC,
    }  # fmt: skip
    assert made["maps"] == "prior" and made["map_training"] is None and made["dropped"] == {}
    assert 4 < made["kept_positive"] == made["injected"] <= 32 and 0 < made["injected_negatives"] <= 8
    assert made["kept"] == made["all"] == made["injected"] + made["injected_negatives"] + made["too_faint"]
    assert made["hosts"] > 20 and made["too_faint"] > 0 and made["hosts_unlabelled"] < made["hosts"]
    page = (injected.path / "report.html").read_text()
    words = "for the first network; each network has its own set, made without galaxies of its fold"
    assert f"{made['kept']} synthetic galaxies were used, {made['injected']} of them targets, {words}. Features" in page
    assert f"injected into {made['hosts']} real galaxies" in page and "maps from the prior" in page


def test_injected_galaxies_have_the_labels_of_their_hosts_but_for_the_feature(crossfitted):
    model, recorder = crossfitted
    made = synthetic_set.read_synthetic_set(model.path / "synthetic.zarr", "simulated")
    np.testing.assert_array_equal(recorder.synthetic[2].host, made.host)
    np.testing.assert_array_equal(recorder.synthetic[2].target[:, 0], made.target)
    positive = np.flatnonzero(made.target == 1)
    host = made.host[positive]
    assert (made.origin[positive] == synthetic_set.INJECTED).all() and (made.origin[host] == synthetic_set.HOST).all()
    assert (made.target[host] == 0).all() and (made.host[made.origin != synthetic_set.INJECTED] == -1).all()
    labels, of_hosts = made.labels.iloc[positive], made.labels.iloc[host]
    assert labels["dust_lane"].between(0.5, 1).all()  # as the positive rule requires
    assert labels["dusty"].equals(labels["dust_lane"])  # both follow the depth
    known = of_hosts["early_type"].notna().to_numpy()
    assert (of_hosts["early_type"][known] >= 0.5).all() and (of_hosts["dust_lane"][known] == 0).all()
    unchanged = [name for name in made.labels if name not in ("dust_lane", "dusty")]
    np.testing.assert_array_equal(labels[unchanged].to_numpy(), of_hosts[unchanged].to_numpy())
    changed = (made.images[positive] != made.images[host]).any(axis=(1, 2, 3))
    assert known.any() and changed.all() and (made.depth[positive] > 0).all()


# -- grades of a scan, and several targets ---------------------------------------------------------------


@pytest.fixture(scope="module")
def graded(folder, model, scans_here, no_pages) -> Path:
    """A scan of another sky with `model`, of which the best twenty are graded: the odd ranks are targets."""
    survey = SimulatedSurvey(count=300, size=32, seed=9, labelled=0.0, name="another sky")
    store = ingest_survey(survey, folder / "new.zarr", workers=1)
    run = galscan.scan(store=store.path, model=model.path, out=folder / "run", top=40, workers=1).path
    galscan.vet(run, serve=False, best=20, size=20)
    with grading.book(run) as book:
        for row in book.items().itertuples():
            if row.kind == "survey" and row.stratum == "best":
                book.record(f"grade-{row.item:04d}", row.item, "ann", "A" if row.rank % 2 else "not")
    return run


def test_grades_of_a_scan_train_the_next_model(tmp_path, folder, store, model, graded, monkeypatch, capsys):
    """Ten objects of another sky become targets, ten become negatives; the held-out objects do not change."""
    recipe = tiny_recipe(tmp_path / "fixed.toml", whole=True)
    recipe.write_text(recipe.read_text() + "[split]\nmethod = 'fixed'\n")
    recorder, out = Recorder(monkeypatch), tmp_path / "m"
    assert run(recipe, store, out, grades=graded, dry_run=True) is None
    assert "10 positive and 10 negative trained on, of 20 graded" in capsys.readouterr().err
    trained = run(recipe, store, out, grades=[graded])
    before, examples = model.splits().set_index("id"), recorder.real[0]
    for value in (1, 0):
        count = ((before["split"] == "train") & (before["target"] == value)).sum()
        assert (examples.target == value).sum() == count + 10
    best, images = galscan.open(graded).candidates.head(20), galscan.open(folder / "new.zarr").images()
    targets = {image.tobytes(): target for image, target in zip(examples.images, examples.target, strict=True)}
    for rank, index in zip(best["rank"], best["index"], strict=True):
        assert targets[images[index].tobytes()] == rank % 2
    # All other objects are the same, and so are the calibration and test sets.
    splits, names = trained.splits().set_index("id"), best["objid"].astype(str)
    assert splits.drop(names)["split"].sort_index().equals(before["split"].sort_index())
    assert set(splits.loc[names, "split"]) == {"train"}
    (source,) = trained.info["grades"]
    assert source["run"] == str(graded) and source["fingerprint"] == galscan.open(graded).info.fingerprint
    assert source["positive"] == source["negative"] == 10 and len(source["sha256"]) == 64
    assert trained.info["request"]["grades"] == [[source["fingerprint"], source["sha256"]]]
    assert "grades" not in model.info and "grades" not in model.info["request"]
    assert trained.metrics["real_plus_synthetic"] is not None
    # A later scan marks them as trained on: finding them is no discovery.
    assert trained.in_train(best.assign(id=names, lineage="another sky")).all()


def test_several_targets_share_one_network(folder, store, monkeypatch):
    """One injects, the other generates: each has its own synthetic galaxies, and there is one generator."""
    recipes = [tiny_recipe(folder / f"{t}.toml", t, whole=t == "ring") for t in ("dustlane", "ring")]
    monkeypatch.setattr(evaluation, "filter_synthetic", keep_all)
    both = run(recipes, store, folder / "both")
    found = [p.parent.name for p in sorted((folder / "both").glob("*/model.json"))]
    assert [b.target for b in both] == ["dustlane", "ring"] == found
    trunks = [n.trunk_hash() for b in both for n in ensemble.load_networks(b)]
    assert trunks[:2] == trunks[2:] and len(set(trunks)) == 2
    answers = {answer for b in both for answer in b.recipe.schemas["simulated"].morphology}
    assert set(both[0].answers) == set(both[1].answers) == answers
    # Objects held out for one target train none, and all sets have some of the rare ones.
    lane, ring = (b.splits().set_index("id") for b in both)
    assert lane["split"].equals(ring["split"])
    for split in (lane, ring):
        assert (split[split["target"] == 1].groupby("split").size() >= 2).all()
        assert set(split["split"]) == {"train", "calibration", "test"}
    assert not list((folder / "both").glob("**/real_*")) and (both[1].path / "report.html").is_file()
    lane, ring = (b.metrics for b in both)
    assert lane["synthetic"]["injected"] > 0 and "injected" not in ring["synthetic"] and ring["synthetic"]["kept"] == 14
    # The conditions have the targets of this target alone.
    _, target, _ = synthetic_set.read_conditions(both[1].path / "conditions.parquet")
    ring_splits = both[1].splits()
    np.testing.assert_array_equal(target, ring_splits.loc[ring_splits["split"] == "train", "target"])
    assert lane["generator"] == ring["generator"] and ring["generator"]["kind"] == "flow"
    assert lane["chosen"] == ring["chosen"]
    assert run(recipes, store, folder / "both")[1].path == both[1].path
    made = galscan.generate(
        str(recipes[1]), model=both[1].path, out=folder / "generated", count=4, steps=2, device="cpu"
    )
    assert made["count"] == 4


def test_several_targets_are_cross_fitted_together(folder, store):
    recipes = [tiny_recipe(folder / f"{t}-folds.toml", t) for t in ("dustlane", "ring")]
    both = run(recipes, store, folder / "folds", synthetic=False)
    lane, ring = (b.splits().set_index("id") for b in both)
    assert lane["split"].equals(ring["split"]) and set(lane["split"]) == {"fold 0", "fold 1"}
    for model, splits in zip(both, (lane, ring), strict=True):
        assert (splits[splits["target"] == 1].groupby("split").size() >= 2).all()
        assert model.folds == 2 and 0 < model.calibration.targets.sum() <= (splits["target"] == 1).sum()
