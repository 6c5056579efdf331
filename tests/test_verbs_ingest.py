"""``galscan ingest`` of surveys by service, as people run it; local and simulated ones are in test_store_ingest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import galscan
from galscan import cli
from galscan.errors import ConflictError, InputError
from galscan.store.manifest import outcomes
from galscan.surveys.trouble import HostDown
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


def test_from_a_table_to_a_store(run, service, tmp_path, capsys):
    store = run(labels="efigi")
    told = pd.read_parquet(tmp_path / "s.manifest.parquet")
    covered = [sky.covered(r, d) for r, d in zip(told["ra"], told["dec"], strict=True)]
    assert told["outcome"].tolist() == ["stored" if c else "no_coverage" for c in covered]
    images = store.images()
    for k in np.flatnonzero(covered):
        assert sky.read_code(images[k]) == sky.code(told["ra"][k], told["dec"][k])
    assert store.labels("efigi")["t"].eq(-2).all() and store.attrs["provenance"]["release"] == "DR17"
    said = capsys.readouterr().err
    assert f"{sum(covered)} cutouts stored" in said and f"no coverage: {40 - sum(covered)}, failed: 0" in said
    asked = len(service.log())
    assert run(labels="efigi").content_hash == store.content_hash and len(service.log()) == asked == 40
    assert sorted(p.name for p in tmp_path.iterdir()) == ["objects.csv", "s.manifest.parquet", "s.zarr", "sdss.toml"]


def test_an_answer_is_shared_by_stores(run, service, tmp_path):
    run()
    run(out=tmp_path / "other.zarr")
    assert len(service.log()) == 40
    run(out=tmp_path / "third.zarr", cache=False)
    assert len(service.log()) == 80 and not list(tmp_path.glob("*.answers"))


def test_what_failed_is_asked_for_again(run, service, capsys):
    service.behave("500", "html", share=0.6, seed=5)
    first = outcomes(run())
    assert first["failed"] > 3 and first["stored"] > 3
    said = capsys.readouterr().err
    assert "failed with '" in said and "--retry-failed asks for them again" in said
    service.behave()
    store = run(retry_failed=True)
    assert outcomes(store)["failed"] == 0 and len(service.log()) == first["failed"]
    for k in np.flatnonzero(store.column("flags") & 31 == 0):
        assert sky.read_code(store.images()[k]) == sky.code(store.column("ra")[k], store.column("dec")[k])


def test_a_dead_host_ends_it_and_nothing_is_lost(run, service, tmp_path):
    run(settings={"give_up": 3}, out=tmp_path / "calm.zarr")
    service.behave("500")
    with pytest.raises(HostDown, match=r"is left alone, \d failures in a row, at last HTTP 500"):
        run(settings={"give_up": 3}, cache=False)
    assert not (tmp_path / "s.zarr").exists()
    service.behave()
    assert run(cache=False).content_hash == galscan.open_store(tmp_path / "calm.zarr").content_hash


def test_the_plan(run, service, tmp_path, capsys):
    plan = run("panstarrs", {"per_minute": 30}, dry_run=True)
    assert plan["requests"] == 80 and plan["seconds"] == pytest.approx(80 * 2 * 1.03) and not service.log()
    said = capsys.readouterr().err
    assert "80 requests to 127.0.0.1" in said and "30 a minute at most: 0:02:45" in said
    assert not (tmp_path / "s.zarr").exists() and not (tmp_path / "s.zarr.partial").exists()
    assert run(catalog=None, query="gz2", dry_run=True) == {"objects": None, "out": str(tmp_path / "s.zarr")}


def test_galaxy_zoo_from_one_command(run, service, tmp_path):
    pytest.importorskip("astroquery", reason="needs the extra services")
    path = service.survey("sdss", tmp_path)
    path.write_text(path.read_text().replace("per_minute = 20", "per_minute = 60000"))
    line = f"ingest --survey {path} --query gz2 --labels gz2 --cone 180,10,12 --out {tmp_path}/gz2.zarr --size 16"
    assert cli.run(line.split()) == 0
    store = galscan.open_store(tmp_path / "gz2.zarr")
    assert len(store.schemas["gz2"]) == 37 and 0 < store.count < 100 and store.column("id").dtype == np.int64
    assert store.labels("gz2").notna().any(axis=None)
    scale, images = store.column("pixel_scale"), store.images()
    radius = pd.read_parquet(tmp_path / "gz2.objects.parquet").set_index("id")["petroR90_r"]
    for k in np.flatnonzero(np.isfinite(scale)):
        assert scale[k] * 16 == pytest.approx(8.48 * radius[store.column("id")[k]])
        assert sky.read_code(images[k]) == sky.code(store.column("ra")[k], store.column("dec")[k])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"catalog": None}, "needs objects: --catalog TABLE, --query gz2, or --cone"),
        ({"query": "gz2"}, "--catalog and --query exclude each other"),
        ({"path": "images"}, "does not take path; leave it out, or use survey local"),
        ({"rare_fraction": 0.1}, "does not take rare-fraction; leave it out, or use survey simulated"),
        ({"cone": (0.0, 90.0, 0.001)}, "no object of .* lies in --cone 0,90,0.001"),
        ({"cone": (0.0, 91.0, 1.0)}, "--cone 0,91,1: give right ascension"),
        ({"contact": "a\nb"}, "one line each"),
        ({"labels": "gz2"}, "no 'gz2' label column"),
        ({"columns": {"ra": "right"}}, "no column 'right' for ra"),
    ],
)
def test_what_cannot_work(run, given, message):
    with pytest.raises(InputError, match=message):
        run(**given)


def test_options_of_services_are_not_for_others(tmp_path):
    with pytest.raises(InputError, match="survey 'local' does not take query, layer; leave it out, or use survey sdss"):
        galscan.ingest("local", path=tmp_path, query="gz2", layer="x")
    with pytest.raises(InputError, match="unknown survey 'sds'; did you mean 'sdss'"):
        galscan.ingest("sds")
    with pytest.raises(ConflictError):
        (tmp_path / "f").touch()
        galscan.ingest("simulated", out=tmp_path / "f", count=10, size=16, dry_run=True)


def test_who_asks_comes_from_the_environment(run, monkeypatch):
    monkeypatch.setenv("GALSCAN_CONTACT", "me@example.org")
    store = run(settings={"needs_contact": True})
    assert store.count == 40 and "me@" not in str(store.attrs["provenance"])
