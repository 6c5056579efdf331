from __future__ import annotations

import tomllib
from pathlib import Path

import galscan


def test_version_is_that_of_the_project():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert galscan.__version__ == project["project"]["version"]
