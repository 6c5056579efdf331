from __future__ import annotations

import numpy as np
import pytest
import torch

from galscan.core.errors import InputError
from galscan.labels.recipe import validated
from galscan.labels.schema import load_schema
from galscan.labels.settings import GeneratorSettings, StableDiffusionSettings
from galscan.synthesis import backends
from galscan.synthesis.galaxies import MEASURED, GalaxySet, measure
from galscan.synthesis.sampling import sample_images

SCHEMA, CPU = load_schema("simulated"), torch.device("cpu")


def galaxies() -> GalaxySet:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    labels = random.random((12, len(SCHEMA.names)), np.float32)
    return GalaxySet(images, np.concatenate([labels, measure(images)], 1), np.zeros(12, int), np.ones(12))


@pytest.fixture(params=["flow", "stable-diffusion"])
def settings(request) -> backends.AnySettings:
    if request.param == "flow":
        return GeneratorSettings(widths=(32, 32), start="none", steps=2, batch=4)
    given = {"kind": request.param, "start": str(request.getfixturevalue("tiny_sd")), "resolution": 16}
    return validated(StableDiffusionSettings, "generator", given | {"steps": 2, "batch": 4})


def test_train_load_fine_tune_and_generate_with_any_backend(settings, tmp_path):
    backends.check_start(settings)
    how = {"seed": 0, "device": CPU}
    assert backends.find(tmp_path) is None
    result = backends.train(galaxies(), SCHEMA, ["sky"], settings, tmp_path, **how)
    found = backends.find(tmp_path)
    assert result["steps"] == 2 and found is not None and found.stem == "generator"
    assert (
        backends.train(galaxies(), SCHEMA, ["sky"], settings, tmp_path, name="next", start=found, **how)["steps"] == 2
    )
    for generator in (backends.load(tmp_path), backends.load(tmp_path, "next"), backends.load_named(str(found))):
        assert (generator.config.schema, generator.config.size, generator.config.surveys) == ("simulated", 16, ("sky",))
        assert generator.config.answers == (*SCHEMA.names, *MEASURED)
    values, survey = galaxies().values[:3], np.array([0, 0, -1])
    images = sample_images(generator, values, survey, weights={"dust_lane": 1.3}, steps=2, device=CPU)
    assert images.shape == (3, 16, 16, 3) and len({i.tobytes() for i in images}) == 3


def test_the_generators_own_guidance_and_steps_are_the_default(monkeypatch):
    requested = {}

    class StubGenerator:
        guidance, steps, batch = 4.5, 7, 2
        config = type("Config", (), {"size": 8})

        def generate(self, values, survey, **how):
            requested.update(how)
            return np.zeros((len(values), 8, 8, 3), np.uint8)

    sample_images(StubGenerator(), np.zeros((5, 1)), np.zeros(5, int), seed=2)
    assert (requested["guidance"], requested["steps"], requested["weights"]) == (4.5, 7, {})
    assert requested["seed"] == 2 * 1_000_003 + 4
    sample_images(StubGenerator(), np.zeros((1, 1)), np.zeros(1, int), guidance=0.0, steps=3)
    assert (requested["guidance"], requested["steps"]) == (0.0, 3)


def test_what_is_no_generator_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"galscan\.json"):
        backends.load_named(str(tmp_path))
    with pytest.raises(InputError, match="--generator none"):
        backends.load_named("none")
    with pytest.raises(InputError, match=r"generator\.safetensors"):
        backends.load(tmp_path)
