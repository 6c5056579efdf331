"""Conformance tests of all surveys. A new survey is added to `SURVEYS`.

Surveys of services are queried on loopback; with ``-m network`` also the real ones.
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
from galscan.surveys.files.multimodal import MultimodalSurvey, ParquetSurvey
from galscan.surveys.files.webdataset import WebDatasetSurvey
from galscan.surveys.mosaics.frames import FramesSurvey
from galscan.surveys.mosaics.remote import RemoteFrames
from galscan.surveys.services.configured import ConfiguredSurvey, load_survey, survey_names
from galscan.surveys.services.cutouts import ServiceSurvey
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.surveys.subsets import ids, take
from tests.mosaics_on_disk import cut_short, tan, three_bands
from tests.packed_on_disk import (
    encoded,
    image_column,
    legacysurvey,
    pictures,
    planes,
    write_cutana,
    write_hats,
    write_multimodal,
    write_shard,
)
from tests.services.loopback import galaxies
from tests.surveys.mosaics.test_remote import played

COUNT = 36


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
        columns = legacysurvey(COUNT // 3, first=100 * k, seed=k) | {"efigi_t": np.full(COUNT // 3, -2)}
        write_multimodal(tmp_path / f"healpix={k}" / "001-of-001.hdf5", columns)
    return MultimodalSurvey(tmp_path, labels=("efigi",), size=16)


def parquet(tmp_path: Path) -> Survey:
    made = legacysurvey(COUNT)
    flat = {name: made[name] for name in ("object_id", "ra", "dec")} | {"efigi_t": np.full(COUNT, -2)}
    root = write_hats(tmp_path / "mmu", flat | {"image": image_column(made)}, parts=3, group=4)
    return ParquetSurvey(root, labels=("efigi",), size=16)


def webdataset(tmp_path: Path) -> Survey:
    for shard in range(3):
        members: list = []
        for i, image in enumerate(pictures(COUNT // 3, seed=shard), 100 * shard):
            members.append((f"{i:04d}.jpg", encoded(image, "jpg") if i != 7 else b"broken"))
            members.append((f"{i:04d}.json", {"ra": i, "dec": -30.5, "efigi_t": -2}))
        write_shard(tmp_path / f"train-{shard}.tar", members)
    return WebDatasetSurvey(tmp_path, labels=("efigi",), size=16)


SERVICES = [name for name in survey_names() if isinstance(load_survey(name), ConfiguredSurvey)]
FILES = [local, zipped, cutana, multimodal, parquet, webdataset]
SURVEYS: list[Callable[[Path], Survey] | str] = [*FILES, simulated, frames, *SERVICES, "sdss-frames"]


@pytest.fixture(scope="module", params=SURVEYS, ids=lambda make: getattr(make, "__name__", make))
def survey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Survey:
    folder = tmp_path_factory.mktemp("survey")
    if not isinstance(request.param, str):
        return request.param(folder)
    services = request.getfixturevalue("services")
    services.behave()
    if request.param == "sdss-frames":
        config, table = played(services, folder, COUNT)
        return RemoteFrames(str(config), table, folder / "kept", labels=("efigi",), size=16)
    table = galaxies(folder / "objects.csv", COUNT, sure=range(18, COUNT))
    config = services.survey(request.param, folder)
    return ServiceSurvey(str(config), table, labels=("efigi",), size=16, response_folder=folder / "responses")


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


@pytest.mark.parametrize(("start", "stop"), [(0, COUNT), (10, 10)])
def test_one_outcome_per_object(survey: Survey, start: int, stop: int) -> None:
    outcomes = list(survey.cutouts(start, stop))
    assert len(outcomes) == len(survey.objects(start, stop)) == stop - start
    for outcome in outcomes:
        if isinstance(outcome, Cutout):
            assert outcome.image.shape == (16, 16, 3) and outcome.image.dtype == np.uint8
            assert not int(outcome.flags) & int(UNUSABLE)
            assert np.isnan(outcome.pixel_scale) or outcome.pixel_scale > 0
        else:
            assert isinstance(outcome, (NoCoverage, Failed)) and outcome.reason
            assert isinstance(outcome, NoCoverage) or outcome.flag in UNUSABLE
    assert start == stop or any(isinstance(o, Cutout) for o in outcomes)


def test_ranges_and_subsets_equal_the_whole(survey: Survey) -> None:
    """Ingest reads shards, resumes in other processes, and appends new rows: order and pixels must be fixed."""
    rows = np.array([19, 20, 21, 25, 30, 35])
    copy = pickle.loads(pickle.dumps(survey))
    subset = pickle.loads(pickle.dumps(take(survey, rows)))
    objects, outcomes = survey.objects(0, COUNT), list(survey.cutouts(18, COUNT))
    assert len(subset) == 6 and subset.id_dtype == survey.id_dtype and subset.schemas() == survey.schemas()
    assert ids(survey).tolist() == objects["id"].tolist() and len(survey) == COUNT
    for part, indices in ((copy.objects(19, 31), range(19, 31)), (subset.objects(0, 6), rows)):
        pd.testing.assert_frame_equal(part, objects.iloc[indices].reset_index(drop=True))
    found = [*copy.cutouts(28, 31), *copy.cutouts(19, 22), *subset.cutouts(0, 2), *subset.cutouts(2, 6)]
    for row, outcome in zip([28, 29, 30, 19, 20, 21, *rows], found, strict=True):
        expected = outcomes[row - 18]
        assert type(outcome) is type(expected)
        if isinstance(outcome, Cutout):
            np.testing.assert_array_equal(outcome.image, expected.image)
            np.testing.assert_equal(outcome.pixel_scale, expected.pixel_scale)


def test_tables_are_copies(survey: Survey) -> None:
    survey.objects(0, 20)["id"] = 0
    assert survey.objects(0, 20)["id"].is_unique


def test_missing_and_unreadable_images_have_their_flags(tmp_path: Path) -> None:
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
