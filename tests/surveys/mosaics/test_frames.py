"""Survey of local frames: objects sorted by frame, errors, provenance."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

import galscan
from galscan.core.errors import InputError, NotFoundError
from galscan.surveys.base import Cutout, Failed, Flag, NoCoverage
from galscan.surveys.mosaics.frames import FramesSurvey
from tests.mosaics_on_disk import SCALE, SKY, cut_short, mosaic, results, table, tan

SHAPE = (120, 160)


@pytest.mark.parametrize("suffix", [".fits", ".fits.bz2", ".fits.fz"])
def test_objects_are_in_the_order_of_frames(skies: Callable[[str], Path], suffix: str) -> None:
    survey = FramesSurvey(skies(suffix), size=32)
    assert survey.ids.tolist() == ["0-a", "0-b", "1-b", "1-a", "2-a", "2-b", "off"]
    found = results(survey)
    assert found.pop("off") == NoCoverage("on no frame")
    assert all(isinstance(o, Cutout) and o.pixel_scale == pytest.approx(SCALE, rel=1e-5) for o in found.values())
    bytes_to_read = sum(f.stat().st_size for f in skies(suffix).glob("m*"))
    assert survey.plan() == {"frames": 3, "on_no_frame": 1, "bytes_to_read": bytes_to_read}
    assert survey.notes == ["1 of 7 objects lie on no frame, and are kept without an image"]


def test_rows_keep_their_columns(sky: Path) -> None:
    table(sky / "catalog.csv", SKY, efigi_t=np.arange(6.0), radius=np.arange(6.0) + 10)
    survey = FramesSurvey(sky, size=32, labels=("efigi",), frame=2.0)
    rows = survey.objects(0, 6).set_index("id")
    for n, (identifier, (ra, dec)) in enumerate(SKY.items()):
        assert rows.loc[identifier, ["ra", "dec", "efigi/t"]].tolist() == [ra, dec, n]
    scales = {i: o.pixel_scale for i, o in results(survey).items()}
    assert scales["0-a"] == pytest.approx(2 * 11 / 32, rel=0.02)
    assert scales["2-b"] == pytest.approx(2 * 15 / 32, rel=0.02)


def test_a_band_absent_from_one_frame(sky: Path) -> None:
    (sky / "m2-r.fits").unlink()
    found = results(FramesSurvey(sky, size=32))
    assert found["2-a"] == found["2-b"] == Failed("no r band of frame m2", Flag.MISSING)
    assert isinstance(found["0-a"], Cutout)
    two_bands = results(FramesSurvey(sky, size=32, bands="gi"))
    assert sum(isinstance(o, Cutout) for o in two_bands.values()) == 6


def test_a_removed_frame_raises_instead_of_losing_objects(sky: Path) -> None:
    survey = FramesSurvey(sky, size=32)
    (sky / "m1-g.fits").unlink()
    with pytest.raises(NotFoundError, match="m1-g"):
        results(survey)


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        FramesSurvey(tmp_path / "none")
    path = mosaic(tmp_path / "x.fits", np.zeros(SHAPE, np.float32), None)
    with pytest.raises(InputError, match="folder"):
        FramesSurvey(path)
    path.unlink()
    with pytest.raises(InputError, match="--catalog"):
        FramesSurvey(tmp_path)
    table(tmp_path / "catalog.csv", {"a": (10.0, 0.0)})
    with pytest.raises(InputError, match="--path"):
        FramesSurvey(tmp_path)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"bands": "grz"}, "'z'"),
        ({"size": 64, "pixel_scale": 1e-4}, r"0\.016 .*m0 \(0\.4 "),
        ({"pixel_scale": 0.4, "frame": 4}, "--pixel-scale 0.4 and --frame 4"),
        ({"frame": -4}, "--frame -4"),
        ({"frame": 4}, "--frame 4 .*--column radius="),
        ({"columns": {"file": "x"}}, "'file'"),
    ],
)
def test_wrong_options(skies: Callable[[str], Path], options: dict, value: str) -> None:
    with pytest.raises(InputError, match=value):
        FramesSurvey(skies(".fits"), **options)


@pytest.mark.parametrize(
    ("catalog", "value"),
    [
        ("id,ra,dec\na,200,10\n", "ra 200 to 200"),
        ("id,x\n1,2\n", "id, x; .*--column ra="),
        ("id,ra,dec\na,10,95\n", "a is 95"),
    ],
)
def test_wrong_catalogs(skies: Callable[[str], Path], tmp_path: Path, catalog: str, value: str) -> None:
    (tmp_path / "t.csv").write_text(catalog)
    with pytest.raises(InputError, match=value):
        FramesSurvey(skies(".fits"), tmp_path / "t.csv")


def test_frames_that_are_all_broken_or_blank(sky: Path) -> None:
    paths = list(sky.glob("m*"))
    for path in paths:
        cut_short(path, 0.7)
    with pytest.raises(InputError, match=r"3 frames .*m0: truncated"):
        FramesSurvey(sky)
    for path in paths:
        path.unlink()
        mosaic(path, np.ones(SHAPE, np.float32), tan(10.0, 0.0, SHAPE))
    with pytest.raises(InputError, match="stretch"):
        FramesSurvey(sky)
    for path in paths:
        path.write_bytes(b"404")
    with pytest.raises(InputError, match=r"m0 \(not a FITS file\)"):
        FramesSurvey(sky)


def test_objects_of_a_frame_without_header_are_on_no_frame(sky: Path) -> None:
    for band in "gri":
        (sky / f"m1-{band}.fits").write_bytes(b"404 not found")
    (sky / "m0-g.weight.fits").write_bytes(b"")
    survey = FramesSurvey(sky, size=32)
    assert survey.notes[0].startswith("1 file(s)") and survey.notes[0].endswith("m0-g.weight.fits")
    assert survey.notes[1].startswith("1 frame(s)") and survey.notes[1].endswith("m1 (not a FITS file)")
    assert results(survey)["1-a"] == NoCoverage("on no frame")


def test_metadata_change_with_settings_and_headers(sky: Path) -> None:
    before = FramesSurvey(sky, size=32).describe()
    assert FramesSurvey(sky, size=32).describe() == before
    for change in ({"bands": "gr"}, {"pixel_scale": 0.8}, {"size": 33}):
        assert FramesSurvey(sky, **{"size": 32} | change).describe() != before
    with fits.open(sky / "m1-g.fits", mode="update") as hdus:
        hdus[0].header["CRVAL1"] += 1e-6
    time.sleep(0.01)
    assert FramesSurvey(sky, size=32).describe()["frames_sha256"] != before["frames_sha256"]


def test_ingest(skies: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"path": skies(".fits"), "size": 32, "out": tmp_path / "s.zarr"}
    plan = galscan.ingest("frames", dry_run=True, **options)
    assert (plan["frames"], plan["on_no_frame"], plan["objects"]) == (3, 1, 7)
    assert "plan: 3 frames" in capsys.readouterr().err and not (tmp_path / "s.zarr").exists()
    store = galscan.ingest("frames", pixel_scale=0.8, workers=1, **options)
    assert store.column("pixel_scale")[:6] == pytest.approx(np.full(6, 0.8), rel=1e-4)
    assert store.column("flags")[6] == int(Flag.MISSING)
    assert "1 of 7 objects" in capsys.readouterr().err
    with pytest.raises(InputError, match="--path"):
        galscan.ingest("frames", out=tmp_path / "t.zarr")
    with pytest.raises(InputError, match="bands"):
        galscan.ingest("simulated", bands="gri", out=tmp_path / "t.zarr")


def test_positions_in_radians_are_converted(skies: Callable[[str], Path], tmp_path: Path) -> None:
    rows = Table({"id": [1, 2], "ra": [0.1745, 0.1746], "dec": [0.0, 0.0]}, units={"ra": "rad", "dec": "deg"})
    rows.write(tmp_path / "catalog.fits")
    survey = FramesSurvey(skies(".fits"), tmp_path / "catalog.fits", size=16)
    np.testing.assert_allclose(survey.ra, np.degrees([0.1745, 0.1746]))
