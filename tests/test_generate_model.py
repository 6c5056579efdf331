from __future__ import annotations

import numpy as np
import pytest
import torch

from galscan.errors import InputError
from galscan.generate.model import Generator, GeneratorConfig, load_generator, save_generator


def config(size: int = 16) -> GeneratorConfig:
    return GeneratorConfig(
        size=size, schema="efigi", answers=("t", "visible_dust"), low=(-6.0, 0.0), high=(11.0, 1.0),
        surveys=("a", "b"), widths=(32, 32), mean=(0.3, 0.25, 0.2), std=0.2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(config()).eval()


def test_velocity_has_the_shape_of_the_pixels(generator):
    with torch.inference_mode():
        v = generator(torch.randn(2, 3, 16, 16), torch.rand(2), torch.zeros(2, generator.config.condition_size))
    assert v.shape == (2, 3, 16, 16)
    assert torch.isfinite(v).all()


def test_images_survive_encoding(generator):
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(generator.decode_images(generator.encode_images(images)), images)


def test_an_answer_not_asked_is_an_answer_masked(generator):
    asked = generator.encode_conditions(np.array([[0.0, 0.5]]), np.array([1]))
    open_ = generator.encode_conditions(np.array([[0.0, np.nan]]), np.array([1]))
    assert torch.equal(generator.mask(asked, torch.tensor([[False, True]])), open_)


def test_all_masked_is_unconditional_whatever_the_answers_were(generator):
    conditions = generator.encode_conditions(np.array([[-5.0, 1.0], [9.0, 0.0]]), np.array([0, 0]))
    masked = generator.mask(conditions, torch.ones(2, 2, dtype=torch.bool))
    assert torch.equal(masked[0], masked[1])
    assert masked[0].tolist() == [0, 0, 0, 0, 1, 0]


def test_an_answer_changes_the_velocity(generator):
    x, t = torch.randn(1, 3, 16, 16).expand(2, -1, -1, -1), torch.full((2,), 0.5)
    conditions = generator.encode_conditions(np.array([[0.0, 0.0], [0.0, 1.0]]), np.array([0, 0]))
    with torch.inference_mode():
        v = generator(x, t, conditions)
    assert (v[0] - v[1]).abs().max() > 0


def test_save_and_load(generator, tmp_path):
    save_generator(generator, generator.state_dict(), tmp_path / "g.safetensors")
    back = load_generator(tmp_path / "g.safetensors")
    assert back.config == generator.config
    for name, value in generator.state_dict().items():
        assert torch.allclose(back.state_dict()[name], value, atol=1e-3), name


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "g.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"g\.safetensors is not a readable generator"):
        load_generator(tmp_path / "g.safetensors")
