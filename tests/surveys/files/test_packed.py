"""Features of all packed formats: ids, a separate catalog, resuming; tested with Cutana."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import galscan
from galscan.core.errors import ConflictError, InputError, NotFoundError
from galscan.surveys.base import Failed, Flag
from galscan.surveys.files.cutana import CutanaSurvey
from tests.packed_on_disk import pictures, write_cutana
from tests.pictures_on_disk import write


def test_an_id_in_two_files_is_refused(tmp_path: Path) -> None:
    write_cutana(tmp_path, pictures(30), ids=[*range(29), 3], batch=10)
    with pytest.raises(InputError, match="'3'"):
        CutanaSurvey(tmp_path)


def test_a_catalog_selects_objects_and_gives_the_labels(tmp_path: Path) -> None:
    images = pictures(30, size=16)
    own = write_cutana(tmp_path / "c", images, ids=range(30), batch=10)
    write(tmp_path / "t.csv", "id,ra,dec,efigi_t\n25,,,1\n99,1,2,2\n4,10,-20,3\n5,,,\n")
    survey = CutanaSurvey(tmp_path / "c", tmp_path / "t.csv", labels=("efigi",), size=16)
    assert survey.ids.tolist() == [4, 5, 25, 99]  # as the files have them, so that each chunk is decompressed once
    objects = survey.objects(0, 4)
    np.testing.assert_allclose(objects["ra"], [10, own["ra"][5], own["ra"][25], 1])
    np.testing.assert_allclose(objects["efigi/t"], [3, np.nan, 1, 2])
    outcomes = list(pickle.loads(pickle.dumps(survey)).cutouts(0, 4))
    for outcome, k in zip(outcomes, (4, 5, 25), strict=False):
        np.testing.assert_array_equal(outcome.image, images[k][::-1])
        assert outcome.pixel_scale == 0.25
    assert outcomes[3] == Failed("no image of 99", Flag.MISSING)
    assert len(survey.unmatched) == 27 and survey.describe()["images_without_row"] == 27


@pytest.mark.parametrize(
    ("path", "catalog", "error", "value"),
    [
        ("c", "id,efigi_t\nNGC1,1\n", InputError, r"t\.csv .*'NGC1'.*'0'"),
        ("c", "key,efigi_t\n1,1\n", InputError, "--column id="),
        ("c", None, NotFoundError, r"t\.csv"),
        ("none", None, NotFoundError, "none"),
    ],
)
def test_wrong_catalogs_and_paths(
    tmp_path: Path, path: str, catalog: str | None, error: type[Exception], value: str
) -> None:
    write_cutana(tmp_path / "c", pictures(3), ids=range(3))
    if catalog:
        write(tmp_path / "t.csv", catalog)
    with pytest.raises(error, match=value):
        CutanaSurvey(tmp_path / path, tmp_path / "t.csv")
    if catalog and catalog.startswith("key"):
        assert len(CutanaSurvey(tmp_path / "c", tmp_path / "t.csv", columns={"id": "key"})) == 1


def test_ingest_resumes_and_refuses_changed_files(tmp_path: Path) -> None:
    write_cutana(tmp_path / "c", pictures(300, size=16), batch=125)
    store = galscan.ingest("local", path=tmp_path / "c", size=16, out=tmp_path / "a.zarr", workers=1)
    again = galscan.ingest("local", path=tmp_path / "c", size=16, out=tmp_path / "a.zarr", workers=1)
    assert store.content_hash == again.content_hash
    np.testing.assert_array_equal(store.images(), pictures(300, size=16)[:, ::-1])
    next((tmp_path / "c").glob("*/images.zarr/images/c/3/0/0/0")).unlink()
    with pytest.raises(ConflictError, match="files_sha256"):
        galscan.ingest("local", path=tmp_path / "c", size=16, out=tmp_path / "a.zarr")


def test_files_with_other_labels_are_refused(tmp_path: Path) -> None:
    write_cutana(tmp_path, pictures(10), batch=5, efigi_t=1, efigi_visible_dust=0.5)
    file = max(tmp_path.glob("*/images_metadata.parquet"))
    pd.read_parquet(file).drop(columns="efigi_t").to_parquet(file)
    with pytest.raises(InputError, match=file.parent.name):
        CutanaSurvey(tmp_path, labels=("efigi",))
