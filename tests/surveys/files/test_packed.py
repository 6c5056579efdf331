"""Features of all packed formats: ids, a separate catalog, resuming; tested with Cutana."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import galscan
from galscan.core.errors import ConflictError, InputError, NotFoundError
from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.files.cutana import CutanaSurvey
from galscan.surveys.files.packed import find_files
from tests.packed_on_disk import pictures, write_cutana
from tests.pictures_on_disk import OBJID, write


def test_ids_are_kept_to_the_last_digit(tmp_path: Path) -> None:
    write_cutana(tmp_path, pictures(3))
    survey = CutanaSurvey(tmp_path, size=16)
    assert survey.ids.dtype == np.int64 and survey.ids.tolist() == [OBJID, OBJID + 1, OBJID + 2]


def test_an_id_in_two_files_is_refused(tmp_path: Path) -> None:
    write_cutana(tmp_path, pictures(30), ids=[*range(29), 3], batch=10)
    with pytest.raises(InputError, match="'3' occurs more than once"):
        CutanaSurvey(tmp_path)


def test_a_catalog_says_which_and_gives_the_labels(tmp_path: Path) -> None:
    images = pictures(30, size=16)
    own = write_cutana(tmp_path / "c", images, ids=range(30), batch=10)
    write(tmp_path / "t.csv", "id,ra,dec,efigi_t\n25,,,1\n99,1,2,2\n4,10,-20,3\n5,,,\n")
    survey = CutanaSurvey(tmp_path / "c", tmp_path / "t.csv", labels=("efigi",), size=16)
    assert survey.ids.tolist() == [4, 5, 25, 99]  # as the files have them, so that each chunk is unpacked once
    objects = survey.objects(0, 4)
    np.testing.assert_allclose(objects["ra"], [10, own["ra"][5], own["ra"][25], 1])
    np.testing.assert_allclose(objects["efigi/t"], [3, np.nan, 1, 2])
    outcomes = list(pickle.loads(pickle.dumps(survey)).cutouts(0, 4))
    for outcome, k in zip(outcomes, (4, 5, 25), strict=False):
        np.testing.assert_array_equal(outcome.image, images[k][::-1])
        assert outcome.pixel_scale == 0.25
    assert outcomes[3] == Failed("no image of 99", Flag.MISSING)
    assert len(survey.unmatched) == 27 and survey.describe()["images_without_row"] == 27


def test_a_catalog_of_others(tmp_path: Path) -> None:
    write_cutana(tmp_path / "c", pictures(3), ids=range(3))
    write(tmp_path / "t.csv", "id,efigi_t\nNGC1,1\n")
    with pytest.raises(
        InputError, match=r"no row of .*t\.csv has an image .*\(the id of a row is 'NGC1', that of an image '0'\)"
    ):
        CutanaSurvey(tmp_path / "c", tmp_path / "t.csv")
    write(tmp_path / "u.csv", "key,efigi_t\n1,1\n")
    with pytest.raises(InputError, match="has no id column"):
        CutanaSurvey(tmp_path / "c", tmp_path / "u.csv")
    assert len(CutanaSurvey(tmp_path / "c", tmp_path / "u.csv", columns={"id": "key"})) == 1
    with pytest.raises(NotFoundError, match="no catalog at"):
        CutanaSurvey(tmp_path / "c", tmp_path / "v.csv")
    with pytest.raises(NotFoundError, match="does not exist"):
        CutanaSurvey(tmp_path / "none")


def test_a_store_of_them_resumes_and_knows_a_change(tmp_path: Path) -> None:
    write_cutana(tmp_path / "c", pictures(700, size=16), batch=250)
    once = galscan.ingest("local", path=tmp_path / "c", size=16, out=tmp_path / "a.zarr", workers=2)
    again = galscan.ingest("local", path=tmp_path / "c", size=16, out=tmp_path / "a.zarr", workers=1)
    assert once.content_hash == again.content_hash
    np.testing.assert_array_equal(once.images(), pictures(700, size=16)[:, ::-1])
    next((tmp_path / "c").glob("*/images.zarr/images/c/3/0/0/0")).unlink()
    with pytest.raises(ConflictError, match="files_sha256 was"):
        galscan.ingest("local", path=tmp_path / "c", size=16, out=tmp_path / "a.zarr")


def test_files_of_another_kind_of_labels(tmp_path: Path) -> None:
    write_cutana(tmp_path, pictures(10), batch=5, efigi_t=1, efigi_visible_dust=0.5)
    file = max(tmp_path.glob("*/images_metadata.parquet"))
    pd.read_parquet(file).drop(columns="efigi_t").to_parquet(file)
    with pytest.raises(InputError, match="has other label columns than"):
        CutanaSurvey(tmp_path, labels=("efigi",))


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    for name in ("b/x.H5", "a.h5", ".git/y.h5", "._a.h5", "a.h5.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "")
    assert find_files(str(tmp_path), (".h5",)) == ["a.h5", "b/x.H5"]
    assert find_files(str(tmp_path / "a.h5"), (".h5",)) == ["a.h5"]


def test_all_of_them_can_be_read(tmp_path: Path) -> None:
    write_cutana(tmp_path, pictures(130), batch=65)
    survey = CutanaSurvey(tmp_path, size=16)
    assert sum(isinstance(o, Cutout) for o in survey.cutouts(0, 1000)) == 130
