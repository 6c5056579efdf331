"""Morphology catalog of a scan."""

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
from tests.helpers import tiny_model, tiny_store

TREE = load_schema("gz2")


@pytest.fixture(scope="module")
def run(tmp_path_factory, scans_here, no_pages):
    """A scan by a model of votes."""
    folder = tmp_path_factory.mktemp("morphology")
    model = tiny_model(folder / "model", schema="gz2", members=2)
    store = tiny_store(folder / "s.zarr", 100, unusable=9)
    return galscan.scan(store=store.path, model=model.path, out=folder / "run", workers=1, device="cpu")


@pytest.fixture(scope="module")
def table(run):
    rows, _ = morphology(run.path)
    table = pd.concat([piece.to_pandas() for piece in rows])
    assert rows.count == len(table) == 91
    return table


def test_every_scored_galaxy(run, table):
    store = galscan.open(run.info.stores[0].path)
    assert set(table["objid"]) == set(store.column("id")[:91])
    scores = load_scorer([open_model(run.info.model)], "cpu", "fp32")(store.images(slice(0, 91)))
    np.testing.assert_allclose(table[run.info.answers].to_numpy(), scores.answers, rtol=2e-2, atol=2e-3)


def test_fractions_add_up_and_lie_in_their_intervals(table):
    tasks = [task for task in TREE.tasks if next(iter(task.answers)) in table]
    assert {"t01", "t06", "t08"} <= {task.id for task in tasks}
    for task in tasks:
        names = list(task.answers)
        np.testing.assert_allclose(table[names].sum(axis=1), 1, atol=1e-4)
        for name in names:
            assert (table[f"{name}_lo"] < table[name]).all() and (table[name] < table[f"{name}_hi"]).all()
    smooth, round_ = "t01_smooth_or_features_a01_smooth", "t07_rounded_a16_completely_round"
    np.testing.assert_allclose(table[f"{round_}_joint"], table[smooth] * table[round_], rtol=1e-4)


@pytest.mark.parametrize("suffix", ["fits", "parquet"])
def test_export(run, tmp_path, suffix):
    done = galscan.export(run.path, tmp_path / f"m.{suffix}", morphology=True)
    assert done.rows == 91 and "the morphology of 91 galaxies" in done.summary()["text"]
    table = Table.read(done.path) if suffix == "fits" else pd.read_parquet(done.path)
    assert len(table) == 91 and "t08_odd_feature_a38_dust_lane_joint" in list(table.keys())


def test_invalid_options_and_incomplete_scans(run, tmp_path, monkeypatch):
    for options in ({"top": 5}, {"format": "ds9"}, {"known": ["x.csv"]}):
        with pytest.raises(InputError, match="--morphology"):
            galscan.export(run.path, tmp_path / "m.fits", morphology=True, **options)
    monkeypatch.setattr("galscan.candidates.morphology.FULL", "another stage")
    with pytest.raises(InputError, match="91 of 91 objects"):
        galscan.export(run.path, tmp_path / "m.fits", morphology=True)
    assert not list(tmp_path.iterdir())
