"""Single tables of a recipe; whole recipes are tested in test_recipe.py."""

from __future__ import annotations

import pytest

from galscan.core.errors import InputError
from galscan.labels.recipe import load_recipe, recipe_from_text
from galscan.labels.settings import (
    GALAXYSD,
    STABLE_DIFFUSION,
    ClassifierSettings,
    GeneratorSettings,
    StableDiffusionSettings,
)
from tests.labels.test_recipe import SMALL


def with_classifier(text: str) -> str:
    return SMALL.replace("[schemas.efigi]", f"[classifier]\n{text}\n[schemas.efigi]", 1)


def test_an_encoder_is_told_with_what_becomes_of_it():
    assert ClassifierSettings().network == "" and not ClassifierSettings().encoder
    tuned = recipe_from_text(with_classifier('encoder = "resnet18"')).classifier
    assert tuned.network == "resnet18 (fine-tuned)"
    assert tuned.encoder_learning_rate == pytest.approx(tuned.learning_rate / 10)
    frozen = recipe_from_text(with_classifier('encoder = "resnet18"\nencoder_frozen = true')).classifier
    assert frozen.network == "resnet18 (frozen)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder_frozen = true", "classifier: encoder_frozen needs an encoder"),
        ("encoder_size = -1", "classifier.encoder_size: .* greater than or equal to 0"),
        ("encoder_learning_rate = 0", "classifier.encoder_learning_rate: .* greater than 0"),
        ('encoders = "x"', "unknown key 'classifier.encoders'; did you mean 'encoder'"),
    ],
)
def test_a_wrong_encoder_is_told_by_its_key(text, message):
    with pytest.raises(InputError, match=message) as error:
        recipe_from_text(with_classifier(text))
    assert "\n" not in str(error.value)


def test_pictures_that_cannot_be_halved_often_enough_are_refused():
    four = SMALL.replace("[schemas.efigi]", "[generator]\nwidths = [32, 32, 64]\n[schemas.efigi]", 1)
    assert recipe_from_text("size = 48\n" + four).size == 48
    with pytest.raises(InputError, match=r"recipe x: images of 24 px cannot be halved 4 times; .*multiple of 16"):
        recipe_from_text("size = 24\n" + four, "x")


def with_generator(text: str) -> str:
    return SMALL.replace("[schemas.efigi]", f"[generator]\n{text}\n[schemas.efigi]", 1)


def test_the_generator_can_be_stable_diffusion_with_the_papers_settings():
    settings = recipe_from_text(with_generator('kind = "stable-diffusion"')).generator
    assert isinstance(settings, StableDiffusionSettings)
    assert (settings.steps, settings.batch, settings.learning_rate, settings.warmup) == (10_000, 16, 1.6e-6, 400)
    assert (settings.weight_decay, settings.resolution, settings.begin, settings.lora) == (1e-3, 424, "galaxy", 0)
    adapters = recipe_from_text(with_generator('kind = "stable-diffusion"\nlora = 8')).generator
    assert adapters.learning_rate == 1e-4
    assert isinstance(recipe_from_text(with_generator('kind = "flow"')).generator, GeneratorSettings)
    released = load_recipe("dustlane-galaxysd").generator
    assert released == settings.model_copy(update={"start": GALAXYSD, "caption_survey": "sdss", "steps": 0})
    assert settings.caption_survey == "" and settings.start == settings.base == STABLE_DIFFUSION
    by_name = recipe_from_text(with_generator(f'kind = "stable-diffusion"\nstart = "{GALAXYSD}"')).generator
    assert isinstance(by_name, StableDiffusionSettings) and by_name.caption_survey == "sdss"
    assert set(released.model_dump()) - set(settings.model_dump()) == {"caption_survey"}  # unused: not in the hash
    assert len({recipe_from_text(text).hash for text in (SMALL, with_generator('kind = "stable-diffusion"'))}) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "stable-difusion"', "generator.kind: unknown generator 'stable-difusion'; did you mean 'stable-diff"),
        ('kind = "stable-diffusion"\nwidths = [32, 32]', "unknown key 'generator.widths'"),
        ('kind = "stable-diffusion"\nlorra = 3', "unknown key 'generator.lorra'; did you mean 'lora'"),
        ("lora = 3", "unknown key 'generator.lora'"),
        ('kind = "stable-diffusion"\nresolution = 100', "generator.resolution: .*multiple of 8 .*got 100"),
        ('kind = "stable-diffusion"\nbegin = "end"', "generator.begin: "),
        ('kind = "stable-diffusion"\ncaption_survey = "a, b"', "generator.caption_survey: "),
        ('kind = "stable-diffusion"\nsteps = -1', "generator.steps: "),
        ("steps = 0", "generator.steps: "),
    ],
)
def test_a_wrong_generator_is_told_by_its_key(text, message):
    with pytest.raises(InputError, match=message) as error:
        recipe_from_text(with_generator(text))
    assert "\n" not in str(error.value)
