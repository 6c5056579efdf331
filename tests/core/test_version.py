from __future__ import annotations

import re
import tomllib
from pathlib import Path

import galscan

ROOT = Path(__file__).parents[2]


def test_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    module, _, name = project["tool"]["setuptools"]["dynamic"]["version"]["attr"].rpartition(".")
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert f'{name} = "{galscan.__version__}"' in text


def test_version_is_that_of_the_citation_and_has_a_dated_section():
    assert f"\nversion: {galscan.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(galscan.__version__)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)
