"""The interface of features, and their names in recipes."""

from __future__ import annotations

import typing
from pathlib import Path

import numpy as np
import pytest

from galscan.core.errors import InputError
from galscan.labels.settings import WITH_DONORS, WITHOUT_PRIOR, InjectRule
from galscan.synthesis.features import base
from galscan.synthesis.features.base import (
    FEATURES,
    PRIOR_BLOCK,
    Feature,
    base_weights,
    find_feature,
    has_prior,
    prior_maps,
)
from galscan.synthesis.hosts import Donors
from tests.synthesis.features.test_dust_lane import STRETCH, galaxies, hosts


def test_the_recipe_names_every_feature_and_the_registry_every_module():
    assert set(FEATURES) <= set(typing.get_args(InjectRule.model_fields["feature"].annotation))
    folder = Path(str(base.__file__)).parent
    modules = {path.stem for path in folder.glob("*.py") if "\ndef inject(" in path.read_text()}
    assert modules == set(FEATURES)
    assert set(WITHOUT_PRIOR) == {name for name, feature in FEATURES.items() if hasattr(feature, "variants")}
    assert {name for name, feature in FEATURES.items() if feature.DONORS} == set(WITH_DONORS) & set(FEATURES)


def some_maps(name: str) -> np.ndarray:
    """Return three maps: of the prior, or light added on one side."""
    if has_prior(name):
        return find_feature(name).prior(3, np.random.default_rng(0))
    maps = np.zeros((3, *find_feature(name).prior(0, np.random.default_rng(0)).shape[1:]), np.float32)
    maps[:, :, 20:40, 40:50] = 0.4
    return maps


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_does_what_any_must(name):
    feature = find_feature(name)
    requested = [n for n in (*Feature.__annotations__, *vars(Feature)) if not n.startswith("_")]
    assert {"CONDITIONS", "LEAST_DEPTH", "prior", "describe", "measure", "inject"} <= set(requested)
    assert all(hasattr(feature, attribute) for attribute in requested)
    assert 0 <= feature.LEAST_DEPTH < 1
    maps = some_maps(name)
    assert maps.ndim == 4 and len(maps) == 3 and maps.dtype == np.float32 and np.isfinite(maps).all()
    assert feature.prior(0, np.random.default_rng(0)).shape == (0, *maps.shape[1:])
    shown = feature.describe(maps)
    assert shown.shape == (3, len(feature.CONDITIONS)) and shown.dtype == np.float32
    for column, (low, high) in zip(shown.T, feature.CONDITIONS.values(), strict=True):
        assert low < high and (column >= np.float32(low)).all() and (column <= np.float32(high)).all()
    images, options = galaxies(3), {"bands": "zrg", "seeing": np.ones(3)}
    if feature.DONORS:
        options["donors"] = Donors(galaxies(3, seed=1), hosts(3))
    injected, depth = feature.inject(images, hosts(3), maps, STRETCH, np.random.default_rng(0), **options)
    assert injected.shape == images.shape and injected.dtype == np.uint8 and (injected != images).any((1, 2, 3)).all()
    assert depth.shape == (3,) and ((depth > -1e-4) & (depth <= 1)).all()
    before = maps.copy()
    deepened = feature.deepen(maps, 1.5)
    np.testing.assert_array_equal(maps, before)  # a copy
    assert deepened.shape == maps.shape and deepened.dtype == np.float32 and (deepened != maps).any()
    deeper = feature.inject(images, hosts(3), deepened, STRETCH, np.random.default_rng(0), **options)[1]
    assert deeper.mean() > depth.mean()
    assert len(feature.deepen(maps[:0], 1.5)) == 0


def test_a_feature_nobody_wrote_is_refused():
    with pytest.raises(InputError, match="dust_lane") as caught:
        find_feature("dust_lanes")
    assert caught.value.exit_code == 2


def test_a_map_of_the_prior_is_the_same_however_many_follow(monkeypatch):
    monkeypatch.setattr(base, "PRIOR_BLOCK", 4)
    few, many = prior_maps("dust_lane", 3, 7), prior_maps("dust_lane", 11, 7)
    assert many.shape == (11, 1, 64, 64) and many.dtype == np.float16 and many.min() >= 0 and np.isfinite(many).all()
    np.testing.assert_array_equal(many[:3], few)
    np.testing.assert_array_equal(prior_maps("dust_lane", 11, 7), many)
    assert len(np.unique(many.reshape(11, -1), axis=0)) == 11
    assert (prior_maps("dust_lane", 3, 8) != few).any((1, 2, 3)).all()
    assert prior_maps("dust_lane", 0, 7).shape == (0, 1, 64, 64)


def test_all_artefacts_of_two_blocks_differ():
    maps = prior_maps("artefact", PRIOR_BLOCK + 5, 0).reshape(PRIOR_BLOCK + 5, 8)
    assert len(np.unique(maps, axis=0)) > 0.99 * len(maps)


def test_base_weights_are_shipped_or_not(monkeypatch, tmp_path):
    assert base_weights("artefact") is None
    monkeypatch.setattr(base.importlib.resources, "files", lambda package: tmp_path)
    assert base_weights("dust_lane") is None
    (tmp_path / "dust_lane.safetensors").write_bytes(b"")
    assert base_weights("dust_lane") == tmp_path / "dust_lane.safetensors"
