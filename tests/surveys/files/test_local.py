"""A folder of images and a catalog, and all their errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.files.local import LocalSurvey
from tests.pictures_on_disk import frame, picture, sky_frame, three_bands, write


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="none"):
        LocalSurvey(tmp_path / "none")
    with pytest.raises(InputError, match="--path"):
        LocalSurvey(tmp_path)
    file = picture(tmp_path / "1.png")
    write(tmp_path / "t.xlsx", "")
    for path, catalog, options, error, value in (
        (file, None, {}, InputError, "1.png"),
        (tmp_path, tmp_path / "t.csv", {}, NotFoundError, "t.csv"),
        (tmp_path, tmp_path / "t.xlsx", {}, InputError, "t.xlsx"),
        (tmp_path, None, {"labels": ("efigi",)}, InputError, "--catalog"),
        (tmp_path, None, {"columns": {"idd": "key"}}, InputError, "'idd'.*'id'"),
        (tmp_path, None, {"size": 4}, InputError, "4 pixels"),
    ):
        with pytest.raises(error, match=value):
            LocalSurvey(path, catalog, **options)
    write(tmp_path / "catalog.csv", "key\n1\n")
    with pytest.raises(InputError, match="'kei'"):
        LocalSurvey(tmp_path, columns={"id": "kei"})
    assert LocalSurvey(tmp_path, columns={"id": "key"}).ids.tolist() == [1]


def test_rows_without_image_and_images_without_row(tmp_path: Path) -> None:
    for i in (1, 2, 9):
        picture(tmp_path / "deep" / "er" / f"{i}.jpg")
    write(tmp_path / "catalog.csv", "id\n1\nlost file\n2\n")
    survey = LocalSurvey(tmp_path)
    outcomes = list(survey.cutouts(0, 3))
    assert [type(o) for o in outcomes] == [Cutout, Failed, Cutout]
    assert outcomes[1] == Failed("no file named lost file", Flag.MISSING)
    assert survey.unmatched == ["deep/er/9.jpg"] and survey.describe()["images_without_row"] == 1


def test_file_column_relative_absolute_and_wrong(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "x.png")
    write(tmp_path / "a" / "note.gif", "GIF89a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    rows = ["1,a/x.png", f"2,{tmp_path}/a/x.png", "3,./a/../a/x.png", "4,a/note.gif", "5,a/none.png", "6,"]
    write(tmp_path / "catalog.csv", "\n".join(["id,file", *rows]))
    outcomes = list(LocalSurvey(tmp_path).cutouts(0, 6))
    assert all(isinstance(o, Cutout) for o in outcomes[:3])
    assert [o.flag for o in outcomes[3:]] == [Flag.UNREADABLE, Flag.MISSING, Flag.MISSING]
    assert "a/note.gif" in outcomes[3].reason and "a/none.png" in outcomes[4].reason


@pytest.mark.parametrize("files", [("a.png", "x/a.jpg"), ("a_g.png", "x/a_g.jpg"), ("a_g.fits", "x/a_g.fits")])
@pytest.mark.parametrize("with_catalog", [False, True])
def test_an_id_of_two_files_is_refused(tmp_path: Path, files: tuple[str, str], with_catalog: bool) -> None:
    (tmp_path / "x").mkdir()
    for file in files:
        frame(tmp_path / file, sky_frame(0)) if file.endswith("fits") else picture(tmp_path / file)
    if with_catalog:
        write(tmp_path / "catalog.csv", f"id\n{'a_g' if files[0] == 'a_g.png' else 'a'}\n")
    with pytest.raises(InputError, match=f"{files[0]} and {files[1]}"):
        LocalSurvey(tmp_path)


def test_an_object_without_a_band_that_the_others_have(tmp_path: Path) -> None:
    three_bands(tmp_path, count=3)
    (tmp_path / "ob1_r.fits").unlink()
    outcomes = list(LocalSurvey(tmp_path).cutouts(0, 3))
    assert isinstance(outcomes[0], Cutout) and outcomes[1] == Failed("no r band", Flag.MISSING)


def test_a_catalog_joins_bands_by_id_and_by_file(tmp_path: Path) -> None:
    three_bands(tmp_path)
    write(tmp_path / "catalog.csv", "id\nob0\nob1\n")
    by_id = [o.image for o in LocalSurvey(tmp_path).cutouts(0, 2)]
    write(tmp_path / "catalog.csv", "id,file\n1,ob0_r.fits\n2,ob1_g.fits\n")
    by_file = [o.image for o in LocalSurvey(tmp_path).cutouts(0, 2)]
    np.testing.assert_array_equal(by_id, by_file)


def test_bands_of_the_same_name_in_another_folder_are_not_mixed(tmp_path: Path) -> None:
    for n, folder in enumerate(("x", "y")):
        (tmp_path / folder).mkdir()
        for band in "gri":
            frame(tmp_path / folder / f"a_{band}.fits", sky_frame(n) * (n + 1))
    write(tmp_path / "catalog.csv", "id,file\n1,x/a_r.fits\n2,y/a_r.fits\n")
    survey = LocalSurvey(tmp_path)
    assert [sorted(source) for source in survey.sources] == [[f"{f}/a_{b}.fits" for b in "gir"] for f in "xy"]


def test_positions_of_the_wcs_are_icrs(tmp_path: Path) -> None:
    header = {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN", "CRVAL1": 0.0, "CRVAL2": 90.0, "CRPIX1": 24.5, "CRPIX2": 24.5,
              "CDELT1": -1e-4, "CDELT2": 1e-4}  # fmt: skip
    frame(tmp_path / "a.fits", sky_frame(0), **header)
    objects = LocalSurvey(tmp_path).objects(0, 1)
    assert objects[["ra", "dec"]].to_numpy()[0] == pytest.approx([192.8595, 27.1283], abs=1e-3)  # the galactic pole


def test_real_frames(real_data: Path) -> None:
    decam = LocalSurvey(real_data / "fits-decam", size=64)
    outcomes = dict(zip(decam.ids.tolist(), decam.cutouts(0, len(decam)), strict=True))
    assert outcomes.pop("DECam_cuts__731") == Failed("no r band", Flag.MISSING)
    assert outcomes["DECam_cuts__190"].flags == Flag.EDGE
    assert all(np.median(o.image) < 40 for o in outcomes.values())
    sdss = LocalSurvey(real_data / "fits-sdss-gri", size=64)
    # NGC 7814 lies from south-east to north-west: with north up, from the lower left to the upper right.
    n = sdss.ids.tolist().index("PGC0000218")
    image = next(sdss.cutouts(n, n + 1)).image.astype(float).sum(axis=2)
    y, x = np.mgrid[:64, :64] - 31.5
    assert len(sdss) == 10 and (image[8:56, 8:56] * (x * -y)[8:56, 8:56]).sum() > 0
