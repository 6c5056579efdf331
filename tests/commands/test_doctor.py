from __future__ import annotations

import json
import sys

import pytest

from galscan.commands import doctor as module
from galscan.commands.doctor import doctor


def test_all_is_told_and_all_is_json(galscan_home):
    result = doctor()
    json.dumps(result, allow_nan=False)
    assert {
        "galscan",
        "python",
        "versions",
        "devices",
        "cores",
        "threads",
        "memory_gb",
        "home",
        "extras",
    } <= result.keys()
    assert result["home"] == {"path": str(galscan_home), "writable": True, "free_gb": result["home"]["free_gb"]}
    assert result["devices"]["auto"] in ("cpu", "cuda") and result["cores"] >= 1
    assert result["ok"] is (not result["problems"])
    assert list(galscan_home.iterdir()) == []  # the probe is gone


def test_a_home_that_did_not_exist_is_not_left(monkeypatch, tmp_path):
    monkeypatch.setenv("GALSCAN_HOME", str(tmp_path / "new"))
    assert doctor()["home"]["writable"]
    assert not (tmp_path / "new").exists()


def test_a_home_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GALSCAN_HOME", str(tmp_path / "file"))
    result = doctor()
    assert not result["ok"] and not result["home"]["writable"]
    assert "set GALSCAN_HOME" in result["problems"][0]


def test_a_full_disk_is_told(monkeypatch):
    monkeypatch.setattr(module, "LOW_DISK", 1e18)
    assert any("GB free" in p for p in doctor()["problems"])


def test_a_broken_torch_is_a_finding(monkeypatch):
    from galscan import core

    monkeypatch.delattr(core, "device", raising=False)
    monkeypatch.setitem(sys.modules, "galscan.core.device", None)
    result = doctor()
    assert result["devices"] == {"auto": "none"} and any("torch does not load" in p for p in result["problems"])


REQUIRES = [
    "numpy<3,>=2.2",
    "no-such-thing-at-all>=1",
    'dask-cuda[cu13]==26.10.*; extra == "cuda"',
    'pytest>=8; extra == "test"',
]


def test_what_is_missing_comes_with_its_cure(monkeypatch):
    present = {"numpy": "2.4.6", "pytest": "9"}
    monkeypatch.setattr(module.importlib.metadata, "requires", lambda name: REQUIRES)
    monkeypatch.setattr(module, "_version", present.get)
    problems: list[str] = []
    versions, extras = module._packages(problems)
    assert versions == {"numpy": "2.4.6"}
    assert problems == ["no-such-thing-at-all is missing; pip install 'no-such-thing-at-all>=1'"]
    assert extras == {"cuda": "without dask-cuda: pip install 'galscan[cuda]'", "test": "installed"}


def test_from_the_repository_without_installing(monkeypatch):
    def absent(name):
        raise module.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.importlib.metadata, "requires", absent)
    versions, extras = module._packages([])
    assert versions["numpy"] != "missing" and extras == {}


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("", None), ("many", None)])
def test_threads(monkeypatch, given, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    result = doctor()
    assert result["threads"] == (expected or result["cores"])
