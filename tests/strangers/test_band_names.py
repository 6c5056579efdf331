"""Bands in file names and folders, as cameras and people write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from galscan.cli.main import run
from galscan.core.errors import InputError
from galscan.store.layout import open_store
from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.files.formats import open_local
from galscan.surveys.files.local import LocalSurvey
from galscan.surveys.mosaics.frames import FramesSurvey
from tests.mosaics_on_disk import mosaic, pixels, results, table, tan
from tests.packed_on_disk import legacysurvey, write_multimodal
from tests.pictures_on_disk import frame, only, picture, sky_frame, write

# Templates of names, and the bands from blue to red.
NAMES = {
    "{id}_{band}.fits": "gri",
    "{id}_{band}.fits.gz": ("HSC-G", "HSC-R2", "HSC-I"),
    "{id}-image-{band}.fits": "grz",
    "{id}_{band}_sci.fits": "gri",
    "{band}/{id}.fits": "gri",
    "HSC/{band}/{id}.fits": ("HSC-G", "HSC-R", "HSC-Z"),
    "{id}_{band}_drz.fits": ("F435W", "F606W", "F814W"),
    "{id}-{band}.fits": ("VIS", "NIR-Y", "NISP_H"),
    "{id}_{band}_i2d.fits": ("f090w", "f200w", "f444w"),
    "{id}_G_{band}.fits": ("DECam_g", "DECam_r", "DECam_z"),
    "{band}_{id}.fits": ("G", "R", "I"),
    "{band}-{id}.fits": ("J", "H", "Ks"),
    "{id}.{band}.fits": ("ps1.g", "megacam.r", "sdss.i"),
    "{id}-{band}-img-m.fits": ("w1", "w2", "w3"),
}


@pytest.mark.parametrize("template", NAMES)
def test_three_objects_and_no_nine_grey_ones(tmp_path: Path, template: str) -> None:
    ids = ["1237648720", "NGC 12", "J000001.85-004937.9"]
    for n, name in enumerate(ids):
        for k, band in enumerate(NAMES[template]):
            path = tmp_path / template.format(id=name, band=band)
            path.parent.mkdir(parents=True, exist_ok=True)
            data = sky_frame(10 * n + k)
            data[10:16, 10:16] += 600 if k == 2 else 0
            frame(path, data)
    survey = LocalSurvey(tmp_path, size=48)
    assert len(survey) == 3
    if "_G_" not in template and "img" not in template:  # their names hold another word
        assert sorted(map(str, survey.ids)) == sorted(ids)
    for outcome in survey.cutouts(0, 3):
        spot = outcome.image[48 - 15 : 48 - 11, 11:15].reshape(-1, 3).mean(axis=0)
        assert spot[0] > 1.5 * spot[2]  # the last band is red


def test_an_object_that_lacks_a_folder_of_a_band(tmp_path: Path) -> None:
    for band in "gri":
        (tmp_path / band).mkdir()
        for name in ("a", "b"):
            if (name, band) != ("b", "i"):
                frame(tmp_path / band / f"{name}.fits", sky_frame(0))
    whole, lacking = LocalSurvey(tmp_path).cutouts(0, 2)
    assert isinstance(whole, Cutout) and lacking == Failed("no i band", Flag.MISSING)


def test_folders_of_bands_in_folders_of_fields(tmp_path: Path) -> None:
    for field in "xy":
        for band in "gri":
            (tmp_path / field / band).mkdir(parents=True)
            frame(tmp_path / field / band / "1.fits", sky_frame(0))
    with pytest.raises(InputError, match="matches two files"):
        LocalSurvey(tmp_path)
    write(tmp_path / "catalog.csv", "id,file\n1,x/r/1.fits\n2,y/r/1.fits\n")
    assert [sorted(s) for s in LocalSurvey(tmp_path).sources] == [[f"{f}/{b}/1.fits" for b in "gir"] for f in "xy"]


def test_weights_beside_bands_are_no_objects(tmp_path: Path) -> None:
    for band in "gri":
        for kind in ("", "_wht", "_mask"):
            frame(tmp_path / f"o_{band}{kind}.fits", sky_frame(0))
    survey = LocalSurvey(tmp_path)
    assert survey.ids.tolist() == ["o"] and len(survey.sources[0]) == 3


def test_an_id_that_ends_like_a_band(tmp_path: Path) -> None:
    frame(tmp_path / "NGC1_g.fits", sky_frame(0))
    write(tmp_path / "catalog.csv", "id\nNGC1_g\n")
    assert isinstance(only(LocalSurvey(tmp_path)), Cutout)


@pytest.mark.parametrize("names", [("M82_A", "M82_B"), ("Leo_I", "Leo_T"), ("a/1", "g/2"), ("DESI-1", "DESI-2")])
def test_names_that_only_look_like_bands(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        frame(tmp_path / f"{name}.fits", sky_frame(0))
    assert len(LocalSurvey(tmp_path)) == 2


def test_two_files_of_one_band_are_refused(tmp_path: Path) -> None:
    for name in ("o_HSC-G", "o_HSC-R", "o_g"):
        frame(tmp_path / f"{name}.fits", sky_frame(0))
    with pytest.raises(InputError, match="matches two files"):
        LocalSurvey(tmp_path)


def test_bands_can_be_chosen(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for band in ("u", "g", "r", "i", "NB816"):
        frame(images / f"o_{band}.fits", sky_frame(ord(band[0])))
    assert LocalSurvey(images, bands="ugr").rendering.bands == ("u", "g", "r")
    assert LocalSurvey(images, bands="g,r,NB816").rendering.bands == ("g", "r", "nb816")
    with pytest.raises(InputError, match="'z'"):
        LocalSurvey(images, bands="grz")
    out = tmp_path / "a.zarr"
    arguments = ["ingest", "--survey", "local", "--path", images, "--bands", "HSC-G,r,i", "--out", out, "--workers", 1]
    assert run([str(a) for a in arguments]) == 0
    assert open_store(out).attrs["provenance"]["rendering"]["blue"] == "g"
    pictures = tmp_path / "pictures"
    picture(pictures / "1.png")
    with pytest.raises(InputError, match="--bands gri"):
        LocalSurvey(pictures, bands="gri")


def test_bands_of_arrays_can_be_chosen(tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="needs the extra hdf5")
    write_multimodal(tmp_path / "1.hdf5", legacysurvey(8))
    survey = open_local(tmp_path, bands="grz")
    assert survey.rendering.bands == ("g", "r", "z")
    with pytest.raises(InputError, match="'y'"):
        open_local(tmp_path, bands="gry")


def test_frames_split_names_alike(tmp_path: Path) -> None:
    shape = (90, 100)
    for k, band in enumerate(("HSC-G", "HSC-R", "HSC-I")):
        mosaic(tmp_path / f"calexp-{band}-9813-4.fits", pixels(shape, 1) * (k + 1), tan(10.0, 0.0, shape))
    table(tmp_path / "catalog.csv", {"a": (10.0, 0.0)})
    survey = FramesSurvey(tmp_path, size=32)
    assert survey.bands == ["g", "r", "i"]
    assert np.ptp(results(survey)["a"].image) > 0
