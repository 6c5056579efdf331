"""Survey of local frames: objects sorted by frame, errors, provenance."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

import galscan
from galscan.core.errors import InputError, NotFoundError
from galscan.store.build import ingest_survey
from galscan.store.manifest import outcomes
from galscan.surveys.base import Cutout, Failed, Flag, NoCoverage
from galscan.surveys.files.images import read_fits
from galscan.surveys.mosaics.frames import FramesSurvey
from tests.mosaics_on_disk import SCALE, cut_short, mosaic, pixels, tan, three_bands

SHAPE = (120, 160)
EAST = 160 * SCALE / 3600


def table(path: Path, positions: dict[str, tuple[float, float]], **columns: object) -> Path:
    frame = pd.DataFrame([(i, *p) for i, p in positions.items()], columns=["id", "ra", "dec"]).assign(**columns)
    frame.to_csv(path, index=False)
    return path


def sky(root: Path, *, suffix: str = ".fits") -> dict[str, tuple[float, float]]:
    """Write three frames in a row, a little apart, and return objects: two on each, in turn, and one on none."""
    objects = {}
    for n in range(3):
        ra = 10 + 1.1 * n * EAST
        three_bands(root, f"m{n}", tan(ra, 0.0, SHAPE), SHAPE, seed=n, suffix=suffix)
        objects |= {f"{n}-a": (ra, 0.0), f"{n}-b": (ra + 0.1 * EAST, 0.001)}
    objects = {k: objects[k] for k in ("2-a", "0-a", "1-b", "0-b", "1-a", "2-b")}
    table(root / "catalog.csv", objects | {"off": (50.0, 0.0)})
    return objects


def results(survey: FramesSurvey) -> dict[str, object]:
    return dict(zip(survey.ids.tolist(), survey.cutouts(0, len(survey)), strict=True))


@pytest.mark.parametrize("suffix", [".fits", ".fits.bz2", ".fits.fz"])
def test_objects_are_in_the_order_of_frames(tmp_path: Path, suffix: str) -> None:
    sky(tmp_path, suffix=suffix)
    survey = FramesSurvey(tmp_path, size=32)
    assert survey.ids.tolist() == ["0-a", "0-b", "1-b", "1-a", "2-a", "2-b", "off"]
    found = results(survey)
    assert found.pop("off") == NoCoverage("on no frame")
    assert all(isinstance(o, Cutout) and o.pixel_scale == pytest.approx(SCALE, rel=1e-5) for o in found.values())
    assert survey.plan() == {
        "frames": 3, "on_no_frame": 1, "bytes_to_read": sum(f.stat().st_size for f in tmp_path.glob("m*")),
    }  # fmt: skip
    assert survey.notes == ["1 of 7 objects lie on no frame, and are kept without an image"]


def test_rows_keep_what_belongs_to_them(tmp_path: Path) -> None:
    objects = sky(tmp_path)
    table(tmp_path / "catalog.csv", objects, efigi_t=np.arange(6.0), radius=np.arange(6.0) + 10)
    survey = FramesSurvey(tmp_path, size=32, labels=("efigi",), frame=2.0)
    rows = survey.objects(0, 6).set_index("id")
    for n, (identifier, (ra, dec)) in enumerate(objects.items()):
        assert rows.loc[identifier, ["ra", "dec", "efigi/t"]].tolist() == [ra, dec, n]
    scales = {i: o.pixel_scale for i, o in results(survey).items()}
    assert scales["0-a"] == pytest.approx(2 * 11 / 32, rel=0.02)
    assert scales["2-b"] == pytest.approx(2 * 15 / 32, rel=0.02)


def test_a_band_absent_from_one_frame(tmp_path: Path) -> None:
    sky(tmp_path)
    (tmp_path / "m2-r.fits").unlink()
    found = results(FramesSurvey(tmp_path, size=32))
    assert found["2-a"] == found["2-b"] == Failed("no r band of frame m2", Flag.MISSING)
    assert isinstance(found["0-a"], Cutout)
    assert all(
        isinstance(o, Cutout) for i, o in results(FramesSurvey(tmp_path, size=32, bands="gi")).items() if i != "off"
    )


def test_a_vanished_frame_stops_the_work_instead_of_losing_objects(tmp_path: Path) -> None:
    sky(tmp_path)
    survey = FramesSurvey(tmp_path, size=32)
    (tmp_path / "m1-g.fits").unlink()
    with pytest.raises(NotFoundError, match="frame m1 is missing"):
        results(survey)


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder of frames at"):
        FramesSurvey(tmp_path / "none")
    with pytest.raises(InputError, match="is a file; give the folder"):
        FramesSurvey(mosaic(tmp_path / "x.fits", pixels(SHAPE, 0), None))
    (tmp_path / "x.fits").unlink()
    with pytest.raises(InputError, match="frames need a table of objects with id, ra and dec: --catalog FILE"):
        FramesSurvey(tmp_path)
    table(tmp_path / "catalog.csv", {"a": (10.0, 0.0)})
    with pytest.raises(InputError, match="no FITS file in"):
        FramesSurvey(tmp_path)
    objects = sky(tmp_path)
    with pytest.raises(InputError, match="no frame has band 'z'"):
        FramesSurvey(tmp_path, bands="grz")
    with pytest.raises(
        InputError,
        match=r"--pixel-scale 0.0001: a cutout of 64 pixels would be 0.016 pixels of frame m0 \(0.4 arcsec per pixel\)",
    ):
        FramesSurvey(tmp_path, size=64, pixel_scale=1e-4)
    with pytest.raises(InputError, match="exclude each other"):
        FramesSurvey(tmp_path, pixel_scale=0.4, frame=4)
    with pytest.raises(InputError, match="--frame -4"):
        FramesSurvey(tmp_path, frame=-4)
    with pytest.raises(InputError, match=r"--frame 4 needs a radius \(arcsec\).*--column radius="):
        FramesSurvey(tmp_path, frame=4)
    with pytest.raises(InputError, match="unknown role 'file'"):
        FramesSurvey(tmp_path, columns={"file": "x"})
    table(tmp_path / "far.csv", {"a": (200.0, 10.0)})
    with pytest.raises(InputError, match="no object lies on a frame: objects are at ra 200 to 200"):
        FramesSurvey(tmp_path, tmp_path / "far.csv")
    (tmp_path / "bare.csv").write_text("id,x\n1,2\n")
    with pytest.raises(InputError, match="has no ra column; it has id, x; name it: --column ra="):
        FramesSurvey(tmp_path, tmp_path / "bare.csv")
    table(tmp_path / "high.csv", {"a": (10.0, 95.0)})
    with pytest.raises(InputError, match="dec of a is 95"):
        FramesSurvey(tmp_path, tmp_path / "high.csv")
    assert len(FramesSurvey(tmp_path)) == len(objects) + 1


def test_frames_that_are_all_broken_or_blank(tmp_path: Path) -> None:
    objects = sky(tmp_path)
    for path in tmp_path.glob("m*"):
        cut_short(path, 0.7)
    with pytest.raises(InputError, match=r"none of 3 frames tried in .* can be used \(frame m0: truncated"):
        FramesSurvey(tmp_path)
    for path in tmp_path.glob("m*"):
        path.unlink()
        mosaic(path, np.ones(SHAPE, np.float32), tan(10.0, 0.0, SHAPE))
    with pytest.raises(InputError, match="the stretch cannot be measured"):
        FramesSurvey(tmp_path)
    for path in tmp_path.glob("m*"):
        path.write_bytes(b"404")
    with pytest.raises(InputError, match=r"no frame in .* can be read, the first is m0"):
        FramesSurvey(tmp_path)
    assert objects


def test_a_broken_frame_is_told_and_its_objects_are_on_none(tmp_path: Path) -> None:
    sky(tmp_path)
    for band in "gri":
        (tmp_path / f"m1-{band}.fits").write_bytes(b"404 not found")
    (tmp_path / "m0-g.weight.fits").write_bytes(b"")
    survey = FramesSurvey(tmp_path, size=32)
    assert survey.notes[0] == "1 file(s) of weights, masks or models are ignored, the first is m0-g.weight.fits"
    assert survey.notes[1] == "1 frame(s) cannot be read, the first is m1 (not a FITS file)"
    assert results(survey)["1-a"] == NoCoverage("on no frame")


def test_another_sky_is_another_survey(tmp_path: Path) -> None:
    sky(tmp_path)
    before = FramesSurvey(tmp_path, size=32).describe()
    assert FramesSurvey(tmp_path, size=32).describe() == before
    for change in ({"bands": "gr"}, {"pixel_scale": 0.8}, {"size": 33}):
        assert FramesSurvey(tmp_path, **{"size": 32} | change).describe() != before
    with fits.open(tmp_path / "m1-g.fits", mode="update") as hdus:
        hdus[0].header["CRVAL1"] += 1e-6
    time.sleep(0.01)
    assert FramesSurvey(tmp_path, size=32).describe()["frames_sha256"] != before["frames_sha256"]


def test_two_processes_write_what_one_does(tmp_path: Path) -> None:
    frames, rng = tmp_path / "frames", np.random.default_rng(0)
    three_bands(frames, "a", tan(10.0, 0.0, SHAPE), SHAPE)
    three_bands(frames, "b", tan(10 + EAST, 0.0, SHAPE), SHAPE, seed=1, suffix=".fits.bz2")
    ra, dec = 10 + rng.uniform(-0.5, 1.5, 600) * EAST, rng.uniform(-0.3, 0.3, 600) * EAST
    table(frames / "catalog.csv", {str(n): p for n, p in enumerate(zip(ra, dec, strict=True))})
    stores = [ingest_survey(FramesSurvey(frames, size=16), tmp_path / f"{w}.zarr", workers=w) for w in (1, 2)]
    assert stores[0].content_hash == stores[1].content_hash and stores[0].n_shards == 3
    assert outcomes(stores[0])["stored"] > 550
    edge = (stores[0].column("flags") & int(Flag.EDGE)) > 0
    assert edge.any() and not edge.all()


def test_from_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sky(tmp_path)
    plan = galscan.ingest("frames", path=tmp_path, size=32, out=tmp_path / "s.zarr", dry_run=True)
    assert (plan["frames"], plan["on_no_frame"], plan["objects"]) == (3, 1, 7)
    assert "plan: 3 frames" in capsys.readouterr().err and not (tmp_path / "s.zarr").exists()
    store = galscan.ingest("frames", path=tmp_path, size=32, pixel_scale=0.8, out=tmp_path / "s.zarr", workers=1)
    assert store.column("pixel_scale")[:6] == pytest.approx(np.full(6, 0.8), rel=1e-4)
    assert store.column("flags")[6] == int(Flag.MISSING)
    assert "1 of 7 objects lie on no frame" in capsys.readouterr().err
    with pytest.raises(InputError, match="needs the folder of frames: --path"):
        galscan.ingest("frames", out=tmp_path / "t.zarr")
    with pytest.raises(InputError, match="does not take bands; leave it out, or use survey frames"):
        galscan.ingest("local", path=tmp_path, bands="gri", out=tmp_path / "t.zarr")


@pytest.mark.filterwarnings("ignore")
def test_real_frames(real_data: Path, tmp_path: Path) -> None:
    """Of frames that hold one galaxy each: the same pictures as of the files by themselves, and the known faults."""
    for folder, pattern, scale in (("fits-sdss-gri", "*_g.fits", 0), ("fits-decam", "*_gband.fits", 0.263)):
        rows = {}
        for path in sorted((real_data / folder).glob(pattern)):
            header = fits.getheader(path)
            middle = [(header[f"NAXIS{k}"] - 1) / 2 for k in (1, 2)]
            rows[path.name.split("_g")[0]] = tuple(float(v) for v in WCS(header).all_pix2world(*middle, 0))
        survey = FramesSurvey(real_data / folder, table(tmp_path / f"{folder}.csv", rows), size=129)
        found = results(survey)
        if scale:
            assert found.pop("DECam_cuts__731") == Failed("no r band of frame DECam_cuts__731", Flag.MISSING)
            assert all(o.pixel_scale == pytest.approx(scale, rel=0.01) for o in found.values())
        assert all(isinstance(o, Cutout) and o.image[60:69, 60:69].mean() > 30 for o in found.values())
        for name, outcome in found.items() if not scale else ():
            paths = [real_data / folder / f"{name}_{b}.fits" for b in "gri"]
            alone = read_fits(paths, 255, float("nan"), survey.rendering)
            if outcome.flags == Flag.OK == alone.flags and name not in (
                "PGC0000281",
                "PGC0000282",
            ):  # one galaxy's frame
                np.testing.assert_array_equal(outcome.image, alone.image[63:192, 63:192])


def test_positions_in_radians_are_refused_and_not_cut_elsewhere(tmp_path):
    three_bands(tmp_path, "a", tan(0.0, 0.0, (100, 100)), (100, 100))
    table = Table({"id": [1, 2], "ra": [0.0, 0.001], "dec": [0.0, 0.0]}, units={"ra": "rad", "dec": "deg"})
    table.write(tmp_path / "catalog.fits")
    with pytest.raises(InputError, match="decimal degrees"):
        FramesSurvey(tmp_path, size=16)
