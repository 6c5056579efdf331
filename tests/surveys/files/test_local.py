"""A folder of images and a catalog, and all their errors."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.files.local import LocalSurvey
from tests.pictures_on_disk import only, picture, three_bands, write


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder of images at"):
        LocalSurvey(tmp_path / "none")
    with pytest.raises(InputError, match="no JPEG, PNG or FITS file in"):
        LocalSurvey(tmp_path)
    file = picture(tmp_path / "1.png")
    with pytest.raises(InputError, match="is a file; give the folder"):
        LocalSurvey(file)
    with pytest.raises(NotFoundError, match=r"no catalog at .*t.csv"):
        LocalSurvey(tmp_path, tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"unknown suffix; use \.csv"):
        LocalSurvey(tmp_path, write(tmp_path / "t.xlsx", ""))
    with pytest.raises(InputError, match="labels and columns need a catalog"):
        LocalSurvey(tmp_path, labels=("efigi",))
    write(tmp_path / "catalog.csv", "key\n1\n")
    with pytest.raises(InputError, match="no column 'kei' for id; did you mean 'key'"):
        LocalSurvey(tmp_path, columns={"id": "kei"})
    with pytest.raises(InputError, match="unknown role 'idd'; did you mean 'id'"):
        LocalSurvey(tmp_path, columns={"idd": "key"})
    with pytest.raises(InputError, match="no 'efigi' label column"):
        LocalSurvey(tmp_path, columns={"id": "key"}, labels=("efigi",))
    with pytest.raises(InputError, match="size is 4 pixels"):
        LocalSurvey(tmp_path, size=4)
    assert LocalSurvey(tmp_path, columns={"id": "key"}).ids.tolist() == [1]


def test_rows_without_image_and_images_without_row(tmp_path: Path) -> None:
    for i in (1, 2, 9):
        picture(tmp_path / "deep" / "er" / f"{i}.jpg")
    write(tmp_path / "catalog.csv", "id\n1\n5\n2\n")
    survey = LocalSurvey(tmp_path)
    outcomes = list(survey.cutouts(0, 3))
    assert [type(o) for o in outcomes] == [Cutout, Failed, Cutout]
    assert outcomes[1] == Failed("no file named 5", Flag.MISSING)
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
    assert "a/note.gif is not a JPEG" in outcomes[3].reason and "a/none.png" in outcomes[4].reason


def test_the_files_are_the_catalog(tmp_path: Path) -> None:
    for name in ("b", "a"):
        picture(tmp_path / f"{name}.png")
    assert LocalSurvey(tmp_path).ids.tolist() == ["a", "b"]
    picture(tmp_path / "more" / "a.jpg")
    with pytest.raises(InputError, match=r"two files would have the same id: a.png and more/a.jpg"):
        LocalSurvey(tmp_path)


def test_an_id_that_fits_two_files(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "x" / "1.jpg")
    write(tmp_path / "catalog.csv", "id\n1\n")
    with pytest.raises(InputError, match="id '1' matches two files"):
        LocalSurvey(tmp_path)


def test_labels_only_those_asked_for(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png")
    write(tmp_path / "catalog.csv", "id,efigi_t,efigi_visible_dust\n1,-2,0.75\n2,,\n")
    assert LocalSurvey(tmp_path).schemas() == {}
    survey = LocalSurvey(tmp_path, labels=("efigi",))
    assert {"t", "visible_dust"} == set(survey.schemas()["efigi"])
    objects = survey.objects(0, 2)
    assert objects["efigi/visible_dust"].dtype == np.float32 and objects["efigi/visible_dust"][0] == 0.75
    assert np.isnan(objects["efigi/t"][1])


def test_a_changed_folder_is_another_survey(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    before = LocalSurvey(tmp_path).describe()
    assert LocalSurvey(tmp_path).describe() == before
    picture(tmp_path / "2.png")
    assert LocalSurvey(tmp_path).describe() != before


def test_survives_pickling(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    survey = pickle.loads(pickle.dumps(LocalSurvey(tmp_path)))
    assert isinstance(only(survey), Cutout)


def test_a_file_that_vanishes_meanwhile(tmp_path: Path) -> None:
    path = picture(tmp_path / "1.png")
    survey = LocalSurvey(tmp_path)
    path.unlink()
    assert only(survey).flag == Flag.UNREADABLE


def test_an_object_without_a_band_its_siblings_have(tmp_path: Path) -> None:
    three_bands(tmp_path, count=3)
    (tmp_path / "ob1_r.fits").unlink()
    assert [type(o) for o in LocalSurvey(tmp_path).cutouts(0, 3)] == [Cutout, Failed, Cutout]
    assert list(LocalSurvey(tmp_path).cutouts(1, 2)) == [Failed("no r band", Flag.MISSING)]


def test_a_catalog_joins_bands_by_id_and_by_file(tmp_path: Path) -> None:
    three_bands(tmp_path)
    write(tmp_path / "catalog.csv", "id\nob0\nob1\n")
    by_id = [o.image for o in LocalSurvey(tmp_path).cutouts(0, 2)]
    write(tmp_path / "catalog.csv", "id,file\n1,ob0_r.fits\n2,ob1_g.fits\n")
    by_file = [o.image for o in LocalSurvey(tmp_path).cutouts(0, 2)]
    np.testing.assert_array_equal(by_id, by_file)


def test_real_frames(real_data: Path) -> None:
    decam = LocalSurvey(real_data / "fits-decam", size=64)
    outcomes = dict(zip(decam.ids.tolist(), decam.cutouts(0, len(decam)), strict=True))
    assert outcomes.pop("DECam_cuts__731") == Failed("no r band", Flag.MISSING)
    assert outcomes["DECam_cuts__190"].flags == Flag.EDGE
    assert all(np.median(o.image) < 40 for o in outcomes.values())
    sdss = LocalSurvey(real_data / "fits-sdss-gri", size=64)
    assert all(isinstance(o, Cutout) for o in sdss.cutouts(0, len(sdss))) and len(sdss) == 10
    # NGC 7814 lies from south-east to north-west: with north up, from the lower left to the upper right.
    image = dict(zip(sdss.ids.tolist(), sdss.cutouts(0, 10), strict=True))["PGC0000218"].image.astype(float).sum(axis=2)
    y, x = np.mgrid[:64, :64] - 31.5
    assert (image[8:56, 8:56] * (x * -y)[8:56, 8:56]).sum() > 0
