"""The blocks of the reference that are made from the code (docs/_generate.py): none is stale, and none lacks something."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from galscan.candidates.columns import COLUMNS
from galscan.cli import main
from galscan.core import home
from tests.docs.module import ROOT, load

generate = load("docs/_generate.py")
SOURCES = sorted((ROOT / "galscan").rglob("*.py"))


def block(name: str) -> str:
    """Return a committed block."""
    texts = [path.read_text(encoding="utf-8") for path in generate.FOLDER.glob("*.md")]
    found = [match[0] for text in texts for match in generate.BLOCK.finditer(text) if match[2] == name]
    assert len(found) == 1, f"{name} is in {len(found)} pages"
    return found[0]


def test_pages_are_current():
    assert [path.name for path in generate.stale()] == [], "run python docs/_generate.py"


@pytest.mark.parametrize("name", generate.BLOCKS)
def test_every_block_is_in_a_page_and_has_content(name):
    assert len(block(name).splitlines()) > 3


def test_a_change_would_be_seen():
    text = (generate.FOLDER / "columns.md").read_text(encoding="utf-8")
    changed = text.replace("`ra`", "`alpha`")
    assert changed != text and generate.refreshed(changed) == text


def test_all_commands_columns_and_keys_are_listed():
    commands = block("commands")
    assert [c.name for c in main.COMMANDS if f"\n## galscan {c.name}\n" not in commands] == []
    assert "`--min-purity`" in commands and "| **required** |" in commands
    assert [c.name for c in COLUMNS if f"| `{c.name}` |" not in block("columns")] == []
    assert "## [classifier]" in block("recipe") and '`"maps"`' in block("recipe")


def test_all_keys_of_recipes_and_runs_have_a_meaning():
    for name in ("recipe", "run-keys"):
        rows = [line.split(" | ") for line in block(name).splitlines() if line.startswith("| `")]
        assert [row[0] for row in rows if not row[2].strip(" |")] == []


def test_all_environment_variables_are_listed():
    found = {name for path in SOURCES for name in re.findall(r"\bGALSCAN_[A-Z_]+\b", path.read_text(encoding="utf-8"))}
    assert found == home.ENVIRONMENT.keys()


def test_all_error_codes_are_listed():
    classes = [n for path in SOURCES for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, ast.ClassDef)]
    codes = {
        node.value.value
        for found in classes
        for node in found.body
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["code"]
        if isinstance(node.value, ast.Constant)
    }
    page = block("errors")
    assert len(codes) > 6 and [code for code in codes | main.CODES.keys() if f"| `{code}` |" not in page] == []


def listed(name: str) -> re.Pattern[str]:
    """Return a pattern of the names in a listing, in which <...> stands for any text."""
    words = re.findall(r"[\w<>./-]+", block(name))
    return re.compile("|".join(re.sub(r"<.*?>", ".+", re.escape(word)) for word in words))


@pytest.mark.parametrize("name", ["model", "run"])
def test_files_are_listed(name, request):
    folder = Path(request.getfixturevalue(f"shared_{name}").path)
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    pattern = listed(name)
    assert [file for file in files if not pattern.fullmatch(file) and not file.startswith(".")] == []


def test_arrays_of_a_store_are_listed(shared_store):
    pattern = listed("store")
    arrays = [name for name, array in shared_store.group.members(max_depth=None) if hasattr(array, "shape")]
    assert "images" in arrays and [name for name in arrays if not pattern.fullmatch(name)] == []
