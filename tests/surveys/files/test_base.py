"""Table and provenance of images on disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from galscan.surveys.base import Cutout, Flag
from galscan.surveys.files.local import LocalSurvey
from tests.pictures_on_disk import only, picture, write


def test_labels_are_only_those_requested(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png")
    write(tmp_path / "catalog.csv", "id,efigi_t,efigi_visible_dust\n1,-2,0.75\n2,,\n")
    assert LocalSurvey(tmp_path).schemas() == {}
    survey = LocalSurvey(tmp_path, labels=("efigi",))
    assert {"t", "visible_dust"} == set(survey.schemas()["efigi"])
    objects = survey.objects(0, 2)
    assert objects["efigi/visible_dust"].dtype == np.float32 and objects["efigi/visible_dust"][0] == 0.75
    assert np.isnan(objects["efigi/t"][1])


def test_files_that_change(tmp_path: Path) -> None:
    path = picture(tmp_path / "1.png")
    survey = pickle.loads(pickle.dumps(LocalSurvey(tmp_path)))
    assert isinstance(only(survey), Cutout) and LocalSurvey(tmp_path).describe() == survey.describe()
    picture(tmp_path / "2.png")
    assert LocalSurvey(tmp_path).describe() != survey.describe()
    path.unlink()
    assert only(survey).flag == Flag.UNREADABLE
