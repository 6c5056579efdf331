from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.labels.recipe import recipe_from_text
from galscan.labels.schema import install_schema
from galscan.labels.template import recipe_template
from galscan.models.ensemble import answer_names, load_scorer
from galscan.models.model import open_model
from tests.helpers import OWN_SCHEMA, tiny_model


@pytest.fixture
def damaged(shared_model, tmp_path):
    """Return the path of a copy of a model, which the test may damage."""
    return Path(shutil.copytree(shared_model.path, tmp_path / "m"))


def images(n: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)


def test_write_and_open(tmp_path):
    written = tiny_model(tmp_path / "m", members=2)
    opened = open_model(tmp_path / "m")
    assert opened.model_hash == written.model_hash
    assert (opened.target, opened.schema.name, opened.size, opened.members) == ("dustlane", "simulated", 32, 2)
    assert set(opened.objects("train").id) == {str(i) for i in range(1000, 1010)}
    assert json.dumps(opened.summary())


def test_another_seed_is_another_model(tmp_path):
    assert tiny_model(tmp_path / "a").model_hash != tiny_model(tmp_path / "b", seed=1).model_hash


def test_no_model(tmp_path):
    with pytest.raises(NotFoundError, match="train-rare"):
        open_model(tmp_path / "none")


def test_an_interrupted_training_is_recognised(tmp_path):
    (tmp_path / "m.partial").mkdir()
    with pytest.raises(NotFoundError, match="interrupted"):
        open_model(tmp_path / "m")


def test_other_and_missing_weights_and_formats_are_refused(damaged, tmp_path):
    model = open_model(damaged)
    weights, other = "classifier-0.safetensors", tiny_model(tmp_path / "b", seed=1)
    shutil.copy(other.path / weights, damaged / weights)
    with pytest.raises(InputError, match=weights.replace(".", r"\.")):
        load_scorer([model], "cpu")
    (damaged / weights).unlink()
    with pytest.raises(InputError, match="is missing"):
        load_scorer([model], "cpu")
    (damaged / "model.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 1"):
        open_model(damaged)


def test_a_model_of_a_scan_must_be_unchanged(shared_model):
    assert open_model(shared_model.path, shared_model.model_hash).model_hash == shared_model.model_hash
    with pytest.raises(InputError, match=shared_model.path.name):
        open_model(shared_model.path, "0" * 64)


HOSTILE = {
    "a size that is text": {"size": "64"},
    "a size no memory holds": {"size": 10**9},
    "weights outside the folder": {"weights": {"../../etc/passwd": "0" * 64}},
    "weights with a folder in the name": {"weights": {"/classifier-0.safetensors": "0" * 64}},
    "no weights": {"weights": {}},
    "an invalid hash": {"weights": {"classifier-0.safetensors": "x"}},
    "answers that are no list": {"answers": "dust_lane"},
    "answers that are numbers": {"answers": [1, 2]},
    "calibration of another kind": {"calibration": []},
    "calibration without scores": {"calibration": {"scores": None}},
    "a slope that falls": {"calibration": {"slope": -1}},
    "a slope without end": {"calibration": {"slope": 1e400}},
    "a prevalence above 1": {"calibration": {"prevalence": 1.5}},
    "targets of one class": {"calibration": {"targets": [1, 1]}},
    "metrics that are text": {"metrics": "good"},
    "splits of the wrong kind": {"splits": {"train": 7}},
    "a radius of 0": {"radius": 0},
    "a target that is a list": {"target": ["dustlane"]},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_an_invalid_model_json_is_refused_in_one_line(damaged, change):
    path = damaged / "model.json"
    info = json.loads(path.read_text())
    for key, value in change.items():
        info[key] = info[key] | value if isinstance(value, dict) and key == "calibration" else value
    path.write_text(json.dumps(info))
    with pytest.raises(InputError, match="damaged") as error:
        open_model(path.parent)
    assert "\n" not in str(error.value)


def test_answers_that_are_not_those_of_the_networks_are_refused(damaged):
    path = damaged / "model.json"
    info = json.loads(path.read_text())
    for answers in (["dust_lane"], ["no_such_answer"] * 7):
        path.write_text(json.dumps(info | {"answers": answers}))
        with pytest.raises(InputError, match="answers"):
            load_scorer([open_model(path.parent)], "cpu", "fp32")


def test_metrics_that_lack_their_parts_are_refused(damaged):
    path = damaged / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"test": {"positives": 3}}}))
    with pytest.raises(InputError, match=r"model\.json"):
        open_model(path.parent).summary()


@pytest.mark.parametrize("content", [None, b"not parquet", b""])
def test_damaged_splits_are_refused_in_one_line(damaged, content):
    path = damaged / "splits.parquet"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"splits\.parquet") as error:
        open_model(damaged).in_train(pd.DataFrame({"id": [1], "ra": [1.0], "dec": [1.0], "lineage": "a"}))
    assert "\n" not in str(error.value)


def rows_of(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["id", "ra", "dec", "lineage"])


def test_training_objects_are_found_by_position(damaged):
    path = damaged
    table = pd.read_parquet(path / "splits.parquet")
    table["ra"], table["dec"], table["lineage"], table["object"] = np.arange(len(table)) + 10.0, 5.0, "a", table["id"]
    table.to_parquet(path / "splits.parquet", index=False)
    model, near = open_model(path), 1 / 3600
    there = dict(zip(table["id"], table["ra"], strict=True))
    rows = rows_of(
        ("J0048", there["1000"], 5 + near, "b"), ("x", there["990"], 5 - near, "b"), ("1001", 200.0, 5.0, "a"),
        ("1001", np.nan, np.nan, "a"), ("1001", np.nan, np.nan, "b"), ("y", there["1002"], 5 + 3 * near, "b"),
    )  # fmt: skip
    assert model.split_of(rows).tolist() == ["train", "calibration", "", "train", "", ""]
    assert model.in_train(rows).tolist() == [True, False, False, True, False, False]
    assert model.in_train(rows, radius=5)[-1]  # of a survey that knows positions to 5 arcsec
    assert len(model.objects("train", targets=True)) == 5


def test_a_model_without_positions_matches_ids(shared_model):
    rows = rows_of(("1001", 200.0, 5.0, "a"), ("990", 1.0, 1.0, "b"), ("7", 1.0, 1.0, "b"))
    assert shared_model.split_of(rows).tolist() == ["train", "calibration", ""]


def test_models_keep_their_versions_of_a_schema(tmp_path, galscan_home):
    (tmp_path / "mine.toml").write_text(OWN_SCHEMA)
    install_schema(str(tmp_path / "mine.toml"))
    old_text = recipe_template("odd", ["mine"])
    old = tiny_model(tmp_path / "old", "odd", schema="mine", recipe=recipe_from_text(old_text))

    installed = galscan_home / "labels" / "mine.toml"
    installed.write_text(OWN_SCHEMA.replace("high = 9", "high = 10") + '[[answer]]\nname = "even"\n')
    new_text = old_text.replace('morphology = ["odd"]', 'morphology = ["odd", "even"]')
    new = tiny_model(tmp_path / "new", "odd2", schema="mine", recipe=recipe_from_text(new_text))
    installed.unlink()

    models = [open_model(old.path), open_model(new.path)]
    assert [model.schema.names for model in models] == [["odd"], ["odd", "even"]]
    assert [model.schema.ranges["odd"] for model in models] == [(1, 9), (1, 10)]
    assert answer_names(models) == ["odd", "even"]
    assert load_scorer(models, "cpu", "fp32")(images()).answers.shape == (5, 2)
    with pytest.raises(InputError, match="mine"):
        recipe_from_text(new_text)


def test_a_schema_file_of_another_name_is_refused(damaged):
    (damaged / "schema.toml").write_text(OWN_SCHEMA)
    with pytest.raises(InputError, match=r"schema\.toml"):
        open_model(damaged)
