"""Survey of remote frames: pixels as from a folder, each frame downloaded once, errors."""

from __future__ import annotations

import bz2
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import galscan
from galscan.core.errors import InputError
from galscan.surveys.base import Cutout, Failed, NoCoverage
from galscan.surveys.mosaics.frames import FramesSurvey
from galscan.surveys.mosaics.remote import RemoteFrames
from galscan.surveys.services.errors import ServiceUnavailableError
from tests.mosaics_on_disk import SCALE, mosaic, pixels, results, tan
from tests.services.loopback import Loopback

SHAPE = (120, 160)
SIDE = 160 * SCALE / 3600
FIELDS = 5
PLACE = "sas/dr17/eboss/photoObj/frames/301/756/2"


def frame(site: Path, field: int, band: str) -> Path:
    return site / PLACE / f"frame-{band}-000756-2-{field:04d}.fits.bz2"


def write_site(site: Path) -> Path:
    """Write frames in a row, a little apart, unless they are there."""
    for field in range(FIELDS if not site.exists() else 0):
        for k, band in enumerate("gri"):
            wcs = tan(10 + 1.1 * field * SIDE, 0.0, SHAPE)
            mosaic(frame(site, field, band), pixels(SHAPE, field) * 0.02 * (1 + k), wcs)
    return site


def played(
    service: Loopback, folder: Path, count: int = 40, site: Path | None = None, **settings: object
) -> tuple[Path, Path]:
    """Serve frames, by default those that all tests share; return the survey's file and a table of objects."""
    rng, rows = np.random.default_rng(3), []
    for field in range(FIELDS):
        ra = 10 + 1.1 * field * SIDE
        rows += [(ra + dx * SIDE, dy * SIDE, field) for dx, dy in rng.uniform(-0.3, 0.3, (-(-count // FIELDS), 2))]
    table = pd.DataFrame(rows, columns=["ra", "dec", "field"]).head(count).sample(frac=1, random_state=0)
    table.assign(id=range(count), run=756, camcol=2, efigi_t=-2).to_csv(folder / "objects.csv", index=False)
    service.frames(site or write_site(folder.parent / "sdss-site"))
    return service.survey("sdss-frames", folder, **{"connections": 1} | settings), folder / "objects.csv"


def remote(service: Loopback, folder: Path, *, keep: bool = False, **settings: object) -> RemoteFrames:
    config, table = played(service, folder, **settings)
    return RemoteFrames(str(config), table, folder / "frames", keep=keep, size=32)


def requests(service: Loopback) -> Counter[str]:
    return Counter(path.rsplit("/", 1)[1].removesuffix(".fits.bz2") for _, path, _ in service.log())


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def by_field(survey: RemoteFrames, kind: type) -> dict[int, set[str]]:
    """Return the reasons of one kind, by field."""
    fields = pd.read_csv(survey.catalog).set_index("id")["field"]
    found: dict[int, set[str]] = {}
    for identifier, outcome in results(survey).items():
        if isinstance(outcome, kind):
            found.setdefault(int(fields[identifier]), set()).add(getattr(outcome, "reason", ""))
    return found


def test_pixels_are_those_of_local_frames_and_each_frame_is_downloaded_once(service, tmp_path):
    survey = remote(service, tmp_path)
    local = FramesSurvey(tmp_path.parent / "sdss-site", survey.catalog, size=32)
    local.rendering = survey.rendering
    found, expected = results(survey), results(local)
    assert found.keys() == expected.keys() and len(found) == 40
    for identifier, outcome in found.items():
        assert isinstance(outcome, Cutout) and outcome.flags == expected[identifier].flags
        np.testing.assert_array_equal(outcome.image, expected[identifier].image)
        assert outcome.pixel_scale == expected[identifier].pixel_scale and outcome.image.max() > 60
    assert requests(service) == {f"frame-{b}-000756-2-{f:04d}": 1 for b in "gri" for f in range(FIELDS)}
    assert len(files(tmp_path / "frames")) <= 2 * 3, "only frames that are still open"


def test_two_frames_are_prefetched(service, tmp_path):
    cut = remote(service, tmp_path).cutouts(0, 40)
    assert isinstance(next(cut), Cutout)
    for _ in range(200):
        if requests(service).total() >= 9:
            break
        time.sleep(0.02)
    assert requests(service).total() == 9


def test_kept_frames_are_not_downloaded_again(service, tmp_path):
    first = results(remote(service, tmp_path, keep=True))
    assert len(files(tmp_path / "frames")) == 15 and not list((tmp_path / "frames").rglob("*.tmp"))
    service.behave("500")
    again = results(remote(service, tmp_path, keep=True))
    assert not service.log() and all((first[k].image == again[k].image).all() for k in first)


def test_failed_requests_are_repeated(service, tmp_path):
    survey = remote(service, tmp_path, tries=12, timeout=5.0)
    service.behave("503", "500", "truncated", "longer", "reset", "html", share=0.4, seed=5)
    bad = [o for o in results(survey).values() if not isinstance(o, Cutout)]
    assert all(isinstance(o, Failed) and "not a FITS file" in o.reason for o in bad)
    assert len(bad) < 40 and any(mode in ("503", "truncated") for *_, mode in service.log())


def test_missing_and_damaged_frames(service, tmp_path):
    site = write_site(tmp_path / "site")
    frame(site, 1, "r").unlink()
    whole = frame(site, 3, "i").read_bytes()
    frame(site, 3, "i").write_bytes(bz2.compress(bz2.decompress(whole)[:30_000]))
    frame(site, 4, "g").write_bytes(b"<html>Maintenance</html>")
    survey = remote(service, tmp_path, keep=True, site=site)
    assert by_field(survey, NoCoverage) == {1: {"the survey has no frame 301-756-2-1"}}
    failed = by_field(survey, Failed)
    assert failed.keys() == {3, 4} and all(len(reasons) == 1 for reasons in failed.values())
    assert failed[3].pop().startswith("frame 301-756-2-3: truncated: ")
    assert failed[4] == {"frame 301-756-2-4: the response is not a FITS image (not a FITS file)"}
    frame(site, 3, "i").write_bytes(whole)
    again = remote(service, tmp_path, keep=True, site=site)
    assert by_field(again, Failed).keys() == {4}, "a damaged frame is not kept"


def test_unavailable_host_raises(service, tmp_path):
    survey = remote(service, tmp_path, tries=1, give_up=2)
    service.behave("500")
    with pytest.raises(ServiceUnavailableError, match="HTTP 500"):
        results(survey)
    service.behave()
    assert all(isinstance(o, Cutout) for o in results(pickle.loads(pickle.dumps(survey))).values())


def test_too_large_frame_is_not_read(service, tmp_path):
    with pytest.raises(ServiceUnavailableError, match=r"0\.01 MB"):
        results(remote(service, tmp_path, max_mb=0.01))
    assert not files(tmp_path / "frames")


def test_objects_without_a_frame_or_on_another(service, tmp_path):
    config, path = played(service, tmp_path)
    table = pd.read_csv(path).sort_values("id").astype({"field": "Int64"})
    table.loc[table["id"] == 3, "field"] = pd.NA
    table.loc[table["id"] == 4, "ra"] = np.nan
    table.loc[table["id"] == 5, "ra"] = 190.0
    table.to_csv(path, index=False)
    survey = RemoteFrames(str(config), path, tmp_path / "frames", size=32)
    found = results(survey)
    assert found[3].reason == "no rerun or run or camcol or field in the catalog"
    assert found[4].reason == "no position in the catalog" and survey.notes[0].startswith("2 of 40 objects")
    assert isinstance(found[5], NoCoverage) and found[5].reason.startswith("only 0% of the stamp is on frame")
    assert sum(isinstance(o, Cutout) for o in found.values()) == 37


def test_bricks_by_name(service, tmp_path):
    place = tmp_path / "site/cfs/cosmo/data/legacysurvey/dr10/south/coadd/000/0001m002"
    for k, band in enumerate("grz"):
        path = place / f"legacysurvey-0001m002-image-{band}.fits.fz"
        mosaic(path, pixels(SHAPE, 1) * 0.005 * (1 + k), tan(0.1, -0.25, SHAPE))
    service.frames(tmp_path / "site")
    (tmp_path / "o.csv").write_text("id,ra,dec,BRICKNAME\n1,0.1,-0.25,0001m002\n2,0.101,-0.25,0001m002\n")
    config = service.survey("legacy-bricks", tmp_path)
    found = results(RemoteFrames(str(config), tmp_path / "o.csv", tmp_path / "frames", size=32, pixel_scale=0.8))
    assert all(isinstance(o, Cutout) and o.pixel_scale == pytest.approx(0.8, rel=1e-3) for o in found.values())


@pytest.mark.parametrize(
    ("change", "options", "value"),
    [
        ("drop", {}, r"no run and no field .*--query gz2"),
        ("drop", {"columns": {"run": "RUN_"}}, "'RUN_'"),
        ({"run": -1}, {}, "'run' .*-1"),
        ({"camcol": "../x"}, {}, r"'\.\./x'"),
        ({"field": np.nan}, {}, "rerun, run, camcol, field"),
        ({}, {"cone": (200.0, 0.0, 1.0)}, "--cone 200,0,1"),
        ({}, {"size": 64, "pixel_scale": 1e-4}, "--pixel-scale 0.0001.* 0.0162 "),
        ({}, {"columns": {"filed": "x"}}, "'filed'.*'field'"),
    ],
)
def test_wrong_input_is_refused_before_any_request(service, tmp_path, change, options, value):
    config, path = played(service, tmp_path, 5)
    table = pd.read_csv(path)
    table = table.drop(columns=["run", "field"]) if change == "drop" else table.assign(**change)
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match=value):
        RemoteFrames(str(config), path, tmp_path / "frames", **options)
    assert not service.log() and not (tmp_path / "frames").exists()


def test_metadata_are_those_of_the_pixels(service, tmp_path):
    config, table = played(service, tmp_path, 5)
    survey = RemoteFrames(str(config), table, tmp_path / "a", contact="me@example.org")
    metadata = survey.describe()
    assert metadata == RemoteFrames(str(config), table, tmp_path / "b", keep=True).describe()
    assert metadata["rendering"]["unit"] == {"g": 0.018, "r": 0.03, "i": 0.045} and "me@" not in str(metadata)
    assert RemoteFrames(str(config), table, tmp_path, size=32).describe() != metadata
    assert survey.plan() | {"host": "", "per_minute": 0, "seconds": 0} == {
        "frames": 5, "host": "", "per_minute": 0, "requests": 15, "seconds": 0, "megabytes": 45.0,
    }  # fmt: skip


def test_ingest(service, tmp_path, capsys):
    config, table = played(service, tmp_path)
    options = {"catalog": table, "size": 16, "out": tmp_path / "s.zarr"}
    galscan.ingest(str(config), dry_run=True, **options)
    plan = capsys.readouterr().err
    assert "plan: 5 frames" in plan and "plan: 15 requests" in plan
    assert not service.log() and not (tmp_path / "s.zarr").exists()
    store = galscan.ingest(str(config), **options)
    assert store.count == 40 and requests(service).total() == 15
    assert not list(tmp_path.glob(".*.galscan-*")) and (tmp_path / "s.manifest.parquet").exists()
    assert galscan.ingest(str(config), keep_frames=tmp_path / "kept", **options).content_hash == store.content_hash
    with pytest.raises(InputError, match="keep-frames"):
        galscan.ingest("sdss", keep_frames=tmp_path, catalog=table)
    with pytest.raises(InputError, match=r"'legacy-bricks' .*brickname"):
        galscan.ingest("legacy-bricks", cone=(1.0, 1.0, 1.0), out=tmp_path / "l.zarr")


def test_resumed_after_a_kill(service, tmp_path):
    """Of 600 objects in three shards: nothing is lost, and no frame that was kept is downloaded again."""
    config, table = played(service, tmp_path, 600, per_minute=100)
    options = {"catalog": table, "size": 16, "keep_frames": tmp_path / "kept"}
    line = ["ingest", "--survey", config, "--catalog", table, "--size", "16", "--out", tmp_path / "s.zarr"]
    command = [sys.executable, "-m", "galscan", *map(str, line), "--keep-frames", str(tmp_path / "kept")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ)
    for _ in range(3000):
        if list((tmp_path / "s.zarr.partial").glob(".ingest/shard-*")) or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "s.zarr").exists() and requests(service).total() < 15
    resumed = galscan.ingest(str(config), out=tmp_path / "s.zarr", **options)
    times = sorted(requests(service).values())
    assert len(times) == 15 and times[-2] == 1 and times[-1] <= 2, "only the frame in transit is requested twice"
    assert resumed.content_hash == galscan.ingest(str(config), out=tmp_path / "whole.zarr", **options).content_hash
