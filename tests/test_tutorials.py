"""The tutorials in docs/ run as notebooks, without an error and without long outputs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.md"))
TUTORIALS = [page for page in PAGES if page.name != "index.md"]
CELL = re.compile(
    r"^```\{code-cell\} ipython3\n(?P<options>(?::[^\n]*\n)*)(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
SKIPPED = "skip-execution"
LINES = 45  # longest text of an output, which is about a screen


def cells(page: Path) -> list[tuple[str, bool]]:
    """Return the code of each cell, and whether it is skipped."""
    return [(found["code"], SKIPPED in found["options"]) for found in CELL.finditer(page.read_text())]


def test_there_are_four():
    assert {page.stem for page in TUTORIALS} == {"first-scan", "own-target", "grading", "astropy-tools"}


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_all_cells_are_found_and_compile(page):
    found = cells(page)
    assert len(found) == page.read_text().count("{code-cell}") > 5
    for code, _ in found:
        compile(code, str(page), "exec")


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_index_lists_each(page):
    assert f"{page.stem}.md" in page.with_name("index.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs(page, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    import nbformat

    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    )
    tagged = [(code, {"tags": [SKIPPED]} if skipped else {}) for code, skipped in cells(page)]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code, metadata=metadata) for code, metadata in tagged]
    )
    resources = {"metadata": {"path": str(tmp_path)}}
    # An error of a cell is raised.
    nbclient.NotebookClient(notebook, timeout=1500, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        shown = [output for output in cell.outputs if output.get("name") != "stderr"]
        text = "".join(output.get("text", "") for output in shown)
        assert text.count("\n") <= LINES, cell.source
        bars = [output for output in shown if "<progress" in output.get("data", {}).get("text/html", "")]
        assert len(bars) <= 1, cell.source
