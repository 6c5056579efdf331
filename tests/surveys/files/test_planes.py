"""Planes by band; files as strangers have them are in tests/strangers/test_fits.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from galscan.surveys.files.planes import FileInMemory, read_centre, read_planes
from tests.packed_on_disk import encoded
from tests.pictures_on_disk import frame, sky_frame, three_bands


def test_bands_of_names_or_as_given(tmp_path: Path) -> None:
    paths = [frame(tmp_path / f"a_{b}.fits", sky_frame(0)) for b in "gr"]
    assert list(read_planes(paths)[0]) == ["g", "r"] and list(read_planes(paths, ["x", ""])[0]) == ["x", "0"]
    with pytest.raises(ValueError, match=r"a_r\.fits .*band g"):
        read_planes(paths, ["g", "g"])


@pytest.mark.parametrize(
    "bands", [{"BANDS": "grz"}, {"BANDS": "HSC-G, HSC-R,HSC-Z"}, {f"BAND{k}": b for k, b in enumerate("grz")}]
)
def test_planes_of_a_cube(tmp_path: Path, bands: dict[str, str]) -> None:
    path = frame(tmp_path / "a.fits", np.zeros((3, 9, 9)), **bands)
    assert list(read_planes([path])[0]) == ["g", "r", "z"]


def test_the_centre(tmp_path: Path) -> None:
    three_bands(tmp_path, count=1)
    assert read_centre(tmp_path / "ob0_g.fits") == pytest.approx((150, 2), abs=1e-6)
    with pytest.raises(ValueError, match="WCS"):
        read_centre(FileInMemory(encoded(sky_frame(0), "fits"), "a.fits"))
