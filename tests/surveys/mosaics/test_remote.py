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
from tests.mosaics_on_disk import SCALE, mosaic, pixels, tan
from tests.services.loopback import Loopback

SHAPE = (120, 160)
SIDE = 160 * SCALE / 3600
FIELDS = 5
PLACE = "sas/dr17/eboss/photoObj/frames/301/756/2"


def frame(folder: Path, field: int, band: str) -> Path:
    return folder / PLACE / f"frame-{band}-000756-2-{field:04d}.fits.bz2"


def played(service: Loopback, folder: Path, count: int = 40, **settings: object) -> tuple[Path, Path]:
    """Put frames on the loopback server, in a row and a little apart; return the survey's file and a table."""
    rng, rows = np.random.default_rng(3), []
    for field in range(FIELDS):
        ra = 10 + 1.1 * field * SIDE
        for k, band in enumerate("gri"):
            mosaic(frame(folder / "site", field, band), pixels(SHAPE, field) * 0.02 * (1 + k), tan(ra, 0.0, SHAPE))
        rows += [(ra + dx * SIDE, dy * SIDE, field) for dx, dy in rng.uniform(-0.3, 0.3, (-(-count // FIELDS), 2))]
    table = pd.DataFrame(rows, columns=["ra", "dec", "field"]).head(count).sample(frac=1, random_state=0)
    table.assign(id=range(count), run=756, camcol=2, efigi_t=-2).to_csv(folder / "objects.csv", index=False)
    service.frames(folder / "site")
    return service.survey("sdss-frames", folder, **{"connections": 1} | settings), folder / "objects.csv"


def asked(service: Loopback) -> Counter[str]:
    return Counter(path.rsplit("/", 1)[1].removesuffix(".fits.bz2") for _, path, _ in service.log())


def outcomes(survey: RemoteFrames | FramesSurvey) -> dict[int, object]:
    return dict(zip(survey.ids.tolist(), survey.cutouts(0, len(survey)), strict=True))


def by_field(survey: RemoteFrames, kind: type) -> dict[int, set[str]]:
    """Return the reasons of one kind, by field."""
    fields = pd.read_csv(survey.catalog).set_index("id")["field"]
    found: dict[int, set[str]] = {}
    for identifier, outcome in outcomes(survey).items():
        if isinstance(outcome, kind):
            found.setdefault(int(fields[identifier]), set()).add(getattr(outcome, "reason", ""))
    return found


def test_the_same_pixels_as_from_a_folder_and_each_frame_once(service, tmp_path):
    declared, table = played(service, tmp_path)
    survey = RemoteFrames(str(declared), table, tmp_path / "passing", size=32)
    local = FramesSurvey(tmp_path / "site", table, size=32)
    local.rendering = survey.rendering
    mine, others = outcomes(survey), outcomes(local)
    assert mine.keys() == others.keys() and len(mine) == 40
    for identifier, outcome in mine.items():
        assert isinstance(outcome, Cutout) and outcome.flags == others[identifier].flags
        np.testing.assert_array_equal(outcome.image, others[identifier].image)
        assert outcome.pixel_scale == others[identifier].pixel_scale and outcome.image.max() > 60
    assert asked(service) == {f"frame-{b}-000756-2-{f:04d}": 1 for b in "gri" for f in range(FIELDS)}
    assert len(list((tmp_path / "passing").rglob("*.bz2"))) <= 2 * 3, "but for those still open, they went after use"


def test_the_next_is_fetched_while_one_is_cut(service, tmp_path):
    declared, table = played(service, tmp_path)
    survey = RemoteFrames(str(declared), table, tmp_path / "passing", size=32)
    cut = survey.cutouts(0, len(survey))
    assert isinstance(next(cut), Cutout)
    for _ in range(200):
        if sum(asked(service).values()) >= 9:
            break
        time.sleep(0.02)
    assert sum(asked(service).values()) == 9, "that at work and two more, no further"
    list(cut)
    assert sum(asked(service).values()) == 15


def test_kept_frames_are_found_again(service, tmp_path):
    declared, table = played(service, tmp_path)
    first = outcomes(RemoteFrames(str(declared), table, tmp_path / "kept", keep=True, size=32))
    kept = sorted((tmp_path / "kept").rglob("*"))
    assert sum(p.is_file() for p in kept) == 15 and not list((tmp_path / "kept").rglob("*.tmp"))
    service.behave("500")
    again = outcomes(RemoteFrames(str(declared), table, tmp_path / "kept", keep=True, size=32))
    assert not service.log() and all((first[k].image == again[k].image).all() for k in first)


def test_it_heals(service, tmp_path):
    declared, table = played(service, tmp_path, tries=12, timeout=5.0)
    service.behave("503", "500", "truncated", "longer", "reset", "html", share=0.4, seed=5)
    survey = RemoteFrames(str(declared), table, tmp_path / "passing", size=32)
    found = outcomes(survey)
    bad = [o for o in found.values() if not isinstance(o, Cutout)]
    assert all(isinstance(o, Failed) and "the response is not a FITS image (not a FITS file)" in o.reason for o in bad)
    assert len(bad) < 40 and any(mode in ("503", "truncated") for *_, mode in service.log())


def test_a_frame_that_is_not_there_and_one_that_is_damaged(service, tmp_path):
    declared, table = played(service, tmp_path)
    frame(tmp_path / "site", 1, "r").unlink()
    whole = frame(tmp_path / "site", 3, "i").read_bytes()
    frame(tmp_path / "site", 3, "i").write_bytes(bz2.compress(bz2.decompress(whole)[:30_000]))
    frame(tmp_path / "site", 4, "g").write_bytes(b"<html>Maintenance</html>")
    survey = RemoteFrames(str(declared), table, tmp_path / "kept", keep=True, size=32)
    assert by_field(survey, NoCoverage) == {1: {"the survey has no frame 301-756-2-1"}}
    failed = by_field(survey, Failed)
    assert failed.keys() == {3, 4} and all(len(reasons) == 1 for reasons in failed.values())
    assert failed[3].pop().startswith("frame 301-756-2-3: truncated: ")
    assert failed[4] == {"frame 301-756-2-4: the response is not a FITS image (not a FITS file)"}
    frame(tmp_path / "site", 3, "i").write_bytes(whole)
    again = RemoteFrames(str(declared), table, tmp_path / "kept", keep=True, size=32)
    assert by_field(again, Failed).keys() == {4}, "a damaged frame is not kept"


def test_a_host_that_is_down_stops_the_work(service, tmp_path):
    declared, table = played(service, tmp_path, tries=1, give_up=2)
    survey = RemoteFrames(str(declared), table, tmp_path / "passing", size=32)
    service.behave("500")
    with pytest.raises(ServiceUnavailableError, match="2 failures in a row, the last was HTTP 500"):
        outcomes(survey)
    service.behave()
    assert all(isinstance(o, Cutout) for o in outcomes(pickle.loads(pickle.dumps(survey))).values())


def test_a_frame_too_large_is_not_read(service, tmp_path):
    declared, table = played(service, tmp_path, max_mb=0.01)
    with pytest.raises(ServiceUnavailableError, match=r"Content-Length is 0 MB, at most 0\.01 MB"):
        outcomes(RemoteFrames(str(declared), table, tmp_path / "passing", size=32))
    assert not [p for p in (tmp_path / "passing").rglob("*") if p.is_file()]


def test_objects_without_a_frame_or_on_another(service, tmp_path):
    declared, path = played(service, tmp_path)
    table = pd.read_csv(path).sort_values("id").astype({"field": "Int64"})
    table.loc[table["id"] == 3, "field"] = pd.NA
    table.loc[table["id"] == 4, "ra"] = np.nan
    table.loc[table["id"] == 5, "ra"] = 190.0
    table.to_csv(path, index=False)
    survey = RemoteFrames(str(declared), path, tmp_path / "passing", size=32)
    found = outcomes(survey)
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
    declared = service.survey("legacy-bricks", tmp_path)
    found = outcomes(RemoteFrames(str(declared), tmp_path / "o.csv", tmp_path / "passing", size=32, pixel_scale=0.8))
    assert all(isinstance(o, Cutout) and o.pixel_scale == pytest.approx(0.8, rel=1e-3) for o in found.values())


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (
            "drop",
            {},
            r"has no run and no field column, which identifies .* of survey 'sdss-frames': .*--query gz2.*--column",
        ),
        ("drop", {"columns": {"run": "RUN_"}}, "has no column 'RUN_' for run"),
        ({"run": -1}, {}, "column 'run' of .* is -1 for .*; it must be an integer of at least 0"),
        ({"camcol": "../x"}, {}, "column 'camcol' of .* is '../x' for .*, which is not the name of a frame"),
        ({"field": np.nan}, {}, "no object of .* has a position and rerun, run, camcol, field"),
        ({}, {"cone": (200.0, 0.0, 1.0)}, "no object of .* lies in --cone 200,0,1"),
        ({}, {"size": 64, "pixel_scale": 1e-4}, "--pixel-scale 0.0001: a cutout of 64 pixels would be 0.0162 pixels"),
        ({}, {"columns": {"filed": "x"}}, "unknown role 'filed'; did you mean 'field'"),
    ],
)
def test_mistakes_are_told_before_anybody_is_asked(service, tmp_path, change, given, message):
    declared, path = played(service, tmp_path, 5)
    table = pd.read_csv(path)
    table = table.drop(columns=["run", "field"]) if change == "drop" else table.assign(**change)
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        RemoteFrames(str(declared), path, tmp_path / "passing", **given)
    assert not service.log() and not (tmp_path / "passing").exists()


def test_settings_decide_what_is_gone_on_with(service, tmp_path):
    declared, table = played(service, tmp_path, 5)
    survey = RemoteFrames(str(declared), table, tmp_path / "a", contact="me@example.org")
    said = survey.describe()
    assert said == RemoteFrames(str(declared), table, tmp_path / "b", keep=True).describe()
    assert said["rendering"]["unit"] == {"g": 0.018, "r": 0.03, "i": 0.045} and "me@" not in str(said)
    assert RemoteFrames(str(declared), table, tmp_path, size=32).describe() != said
    assert survey.plan() | {"host": "", "per_minute": 0, "seconds": 0} == {
        "frames": 5, "host": "", "per_minute": 0, "requests": 15, "seconds": 0, "megabytes": 45.0,
    }  # fmt: skip


def test_from_the_command(service, tmp_path, capsys):
    declared, table = played(service, tmp_path)
    given = {"catalog": table, "size": 16, "out": tmp_path / "s.zarr"}
    galscan.ingest(str(declared), dry_run=True, **given)
    said = capsys.readouterr().err
    assert "plan: 5 frames" in said and "plan: 15 requests" in said and "if nothing is downloaded" in said
    assert not service.log() and not (tmp_path / "s.zarr").exists()
    store = galscan.ingest(str(declared), **given)
    assert store.count == 40 and sum(asked(service).values()) == 15
    assert not list(tmp_path.glob(".*.galscan-*")) and (tmp_path / "s.manifest.parquet").exists()
    assert galscan.ingest(str(declared), keep_frames=tmp_path / "kept", **given).content_hash == store.content_hash
    with pytest.raises(InputError, match="does not take keep-frames; leave it out, or use survey sdss-frames"):
        galscan.ingest("sdss", keep_frames=tmp_path, catalog=table)
    with pytest.raises(InputError, match=r"'legacy-bricks' needs objects with brickname: --catalog TABLE; .*sweep"):
        galscan.ingest("legacy-bricks", cone=(1.0, 1.0, 1.0), out=tmp_path / "l.zarr")


@pytest.mark.parametrize("keep", [pytest.param(False, marks=pytest.mark.slow), True])
def test_kill_9_then_the_same_command(service, tmp_path, keep):
    """Of 600 objects in three shards: nothing is lost, and of frames that were kept none is asked for twice."""
    declared, table = played(service, tmp_path, 600, per_minute=300)
    expected = galscan.ingest(str(declared), catalog=table, size=16, out=tmp_path / "whole.zarr").content_hash
    service.behave()
    line = ["ingest", "--survey", str(declared), "--catalog", str(table), "--size", "16", "--out", tmp_path / "s.zarr"]
    line += ["--keep-frames", tmp_path / "kept"] if keep else []
    command = [sys.executable, "-m", "galscan", *map(str, line)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ)
    for _ in range(1200):
        if list((tmp_path / "s.zarr.partial").glob(".ingest/shard-*")) or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "s.zarr").exists() and sum(asked(service).values()) < 15
    assert subprocess.run(command, env=os.environ, capture_output=True).returncode == 0
    assert galscan.open_store(tmp_path / "s.zarr").content_hash == expected
    times = sorted(asked(service).values())
    assert len(times) == 15 and times[-2] == 1 and times[-1] <= 2, "one that was on its way may be asked for again"
