"""Cutana's Zarr as Cutana writes it, complete and damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from astropy.io import fits
from astropy.wcs import WCS

from galscan.core.errors import InputError
from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.files.cutana import CutanaSurvey, find_archives
from galscan.surveys.files.images import Rendering
from galscan.surveys.mosaics.frames import FramesSurvey
from tests.packed_on_disk import pictures, planes, write_cutana
from tests.pictures_on_disk import OBJID

RUN = """
import sys
from cutana import Orchestrator, get_default_config
config = get_default_config()
config.source_catalogue, config.output_dir, config.output_format = sys.argv[1], sys.argv[2], "zarr"
config.target_resolution, config.data_type, config.normalisation_method = 32, sys.argv[3], sys.argv[4]
config.selected_extensions = [{"name": b, "ext": "PrimaryHDU"} for b in "gri"]
config.channel_weights = {b: [float(b == c) for c in "irg"] for b in "gri"}
config.apply_flux_conversion, config.skip_fits_check, config.N_batch_cutout_process = False, True, 10
config.max_workers, config.loadbalancer.skip_memory_calibration_wait = 1, True
config.loadbalancer.main_process_memory_reserve_gb = 0.5
if __name__ == "__main__":
    result = Orchestrator(config).run()
    assert result["status"] == "completed", result
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let Cutana itself cut 20 galaxies out of a mosaic: uint8, and fluxes as floats; GALSCAN_CUTANA is its python."""
    python = os.environ.get("GALSCAN_CUTANA") or (sys.executable if find_spec("cutana") else "")
    if not python:
        pytest.skip("Cutana is not installed here; name the python that has it with GALSCAN_CUTANA")
    root = tmp_path_factory.mktemp("cutana")
    rng, side, count = np.random.default_rng(0), 512, 20
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150, 2], [256.5, 256.5]
    wcs.wcs.cdelt = [-0.2 / 3600, 0.2 / 3600]
    x, y = rng.uniform(40, 470, (2, count))
    rows, columns = np.mgrid[:side, :side]
    for b, band in enumerate("gri"):
        image = rng.normal(0, 1, (side, side))
        for cx, cy in zip(x, y, strict=True):  # a star to the north of each galaxy
            image += 40 * np.exp(-((columns - cx) ** 2 + (rows - cy) ** 2) / 20)
            image += 200 * (b + 1) * np.exp(-((columns - cx) ** 2 + (rows - cy - 10) ** 2) / 3)
        (root / "frames").mkdir(exist_ok=True)
        fits.PrimaryHDU(image.astype(np.float32), wcs.to_header()).writeto(root / "frames" / f"mosaic-{band}.fits")
    ra, dec = wcs.all_pix2world(x, y, 0)
    files = str([str(root / "frames" / f"mosaic-{band}.fits") for band in "gri"])
    table = pd.DataFrame({"SourceID": OBJID + np.arange(count), "RA": ra, "Dec": dec})
    table.assign(diameter_pixel=32, fits_file_paths=files).to_csv(root / "sources.csv", index=False)
    table.rename(columns={"SourceID": "id", "RA": "ra", "Dec": "dec"}).to_csv(root / "objects.csv", index=False)
    (root / "run.py").write_text(RUN)
    for out, options in {"bytes": ("uint8", "asinh"), "floats": ("float32", "none")}.items():
        command = [python, root / "run.py", root / "sources.csv", root / out, *options]
        subprocess.run(command, check=True, timeout=200, capture_output=True, cwd=root)
    return root


def test_files_written_by_cutana(real: Path) -> None:
    truth = FramesSurvey(real / "frames", real / "objects.csv", size=32, bands="gri")
    expected = dict(zip(truth.ids.tolist(), truth.cutouts(0, 20), strict=True))
    floats, bytes_ = CutanaSurvey(real / "floats", size=32), CutanaSurvey(real / "bytes", size=32)
    assert floats.ids.dtype == np.int64 and sorted(floats.ids.tolist()) == sorted(expected)
    np.testing.assert_allclose(floats.pixel_scale, 0.2, rtol=1e-5)
    assert np.ptp(floats.ra) > 0 and floats.rendering.red == "red"
    # With the frames' own stretch the pixels are exactly those that galscan cuts out itself, the right way up.
    unit, subtract = truth.rendering.unit, truth.rendering.subtract
    colours = dict(zip(("red", "green", "blue"), "irg", strict=True))
    floats.rendering = Rendering(
        *colours, {c: unit[b] for c, b in colours.items()}, {c: subtract[b] for c, b in colours.items()}
    )
    for identifier, outcome in zip(floats.ids.tolist(), floats.cutouts(0, 20), strict=True):
        # Of an even number of pixels Cutana takes the middle one further to the south-west than astropy does.
        np.testing.assert_array_equal(expected[identifier].image[1:, :-1], outcome.image[:-1, 1:])
    for identifier, outcome in zip(bytes_.ids.tolist(), bytes_.cutouts(0, 20), strict=True):
        ours, theirs = expected[identifier].image[1:, :-1].astype(float), outcome.image[:-1, 1:].ravel().astype(float)
        upright, turned = (np.corrcoef(image.ravel(), theirs)[0, 1] for image in (ours, ours[::-1]))
        assert upright > 0.7 and upright > turned + 0.2  # another stretch of the same pixels


def test_the_layout_written_here_is_that_of_cutana(real: Path, tmp_path: Path) -> None:
    write_cutana(tmp_path, pictures(20, size=32), batch=20)
    ours, theirs = (next(root.glob("batch_*")) for root in (tmp_path, real / "bytes"))
    for name in ("images_metadata.parquet", "../source_to_zarr_mapping.parquet"):
        one, other = pd.read_parquet(ours / name), pd.read_parquet(theirs / name)
        assert one.dtypes.to_dict() == other.dtypes.to_dict() and len(one) == len(other)
    one, other = (json.loads((b / "images.zarr" / "images" / "zarr.json").read_text()) for b in (ours, theirs))
    for key in ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "zarr_format", "codecs"):
        assert one[key] == other[key], key
    assert set(dict(zarr.open_group(ours / "images.zarr").attrs)) <= set(
        dict(zarr.open_group(theirs / "images.zarr").attrs)
    )


def test_a_chunk_is_decompressed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cutana(tmp_path, pictures(130), batch=65)
    survey = CutanaSurvey(tmp_path, size=16)
    keys: list[object] = []
    read = zarr.Array.__getitem__
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda self, key: keys.append(key) or read(self, key))
    assert len(list(survey.cutouts(0, 1000))) == 130 and len(keys) == 14  # of 10 images, and two of 5
    assert survey.ids.dtype == np.int64 and survey.ids[[0, -1]].tolist() == [OBJID, OBJID + 129]


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b[:-1], lambda b: b"", lambda b: b"\7" * len(b)])
def test_a_damaged_chunk_fails_alone(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_cutana(tmp_path, pictures(40))
    chunk = next(tmp_path.glob("*/images.zarr/images/c/1/0/0/0"))
    chunk.write_bytes(damage(chunk.read_bytes()))
    next(tmp_path.glob("*/images.zarr/images/c/2/0/0/0")).unlink()
    outcomes = list(CutanaSurvey(tmp_path, size=16).cutouts(0, 40))
    assert all(isinstance(o, Cutout) for o in [*outcomes[:10], *outcomes[30:]])
    assert all(isinstance(o, Failed) and o.flag == Flag.UNREADABLE and o.reason for o in outcomes[10:20])
    assert {o.flag for o in outcomes[20:30]} == {Flag.BLANK}


def test_metadata_that_do_not_match_the_images(tmp_path: Path) -> None:
    write_cutana(tmp_path, pictures(10))
    file = next(tmp_path.glob("*/images_metadata.parquet"))
    table = pd.read_parquet(file)
    pd.concat([table, table.assign(source_id=lambda f: f["source_id"] + "x")]).to_parquet(file)
    outcomes = list(CutanaSurvey(tmp_path, size=16).cutouts(0, 20))
    assert [isinstance(o, Cutout) for o in outcomes] == [True] * 10 + [False] * 10
    assert outcomes[10] == Failed("listed in the metadata, but has no image", Flag.MISSING)
    table[:5].to_parquet(file)
    with pytest.raises(InputError, match=r"10 images.* 5 objects"):
        CutanaSurvey(tmp_path)
    file.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=file.parent.name):
        CutanaSurvey(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match=file.name):
        CutanaSurvey(tmp_path)


def test_unusable_shapes(tmp_path: Path) -> None:
    write_cutana(tmp_path / "four", np.zeros((3, 20, 20, 4), np.uint8))
    assert {o.flag for o in CutanaSurvey(tmp_path / "four").cutouts(0, 3)} == {Flag.WRONG_SHAPE}
    write_cutana(tmp_path / "wide", pictures(3)[:, :12])
    assert [o.reason for o in CutanaSurvey(tmp_path / "wide").cutouts(0, 1)] == ["12 x 20 pixels, not square"]
    write_cutana(tmp_path / "first", planes(3))  # channels first, as images-to-zarr writes what it read from files
    write_cutana(tmp_path / "last", np.moveaxis(planes(3), 1, -1))
    for one, other in zip(*(CutanaSurvey(tmp_path / n, size=20).cutouts(0, 3) for n in ("first", "last")), strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_other_archives(tmp_path: Path) -> None:
    write_cutana(tmp_path / "run", pictures(3))
    zarr.open_group(tmp_path / "other.zarr", mode="w").create_array("spectra", shape=(3,), dtype="f4")
    assert find_archives(tmp_path) == [] and len(find_archives(tmp_path / "run")) == 1
    flat = zarr.open_group(tmp_path / "flat" / "images.zarr", mode="w")
    flat.create_array("images", shape=(3, 20), dtype="f4")
    pd.DataFrame({"source_id": range(3)}).to_parquet(tmp_path / "flat" / "images_metadata.parquet")
    with pytest.raises(InputError, match="flat"):
        CutanaSurvey(tmp_path / "flat")
