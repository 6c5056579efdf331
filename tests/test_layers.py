"""The order of the packages (CONTRIBUTING.md; pyproject.toml, ``tool.importlinter``), and what is shipped."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "galscan"
MOST_LINES, MOST_FILES = 400, 12


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_packages_import_only_from_those_below():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("core/version.py", ""),  # as it is
        ("labels/schema.py", "from galscan.surveys.base import Cutout"),
        ("store/layout.py", "def f():\n    from galscan.store.build import ingest_survey"),  # a circle, and a lazy one
        ("reports/page.py", "import torch"),
        ("scanning/engine.py", "import dask_cuda"),
    ],
)
def test_a_climb_would_be_seen(tmp_path, module, line):
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / "galscan" / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        copy.write_text(text + f"\n{line}\n" if copy == tmp_path / "galscan" / module else text, encoding="utf-8")
    assert lint(tmp_path).returncode == (1 if line else 0)


def test_every_package_is_shipped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = {name for name in project["tool"]["setuptools"]["packages"] if (ROOT / name.replace(".", "/")).is_dir()}
    assert shipped == {".".join(p.parent.relative_to(ROOT).parts) for p in PACKAGE.rglob("__init__.py")}


def test_every_file_of_data_is_shipped():
    """Templates, weights, pages and recipes match a pattern of ``package-data``; and each pattern matches something."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {name: ROOT / settings["package-dir"].get(name, name.replace(".", "/")) for name in settings["packages"]}
    found = {p for name, globs in settings["package-data"].items() for g in globs for p in folders[name].glob(g)}
    data = {p for folder in (PACKAGE, ROOT / "pipelines", ROOT / "catalogs") for p in folder.rglob("*") if p.is_file()}
    assert {p for p in data if p.suffix not in (".py", ".pyc")} == found
    assert all(any(folders[n].glob(g)) for n, globs in settings["package-data"].items() for g in globs)


def test_nothing_is_loose_and_no_folder_or_module_is_too_large():
    assert {p.name for p in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    for folder in {p.parent for p in PACKAGE.rglob("*.py")}:
        assert len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) <= MOST_FILES, folder
    lines = {
        str(p.relative_to(PACKAGE)): len(p.read_text(encoding="utf-8").splitlines()) for p in PACKAGE.rglob("*.py")
    }
    assert {name for name, count in lines.items() if count > MOST_LINES} == set()


def test_every_module_has_its_tests():
    """``galscan/a/b.py`` in ``tests/a/test_b.py``; the options of all commands in ``tests/cli/test_commands.py``."""
    missing = [
        str(p.relative_to(PACKAGE))
        for p in PACKAGE.rglob("*.py")
        if not p.name.startswith("__")
        and not (p.parent.name == "cli" and p.stem not in ("main", "options", "output"))
        and not (ROOT / "tests" / p.relative_to(PACKAGE).with_name(f"test_{p.name}")).exists()
    ]
    assert missing == []


def test_where_to_look_names_files_that_exist():
    section = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where to look")[2].partition("\n## ")[0]
    )
    files = re.findall(r"\| `([^`]+)` \|$", section, flags=re.MULTILINE)
    assert len(files) == 18 and [name for name in files if not (ROOT / name).is_file()] == []
