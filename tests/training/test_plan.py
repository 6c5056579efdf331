from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError
from galscan.store.build import ingest_survey
from galscan.store.identity import Objects
from galscan.store.layout import open_store
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.training.graded_labels import GradedLabels
from galscan.training.plan import make_plan
from tests.helpers import tiny_recipe, tiny_store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    sky = SimulatedSurvey(count=400, size=32, seed=1, rare_fraction=0.1)
    return ingest_survey(sky, tmp_path_factory.mktemp("plan") / "sky.zarr", workers=1).path


def plan(store, tmp_path: Path, fixed: bool = False, **changes):
    settings = {"survey": (), "store": store, "out": tmp_path / "m", "budget": None, "synthetic": True, "seed": 0}
    recipe = tiny_recipe(tmp_path / "r.toml")
    if fixed:
        recipe.write_text(recipe.read_text() + "[split]\nmethod = 'fixed'\n")
    return make_plan(str(recipe), **(settings | changes))


@pytest.fixture(autouse=True)
def scatter_is_known(monkeypatch):
    """Cross-fit however few unlabelled galaxies there are."""
    monkeypatch.setattr("galscan.training.split.reserved", lambda table, **_: table.head(1))


def test_the_plan_counts_each_fold_of_cross_fitting(store, tmp_path):
    p = plan(store, tmp_path)
    assert p.folds == p.recipe.classifier.members == 2 and not p.fixed_because
    positives = [int((p.table.loc[p.table["split"] == f"fold {k}", "target"] == 1).sum()) for k in range(2)]
    assert all(f"fold {k}       {n} positive" in p.describe() for k, n in enumerate(positives))
    assert max(positives) - min(positives) <= 1 and "cross-fitting in 2 folds" in p.describe()


@pytest.mark.parametrize(
    ("changes", "folds", "why"),
    [
        ({"members = 2": "members = 1"}, 0, "cross-fitting needs two networks or more"),
        ({"[classifier]": "[split]\nmethod = 'fixed'\n[classifier]"}, 0, ""),
        ({"positives = 0": "positives = 4", 'kind = "maps"\nmaps = "prior"': 'kind = "flow"'}, 0, "one generator"),
        ({'maps = "prior"': 'maps = "both"'}, 2, ""),  # each network has a diffusion model of maps of its own
    ],
)
def test_when_the_split_is_fixed(store, tmp_path, changes, folds, why):
    text = tiny_recipe(tmp_path / "r.toml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "other.toml").write_text(text)
    p = make_plan(str(tmp_path / "other.toml"), (), store, tmp_path / "m", None, True, 0)
    assert p.folds == folds and p.fixed_because.startswith(why) and bool(why) == bool(p.fixed_because)
    assert why in p.describe() and {s for s in p.table["split"] if s} == (
        {"fold 0", "fold 1"} if folds else {"train", "calibration", "test"}
    )


def test_the_plan_counts_a_fixed_split(store, tmp_path):
    p = plan(store, tmp_path, fixed=True)
    splits = ("train", "calibration", "test")
    positives = {s: int((p.table.loc[p.table["split"] == s, "target"] == 1).sum()) for s in splits}
    assert f"train        {positives['train']} positive" in p.describe()
    assert positives["train"] >= positives["test"] > 0


def test_every_option_that_matters_changes_the_request(store, tmp_path):
    requests = [plan(store, tmp_path, **c).request for c in ({}, {"seed": 1}, {"synthetic": False}, {"budget": 3.0})]
    assert len({str(r) for r in requests}) == 4


def test_larger_stores_are_resampled_and_smaller_ones_refused(store, tmp_path):
    p = plan([store, tiny_store(tmp_path / "other.zarr", size=48).path], tmp_path)
    assert "600 objects, 32 px, resampled from 48 px (" in p.describe() and "400 objects, 32 px (" in p.describe()
    with pytest.raises(InputError, match="--size 32 "):
        plan([store, tiny_store(tmp_path / "small.zarr", 20, size=24).path], tmp_path)


def test_by_default_all_stores_with_enough_pixels_are_used(store, tmp_path, galscan_home):
    folder = galscan_home / "surveys"
    folder.mkdir()
    for size in (24, 48):
        tiny_store(folder / f"{size}.zarr", 20, size=size)
    (folder / "sky.zarr").symlink_to(store)
    assert [s.path.name for s in plan((), tmp_path).stores] == ["48.zarr", "sky.zarr"]
    with pytest.raises(InputError, match=r"24\.zarr"):
        make_plan(str(tiny_recipe(tmp_path / "r.toml", size=64)), (), (), None, None, True, 0)


def test_grades_train_and_are_in_the_plan_the_request_and_the_provenance(store, tmp_path):
    opened = open_store(store)
    before = plan(store, tmp_path, fixed=True)
    new = before.table[before.table["target"].isna() & (before.table["split"] == "train")].iloc[:3]
    held = before.table[before.table["split"] == "test"].iloc[:2]
    graded = pd.concat([new, held])[["store", "row", "id"]].assign(target=[1.0, 1.0, np.nan, 1.0, 0.0])
    stores = {opened.name: (str(store), opened.content_hash)}
    one = GradedLabels(Path("run"), "dustlane", "f", graded, stores, Objects(None, None, None, []))
    p = plan(store, tmp_path, fixed=True, graded_scans=[one])
    train = p.table[p.table["split"] == "train"]
    assert set(new["id"][:2]) <= set(train.loc[train["target"] == 1, "id"])
    assert "2 positive and 0 negative trained on, of 5 graded; 1 left out" in p.describe()
    for split in ("calibration", "test"):
        assert set(p.table.loc[p.table["split"] == split, "id"]) == set(
            before.table.loc[before.table["split"] == split, "id"]
        )
    assert "grades" not in before.request and p.request["grades"] == [["f", one.hash]]
    assert p.provenance[0]["sha256"] == one.hash and p.provenance[0]["positive"] == 2
    with pytest.raises(InputError, match="'ring'"):
        plan(store, tmp_path, graded_scans=[replace(one, target="ring")])
