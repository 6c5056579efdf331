from __future__ import annotations

import numpy as np
import pytest
import torch

from galscan.core.errors import InputError
from galscan.core.files import file_digest
from galscan.labels.settings import MapSettings
from galscan.synthesis.diffusion import map_training as training
from galscan.synthesis.diffusion.map_model import load_maps_model, make_config, train_maps
from galscan.synthesis.diffusion.maps import SEED, conditions_of
from galscan.synthesis.features import base

CPU = torch.device("cpu")
SETTINGS = MapSettings(kind="maps", widths=(16, 32), start="none", steps=2, batch=4, learning_rate=1e-3, ema=0.998)


@pytest.fixture(autouse=True)
def few_maps(monkeypatch):
    monkeypatch.setattr(base, "PRIOR_BLOCK", 24)


def test_it_trains_on_the_prior_maps_of_the_base_weights(tmp_path):
    result = training.train_on_prior("dust_lane", 24, SETTINGS, tmp_path / "g.safetensors", seed=3, device=CPU)
    assert result["maps"] == 24 and result["steps"] == 2 and np.isfinite(result["loss"])
    maps = base.prior_maps("dust_lane", 24, SEED)
    config = make_config("dust_lane", base.find_feature("dust_lane").CONDITIONS, maps, (16, 32))
    train_maps(
        maps, conditions_of("dust_lane", maps, measured=False), np.ones(24), config, tmp_path / "same.safetensors",
        steps=2, batch=4, learning_rate=1e-3, ema=0.998, seed=3, device=CPU,
    )  # fmt: skip
    assert file_digest(tmp_path / "g.safetensors") == file_digest(tmp_path / "same.safetensors")


def test_maps_are_drawn_once_and_kept_for_a_resumed_call(tmp_path, monkeypatch):
    training.train_on_prior("dust_lane", 24, SETTINGS, tmp_path / "g.safetensors", seed=0, device=CPU)
    first = file_digest(tmp_path / "g.safetensors")
    monkeypatch.setattr(training, "prior_maps", None)  # not called again
    training.train_on_prior("dust_lane", 24, SETTINGS, tmp_path / "g.safetensors", seed=0, device=CPU)
    assert file_digest(tmp_path / "g.safetensors") == first


def test_it_starts_from_weights_with_their_configuration(tmp_path):
    training.train_on_prior("dust_lane", 24, SETTINGS, tmp_path / "g.safetensors", seed=0, device=CPU)
    start = training.load_weights("dust_lane", str(tmp_path / "g.safetensors"))
    still = SETTINGS.model_copy(update={"learning_rate": 1e-12})
    (tmp_path / "next").mkdir()
    training.train_on_prior(
        "dust_lane", 12, still, tmp_path / "next" / "g.safetensors", seed=1, device=CPU, start=start
    )  # fmt: skip
    after = load_maps_model(tmp_path / "next" / "g.safetensors")
    assert after.config == start.config
    for name, value in start.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], value, atol=2e-3, rtol=0)


def test_only_a_feature_with_conditions_has_a_model():
    training.check_feature("dust_lane")
    with pytest.raises(InputError, match=r"'artefact' has no diffusion model of maps.*one of: dust_lane"):
        training.check_feature("artefact")
    with pytest.raises(InputError, match="unknown feature 'dust'"):
        training.check_feature("dust")


def test_base_weights_that_are_not_shipped_and_weights_of_another_feature_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "base_weights", lambda name: None)
        with pytest.raises(InputError, match=r"no base weights are shipped .*--kind maps --feature dust_lane"):
            training.load_weights("dust_lane", "base")
    training.train_on_prior("dust_lane", 24, SETTINGS, tmp_path / "g.safetensors", seed=0, device=CPU)
    with pytest.raises(InputError, match=r"g\.safetensors samples maps of 'dust_lane', not of 'artefact'"):
        training.load_weights("artefact", str(tmp_path / "g.safetensors"))
    with pytest.raises(InputError, match="not a readable diffusion model of maps"):
        training.load_weights("dust_lane", str(tmp_path / "no.safetensors"))
