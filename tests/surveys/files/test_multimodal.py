"""HDF5 of the Multimodal Universe and of Galaxy10 DECaLS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galscan.core.errors import InputError
from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.files.multimodal import MultimodalSurvey
from tests.packed_on_disk import legacysurvey, pictures, planes, sky, write_multimodal
from tests.pictures_on_disk import OBJID

h5py = pytest.importorskip("h5py", reason="needs the extra hdf5")


def galaxy10(path: Path, count: int = 20) -> Path:
    ra, dec = sky(count)
    return write_multimodal(path, {
        "images": pictures(count, 16), "ans": np.arange(count) % 10, "ra": ra, "dec": dec, "redshift": np.ones(count),
        "pxscale": np.full(count, 0.262),
    })  # fmt: skip


def test_legacysurvey(tmp_path: Path) -> None:
    """object_id takes precedence over the columns of the sweeps; image_band gives the colours; north is up."""
    for k in range(3):
        write_multimodal(tmp_path / "dr10" / f"healpix={k}" / "001-of-001.hdf5", legacysurvey(10, 10 * k, k))
    survey = MultimodalSurvey(tmp_path, size=20)
    assert survey.ids.tolist() == [f"0012m005-{k}" for k in range(30)]
    np.testing.assert_array_equal(survey.objects(10, 20)["ra"], sky(10, 1)[0])
    assert (survey.rendering.red, survey.rendering.green, survey.rendering.blue) == ("i", "r", "g")
    for outcome in survey.cutouts(0, 30):
        assert isinstance(outcome, Cutout) and outcome.pixel_scale == pytest.approx(0.262)
        assert outcome.image[2:4].mean() > 2 * outcome.image[-4:-2].mean()


def test_galaxy10_as_it_is_downloaded(tmp_path: Path) -> None:
    survey = MultimodalSurvey(galaxy10(tmp_path / "Galaxy10_DECals.h5"), labels=("gz10",), size=16)
    assert survey.ids.tolist() == list(range(20)) and survey.pixel_scale[0] == 0.262
    assert survey.labels.to_numpy().sum() == 20 and survey.objects(13, 14)["gz10/cigar_smooth"].item() == 0
    assert survey.objects(14, 15)["gz10/cigar_smooth"].item() == 1
    for outcome, picture in zip(survey.cutouts(0, 20), pictures(20, 16), strict=True):
        np.testing.assert_array_equal(outcome.image, picture)  # as published: the top is the first row


def test_gz10_in_many_files(tmp_path: Path) -> None:
    for k in range(2):
        ra, dec = sky(5, k)
        columns: dict[str, Any] = {"images": pictures(5), "ans": [0, 1, 2, 3, 4], "ra": ra, "dec": dec}
        write_multimodal(
            tmp_path / f"healpix={k}" / "001-of-001.h5", columns | {"object_id": OBJID + 5 * k + np.arange(5)}
        )
    survey = MultimodalSurvey(tmp_path, labels=("gz10",))
    assert survey.ids.dtype == np.int64 and survey.ids.tolist() == list(range(OBJID, OBJID + 10))
    with h5py.File(tmp_path / "healpix=1" / "001-of-001.h5", "a") as file:
        del file["object_id"]
    with pytest.raises(InputError, match=r"healpix=1.*ans, dec, ra"):
        MultimodalSurvey(tmp_path)


def test_bands_without_names_and_integers(tmp_path: Path) -> None:
    """As in ssl_legacysurvey: images in g, r, z without band names; and counts of a CCD."""
    path = write_multimodal(tmp_path / "a.h5", {"images": planes(8), "inds": np.arange(8)})
    survey = MultimodalSurvey(path, columns={"id": "inds"}, size=20)
    assert (survey.rendering.red, survey.rendering.green, survey.rendering.blue) == ("2", "1", "0")
    counts = (planes(8) * 10 + 1000).clip(0, 65535).astype(np.uint16)
    survey = MultimodalSurvey(write_multimodal(tmp_path / "b.h5", {"image_array": counts}), size=20)
    assert survey.rendering.subtract == {"2": True, "1": True, "0": True}
    assert all(isinstance(o, Cutout) and o.image[-5:].mean() < 25 for o in survey.cutouts(0, 8))


def test_damage(tmp_path: Path) -> None:
    path = write_multimodal(
        tmp_path / "healpix=1" / "001-of-001.hdf5", legacysurvey(40) | {"image_model": np.zeros(40)}
    )
    with h5py.File(path) as file:
        info = file["image_array"].id.get_chunk_info(0)
        rows = [k for k in range(40) if k // file["image_array"].chunks[0] == 0]
    content = bytearray(path.read_bytes())
    content[info.byte_offset + 20 : info.byte_offset + 60] = bytes(40)
    path.write_bytes(content)
    outcomes = list(MultimodalSurvey(tmp_path, size=16).cutouts(0, 40))
    assert 0 < len(rows) < 40
    for k, outcome in enumerate(outcomes):
        if k in rows:
            assert isinstance(outcome, Failed) and outcome.flag == Flag.UNREADABLE and "read" in outcome.reason
        else:
            assert isinstance(outcome, Cutout)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"001-of-001\.hdf5"):
        MultimodalSurvey(tmp_path)


def test_files_of_something_else(tmp_path: Path) -> None:
    path = write_multimodal(tmp_path / "spectra.h5", {"spectrum_flux": np.ones((5, 100)), "object_id": range(5)})
    with pytest.raises(InputError, match="spectra"):
        MultimodalSurvey(path)
    path = write_multimodal(tmp_path / "cube.h5", {"image_array": np.ones((2, 90, 20, 20), np.float32)})
    assert {o.flag for o in MultimodalSurvey(path).cutouts(0, 2)} == {Flag.WRONG_SHAPE}
    path = write_multimodal(tmp_path / "wide.h5", {"images": pictures(2)[:, :9]})
    assert {o.reason for o in MultimodalSurvey(path).cutouts(0, 2)} == {"9 x 20 pixels, not square"}


def test_h5py_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = galaxy10(tmp_path / "g.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="hdf5"):
        MultimodalSurvey(path)
