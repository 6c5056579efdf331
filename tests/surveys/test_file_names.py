"""Bands and companions in the names of files, and the order of bands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.surveys.file_names import band_of, companions, parse_bands, split_band, split_names, stem, wavelength


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("PGC1_g.fits", ("PGC1", "g")),
        ("D__132_rband.fits", ("D__132", "r")),
        ("a-i.fits.gz", ("a", "i")),
        ("frame-g-0001-2.fits", ("frame-0001-2", "g")),
        ("NGC12.fits", ("NGC12", "")),
        ("dog.fits", ("dog", "")),
        ("ID_HSC-R2.fits", ("ID", "r")),
        ("ID-image-g.fits", ("ID", "g")),
        ("ID_g_image.fits", ("ID", "g")),
        ("EUC_MER-NIR-Y_TILE1.fits", ("EUC_MER_TILE1", "y")),
        ("EUC_MER-VIS_TILE1.fits", ("EUC_MER_TILE1", "vis")),
        ("rings.v3.056.stk.g.unconv.fits", ("rings.v3.056.stk.unconv", "g")),
        ("f606w_ID7.fits", ("ID7", "f606w")),
        ("x_F200W_i2d.fits", ("x", "f200w")),
        ("x_f435w-f814w_det.fits", ("x_f435w-f814w_det", "")),
        ("DESI-39633.fits", ("DESI-39633", "")),
        ("SDSS-J1234_g.fits", ("SDSS-J1234", "g")),
        ("J000001.85-004937.9.fits", ("J000001.85-004937.9", "")),
        ("Leo_I.fits", ("Leo_I", "")),
    ],
)
def test_band_in_the_name(file: str, parts: tuple[str, str]) -> None:
    assert split_band(file) == parts


@given(st.text("AB1-_.", min_size=1, max_size=6), st.sampled_from(["g", "HSC-I", "f814w", "Ks"]))
def test_a_band_is_taken_off_and_nothing_else(name: str, band: str) -> None:
    plain = stem(f"a{name}a.fits")
    assert split_band(f"{plain}_{band}.fits") == (plain, band_of(band))


@pytest.mark.parametrize(
    ("files", "bands"),
    [
        (["g/a.fits", "r/a.fits", "g/b.fits"], "grg"),
        (["HSC-G/a.fits", "HSC-R/a.fits"], "gr"),
        (["o_G.fits", "o_R.fits", "o_I.fits"], "gri"),
        (["g_o.fits", "r_o.fits"], "gr"),
    ],
)
def test_bands_that_only_many_names_show(files: list[str], bands: str) -> None:
    assert "".join(band for _, band in split_names(files).values()) == bands


@pytest.mark.parametrize("files", [["a/1.fits", "g/2.fits", "r/3.fits"], ["M82_A.fits", "M82_B.fits"], ["Leo_I.fits"]])
def test_letters_that_are_no_bands(files: list[str]) -> None:
    assert [band for _, band in split_names(files).values()] == [""] * len(files)


@pytest.mark.parametrize(
    ("text", "band"),
    [("g DECam SDSS c0001 4720.0 1520.0", "g"), ("r.00000", "r"), ("image_g", "g"), ("CLEAR2L", ""), ("i.MP9702", "i"),
     ("SCI", ""), ("F435W; CLEAR", "f435w"), ("g r", "")],
)  # fmt: skip
def test_bands_in_keywords(text: str, band: str) -> None:
    assert band_of(text) == band


def test_companions_need_an_image_of_their_name() -> None:
    images = ["o0.rgb.png", "ID_g.fits", "ID-image-r.fits", "mask_9.png", "model.fits"]
    beside = ["o0.mask.png", "ID_g_wht.fits", "ID-invvar-r.fits"]
    assert companions(images + beside) == beside


def test_order_of_bands() -> None:
    bands = ["u", "g", "f606w", "vis", "z", "f115w", "f160w", "f200w", "f1000w"]
    assert sorted(bands[::-1], key=wavelength) == bands


def test_bands_of_the_option() -> None:
    assert parse_bands(None) == [] and parse_bands("irg") == ["g", "r", "i"] and parse_bands("z,g") == ["g", "z"]
    assert parse_bands("VIS") == ["VIS"] and parse_bands("f814w,f160w") == ["f814w", "f160w"]
    for text in ("gg", ","):
        with pytest.raises(InputError, match="--bands"):
            parse_bands(text)
