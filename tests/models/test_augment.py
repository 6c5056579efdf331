from __future__ import annotations

import torch

from galscan.models.augment import noise_and_gain, quarter_turns, rotate_flip_scale


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def galaxy(count: int, *, size: int = 32) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return torch.exp(-16 * (x**2 + y**2)).repeat(count, 3, 1, 1)


def test_quarter_turns_move_pixels_and_change_none():
    pixels = torch.rand(2, 3, 8, 8)
    turned = quarter_turns(pixels, seeded())
    assert torch.equal(turned.flatten(2).sort().values, pixels.flatten(2).sort().values)


def test_rotation_keeps_a_round_galaxy_round_and_bright():
    rotated = rotate_flip_scale(galaxy(4), seeded(), scale=0.0, shift=0.0)[0]
    assert (rotated - galaxy(4)).abs().max() < 0.04


def test_rotation_really_rotates():
    bar = torch.zeros(8, 3, 32, 32)
    bar[:, :, 15:17, 4:28] = 1
    rotated = rotate_flip_scale(bar, seeded(), scale=0.0, shift=0.0)[0]
    along = (rotated[:, 0, 15:17].sum((1, 2)), rotated[:, 0].sum((1, 2)))
    assert (along[0] / along[1]).std() > 0.1  # at many angles, not all along the row


def test_the_enlargement_is_told():
    pixels = galaxy(32)
    moved, enlargement = rotate_flip_scale(pixels, seeded(), scale=0.2, shift=0.0)
    assert enlargement.shape == (32,) and (enlargement.abs() <= 0.2).all()
    assert enlargement.min() < -0.1 and enlargement.max() > 0.1
    grown = moved.sum((1, 2, 3)) / pixels.sum((1, 2, 3))  # the area, at the same surface brightness
    torch.testing.assert_close(grown, (1 + enlargement) ** 2, atol=0.02, rtol=0)


def test_nothing_is_enlarged_without_scale():
    assert not rotate_flip_scale(galaxy(4), seeded(), scale=0.0, shift=0.03)[1].any()


def test_no_corner_goes_black():
    flat = torch.full((8, 3, 16, 16), 0.5)
    assert torch.allclose(rotate_flip_scale(flat, seeded())[0], flat, atol=1e-5)


def test_same_seed_same_result():
    pixels = torch.rand(4, 3, 16, 16)
    changes = (lambda *given: rotate_flip_scale(*given)[0], quarter_turns, noise_and_gain)
    for change in changes:
        assert torch.equal(change(pixels, seeded()), change(pixels, seeded()))
