"""``galscan ingest`` of surveys by service, run as by a user."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import galscan
from galscan.cli import main
from galscan.core.errors import ConflictError, InputError, Interrupted
from galscan.store.manifest import outcomes
from galscan.surveys.services.errors import ServiceUnavailableError
from galscan.surveys.sizes import DEFAULT_SIZE
from tests.mosaics_on_disk import pixels, tan, three_bands
from tests.services import sky
from tests.services.loopback import galaxies


@pytest.fixture
def run(service, tmp_path: Path):
    """Return a function that ingests 40 objects from a survey on loopback."""
    table = galaxies(tmp_path / "objects.csv", 40)

    def ingest(name: str = "sdss", settings: dict | None = None, **options):
        declared = service.survey(name, tmp_path, **{"tries": 2} | (settings or {}))
        return galscan.ingest(str(declared), **{"out": tmp_path / "s.zarr", "catalog": table, "size": 32} | options)

    return ingest


def larger(place: Path) -> Path:
    """Write a catalog of the 40 objects of `run`, where they are, and of 60 more."""
    table, places = pd.read_csv(galaxies(place / "more.csv", 100)), ["ra", "dec"]
    table.loc[:39, places] = pd.read_csv(place / "objects.csv")[places]
    table.to_csv(place / "more.csv", index=False)
    return place / "more.csv"


def test_from_a_table_to_a_store(run, service, tmp_path, capsys):
    store = run(labels="efigi")
    manifest = pd.read_parquet(tmp_path / "s.manifest.parquet")
    covered = [sky.covered(r, d) for r, d in zip(manifest["ra"], manifest["dec"], strict=True)]
    assert manifest["outcome"].tolist() == ["stored" if c else "no_coverage" for c in covered]
    images = store.images()
    for k in np.flatnonzero(covered):
        assert sky.read_code(images[k]) == sky.code(manifest["ra"][k], manifest["dec"][k])
    assert store.labels("efigi")["t"].eq(-2).all() and store.attrs["provenance"]["release"] == "DR17"
    output = capsys.readouterr().err
    assert f"{sum(covered)} cutouts stored" in output and f"no coverage: {40 - sum(covered)}, failed: 0" in output
    requests = len(service.log())
    assert run(labels="efigi").content_hash == store.content_hash and len(service.log()) == requests == 40
    assert sorted(p.name for p in tmp_path.iterdir()) == ["objects.csv", "s.manifest.parquet", "s.zarr", "sdss.toml"]


def test_stores_share_the_cache(run, service, tmp_path):
    run()
    run(out=tmp_path / "other.zarr")
    assert len(service.log()) == 40
    run(out=tmp_path / "third.zarr", cache=False)
    assert len(service.log()) == 80 and not list(tmp_path.glob(".*.galscan-*"))


def test_failed_objects_are_retried(run, service, capsys):
    service.behave("500", "html", share=0.6, seed=5)
    first = outcomes(run())
    assert first["failed"] > 3 and first["stored"] > 3
    output = capsys.readouterr().err
    assert "failed with '" in output and "use --retry-failed" in output
    service.behave()
    store = run(retry_failed=True)
    assert outcomes(store)["failed"] == 0
    for k in np.flatnonzero(store.column("flags") & 31 == 0):
        assert sky.read_code(store.images()[k]) == sky.code(store.column("ra")[k], store.column("dec")[k])


def test_not_found_is_requested_again_only_by_retry_failed(run, service):
    service.behave("404")
    assert outcomes(run())["no_coverage"] == 40
    service.behave()
    assert outcomes(run())["no_coverage"] == 40 and not service.log()
    assert 30 < outcomes(run(retry_failed=True))["stored"] < 40 and len(service.log()) == 40


def test_an_unavailable_service_and_resume(run, service, tmp_path):
    run(settings={"give_up": 3}, out=tmp_path / "calm.zarr")
    service.behave("500")
    with pytest.raises(ServiceUnavailableError, match=r": \d failures in a row, the last was HTTP 500"):
        run(settings={"give_up": 3}, cache=False)
    assert not (tmp_path / "s.zarr").exists()
    service.behave()
    assert run(cache=False).content_hash == galscan.open(tmp_path / "calm.zarr").content_hash


def test_dry_run(run, service, tmp_path, capsys):
    plan = run("panstarrs", {"per_minute": 30}, dry_run=True)
    assert plan["requests"] == 80 and plan["seconds"] == pytest.approx(80 * 2 * 1.03) and not service.log()
    output = capsys.readouterr().err
    assert "80 requests to 127.0.0.1" in output and "30 a minute at most: 0:02:45" in output
    assert not (tmp_path / "s.zarr").exists() and not (tmp_path / "s.zarr.partial").exists()
    assert run(catalog=None, query="gz2", dry_run=True) == {"objects": None, "out": str(tmp_path / "s.zarr")}


def test_galaxy_zoo_from_one_command(run, service, tmp_path):
    pytest.importorskip("astroquery", reason="needs the extra services")
    path = service.survey("sdss", tmp_path)
    path.write_text(path.read_text().replace("per_minute = 20", "per_minute = 60000"))
    line = f"ingest --survey {path} --query gz2 --labels gz2 --cone 180,10,12 --out {tmp_path}/gz2.zarr --size 16"
    assert main.run(line.split()) == 0
    store = galscan.open(tmp_path / "gz2.zarr")
    assert len(store.schemas["gz2"]) == 37 + 11 and 0 < store.count < 100 and store.column("id").dtype == np.int64
    assert store.labels("gz2").notna().any(axis=None)
    scale, images = store.column("pixel_scale"), store.images()
    radius = pd.read_parquet(tmp_path / "gz2.objects.parquet").set_index("id")["petroR90_r"]
    for k in np.flatnonzero(np.isfinite(scale)):
        assert scale[k] * 16 == pytest.approx(8.48 * radius[store.column("id")[k]])
        assert sky.read_code(images[k]) == sky.code(store.column("ra")[k], store.column("dec")[k])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"catalog": None}, "--catalog TABLE, --query gz2"),
        ({"query": "gz2"}, "--catalog and --query"),
        ({"path": "images"}, "path"),
        ({"rare_fraction": 0.1}, "rare-fraction"),
        ({"cone": (0.0, 90.0, 0.001)}, "--cone 0,90,0.001"),
        ({"cone": (0.0, 91.0, 1.0)}, "--cone 0,91,1"),
        ({"contact": "a\nb"}, "one line each"),
        ({"labels": "gz2"}, "'gz2'"),
        ({"columns": {"ra": "right"}}, "'right'"),
    ],
)
def test_invalid_arguments(run, given, message):
    with pytest.raises(InputError, match=message):
        run(**given)


def test_options_of_services_are_not_for_others(tmp_path):
    with pytest.raises(InputError, match="query, layer"):
        galscan.ingest("local", path=tmp_path, query="gz2", layer="x")
    with pytest.raises(InputError, match="'sdss'"):
        galscan.ingest("sds")
    with pytest.raises(ConflictError):
        (tmp_path / "f").touch()
        galscan.ingest("simulated", out=tmp_path / "f", count=10, size=16, dry_run=True)


def test_contact_from_the_environment(run, monkeypatch):
    monkeypatch.setenv("GALSCAN_CONTACT", "me@example.org")
    store = run(settings={"needs_contact": True})
    assert store.count == 40 and "me@" not in str(store.attrs["provenance"])


# ------------------------------------------------------------------------------------------------ a store that grows


def right(store) -> bool:
    """Return whether each object with an image has its own."""
    images, ra, dec = store.images(), store.column("ra"), store.column("dec")
    good = np.flatnonzero(store.column("flags") & 31 == 0)
    return len(good) > 10 and all(sky.read_code(images[k]) == sky.code(ra[k], dec[k]) for k in good)


def test_a_larger_catalog_adds_what_is_new(run, service, tmp_path, capsys):
    first = run(labels="efigi")
    assert run(append=True, labels="efigi").content_hash == first.content_hash and len(service.log()) == 40
    table = pd.read_csv(larger(tmp_path))
    table.sample(frac=1, random_state=1).to_csv(tmp_path / "more.csv", index=False)  # old and new ones mixed
    with pytest.raises(ConflictError, match="--append"):
        run(catalog=tmp_path / "more.csv", labels="efigi")
    capsys.readouterr()
    plan = run(catalog=tmp_path / "more.csv", labels="efigi", append=True, dry_run=True)
    assert (plan["objects"], plan["present"], plan["requests"], plan["shards"]) == (60, 40, 60, 1)
    assert "plan: 40 of 100 objects are already among the 40 in" in capsys.readouterr().err
    store = run(catalog=tmp_path / "more.csv", labels="efigi", append=True)
    assert "60 objects added to the 40 in the store" in capsys.readouterr().err
    assert len(service.log()) == 100 and store.content_hash != first.content_hash
    assert store.count == 100 and right(store) and set(store.column("id")) == set(table["id"])
    assert store.column("id")[:40].tolist() == first.column("id").tolist()
    manifest = pd.read_parquet(tmp_path / "s.manifest.parquet")
    assert manifest["id"].tolist() == store.column("id").tolist()
    assert galscan.info(store.path)["appended"] == [
        {"objects": 60, "of": 100, "catalog": str(tmp_path / "more.csv"), "cone": None}
    ]
    assert run(catalog=tmp_path / "more.csv", labels="efigi", append=True).content_hash == store.content_hash
    assert "0 objects added to the 100" in capsys.readouterr().err and len(service.log()) == 100


@pytest.mark.parametrize(
    ("name", "given", "output"),
    [
        ("sdss", {"size": 16}, "size was 32, is 16"),
        ("sdss", {"pixel_scale": 0.2}, r"framing.pixel_scale was 0.8, is 0.2"),
        ("sdss", {"labels": "efigi"}, "schemas.efigi was null"),
        ("panstarrs", {}, "bands|format|layer|release was .DR17., is .DR2."),
        ("sdss", {"name": "other"}, "name was .s., is .other."),
    ],
)
def test_other_surveys_are_not_appended(run, service, tmp_path, name, given, output):
    before = run().content_hash
    service.behave()
    given = {"out": tmp_path / "s.zarr", "size": 32, "catalog": galaxies(tmp_path / "more.csv", 50)} | given
    with pytest.raises(ConflictError, match=output):
        galscan.ingest(str(service.survey(name, tmp_path)), append=True, **given)
    assert not service.log() and galscan.open(tmp_path / "s.zarr").content_hash == before


def test_a_wider_cone(service, tmp_path, capsys):
    pytest.importorskip("astroquery", reason="needs the extra services")
    path = service.survey("sdss", tmp_path)
    path.write_text(path.read_text().replace("per_minute = 20", "per_minute = 60000"))

    def ingest(radius: int, *more: str) -> None:
        line = f"ingest --survey {path} --cone 180,10,{radius} --out {tmp_path}/gz2.zarr --size 16"
        assert main.run([*line.split(), *more]) == 0

    ingest(8, "--append")
    small = galscan.open(tmp_path / "gz2.zarr").column("id")
    ingest(12, "--append")
    requests = len(service.log())
    ingest(12, "--append")
    assert len(service.log()) == requests, "neither the database nor the service is requests twice"
    store = galscan.open(tmp_path / "gz2.zarr")
    wide = pd.read_parquet(tmp_path / "gz2.objects-2.parquet")["id"]
    assert 0 < len(small) < store.count == len(wide) and set(store.column("id")) == set(wide)
    assert store.column("id")[: len(small)].tolist() == small.tolist()
    capsys.readouterr()
    assert main.run(f"ingest --survey {path} --cone 180,10,9 --out {tmp_path}/gz2.zarr --size 16".split()) == 2
    assert "holds the objects of another query" in capsys.readouterr().err


@pytest.mark.slow
def test_kill_9_while_a_service_adds(run, service, tmp_path):
    run()
    table = larger(tmp_path)
    service.behave()
    slow = service.survey("sdss", tmp_path, per_minute=600)
    line = f"ingest --survey {slow} --catalog {table} --out {tmp_path}/s.zarr --size 32 --append"
    command = [sys.executable, "-m", "galscan", *line.split()]
    before = galscan.open(tmp_path / "s.zarr").content_hash
    for wanted in (5, 25, 45):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while process.poll() is None and service.count() < wanted:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        assert galscan.open(tmp_path / "s.zarr").content_hash == before, "killed too late, or too soon visible"
    subprocess.run(command, check=True, capture_output=True)
    store = galscan.open(tmp_path / "s.zarr")
    assert store.count == 100 == len(set(store.column("id"))) and right(store)
    requests = [path for _, path, _ in service.log()]
    assert len(set(requests)) == 60 and len(requests) <= 60 + 3 * 4, "but what was on its way when it was killed"


def fits_folder(folder: Path, names: range, brightness: float) -> Path:
    """Write three bands an object; the first objects set colours and noise."""
    from astropy.io import fits

    folder.mkdir(exist_ok=True)
    for n in names:
        for k, band in enumerate("gri"):
            data = pixels((24, 24), 100 * n + k, stars=3) * brightness * (1 + k)
            fits.PrimaryHDU(data.astype(np.float32)).writeto(folder / f"{n}_{band}.fits")
    return folder


def test_new_files_are_stretched_like_the_old_ones(tmp_path):
    place = fits_folder(tmp_path / "images", range(10, 20), 1.0)
    options = {"out": tmp_path / "s.zarr", "size": 24, "workers": 1}
    first = galscan.ingest("local", path=place, **options)
    fits_folder(place, range(10), 1.5)  # now they come first, and would set another stretch
    with pytest.raises(ConflictError, match="--append"):
        galscan.ingest("local", path=place, **options)
    store = galscan.ingest("local", path=place, append=True, **options)
    assert store.column("id").tolist() == [*range(10, 20), *range(10)]
    assert store.attrs["provenance"] == first.attrs["provenance"]
    np.testing.assert_array_equal(store.images(slice(0, 10)), first.images())
    alone = galscan.ingest(
        "local", path=fits_folder(tmp_path / "new", range(10), 1.5), **options | {"out": tmp_path / "n"}
    )
    assert alone.attrs["provenance"]["rendering"] != first.attrs["provenance"]["rendering"]
    assert (store.images(slice(10, 20)) != alone.images()).any(), "their own stretch would have shown them otherwise"
    assert galscan.ingest("local", path=place, append=True, **options).content_hash == store.content_hash
    with pytest.raises(ConflictError, match=r"noise of these images is \d.* times that of .*s.zarr in band"):
        galscan.ingest("local", path=fits_folder(tmp_path / "nJy", range(30, 35), 200.0), append=True, **options)


def test_more_frames(tmp_path):
    rng, shape = np.random.default_rng(0), (200, 400)
    frames = tmp_path / "frames"
    three_bands(frames, "b", tan(0.0, 0.0, shape), shape)
    ra, dec = rng.uniform(-0.02, 0.07, 200), rng.uniform(-0.01, 0.01, 200)
    table = pd.DataFrame({"id": range(200), "ra": ra % 360, "dec": dec})
    table[:100].to_csv(tmp_path / "some.csv", index=False)
    table.to_csv(tmp_path / "all.csv", index=False)
    options = {"out": tmp_path / "s.zarr", "path": frames, "size": 16, "workers": 1}
    first = galscan.ingest("frames", catalog=tmp_path / "some.csv", **options)
    three_bands(frames, "a", tan(0.05, 0.0, shape), shape)
    plan = galscan.ingest("frames", catalog=tmp_path / "all.csv", append=True, dry_run=True, **options)
    assert (plan["objects"], plan["present"]) == (100, 100) and plan["frames"] == 2
    store = galscan.ingest("frames", catalog=tmp_path / "all.csv", append=True, **options)
    assert store.count == 200 and set(store.column("id")) == set(range(200))
    np.testing.assert_array_equal(store.images(slice(0, 100)), first.images())
    whole = galscan.ingest("frames", catalog=tmp_path / "all.csv", **options | {"out": tmp_path / "w.zarr"})
    order = {i: n for n, i in enumerate(whole.column("id").tolist())}
    rows = [order[i] for i in store.column("id")[100:].tolist()]
    same = whole.attrs["provenance"]["rendering"] == first.attrs["provenance"]["rendering"]
    assert same or (store.images(slice(100, 200)) != whole.images()[rows]).any()
    assert ((store.column("flags")[100:] & 1) == (whole.column("flags")[rows] & 1)).all()


def test_a_simulated_sky_grows(tmp_path):
    options = {"size": 16, "workers": 1, "name": "sky"}
    galscan.ingest("simulated", out=tmp_path / "s.zarr", count=300, **options)
    store = galscan.ingest("simulated", out=tmp_path / "s.zarr", count=500, append=True, **options)
    whole = galscan.ingest("simulated", out=tmp_path / "w.zarr", count=500, **options)
    assert store.content_hash == whole.content_hash
    with pytest.raises(ConflictError, match=r"rare_fraction was 0.002, is 0.5"):
        galscan.ingest(
            "simulated", out=tmp_path / "s.zarr", count=600, rare_fraction=0.5, append=True, **options
        )  # fmt: skip


def test_what_is_added_has_the_size_of_the_store(tmp_path, capsys):
    options = {"out": tmp_path / "s.zarr", "workers": 1, "name": "sky"}
    assert galscan.ingest("simulated", count=20, append=True, **options).size == DEFAULT_SIZE, "there was none yet"
    assert galscan.ingest("simulated", count=20, **options).count == 20, "the same command again"
    small = options | {"out": tmp_path / "small.zarr"}
    galscan.ingest("simulated", count=20, size=16, **small)
    with pytest.raises(ConflictError, match=f"size was 16, is {DEFAULT_SIZE}"):
        galscan.ingest("simulated", count=20, **small)
    assert galscan.ingest("simulated", count=30, append=True, dry_run=True, **small)["objects"] == 10
    os.rename(small["out"], tmp_path / ".small.zarr.galscan-replaced")  # killed before the new one was there
    store = galscan.ingest("simulated", count=30, append=True, **small)
    assert (store.size, store.count) == (16, 30)


@pytest.mark.parametrize("given", [{"append": True}])
def test_an_interrupted_ingest_of_the_default_size_is_resumed(tmp_path, monkeypatch, given):
    options = {"out": tmp_path / "s.zarr", "count": 40, "workers": 1, "name": "sky"} | given
    if given:
        galscan.ingest("simulated", **options | {"count": 20, "size": 16})

    def stop(*_: object) -> None:
        raise Interrupted("all shards are there, and the store is not complete")

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr("galscan.store.layout.finish", stop)
        galscan.ingest("simulated", **options)
    marker = ".ingest/shard-00000.json"
    written = (tmp_path / "s.zarr.partial" / marker).stat().st_mtime_ns
    store = galscan.ingest("simulated", **options)
    assert store.count == 40 and store.size == (16 if given else DEFAULT_SIZE)
    assert (store.path / marker).stat().st_mtime_ns == written, "the shard is not made again"


def test_volunteers_vote_on_the_simulated_sky(tmp_path):
    store = galscan.ingest("simulated", out=tmp_path / "s.zarr", count=40, size=16, labels=["gz2"], workers=1)
    assert set(store.schemas) == {"simulated", "gz2"} and np.isfinite(store.column("labels/gz2/t01_votes")).all()
    with pytest.raises(InputError, match="--labels efigi"):
        galscan.ingest("simulated", out=tmp_path / "t.zarr", count=40, size=16, labels=["efigi"], workers=1)
