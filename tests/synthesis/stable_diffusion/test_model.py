from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from galscan.core.errors import InputError
from galscan.labels.schema import load_schema
from galscan.synthesis.galaxies import MEASURED
from galscan.synthesis.sampling import sample_images
from galscan.synthesis.stable_diffusion import model as module
from galscan.synthesis.stable_diffusion.captions import wording
from galscan.synthesis.stable_diffusion.model import (
    StableDiffusion,
    StableDiffusionConfig,
    load_stable_diffusion,
    open_pipeline,
)

pytest.importorskip("transformers", reason="needs the extra stable-diffusion")
pytest.importorskip("peft", reason="needs the extra stable-diffusion")

SCHEMA, CPU = load_schema("simulated"), torch.device("cpu")
EARLY = SCHEMA.names.index("early_type")


def config(**changes) -> StableDiffusionConfig:
    given = {
        "size": 8, "resolution": 16, "schema": "simulated", "wording": wording(SCHEMA),
        "answers": (*SCHEMA.names, *MEASURED), "surveys": ("sky", "b"), "begin": "galaxy", "base": "tiny",
    }  # fmt: skip
    return StableDiffusionConfig(**given | changes)


def untrained(tiny_sd: Path, **changes) -> StableDiffusion:
    starts = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))
    return StableDiffusion(open_pipeline(tiny_sd), config(**changes), starts, SCHEMA)


@pytest.fixture(scope="module")
def generator(tiny_sd) -> StableDiffusion:
    return untrained(tiny_sd)


def conditions(count: int = 3) -> np.ndarray:
    values = np.full((count, len(SCHEMA.names) + len(MEASURED)), np.nan, np.float32)
    values[:, EARLY] = np.arange(count) % 2
    return values


# --- captions -------------------------------------------------------------------------------------------------


def embedded(generator: StableDiffusion, *texts: str) -> torch.Tensor:
    with torch.inference_mode():
        return generator.embed(*generator.tokens(texts))


def test_tokens_are_those_of_the_tokenizer(generator):
    texts = ["sky, early-type galaxy", ""]
    numbers, weights = generator.tokens(texts)
    expected = generator.pipeline.tokenizer(texts, padding="max_length", max_length=32, truncation=True)
    assert numbers.tolist() == expected.input_ids and (weights == 1).all()


def test_weight_one_is_no_weight(generator):
    plain = embedded(generator, "sky, early-type galaxy, bar")
    assert torch.equal(embedded(generator, "sky, {early-type galaxy:1}, bar"), plain)
    numbers, _ = generator.tokens(["sky, early-type galaxy, bar"])
    with torch.inference_mode():
        assert torch.equal(generator.embed(numbers), plain)
        assert torch.equal(generator.pipeline.text_encoder(numbers)[0], plain)


def test_only_the_words_in_braces_are_weighted_and_the_norm_stays(generator):
    plain, pushed = embedded(generator, "sky, bar, red"), embedded(generator, "sky, {bar:1.3}, red")
    ratio = (pushed.norm(dim=2) / plain.norm(dim=2))[0]
    _, weights = generator.tokens(["sky, {bar:1.3}, red"])
    inside = weights[0] == 1.3
    assert 1 <= inside.sum() <= 3 and not inside[0]
    torch.testing.assert_close(ratio[inside], (1.3 * ratio[0]).expand(int(inside.sum())))
    torch.testing.assert_close(ratio[~inside], ratio[0].expand(int((~inside).sum())))
    assert ratio[0] < 1 and torch.isclose(pushed.norm(), plain.norm())


def test_long_captions_are_truncated_with_a_warning(generator, capsys):
    long = "sky, " + "early-type galaxy, " * 9
    numbers, _ = generator.tokens([long, "sky"])
    text = capsys.readouterr().err
    assert numbers.shape == (2, 32) and numbers[0, -1] == generator.pipeline.tokenizer.eos_token_id
    assert "captions truncated to 30 tokens: 1;" in text
    lost = text.rsplit("'", 2)[1]
    assert lost and long.replace(" ", "").endswith(lost.replace(" ", ""))
    generator.tokens(["sky"])
    assert not capsys.readouterr().err


def test_invalid_braces_are_an_error(generator):
    with pytest.raises(InputError, match="is never closed"):
        generator.tokens(["sky, {bar:1.3"])


def test_captions_of_conditions(generator):
    result = generator.captions(conditions(2), np.array([0, -1]), {"early_type": 1.3})
    assert result == ["sky, {late-type galaxy:1.3}", "{early-type galaxy:1.3}"]


def test_the_survey_in_captions_may_be_another_one_than_the_store(tiny_sd):
    generator = untrained(tiny_sd, caption_survey="sdss")
    assert generator.captions(conditions(2), np.array([1, -1])) == ["sdss, late-type galaxy", "early-type galaxy"]


# --- images ----------------------------------------------------------------------------------------------


def test_images_are_resampled_both_ways(generator):
    images = torch.full((2, 8, 8, 3), 100, dtype=torch.uint8)
    with torch.inference_mode():
        latents = generator.encode_images(images, torch.Generator().manual_seed(0))
        assert latents.shape == (2, 4, 8, 8) and generator.decode_images(latents).shape == (2, 8, 8, 3)


@pytest.mark.parametrize("begin", ["galaxy", "noise"])
def test_images_do_not_depend_on_their_number(tiny_sd, begin):
    generator = untrained(tiny_sd, begin=begin)
    values, survey = conditions(3), np.zeros(3, int)
    three = sample_images(generator, values, survey, steps=2, seed=5, device=CPU)
    assert three.shape == (3, 8, 8, 3) and three.dtype == np.uint8
    two = sample_images(generator, values[:2], survey[:2], steps=2, seed=5, device=CPU)
    assert np.abs(two.astype(int) - three[:2]).max() <= 1  # sums in another order
    assert not np.array_equal(sample_images(generator, values, survey, steps=2, seed=6, device=CPU), three)


def test_images_are_those_of_the_pipeline_of_diffusers(tiny_sd, monkeypatch):
    """From the same noise, with the same sampler, the pipeline of diffusers makes the same image."""
    from diffusers import EulerAncestralDiscreteScheduler

    generator, caught = untrained(tiny_sd, begin="noise"), []
    decode = StableDiffusion.decode_images
    monkeypatch.setattr(StableDiffusion, "decode_images", lambda self, x: (caught.append(x), decode(self, x))[1])
    generator.generate_from_captions(["sky, bar"], guidance=6.5, steps=4, seed=3, device=CPU)
    pipeline = open_pipeline(tiny_sd)
    scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    pipeline.scheduler = scheduler
    generated = pipeline(
        "sky, bar", height=16, width=16, guidance_scale=6.5, num_inference_steps=4, output_type="latent",
        generator=[torch.Generator().manual_seed(3)],
    ).images  # fmt: skip
    torch.testing.assert_close(caught[0], generated, rtol=1e-3, atol=1e-3 * float(generated.abs().max()))


def test_images_depend_on_the_galaxy_that_sampling_starts_from(tiny_sd):
    """The largest noise leaves a little of the image; so sampling starts from a training galaxy."""
    images = []
    for level in (0, 255):
        generator = untrained(tiny_sd)
        generator.starts = torch.full((1, 8, 8, 3), level, dtype=torch.uint8)
        images.append(generator.generate_from_captions(["sky"], guidance=1.0, steps=2, seed=0, device=CPU))
    assert not np.array_equal(*images)


def test_a_resolution_that_does_not_fit_the_autoencoder_is_an_error(tiny_sd):
    with pytest.raises(InputError, match=r"resolution = 17 is not a multiple of 2"):
        untrained(tiny_sd, resolution=17)


# --- on disk -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(generator, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    generator.save(folder)
    return folder


def test_a_saved_model_generates_the_same(generator, saved):
    back = load_stable_diffusion(saved)
    assert back.config == generator.config and torch.equal(back.starts, generator.starts)
    one, two = (
        g.generate_from_captions(["sky, {bar:1.3}"], guidance=6.5, steps=2, seed=1, device=CPU).astype(int)
        for g in (generator, back)
    )
    assert np.abs(one - two).max() <= 1


def test_the_folder_has_the_licences(saved):
    text = (saved / "LICENSES.md").read_text()
    assert "OpenRAIL-M" in text and "`tiny`" in text and "Galaxy Zoo" in text and "sky, b" in text
    assert not [p for p in saved.rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_diffusers_opens_the_folder(saved):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(saved, safety_checker=None)
    (image,) = pipeline("sky, bar", num_inference_steps=2, output_type="np").images
    assert image.shape == (16, 16, 3) and np.isfinite(image).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "galscan.json").unlink(), r"is not a readable generator: it has no galscan\.json"),
        (lambda f: (f / "starts.safetensors").write_bytes(b"x"), "is damaged"),
        (
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
            "not a readable Stable Diffusion model",
        ),
        (lambda f: change(f, wording="0"), "other phrases than those of the label schema 'simulated' now"),
        (lambda f: change(f, what=1), "is damaged"),
        (lambda f: (f / "galscan.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "galscan.json").write_text("[1]"), "is damaged"),
        (lambda f: change(f, size="8"), "is damaged"),
        (lambda f: change(f, size=10**9), "is damaged"),
        (lambda f: change(f, resolution=0), "is damaged"),
        (lambda f: change(f, begin="elsewhere"), "is damaged"),
        (lambda f: change(f, surveys=[1]), "is damaged"),
        (lambda f: change(f, caption_survey=1), "is damaged"),
        (lambda f: change(f, answers=["bar"]), "is damaged"),
        (lambda f: change(f, answers=7), "is damaged"),
        (lambda f: change(f, schema="simulatd"), "did you mean 'simulated'"),
        (lambda f: change(f, schema=["gz2"]), "is damaged"),
        (lambda f: begun(f, torch.zeros((0, 8, 8, 3), dtype=torch.uint8)), "is damaged"),
        (lambda f: begun(f, torch.zeros((2, 9, 9, 3), dtype=torch.uint8)), "is damaged"),
        (lambda f: begun(f, torch.zeros((2, 8, 8, 3))), "is damaged"),
        (lambda f: save_file({"other": torch.zeros(1)}, f / "starts.safetensors"), "is damaged"),
        (lambda f: cut(f / "unet" / "diffusion_pytorch_model.safetensors"), "not a readable Stable Diffusion model"),
        (lambda f: (f / "model_index.json").write_text("[]"), "not a readable Stable Diffusion model"),
        (lambda f: (f / "tokenizer" / "tokenizer.json").write_text("{"), "not a readable Stable Diffusion model"),
        (lambda f: wider(f, "unet", "diffusion_pytorch_model"), "not a readable Stable Diffusion model"),
        (lambda f: fewer(f, "text_encoder", "model"), "not a readable Stable Diffusion model"),
    ],
)
def test_a_damaged_folder_is_an_error(saved, tmp_path, damage, message):
    folder = tmp_path / "g"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load_stable_diffusion(folder)
    assert "\n" not in str(error.value)


def begun(folder: Path, images: torch.Tensor) -> None:
    save_file({"images": images}, folder / "starts.safetensors")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def wider(folder: Path, part: str, name: str) -> None:
    """Give one weight another shape."""
    tensors = load_file(folder / part / f"{name}.safetensors")
    key = min(tensors)
    save_file(tensors | {key: torch.zeros((3, *tensors[key].shape))}, folder / part / f"{name}.safetensors")


def fewer(folder: Path, part: str, name: str) -> None:
    """Take one weight away."""
    tensors = load_file(folder / part / f"{name}.safetensors")
    del tensors[min(tensors)]
    save_file(tensors, folder / part / f"{name}.safetensors")


def change(folder: Path, **values) -> None:
    path = folder / "galscan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_missing_extra_is_an_error(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"needs peft, .*pip install 'galscan\[stable-diffusion\]'"):
        module.require_extra()
