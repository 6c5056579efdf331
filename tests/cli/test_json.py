"""docs/json.md names the keys of each command; those that take long are checked in tests/commands and end_to_end."""

from __future__ import annotations

import pytest

import galscan
from galscan.cli import main
from galscan.commands.info import summarize
from tests.json_page import documented, undocumented


@pytest.mark.parametrize("command", main.COMMANDS, ids=lambda command: command.name)
def test_every_command_has_a_section(command):
    assert documented(command.name.split()[0])


def test_keys_of_stores_and_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"out": tmp_path / "s.zarr", "count": 60, "size": 32, "rare_fraction": 0.1, "workers": 1}
    for dry_run in (True, False):
        ingested = galscan.ingest("simulated", dry_run=dry_run, **settings)
        assert undocumented("ingest", summarize(ingested)) == set()
    assert undocumented("info", galscan.info(ingested.path)) == set()
    for result in (
        galscan.new_target("odd"),
        galscan.check_target("dustlane", store=ingested.path, sheet=tmp_path / "sheet.png"),
        galscan.list_targets(),
    ):
        assert undocumented("target", result) == set()


def test_keys_of_models_and_runs(shared_store, shared_model, run_copy, tmp_path):
    assert undocumented("train-rare", shared_model.summary()) == set()
    plan = galscan.scan(store=shared_store.path, model=shared_model.path, out=tmp_path / "new", dry_run=True)
    for run in (plan, galscan.open_run(run_copy)):
        assert undocumented("scan", run.summary()) == set()
    for out in ("c.fits", "c.moc.fits"):
        assert undocumented("export", galscan.export(run_copy, tmp_path / out).summary()) == set()
    assert undocumented("vet", galscan.vet(run_copy, size=20, serve=False)) == set()


def test_an_undocumented_key_is_found():
    assert undocumented("scan", {"run": "x", "odd": 1, "purity": {"at": {}, "odd": 1}}) == {"odd", "purity.odd"}
    assert undocumented("vet", {"sample": [{"graded": 1, "odd": 1}]}) == {"sample[].odd"}
