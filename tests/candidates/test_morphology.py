"""The morphology of a whole survey: every galaxy once, fractions that add up, in formats people read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table

import galscan
from galscan.candidates.morphology import morphology
from galscan.core.errors import InputError
from galscan.labels.schema import load_schema
from galscan.models.ensemble import load_scorer
from galscan.models.model import open_model
from tests.helpers import tiny_bundle, tiny_store

TREE = load_schema("gz2")


@pytest.fixture(scope="module")
def run(tmp_path_factory, scans_here, no_pages):
    """A scan by a model of votes."""
    folder = tmp_path_factory.mktemp("morphology")
    tiny_bundle(folder / "model", schema="gz2", members=2)
    tiny_store(folder / "s.zarr", 700, unusable=9)
    return galscan.scan(store=folder / "s.zarr", model=folder / "model", out=folder / "run", workers=1, device="cpu")


def test_every_galaxy_that_was_scored_is_in_it_once(run):
    rows, _ = morphology(run.path)
    table = pd.concat([piece.to_pandas() for piece in rows])
    store = galscan.open_store(run.info.stores[0].path)
    assert rows.count == len(table) == 691 and set(table["objid"]) == set(store.column("id")[:691])
    said = load_scorer([open_model(run.info.model)], "cpu", "fp32")(store.images(slice(0, 691)))
    names = run.info.answers
    np.testing.assert_allclose(table[names].to_numpy(), said.answers, rtol=2e-2, atol=2e-3)


def test_fractions_add_up_and_lie_in_their_intervals(run):
    rows, _ = morphology(run.path)
    table = pd.concat([piece.to_pandas() for piece in rows])
    asked = [task for task in TREE.tasks if next(iter(task.answers)) in table]
    assert {"t01", "t06", "t08"} <= {task.id for task in asked}
    for task in asked:
        names = list(task.answers)
        np.testing.assert_allclose(table[names].sum(axis=1), 1, atol=1e-4)
        for name in names:
            assert (table[f"{name}_lo"] < table[name]).all() and (table[name] < table[f"{name}_hi"]).all()
    smooth, round_ = "t01_smooth_or_features_a01_smooth", "t07_rounded_a16_completely_round"
    np.testing.assert_allclose(table[f"{round_}_joint"], table[smooth] * table[round_], rtol=1e-4)


@pytest.mark.parametrize("suffix", ["fits", "parquet"])
def test_it_is_exported(run, tmp_path, suffix):
    done = galscan.export(run.path, tmp_path / f"m.{suffix}", morphology=True)
    assert done.rows == 691 and "the morphology of 691 galaxies" in done.summary()["text"]
    table = Table.read(done.path) if suffix == "fits" else pd.read_parquet(done.path)
    assert len(table) == 691 and "t08_odd_feature_a38_dust_lane_joint" in list(table.keys())


def test_what_it_cannot_be_is_refused(run, tmp_path, monkeypatch):
    for options in ({"top": 5}, {"format": "ds9"}, {"known": ["x.csv"]}):
        with pytest.raises(InputError, match="omit other options"):
            galscan.export(run.path, tmp_path / "m.fits", morphology=True, **options)
    monkeypatch.setattr("galscan.candidates.morphology.FULL", "another stage")
    with pytest.raises(InputError, match=r"691 of 691 objects were discarded .* --no-cascade"):
        galscan.export(run.path, tmp_path / "m.fits", morphology=True)
    assert not list(tmp_path.iterdir())
