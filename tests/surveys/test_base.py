"""Conformance tests of all surveys. A new survey is added to `SURVEYS`.

Surveys of services are asked on loopback; with ``-m network`` the same is asked of the real ones.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from galscan.surveys.base import UNUSABLE, Cutout, Failed, Flag, NoCoverage, Survey
from galscan.surveys.files.cutana import CutanaSurvey
from galscan.surveys.files.local import LocalSurvey
from galscan.surveys.files.multimodal import MultimodalSurvey
from galscan.surveys.files.webdataset import WebDatasetSurvey
from galscan.surveys.mosaics.frames import FramesSurvey
from galscan.surveys.mosaics.remote import RemoteFrames
from galscan.surveys.services.configured import ConfiguredSurvey, load_survey, survey_names
from galscan.surveys.services.cutouts import ServiceSurvey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.surveys.subsets import ids, take
from tests.mosaics_on_disk import cut_short, tan, three_bands
from tests.packed_on_disk import encoded, legacysurvey, pictures, planes, write_cutana, write_multimodal, write_shard
from tests.services.loopback import galaxies
from tests.surveys.mosaics.test_remote import played

COUNT = 60


def local(tmp_path: Path) -> Survey:
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        if i == 7:
            (tmp_path / "7.png").write_bytes(b"broken")
        elif i != 5:
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    ra, dec = rng.uniform(0, 360, COUNT), rng.uniform(-90, 90, COUNT)
    table = pd.DataFrame({"id": range(COUNT), "ra": ra, "dec": dec, "efigi_t": -2})
    table.to_csv(tmp_path / "catalog.csv", index=False)
    return LocalSurvey(tmp_path, labels=("efigi",), size=16)


def simulated(tmp_path: Path) -> Survey:
    return SimulatedSurvey(COUNT, size=16, seed=3, labelled=0.5)


def frames(tmp_path: Path) -> Survey:
    rng, shape = np.random.default_rng(0), (200, 400)
    three_bands(tmp_path, "a", tan(0.03, 0.0, shape), shape, suffix=".fits.bz2")
    three_bands(tmp_path, "b", tan(0.0, 0.0, shape), shape)
    cut_short(tmp_path / "a-r.fits.bz2")
    ra, dec = rng.uniform(-0.02, 0.02, COUNT) % 360, rng.uniform(-0.01, 0.01, COUNT)
    pd.DataFrame({"id": range(COUNT), "ra": ra, "dec": dec, "efigi_t": -2}).to_csv(tmp_path / "catalog.csv")
    return FramesSurvey(tmp_path, labels=("efigi",), size=16)


def zipped(tmp_path: Path) -> Survey:
    """A zip file of images beside its catalog, as Kaggle has them: no positions."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i, image in enumerate(pictures(COUNT)):
            archive.writestr(f"images/{i}.jpg", encoded(image, "jpg"))
    pd.DataFrame({"GalaxyID": range(COUNT), "efigi_t": -2}).to_csv(tmp_path / "solutions.csv", index=False)
    return LocalSurvey(tmp_path / "images.zip", tmp_path / "solutions.csv", labels=("efigi",), size=16)


def cutana(tmp_path: Path) -> Survey:
    write_cutana(tmp_path, np.moveaxis(planes(COUNT), 1, -1), efigi_t=-2)
    return CutanaSurvey(tmp_path, labels=("efigi",), size=16)


def multimodal(tmp_path: Path) -> Survey:
    pytest.importorskip("h5py")
    for k in range(3):
        part = legacysurvey(COUNT // 3, first=100 * k, seed=k) | {"efigi_t": np.full(COUNT // 3, -2)}
        write_multimodal(tmp_path / f"healpix={k}" / "001-of-001.hdf5", part)
    return MultimodalSurvey(tmp_path, labels=("efigi",), size=16)


def webdataset(tmp_path: Path) -> Survey:
    for shard in range(3):
        members: list = []
        for i, image in enumerate(pictures(COUNT // 3, seed=shard), 100 * shard):
            members.append((f"{i:04d}.jpg", encoded(image, "jpg") if i != 7 else b"broken"))
            members.append((f"{i:04d}.json", {"ra": i, "dec": -30.5, "efigi_t": -2}))
        write_shard(tmp_path / f"train-{shard}.tar", members)
    return WebDatasetSurvey(tmp_path, labels=("efigi",), size=16)


SERVICES = [name for name in survey_names() if isinstance(load_survey(name), ConfiguredSurvey)]
FILES = [local, zipped, cutana, multimodal, webdataset]
SURVEYS: list[Callable[[Path], Survey] | str] = [*FILES, simulated, frames, *SERVICES, "sdss-frames"]


@pytest.fixture(params=SURVEYS, ids=lambda make: getattr(make, "__name__", make))
def survey(request: pytest.FixtureRequest, tmp_path: Path) -> Survey:
    if not isinstance(request.param, str):
        return request.param(tmp_path)
    services = request.getfixturevalue("service")
    answers = request.getfixturevalue("tmp_path_factory").getbasetemp() / "answers"  # asked for once, by all tests
    if request.param == "sdss-frames":
        declared, table = played(services, tmp_path, COUNT)
        return RemoteFrames(str(declared), table, tmp_path / "kept", labels=("efigi",), size=16)
    table = galaxies(tmp_path / "objects.csv", COUNT, sure=range(30, COUNT))
    declared = services.survey(request.param, tmp_path)
    return ServiceSurvey(str(declared), table, labels=("efigi",), size=16, response_folder=answers)


def test_is_a_survey(survey: Survey) -> None:
    assert isinstance(survey, Survey)
    assert survey.name and len(survey) == COUNT and survey.size == 16
    assert survey.id_dtype == np.int64 or survey.id_dtype.kind == "U"


def test_provenance_is_json_and_repeatable(survey: Survey) -> None:
    first = json.dumps(survey.describe(), allow_nan=False)
    assert json.loads(first) and first == json.dumps(pickle.loads(pickle.dumps(survey)).describe(), allow_nan=False)


def test_objects_have_the_promised_columns(survey: Survey) -> None:
    objects = survey.objects(0, COUNT)
    labels = [f"{schema}/{answer}" for schema, answers in survey.schemas().items() for answer in answers]
    truth = [f"truth/{t}" for t in survey.truth()]
    assert labels and {"id", "ra", "dec", *labels, *truth} == set(objects.columns)
    assert all(objects[c].dtype == np.float32 for c in labels + truth)
    assert objects["id"].is_unique
    assert objects["id"].to_numpy().astype(survey.id_dtype).tolist() == objects["id"].tolist()
    ra, dec = objects["ra"].dropna(), objects["dec"].dropna()
    assert ra.between(0, 360, inclusive="left").all() and dec.between(-90, 90).all()


@pytest.mark.parametrize(("start", "stop"), [(0, COUNT), (30, 50), (59, 60), (10, 10)])
def test_one_outcome_an_object(survey: Survey, start: int, stop: int) -> None:
    outcomes = list(survey.cutouts(start, stop))
    assert len(outcomes) == len(survey.objects(start, stop)) == stop - start
    for outcome in outcomes:
        if isinstance(outcome, Cutout):
            assert outcome.image.shape == (16, 16, 3) and outcome.image.dtype == np.uint8
            assert not int(outcome.flags) & int(UNUSABLE), "a usable cutout may carry notes only"
            assert np.isnan(outcome.pixel_scale) or outcome.pixel_scale > 0
        else:
            assert isinstance(outcome, (NoCoverage, Failed)) and outcome.reason
            assert isinstance(outcome, NoCoverage) or outcome.flag in UNUSABLE
    assert start == stop or any(isinstance(o, Cutout) for o in outcomes)


def test_a_range_does_not_depend_on_how_it_is_asked_for(survey: Survey) -> None:
    """Ingest cuts by shard and resumes in other processes: the order and the pixels must be fixed."""
    copy = pickle.loads(pickle.dumps(survey))
    pieces = [copy.objects(a, b) for a, b in ((30, 40), (40, 50))]
    pd.testing.assert_frame_equal(survey.objects(30, 50), pd.concat(pieces, ignore_index=True))
    again = [*copy.cutouts(40, 50), *copy.cutouts(30, 40)]
    for one, other in zip(survey.cutouts(30, 50), again[10:] + again[:10], strict=True):
        assert isinstance(one, Cutout) and isinstance(other, Cutout)
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_equal(one.pixel_scale, other.pixel_scale)


def test_some_of_it_is_as_it_is_in_the_whole(survey: Survey) -> None:
    """A store that grows takes what is new, wherever it stands in the catalog."""
    rows = np.array([31, 32, 33, 40, 50, 59])
    part, outcomes = pickle.loads(pickle.dumps(take(survey, rows))), list(survey.cutouts(30, COUNT))
    assert len(part) == 6 and part.id_dtype == survey.id_dtype and part.schemas() == survey.schemas()
    assert ids(survey).tolist() == survey.objects(0, COUNT)["id"].tolist() and len(survey) == COUNT
    whole = survey.objects(0, COUNT).iloc[rows].reset_index(drop=True)
    pd.testing.assert_frame_equal(part.objects(0, 6), whole)
    pd.testing.assert_frame_equal(part.objects(2, 5), whole[2:5].reset_index(drop=True))
    for row, found in zip(rows, [*part.cutouts(0, 2), *part.cutouts(2, 6)], strict=True):
        expected = outcomes[row - 30]
        assert type(found) is type(expected)
        if isinstance(found, Cutout):
            np.testing.assert_array_equal(found.image, expected.image)


def test_objects_do_not_consume_the_sky(survey: Survey) -> None:
    before = survey.objects(0, 20)
    list(survey.cutouts(0, 20))
    pd.testing.assert_frame_equal(before, survey.objects(0, 20))
    before["id"] = 0  # a caller's table is its own
    assert survey.objects(0, 20)["id"].is_unique


def test_the_broken_one_is_told_from_the_missing_one(tmp_path: Path) -> None:
    outcomes = list(local(tmp_path).cutouts(0, 10))
    assert outcomes[5].flag == Flag.MISSING and outcomes[7].flag == Flag.UNREADABLE


@pytest.mark.network
@pytest.mark.parametrize("name", SERVICES)
def test_the_real_service(name: str, tmp_path: Path) -> None:
    """M 51, a place in the far south, and one that is nowhere."""
    table = pd.DataFrame({"id": [1, 2, 3], "ra": [202.4696, 30.0, np.nan], "dec": [47.1952, -88.0, 0.0], "efigi_t": 4})
    table.to_csv(tmp_path / "objects.csv", index=False)
    survey = ServiceSurvey(name, tmp_path / "objects.csv", size=64, pixel_scale=8.0)
    first, second, third = survey.cutouts(0, 3)
    assert isinstance(first, Cutout) and first.image.std() > 10 and first.pixel_scale == pytest.approx(8.0)
    assert isinstance(second, Cutout if name == "hips" else NoCoverage) and isinstance(third, Failed)
