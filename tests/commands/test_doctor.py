from __future__ import annotations

import json
import sys

import pytest

from galscan.commands import doctor as module
from galscan.commands.doctor import doctor
from tests.json_page import undocumented


def test_a_complete_installation(galscan_home, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    result = doctor()
    json.dumps(result, allow_nan=False)
    assert undocumented("doctor", result) == set()
    assert result["home"] == {"path": str(galscan_home), "writable": True, "free_gb": result["home"]["free_gb"]}
    assert result["devices"]["auto"] in ("cpu", "cuda") and result["cores"] >= 1 and result["threads"] == 3
    assert result["ok"] is (not result["problems"])
    assert list(galscan_home.iterdir()) == []  # the probe is gone


@pytest.mark.parametrize("threads", ["", "many"])
def test_a_home_that_did_not_exist_is_not_left(monkeypatch, tmp_path, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setenv("GALSCAN_HOME", str(tmp_path / "new"))
    result = doctor()
    assert result["home"]["writable"] and not (tmp_path / "new").exists()
    assert result["threads"] == result["cores"]


def test_problems(monkeypatch, tmp_path):
    from galscan import core

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GALSCAN_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(module, "LOW_DISK", 1e18)
    monkeypatch.delattr(core, "device", raising=False)
    monkeypatch.setitem(sys.modules, "galscan.core.device", None)
    result = doctor()
    assert not result["ok"] and not result["home"]["writable"] and result["devices"] == {"auto": "none"}
    for words in ("set GALSCAN_HOME", "GB free", "torch does not load"):
        assert any(words in problem for problem in result["problems"])


REQUIRES = [
    "numpy<3,>=2.2",
    "no-such-thing-at-all>=1",
    'dask-cuda[cu13]==26.10.*; extra == "cuda"',
    'pytest>=8; extra == "test"',
]


def test_what_is_missing_comes_with_its_remedy(monkeypatch):
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
