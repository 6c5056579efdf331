"""Frames from file names, and the assignment of objects to frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.surveys.file_names import FITS, parse_bands
from galscan.surveys.files.path_matching import find_files
from galscan.surveys.header import Astrometry, read_header
from galscan.surveys.mosaics.footprints import Folder, Frame, assign_frames, common_bands, find_frames
from tests.mosaics_on_disk import SCALE, mosaic, tan

SHAPE = (60, 80)
SIDE = 80 * SCALE / 3600  # degrees


def names(*files: str) -> list[Frame]:
    return find_frames(files)[0]


def test_names_of_surveys_become_frames() -> None:
    sdss = names("301/2/frame-r-001234-2-0067.fits.bz2", "301/2/frame-g-001234-2-0067.fits.bz2")
    assert len(sdss) == 1 and sdss[0].name == "frame-001234-2-0067" and set(sdss[0].files) == {"g", "r"}
    brick = "000/0001p000/legacysurvey-0001p000"
    files = [f"{brick}-{kind}-{band}.fits.fz" for kind in ("image", "invvar", "model", "depth") for band in "grz"]
    bricks, apart = find_frames([*files, f"{brick}-maskbits.fits.fz"])
    assert [b.name for b in bricks] == ["legacysurvey-0001p000"] and set(bricks[0].files) == set("grz")
    assert len(apart) == 10 and all("image" not in f for f in apart)
    assert [f.name for f in names("a/m1.fits", "b/m1.fits")] == ["a/m1", "b/m1"]
    assert names("m1.fits")[0].files == {"0": "m1.fits"}
    assert names("mask.fits")[0].files == {"0": "mask.fits"}  # nothing else there: meant as it is


def test_the_same_names_in_other_folders() -> None:
    other = names("one/m-g.fits", "one/m-r.fits", "two/m-g.fits", "two/m-r.fits")
    assert [(f.name, len(f.files)) for f in other] == [("one/m", 2), ("two/m", 2)]
    assert [(f.name, dict(f.files)) for f in names("g/m.fits", "r/m.fits")] == [
        ("m", {"g": "g/m.fits", "r": "r/m.fits"})
    ]
    assert len(names("g/m-g.fits", "r/m-r.fits")) == 1


def test_bands_by_words() -> None:
    bands = parse_bands("F435W, f606w")
    frames, _ = find_frames(["hst_f606w_drz.fits", "hst_f435w_drz.fits", "hst_f814w_drz.fits"], bands)
    assert {f.name: dict(f.files) for f in frames} == {
        "hst": {"F435W": "hst_f435w_drz.fits", "f606w": "hst_f606w_drz.fits"},
        "hst_f814w_drz": {"0": "hst_f814w_drz.fits"},
    }
    assert common_bands(frames, bands) == ["F435W", "f606w"]


def test_two_files_of_one_band() -> None:
    with pytest.raises(InputError, match=r"a-g.fits and a-g.fits.fz .*'g'"):
        find_frames(["a-g.fits", "a-g.fits.fz", "deep/a-g.fits"])


def test_common_bands() -> None:
    frames = names("a-g.fits", "a-r.fits", "b-g.fits", "b-r.fits", "b-u.fits", "c-g.fits", "c-z.fits")
    assert common_bands(frames, []) == ["g", "r"] and common_bands(frames, ["u", "z"]) == ["u", "z"]
    with pytest.raises(InputError, match="'i'"):
        common_bands(frames, ["g", "i"])
    assert common_bands(names("a.fits"), []) == ["0"]


def sky(root: Path, centres: dict[str, tuple[float, float]], bands: str = "g") -> list[Frame]:
    for name, (ra, dec) in centres.items():
        for band in bands:
            mosaic(root / f"{name}-{band}.fits", np.zeros(SHAPE, np.float32), tan(ra, dec, SHAPE))
    return find_frames(list(find_files(root, FITS)))[0]


def at(frames: list[Frame], root: Path, *positions: tuple[float, float], bands: tuple[str, ...] = ("g",)) -> list[str]:
    assignment = assign_frames(frames, Folder(root), bands, *np.array(positions, dtype=float).T)
    return [frames[k].name if k >= 0 else "" for k in assignment.frame]


def test_the_frame_in_which_it_is_farthest_from_the_edge(tmp_path: Path) -> None:
    frames = sky(tmp_path, {"a": (10.0, 0.0), "b": (10.0 + 0.6 * SIDE, 0.0)})
    east = [(10.0 + fraction * SIDE, 0.0) for fraction in (-0.51, -0.49, 0.0, 0.29, 0.31, 0.6, 1.09, 1.11)]
    assert at(frames, tmp_path, *east) == ["", "a", "a", "a", "b", "b", "b", ""]
    assert at(frames, tmp_path, (np.nan, 0), (10, np.nan)) == ["", ""]


def test_a_frame_in_all_bands_is_preferred(tmp_path: Path) -> None:
    sky(tmp_path, {"a": (10.0, 0.0)}, "g")
    frames = sky(tmp_path, {"b": (10.0 + 0.45 * SIDE, 0.0)}, "gr")
    assert at(frames, tmp_path, (10.0, 0.0), (10 - 0.4 * SIDE, 0.0), bands=("g", "r")) == ["b", "a"]


def test_around_ra_0_and_at_the_pole(tmp_path: Path) -> None:
    frames = sky(tmp_path, {"zero": (0.0, -20.0), "pole": (77.0, 90.0), "south": (10.0, -90.0)})
    found = at(
        frames, tmp_path, (359.9999, -20), (0.0001, -20), (0, 90), (200, 89.999), (5, -90), (100, 89.9), (1, -20)
    )
    assert found == ["zero", "zero", "pole", "pole", "south", "", ""]


@given(seed=st.integers(0, 10**6))
@settings(max_examples=8)
def test_assignment_is_that_of_trying_every_frame(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng, root = np.random.default_rng(seed), tmp_path_factory.mktemp("sky")
    dec = rng.choice([0.0, 60.0, 89.995, -90.0])
    for n in range(6):
        ra = rng.uniform(-2, 2) * SIDE / max(np.cos(np.radians(dec)), 1e-4)
        wcs = tan(ra % 360, np.clip(dec + rng.uniform(-1, 1) * SIDE, -90, 90), SHAPE, turn=rng.uniform(0, 360))
        mosaic(root / f"{n}-g.fits", np.zeros(SHAPE, np.float32), wcs)
    frames = find_frames(list(find_files(root, FITS)))[0]
    ra = rng.uniform(-3, 3, 200) * SIDE / max(np.cos(np.radians(dec)), 1e-4) % 360
    positions = np.array([ra, np.clip(dec + rng.uniform(-2, 2, 200) * SIDE, -90, 90)])
    depth = []
    for frame in frames:
        x, y = Astrometry(read_header(root / frame.files["g"])).pixels(*positions)
        depth.append(np.minimum.reduce([x + 0.5, SHAPE[1] - 0.5 - x, y + 0.5, SHAPE[0] - 0.5 - y]))
    depth = np.round(np.nan_to_num(np.array(depth), nan=-1) * SCALE, 3)
    want = np.where(depth.max(axis=0) >= 0, depth.argmax(axis=0), -1)
    np.testing.assert_array_equal(assign_frames(frames, Folder(root), ["g"], *positions).frame, want)


def test_another_band_is_read_if_a_header_is_broken(tmp_path: Path) -> None:
    frames = sky(tmp_path, {"a": (10.0, 0.0), "b": (20.0, 0.0)}, "gr")
    (tmp_path / "a-g.fits").write_bytes(b"")
    (tmp_path / "b-g.fits").write_bytes(b"broken")
    (tmp_path / "b-r.fits").write_bytes(b"broken")
    Table({"x": [1]}).write(tmp_path / "c-g.fits")
    frames = find_frames(list(find_files(tmp_path, FITS)))[0]
    assignment = assign_frames(frames, Folder(tmp_path), ["g", "r"], np.array([10.0, 20.0]), np.zeros(2))
    assert assignment.frame.tolist() == [0, -1]
    assert assignment.unreadable == [("b", "not a FITS file"), ("c", "no two-dimensional image in the file")]


def test_a_frame_without_wcs_is_named(tmp_path: Path) -> None:
    mosaic(tmp_path / "deep" / "a-g.fits", np.zeros(SHAPE, np.float32), None)
    frames = find_frames(list(find_files(tmp_path, FITS)))[0]
    with pytest.raises(InputError, match=r"deep/a-g.fits"):
        assign_frames(frames, Folder(tmp_path), ["g"], np.zeros(1), np.zeros(1))


def test_frames_that_may_be_bands_of_one(tmp_path: Path) -> None:
    for name, ra in (("blue", 10.0), ("far", 10.3), ("red", 10.0001)):
        mosaic(tmp_path / f"{name}.fits", np.zeros(SHAPE, np.float32), tan(ra, 0.0, SHAPE))
    frames = find_frames(list(find_files(tmp_path, FITS)))[0]
    assignment = assign_frames(frames, Folder(tmp_path), ["0"], np.array([10.0]), np.zeros(1))
    assert [frames[k].name for k in assignment.coincident() or ()] == ["blue", "red"]
    assignment = assign_frames(frames[:2], Folder(tmp_path), ["0"], np.array([10.0]), np.zeros(1))
    assert assignment.coincident() is None


def test_reason_for_no_match(tmp_path: Path) -> None:
    frames = sky(tmp_path, {"a": (10.0, 5.0), "b": (11.0, 6.0)})
    ra, dec = np.array([359.0, 1.0]), np.array([-3.0, 3.0])
    reason = assign_frames(frames, Folder(tmp_path), ["g"], ra, dec).no_match_reason(ra, dec, tmp_path)
    assert "ra 359 to 1, dec -3 to 3" in reason and "ra 10 to 11, dec 5 to 6" in reason
