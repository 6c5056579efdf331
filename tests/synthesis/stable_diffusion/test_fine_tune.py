from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from galscan.core.errors import InputError
from galscan.labels.recipe import validated
from galscan.labels.schema import load_schema
from galscan.labels.settings import StableDiffusionSettings
from galscan.synthesis.diffusion import checkpoint
from galscan.synthesis.galaxies import MEASURED, GalaxySet
from galscan.synthesis.stable_diffusion.fine_tune import fine_tune
from galscan.synthesis.stable_diffusion.model import StableDiffusion, load_stable_diffusion, open_pipeline
from tests.helpers import released_checkpoints

pytest.importorskip("transformers", reason="needs the extra stable-diffusion")
pytest.importorskip("peft", reason="needs the extra stable-diffusion")

SCHEMA, CPU = load_schema("simulated"), torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"


def galaxies(count: int = 64) -> GalaxySet:
    """Return early types, small and bright, and late types, large and faint, in turn."""
    early, random = np.arange(count) % 2, np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] - 7.5
    radius = np.hypot(x, y)
    light = np.where(early[:, None, None] == 1, 200 * np.exp(-((radius / 2) ** 2)), 120 * (radius < 6))
    images = (light[..., None] + random.normal(20, 5, (count, 16, 16, 3))).clip(0, 255).astype(np.uint8)
    values = np.full((count, len(SCHEMA.names) + len(MEASURED)), np.nan, np.float32)
    values[:, SCHEMA.names.index("early_type")] = early
    return GalaxySet(images, values, np.zeros(count, int), np.ones(count))


def tuned(start: Path, out: Path, *, seed: int = 0, seconds: float | None = None, **changes) -> dict[str, float]:
    given = {
        "kind": "stable-diffusion", "start": str(start), "steps": 4, "batch": 4, "learning_rate": 3e-3, "warmup": 5,
        "resolution": 16, "recompute": False,
    }  # fmt: skip
    settings = validated(StableDiffusionSettings, "generator", given | changes)
    return fine_tune(galaxies(), SCHEMA, ["sky"], settings, out, seed=seed, device=CPU, seconds=seconds)


def test_training_lowers_the_loss(tiny_sd, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoint, "finish", lambda self: {"losses": self.losses})
    losses = tuned(tiny_sd, tmp_path / "g", steps=40)["losses"]
    first, last = np.mean(losses[:8]), np.mean(losses[-8:])
    assert first > 0.9 and last < 0.75 * first  # noise is predicted: without training it is 1


def test_both_networks_are_trained_and_the_autoencoder_is_not(tiny_sd, tmp_path):
    tuned(tiny_sd, tmp_path / "g")
    for part, moved in ((UNET, True), ("text_encoder/model.safetensors", True), ("vae/" + UNET.split("/")[1], False)):
        before, after = load_file(tiny_sd / part), load_file(tmp_path / "g" / part)
        apart = max(float((before[k].float() - after[k].float()).abs().max()) for k in before)
        assert (apart > 3e-3) == moved, part
        assert {v.dtype for v in after.values()} == {torch.float16}


def test_the_configuration_is_stored(tiny_sd, tmp_path):
    tuned(tiny_sd, tmp_path / "g", begin="noise")
    config = load_stable_diffusion(tmp_path / "g").config
    assert (config.size, config.resolution, config.schema, config.begin) == (16, 16, "simulated", "noise")
    assert config.answers == (*SCHEMA.names, *MEASURED) and config.surveys == ("sky",) and config.base == str(tiny_sd)
    starts = load_file(tmp_path / "g" / "starts.safetensors")["images"].numpy()
    assert {s.tobytes() for s in starts} == {i.tobytes() for i in galaxies().images}
    assert {p.name for p in tmp_path.iterdir()} == {"g"}


def test_a_resumed_training_ends_with_the_same_weights(tiny_sd, tmp_path, interrupted):
    tuned(tiny_sd, tmp_path / "whole", lora=2)
    with interrupted(2), pytest.raises(KeyboardInterrupt):
        tuned(tiny_sd, tmp_path / "parts", lora=2)
    assert not (tmp_path / "parts").exists()
    assert tuned(tiny_sd, tmp_path / "parts", lora=2)["steps"] == 4
    for name, value in load_file(tmp_path / "whole" / UNET).items():
        assert torch.equal(load_file(tmp_path / "parts" / UNET)[name], value), name
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "parts"}


def test_adapters_are_saved_loaded_and_merged(tiny_sd, tmp_path):
    """Merged weights give the same output as the original network with separate adapters."""
    tuned(tiny_sd, tmp_path / "g", lora=2, steps=6, learning_rate=0.05, recompute=True)
    adapters = load_file(tmp_path / "g" / "pytorch_lora_weights.safetensors")
    trained = {k.split(".")[0] for k, v in adapters.items() if ".up." in k and v.abs().max() > 1e-3}  # initially 0
    assert trained == {"unet", "text_encoder"}
    assert sum(v.numel() for v in adapters.values()) < 0.2 * sum(v.numel() for v in load_file(tiny_sd / UNET).values())
    merged, beside, plain = open_pipeline(tmp_path / "g"), open_pipeline(tiny_sd), open_pipeline(tiny_sd)
    beside.load_lora_weights(tmp_path / "g" / "pytorch_lora_weights.safetensors")
    random = torch.Generator().manual_seed(0)
    x, numbers = torch.randn(2, 4, 8, 8, generator=random), torch.randint(2, 40, (2, 32), generator=random)
    with torch.inference_mode():
        one, two, none = (p.unet(x, 500, p.text_encoder(numbers)[0]).sample for p in (merged, beside, plain))
    moved = float((two - none).abs().max())
    assert moved > 0.05 and float((one - two).abs().max()) < 0.02 * moved + 2e-3  # half precision


def test_a_fine_tuned_model_can_be_fine_tuned(tiny_sd, tmp_path):
    tuned(tiny_sd, tmp_path / "first")
    settings = {"steps": 1, "learning_rate": 1e-12}
    tuned(tmp_path / "first", tmp_path / "second", **settings)
    first, second = (load_file(tmp_path / name / UNET) for name in ("first", "second"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_without_steps_the_initial_weights_are_written(tiny_sd, tmp_path):
    release = released_checkpoints(tiny_sd, tmp_path / "release")
    changes = {"steps": 0, "base": str(tiny_sd), "lora": 2, "caption_survey": "sdss"}
    assert tuned(release, tmp_path / "g", **changes)["steps"] == 0
    stored, written = load_file(release / "unet-10000.safetensors"), load_file(tmp_path / "g" / UNET)
    assert all(torch.equal(value, stored[f"base_ema:{name}"].half()) for name, value in written.items())
    config = load_stable_diffusion(tmp_path / "g").config
    assert (config.base, config.caption_survey) == (str(release), "sdss")
    assert not (tmp_path / "g" / "pytorch_lora_weights.safetensors").exists()
    tuned(tmp_path / "g", tmp_path / "further", steps=1)


def test_missing_initial_weights_are_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="no"):
        tuned(tmp_path / "no", tmp_path / "g")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_captions_steer(tmp_path, monkeypatch):
    """Images generated from either caption are nearer the galaxies of that caption, in the autoencoder's space.

    It predicts velocities: at the noisiest times only the caption tells it what to draw, and it learns to read soonest.
    """
    from tests.helpers import tiny_stable_diffusion

    tiny = tiny_stable_diffusion(tmp_path / "tiny", predicts="v_prediction")
    tuned(tiny, tmp_path / "g", steps=300, batch=8, begin="noise")
    generator, real, caught = load_stable_diffusion(tmp_path / "g"), galaxies(), []
    decode = StableDiffusion.decode_images
    monkeypatch.setattr(StableDiffusion, "decode_images", lambda self, x: (caught.append(x), decode(self, x))[1])
    with torch.inference_mode():
        latents = generator.encode_images(torch.from_numpy(real.images), torch.Generator().manual_seed(0))
        generator.generate(
            real.values[:40], real.survey[:40], guidance=3.0, weights={}, steps=10, seed=1, device=CPU
        )  # fmt: skip
    late, early = (latents[k::2].mean(0) for k in (0, 1))
    nearer_early = (caught[0] - early).flatten(1).norm(dim=1) < (caught[0] - late).flatten(1).norm(dim=1)
    right = nearer_early.numpy() == (np.arange(40) % 2 == 1)
    assert right[0::2].mean() > 0.8 and right[1::2].mean() > 0.8  # at random 0.5
