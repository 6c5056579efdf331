"""Paths in catalogs, local and of other machines."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.surveys.base import Cutout, Flag
from galscan.surveys.files.local import LocalSurvey
from galscan.surveys.files.path_matching import find_files, match_files
from tests.pictures_on_disk import OBJID, picture, write

ROOT = Path("/data/gz2")


def test_paths_of_another_machine() -> None:
    files = ["images/587722/1.jpg", "images/587722/2.jpg", "images/587723/1.jpg"]
    theirs = ["/home/m/roots/gz2/jpg/587722/1.jpg", "/home/m/roots/gz2/jpg/587723/1.jpg", ""]
    assert match_files(ROOT, theirs, files, "t") == [files[0], files[2], ""]
    assert match_files(ROOT, [*theirs, "/home/m/roots/gz2/jpg/587724/1.jpg"], files, "t")[3] == "587724/1.jpg"


def test_paths_within_a_folder() -> None:
    files = ["train/1.jpg", "test/1.jpg", "train/2.jpg"]
    assert match_files(ROOT, ["2.jpg", "test/1.jpg", "3.jpg"], files, "t") == ["train/2.jpg", "test/1.jpg", "3.jpg"]
    with pytest.raises(InputError, match=r"train/1\.jpg and test/1\.jpg"):
        match_files(ROOT, ["1.jpg"], files, "t")


@pytest.mark.parametrize("entry", ["../x.png", "a/../../x.png", "/etc/x.png", "/data/gz2x/x.png"])
def test_paths_outside_are_refused(entry: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"'{entry}'")):
        match_files(ROOT, [entry], ["y.png"], "t")


names = st.text("ab.", min_size=1, max_size=3).filter(lambda t: set(t) != {"."})
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(paths, min_size=1, max_size=6, unique=True), st.sampled_from(["", "/data/gz2/", "/home/m/", "deep/../"])
)
def test_a_file_is_found_by_its_own_path(files: list[str], before: str) -> None:
    if before == "/home/m/":  # two top folders, so that there is no longer common path
        files = [f"{top}/{f}" for top in ("one", "two") for f in files]
    entries = [before + f for f in files]
    assert match_files(ROOT, entries, files, "t") == files


def test_tables_of_galaxy_datasets(tmp_path: Path) -> None:
    """``file_loc`` of the author's machine; ``id_str`` beside other ids; or subfolder and filename."""
    ids = [str(OBJID), str(OBJID + 1), str(OBJID + 2)]
    for i in ids[:2]:
        picture(tmp_path / "images" / i[:6] / f"{i}.jpg")
    table = pd.DataFrame({"id_str": ids, "iauname": ["a", "b", "c"], "ra": 1.0, "dec": 2.0, "subfolder": ids[0][:6]})
    table["filename"] = table["id_str"] + ".jpg"
    table["smooth-or-featured-gz2_smooth"] = [30, 0, 5]
    table["smooth-or-featured-gz2_featured-or-disk"] = [10, 40, 5]
    table["smooth-or-featured-gz2_artifact"] = [0, 0, 0]
    with_paths = table.assign(file_loc="/home/walml/gz2/jpg/" + table["subfolder"] + "/" + table["filename"])
    with_paths.to_parquet(tmp_path / "train.parquet")
    table.to_csv(tmp_path / "test.csv", index=False)
    for name in ("train.parquet", "test.csv"):
        survey = LocalSurvey(tmp_path, tmp_path / name, labels=("gz2",), size=16)
        outcomes = list(survey.cutouts(0, 3))
        assert survey.ids.tolist() == [int(i) for i in ids]
        assert [type(o) for o in outcomes[:2]] == [Cutout, Cutout] and outcomes[2].flag == Flag.MISSING
        assert "/home" not in outcomes[2].reason
        smooth = survey.objects(0, 3)["gz2/t01_smooth_or_features_a01_smooth"]
        np.testing.assert_allclose(smooth, [0.75, 0, 0.5])


def test_a_relative_path_may_not_escape_beside_good_ones(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    write(tmp_path / "catalog.csv", "id,file\n1,1.png\n2,../2.png\n")
    with pytest.raises(InputError, match=r"'\.\./2\.png'"):
        LocalSurvey(tmp_path)


def test_hidden_files_and_other_suffixes_are_left_out(tmp_path: Path) -> None:
    for name in ("b/x.H5", "a.h5", ".git/y.h5", "._a.h5", "a.h5.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "xy")
    (tmp_path / "broken.h5").symlink_to(tmp_path / "none")
    assert find_files(tmp_path, (".h5",)) == {"a.h5": 2, "b/x.H5": 2}
