from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from galscan.core import thumbnails
from galscan.core.errors import InputError


def _images(n: int, size: int = 16) -> np.ndarray:
    return np.full((n, size, size, 3), 200, dtype=np.uint8)


def test_sheet_holds_every_image_in_rows(tmp_path):
    path = thumbnails.contact_sheet(_images(5), tmp_path / "sheet.png", columns=2, tile=32)
    sheet = np.asarray(Image.open(path))
    bright = (sheet == 200).all(axis=2)
    assert bright.sum() == 5 * 32 * 32
    assert list(tmp_path.iterdir()) == [path]  # no temporary file left


def test_captions_and_borders_do_not_cover_the_pixels(tmp_path):
    path = thumbnails.contact_sheet(
        _images(3), tmp_path / "s.png", captions=["one\ntwo", "a very long caption that cannot fit " * 9, "ünïcode α"],
        borders=[(255, 0, 0), None, (0, 255, 0)], title="Dust lanes", tile=48,
    )  # fmt: skip
    sheet = np.asarray(Image.open(path)).reshape(-1, 3)
    assert (sheet == 200).all(axis=1).sum() >= 3 * 48 * 48
    assert (sheet == (255, 0, 0)).all(axis=1).sum() > 4 * 48
    assert (sheet == (0, 255, 0)).all(axis=1).sum() > 4 * 48


def test_images_of_several_sizes_share_a_sheet(tmp_path):
    images = [_images(1, 16)[0], _images(1, 24)[0]]
    sheet = np.asarray(Image.open(thumbnails.contact_sheet(images, tmp_path / "s.png", tile=48))).reshape(-1, 3)
    assert (sheet == 200).all(axis=1).sum() == 2 * 48 * 48


def test_no_images_still_gives_a_sheet(tmp_path):
    assert Image.open(thumbnails.contact_sheet(_images(0), tmp_path / "none.png", title="empty")).width > 0


def test_identical_input_gives_identical_bytes(tmp_path):
    a = thumbnails.contact_sheet(_images(3), tmp_path / "a.png", captions=list("abc")).read_bytes()
    assert a == thumbnails.contact_sheet(_images(3), tmp_path / "b.png", captions=list("abc")).read_bytes()


@pytest.mark.parametrize(
    ("images", "options"),
    [
        (np.zeros((2, 8, 8), dtype=np.uint8), {}),
        (np.zeros((2, 8, 8, 3)), {}),
        (_images(2), {"captions": ["one"]}),
        (_images(2), {"borders": [None]}),
        (_images(2), {"columns": 0}),
    ],
)
def test_wrong_input_is_named(tmp_path, images, options):
    with pytest.raises(InputError, match="contact_sheet"):
        thumbnails.contact_sheet(images, tmp_path / "x.png", **options)
    assert not list(tmp_path.iterdir())


def test_data_uri_round_trip():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    head, data = thumbnails.data_uri(image).split(",")
    assert head == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == image).all()
    assert thumbnails.data_uri(thumbnails.png_bytes(image)) == f"{head},{data}"


def test_sprite_has_each_image_in_its_place():
    colours = [(200, 20, 20), (20, 200, 20), (20, 20, 200), (90, 90, 90), (220, 220, 20)]
    images = (np.full((20 + k, 20 + k, 3), colour, np.uint8) for k, colour in enumerate(colours))
    jpeg, columns = thumbnails.sprite(images, len(colours), 32)
    sheet = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert columns == 3 and sheet.shape == (64, 96, 3)
    for k, colour in enumerate(colours):
        tile = sheet[k // 3 * 32 :, k % 3 * 32 :][:32, :32].astype(int)
        assert np.abs(tile - colour).max() < 12  # the neighbours are not mixed in
    for count, tile in ((0, 32), (1, 40)):
        with pytest.raises(InputError, match="multiple of 16"):
            thumbnails.sprite([], count, tile)
