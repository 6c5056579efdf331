from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.labels.schema import load_schema
from galscan.synthesis.diffusion import galaxy_model as module
from galscan.synthesis.diffusion.galaxy_model import (
    AUGMENTATION,
    Generator,
    GeneratorConfig,
    load_start,
    make_config,
    shifted,
)
from galscan.synthesis.galaxies import MEASURED, SHAPE, pixel_statistics

BASE = Path(module.__file__).with_name("base.safetensors")


def config(size: int = 16) -> GeneratorConfig:
    return GeneratorConfig(
        size=size, schema="efigi", answers=("t", "visible_dust"), low=(-6.0, 0.0), high=(11.0, 1.0),
        surveys=("a", "b"), widths=(32, 32), mean=(0.3, 0.25, 0.2), std=0.2,
    )  # fmt: skip


def wider_config() -> GeneratorConfig:
    """Return one that knows the answers of `config` in another order, one more, and other surveys."""
    return dataclasses.replace(
        config(), answers=("visible_dust", "bar", "t"), low=(0.0, 0.0, -6.0), high=(1.0, 1.0, 11.0), surveys=("b", "c"),
    )  # fmt: skip


def untrained(settings: GeneratorConfig, seed: int = 0) -> Generator:
    """Build a generator in which also the last layer, which begins at zero, does something."""
    torch.manual_seed(seed)
    generator = Generator(settings)
    for parameter in generator.smooth[2].parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return generator.eval()


@pytest.fixture(scope="module")
def generator() -> Generator:
    return untrained(config())


@pytest.fixture(scope="module")
def adapted(generator) -> Generator:
    wider = untrained(wider_config(), seed=1)
    wider.start_from(generator)
    return wider


@torch.inference_mode()
def velocity(generator: Generator, condition: torch.Tensor) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 16, 16, generator=random).expand(len(condition), -1, -1, -1)
    return generator(x, torch.full((len(condition),), 0.7), condition)


def test_images_survive_encoding(generator):
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(generator.decode_images(generator.encode_images(images)), images)


def test_times_are_shifted_towards_noise():
    u = torch.linspace(0, 1, 101)
    t = shifted(u)
    assert t[0] == 0 and t[-1] == 1 and (t.diff() > 0).all() and (t[1:-1] > u[1:-1]).all()
    assert t[50] == pytest.approx(module.TIME_SHIFT / (1 + module.TIME_SHIFT))


# --- conditions ------------------------------------------------------------------------------------------


def test_the_condition_is_answers_flags_surveys_and_augmentation(generator):
    conditions = generator.encode_conditions(np.array([[-6.0, np.nan], [11.0, 0.25]]), np.array([1, -1]))
    assert conditions.shape == (2, generator.config.condition_size) and generator.config.condition_size == 8
    assert conditions.tolist() == [[-1, 0, 1, 0, 0, 1, 0, 0], [1, -0.5, 1, 1, 0, 0, 0, 0]]


def test_an_answer_not_asked_is_an_answer_masked(generator):
    requested = generator.encode_conditions(np.array([[0.0, 0.5]]), np.array([1]))
    open_ = generator.encode_conditions(np.array([[0.0, np.nan]]), np.array([1]))
    assert torch.equal(generator.mask(requested, torch.tensor([[False, True]])), open_)


answers = st.lists(st.tuples(st.floats(-6, 11), st.floats(0, 1)), min_size=1, max_size=4)


@settings(max_examples=10)
@given(answers, st.integers(-1, 1), st.data())
def test_masked_is_unconditional(generator, values, survey, data):
    """Masked answers have no effect; other answers, survey and augmentation are unchanged."""
    values, surveys = np.array(values), np.full(len(values), survey)
    drop = np.array(data.draw(st.lists(st.tuples(*[st.booleans()] * 2), min_size=len(values), max_size=len(values))))
    conditions = generator.encode_conditions(values, surveys)
    conditions[:, -AUGMENTATION:] = torch.tensor([1.0, -0.4])
    masked = generator.mask(conditions, torch.from_numpy(drop))
    expected = generator.encode_conditions(np.where(drop, np.nan, values), surveys)
    assert torch.equal(masked[:, :-AUGMENTATION], expected[:, :-AUGMENTATION])
    assert torch.equal(masked[:, -AUGMENTATION:], conditions[:, -AUGMENTATION:])
    everything = generator.mask(conditions, torch.ones(drop.shape, dtype=torch.bool))
    assert not everything[:, :4].any() and torch.equal(everything, everything[:1].expand_as(everything))


def test_the_velocity_without_answers_does_not_depend_on_what_they_were(generator):
    conditions = generator.encode_conditions(np.array([[-5.0, 1.0], [9.0, 0.0]]), np.array([0, 0]))
    v = velocity(generator, generator.mask(conditions, torch.ones(2, 2, dtype=torch.bool)))
    assert torch.equal(v[0], v[1])


def test_every_entry_of_the_condition_changes_the_velocity(generator):
    v = velocity(generator, torch.cat([torch.zeros(1, 8), torch.eye(8)]))
    assert v.shape == (9, 3, 16, 16) and ((v[1:] - v[0]).abs().amax((1, 2, 3)) > 0).all()


def test_the_configuration_holds_the_schema_and_what_is_measured():
    images = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
    schema = load_schema("efigi")
    made = make_config(images, schema, ["one", "two"], (32, 64))
    assert made.answers == (*schema.names, *MEASURED) and made.schema == "efigi" and made.size == 24
    assert made.surveys == ("one", "two") and made.widths == (32, 64)
    ranges = dict(zip(made.answers, zip(made.low, made.high, strict=True), strict=True))
    assert ranges["t"] == schema.ranges["t"] and ranges["image_colour"] == MEASURED["image_colour"]
    assert (made.mean, made.std) == pixel_statistics(images)
    assert made.condition_size == 2 * len(made.answers) + 2 + AUGMENTATION


# --- shape channels ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shaped() -> Generator:
    images = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), dtype=np.uint8)
    return untrained(make_config(images, load_schema("efigi"), ["a"], (32, 32)))


def of_shape(generator: Generator, *shapes: tuple[float, float, float]) -> torch.Tensor:
    """Return conditions of which only size, e1 and e2 are known."""
    values = np.full((len(shapes), len(generator.config.answers)), np.nan)
    values[:, [generator.config.answers.index(name) for name in SHAPE]] = shapes
    return generator.encode_conditions(values, np.zeros(len(shapes), int))


def moments(profile: torch.Tensor) -> tuple[float, float, float]:
    """Return area, e1 and e2 of a profile, by second moments."""
    line = (torch.arange(len(profile)) + 0.5) / len(profile) - 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    xx, yy, xy = ((profile * m).sum() / profile.sum() for m in (x * x, y * y, x * y))
    root = torch.hypot(xx - yy, 2 * xy)
    elongation = 1 - torch.sqrt((xx + yy - root) / (xx + yy + root))
    return float(torch.sqrt(xx * yy - xy**2)), float(elongation * (xx - yy) / root), float(elongation * 2 * xy / root)


@given(st.floats(0.08, 0.12), st.floats(0.1, 0.6), st.floats(0, 2 * math.pi))
def test_the_channels_have_the_requested_shape(shaped, size, elongation, direction):
    e1, e2 = elongation * math.cos(direction), elongation * math.sin(direction)
    (generated,) = shaped.shape_channels(of_shape(shaped, (size, e1, e2)))
    assert generated.shape == (4, 32, 32) and generated.min() >= 0 and generated.max() <= 1
    area, along, across = moments(generated[3])
    assert (along, across) == pytest.approx((e1, e2), abs=0.06)
    assert area == pytest.approx(size**2 / 2, rel=0.1)  # however thin it is


def test_a_quarter_turn_of_the_shape_rotates_its_channels(shaped):
    first, second = shaped.shape_channels(of_shape(shaped, (0.1, 0.3, 0.2), (0.1, -0.3, -0.2)))
    torch.testing.assert_close(second, first.rot90(1, (1, 2)), atol=1e-5, rtol=0)
    assert (first - second).abs().max() > 0.1


def test_without_a_shape_its_channels_are_zero(shaped, generator):
    conditions = of_shape(shaped, (0.1, 0.3, 0.2)).repeat(4, 1)
    drop = torch.zeros(4, len(shaped.config.answers), dtype=torch.bool)
    for k, name in enumerate(SHAPE):
        drop[k, shaped.config.answers.index(name)] = True
    channels = shaped.shape_channels(shaped.mask(conditions, drop))
    assert not channels[:3].any() and channels[3].any()
    assert not generator.shape_channels(torch.ones(1, 8)).any()  # its answers have no shapes


# --- starting from other weights -------------------------------------------------------------------------


def test_weights_of_known_answers_and_surveys_are_kept(generator, adapted):
    result = np.array([[-5.0, 1.0], [7.0, 0.2], [3.0, np.nan]])
    before = velocity(generator, generator.encode_conditions(result, np.array([1, 1, -1])))
    moved = np.column_stack([result[:, 1], np.full(3, np.nan), result[:, 0]])
    after = velocity(adapted, adapted.encode_conditions(moved, np.array([0, 0, -1])))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert (before[0] - before[1]).abs().max() > 1e-4


def test_a_new_answer_starts_without_influence(adapted):
    conditions = adapted.encode_conditions(np.array([[0.5, b, 0.0] for b in (np.nan, 0.0, 1.0)]), np.zeros(3, int))
    assert (conditions[1] != conditions[2]).any()
    v = velocity(adapted, conditions)
    torch.testing.assert_close(v, v[:1].expand(3, -1, -1, -1), atol=1e-6, rtol=0)


def test_a_new_survey_starts_as_the_mean_of_the_known_ones(generator, adapted):
    between = generator.encode_conditions(np.array([[3.0, 0.2]]), np.array([-1]))
    between[:, 4:6] = 0.5
    new = adapted.encode_conditions(np.array([[0.2, np.nan, 3.0]]), np.array([1]))
    torch.testing.assert_close(velocity(adapted, new), velocity(generator, between), atol=1e-5, rtol=1e-5)


def test_weights_of_the_augmentation_are_kept(generator, adapted):
    before, after = torch.zeros(2, 8), torch.zeros(2, adapted.config.condition_size)
    before[1, -AUGMENTATION:] = after[1, -AUGMENTATION:] = torch.tensor([1.0, -0.5])
    torch.testing.assert_close(velocity(adapted, after), velocity(generator, before), atol=1e-5, rtol=1e-5)


def test_networks_of_other_image_sizes_share_weights(generator):
    larger = untrained(config(32), seed=1)
    larger.start_from(generator)
    for name, value in generator.state_dict().items():
        assert torch.equal(larger.state_dict()[name], value), name


def test_other_widths_are_an_error(generator):
    other = untrained(dataclasses.replace(config(), widths=(32, 64)))
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(InputError, match=r"\[32, 64\].*\[32, 32\]"):
        other.start_from(generator)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_load_start_none_and_a_path(generator, tmp_path):
    assert load_start("none") is None
    generator.save(tmp_path / "g.safetensors")
    assert load_start(str(tmp_path / "g.safetensors")).config == generator.config
    with pytest.raises(InputError, match=r"nowhere\.safetensors"):
        load_start(str(tmp_path / "nowhere.safetensors"))


def test_the_shipped_weights_fit_the_default_recipe():
    from galscan.labels.settings import GeneratorSettings

    base = load_start("base")
    settings = GeneratorSettings()
    assert settings.start == "base" and base.config.widths == settings.widths and base.config.size == 64
    assert base.config.answers == (*load_schema("simulated").names, *MEASURED)
    fresh = Generator(dataclasses.replace(base.config, answers=(*load_schema("efigi").names, *MEASURED)))
    fresh.start_from(base)
    assert all(torch.isfinite(v).all() for v in fresh.state_dict().values())


# --- on disk ---------------------------------------------------------------------------------------------


def test_save_and_load(generator, tmp_path):
    generator.save(tmp_path / "g.safetensors")
    back = Generator.load(tmp_path / "g.safetensors")
    assert back.config == generator.config
    for name, value in generator.state_dict().items():
        assert torch.allclose(back.state_dict()[name], value, atol=1e-3), name


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c | {"widths": [2**20, 2**20]},  # would not fit into any memory
        lambda c: {k: v for k, v in c.items() if k != "std"},
        lambda c: c | {"surveys": ["a", "b", "c"]},
        lambda c: [c],
        lambda c: c | {"low": [0.0]},
        lambda c: c | {"std": 0.0},
    ],
)
def test_a_file_whose_configuration_does_not_fit_its_tensors_is_an_error(generator, tmp_path, change):
    """Weights of another version, or manipulated ones."""
    import json
    from dataclasses import asdict

    from safetensors.torch import save_file

    result = change(json.loads(json.dumps(asdict(generator.config))))
    save_file(dict(generator.state_dict()), tmp_path / "g.safetensors", metadata={"config": json.dumps(result)})
    with pytest.raises(InputError, match=r"g\.safetensors"):
        Generator.load(tmp_path / "g.safetensors")
