"""Injection into the given galaxies, with weights that are trained once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from galscan.core.errors import InputError
from galscan.core.files import read_json
from galscan.labels.schema import load_schema
from galscan.labels.settings import InjectRule, MapSettings, SyntheticSettings
from galscan.models.network import GalaxyNet
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis.diffusion.maps import LEAST_EXAMPLES, LEAST_MEASURED
from galscan.synthesis.evaluation import ReferenceClassifier
from galscan.synthesis.features import dust_lane
from galscan.synthesis.flux import JPEG_SOFTENING, stretch_of
from galscan.synthesis.synthetic_set import HOST, INJECTED
from galscan.training import synthetic as module
from galscan.training.dataset import Galaxies
from galscan.training.synthetic import MODEL, bands_of, candidates_of, check_rule, examples_of, inject
from tests.synthesis.diffusion.test_maps import WIDTHS, saved
from tests.synthesis.test_flux import rendering
from tests.synthesis.test_injection import INJECT, SIZE, candidates, row_of, rules

CPU = torch.device("cpu")
SCHEMA = load_schema("efigi")
ANSWERS = ["t", "visible_dust"]


def store(name: str = "a.zarr", **provenance):
    return SimpleNamespace(path=Path(name), attrs={"provenance": provenance})


@pytest.mark.parametrize(
    ("provenance", "bands"),
    [
        ({}, "irg"), ({"bands": None}, "irg"), ({"bands": "gri"}, "irg"), ({"bands": ["g", "r", "z"]}, "zrg"),
        ({"bands": "gr"}, "irg"), ({"bands": "VIS"}, "irg"), ({"rendering": None, "bands": "grz"}, "zrg"),
        ({"rendering": rendering().describe(), "bands": "grz"}, "irg"),
        ({"rendering": {"red": "z", "green": "r", "blue": "g"}}, "zrg"),
        ({"rendering": {"red": "2", "green": "1", "blue": "0"}}, "irg"),
    ],
)  # fmt: skip
def test_the_bands_of_a_store(provenance, bands):
    assert bands_of(store(**provenance)) == bands
    assert bands_of(SimpleNamespace(path=Path("a"), attrs={})) == "irg"


def galaxies(count: int = 6) -> Galaxies:
    given = candidates(count, labelled=count - 2)
    table = pd.DataFrame({"store": "a", "survey": np.resize([0, 1], count), "frame": np.linspace(20, 40, count)})
    labels = pd.DataFrame(np.nan, index=range(count), columns=SCHEMA.names, dtype=np.float32)
    labels.loc[: count - 3, ["t", "visible_dust"]] = given.labels.loc[: count - 3, ["t", "visible_dust"]]
    return Galaxies(given.images, table, labels)


def test_candidates_have_the_predictions_of_a_network():
    torch.manual_seed(0)
    network, real, rows = GalaxyNet(8, len(ANSWERS)).eval(), galaxies(), np.array([5, 0, 3])
    stores = [store(stretch=SimulatedSurvey(count=1, size=32).describe()["stretch"], bands="gri"), store(bands="grz")]
    found = candidates_of(real, rows, stores, network, ANSWERS, SCHEMA, CPU)
    np.testing.assert_array_equal(found.images, real.images[rows])
    pd.testing.assert_frame_equal(found.labels, real.labels.iloc[rows].reset_index(drop=True))
    expected = ReferenceClassifier(network, ANSWERS, SCHEMA, CPU).predict(real.images[rows])
    pd.testing.assert_frame_equal(found.predicted, expected.answers)
    np.testing.assert_array_equal(found.logit, expected.logit)
    assert found.survey.tolist() == [1, 0, 1] and found.frame.tolist() == real.table["frame"].iloc[rows].tolist()
    assert found.labelled.tolist() == [False, True, True]
    assert found.bands == ["irg", "zrg"]
    assert found.stretches[0].softening > found.stretches[1].softening == JPEG_SOFTENING


def test_without_a_network_nothing_is_predicted():
    found = candidates_of(galaxies(), np.arange(6), [store(), store()], None, ANSWERS, SCHEMA, CPU)
    assert found.predicted.empty and len(found.predicted) == 6 and np.isnan(found.logit).all()
    assert found.stretches == [stretch_of({})] * 2
    assert found.satisfying("t <= 0", "t <= 0").tolist() == [0, 1, 2, 3]


def test_a_store_whose_stretch_is_unknown_is_named():
    stores = [store(), store("odd.zarr", stretch={"kind": "unheard of"})]
    with pytest.raises(InputError, match=r"odd\.zarr"):
        candidates_of(galaxies(), np.arange(6), stores, None, ANSWERS, SCHEMA, CPU)


RULES = rules(
    inject=INJECT | {"measure": "visible_dust >= 0.5"}, inject_negatives=[{"feature": "artefact", "hosts": "t <= 0"}]
)  # fmt: skip


def settings(**changes) -> MapSettings:
    return MapSettings(kind="maps", **{"widths": WIDTHS, "start": "none", "steps": 3, "maps": "diffusion"} | changes)


def injected(given, generator, work, *, seed: int = 0):
    return inject(given, SCHEMA, RULES, SyntheticSettings(injected=8, mined=0), generator, work, seed=seed, device=CPU)


def dusty(count: int):
    """Return candidates, a given number of them with dust."""
    given = candidates(count + 4)
    given.labels.loc[: count - 1, "visible_dust"] = np.linspace(0.5, 1, count, dtype=np.float32)
    return given


@pytest.fixture
def trained(monkeypatch) -> list[dict]:
    """Replace measuring, training and sampling by stubs; return the arguments of each training."""
    calls = []

    def fine_tune(maps, strength, rule, generator, out, **options):
        calls.append({"maps": maps, "strength": strength, **options})
        saved(out)
        return {"steps": 3, "seconds": 1.0, "loss": 0.5, "measured": len(maps)}

    def measure(images, hosts, stretch, bands):
        return prior(len(images), len(images)), np.ones(len(images), bool)

    def prior(count, seed):
        return dust_lane.prior(count, np.random.default_rng(seed))

    monkeypatch.setattr(dust_lane, "measure", measure)
    monkeypatch.setattr(module.feature_maps, "fine_tune", fine_tune)
    monkeypatch.setattr(module.feature_maps, "sample_maps", lambda _, values, seed, **options: prior(len(values), seed))
    return calls


def test_the_prior_needs_no_training(trained, tmp_path):
    given = dusty(LEAST_MEASURED + 2)
    synthetic, counts = injected(given, settings(maps="prior"), tmp_path)
    assert not trained and not list(tmp_path.iterdir())
    assert counts["maps"] == "prior" and counts["measured_maps"] == LEAST_MEASURED + 2 and not counts["map_training"]
    assert counts["injected"] == ((synthetic.origin == INJECTED) & (synthetic.target == 1)).sum() > 2
    assert counts["injected_negatives"] == 2


def test_the_model_is_trained_once_on_measured_maps(trained, tmp_path):
    given = dusty(LEAST_MEASURED + 2)
    first = injected(given, settings(), tmp_path)
    assert len(trained) == 1 and len(trained[0]["maps"]) == LEAST_MEASURED + 2 and trained[0]["seed"] == 0
    np.testing.assert_allclose(trained[0]["strength"], given.labels["visible_dust"][: LEAST_MEASURED + 2])
    assert first[1]["maps"] == "diffusion" and first[1]["map_training"]["steps"] == 3
    assert read_json(tmp_path / MODEL.replace(".safetensors", ".json")) == first[1]["map_training"]
    again = injected(given, settings(), tmp_path)
    assert len(trained) == 1 and again[1] == first[1]
    np.testing.assert_array_equal(again[0].images, first[0].images)


@pytest.mark.parametrize(("count", "steps"), [(LEAST_MEASURED - 1, 3), (LEAST_MEASURED + 2, 0)])
def test_the_start_weights_are_used_if_none_are_trained(trained, tmp_path, count, steps):
    start = saved(tmp_path / "start.safetensors")
    work = tmp_path / "work"
    work.mkdir()
    _, counts = injected(dusty(count), settings(steps=steps, start=str(start)), work)
    assert not trained and not list(work.iterdir()) and counts["maps"] == "diffusion" and not counts["map_training"]
    assert injected(dusty(count), settings(steps=steps), work)[1]["maps"] == "prior"  # without any weights


def test_a_rule_that_changes_no_answer_has_no_strength(trained, tmp_path):
    given = dusty(LEAST_MEASURED)
    changes = {"inject": RULES.inject.model_copy(update={"values": {}}), "positive": "t <= 0"}
    plain = RULES.model_copy(update=changes)
    options = {"seed": 0, "device": CPU}
    synthetic, _ = inject(given, SCHEMA, plain, SyntheticSettings(injected=4, mined=0), settings(), tmp_path, **options)
    assert np.isnan(trained[0]["strength"]).all()
    assert (synthetic.labels["visible_dust"][synthetic.target == 1] == 0).all() and synthetic.target.any()


def test_weights_that_do_not_fit_are_refused(trained, tmp_path):
    start = saved(tmp_path / "other.safetensors", "ring")
    with pytest.raises(InputError):
        injected(candidates(), settings(start=str(start)), tmp_path)


def test_examples_have_their_hosts_targets_and_answers(trained, tmp_path):
    given = candidates()
    synthetic, _ = injected(given, settings(maps="prior"), tmp_path)
    for name in SCHEMA.names:
        synthetic.labels[name] = synthetic.labels.get(name, np.float32(np.nan))
    target = np.stack([synthetic.target, 1 - synthetic.target], 1)
    found = examples_of(synthetic, target, ANSWERS, SCHEMA)
    np.testing.assert_array_equal(found.images, synthetic.images)
    np.testing.assert_array_equal(found.target, target)
    np.testing.assert_array_equal(found.host, synthetic.host)
    made = np.flatnonzero((synthetic.origin == INJECTED) & (synthetic.target == 1))
    assert len(made) and (synthetic.origin[found.host[made]] == HOST).all()
    (low, high), dust = SCHEMA.ranges["t"], synthetic.labels["visible_dust"]
    np.testing.assert_allclose(found.answers[:, 0], (-3 - low) / (high - low), rtol=1e-5)
    np.testing.assert_allclose(found.answers[:, 1], dust, rtol=1e-5)
    assert [row_of(image, given) for image in found.images[found.host[made]]] and found.images.shape[1] == SIZE


def test_every_network_needs_hosts_and_examples_of_a_feature_without_a_prior():
    count = 2 * LEAST_EXAMPLES
    table = pd.DataFrame(np.nan, index=range(count), columns=SCHEMA.names)
    table["t"] = np.where(np.arange(count) % 2, 5.0, -5.0)
    table["split"] = "train"
    table["object"] = [str(k) for k in range(count)]
    plan = SimpleNamespace(table=table, schema=SCHEMA, folds=0)
    rule = InjectRule(feature="residual", hosts="t < 0", measure="t > 0")
    check_rule(plan, rule)
    for changes in ({"hosts": "t > 9"}, {"measure": "t > 9"}):
        with pytest.raises(InputError) as caught:
            check_rule(plan, rule.model_copy(update=changes))
        assert caught.value.exit_code == 2
    table.loc[1, "split"] = "test"  # one example fewer
    with pytest.raises(InputError, match=str(LEAST_EXAMPLES)):
        check_rule(plan, rule)
