"""The documents: docs/reference/files.md names all files that are read; links lead to files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from galscan.surveys.files.formats import FORMATS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(p for p in ROOT.glob("docs/**/*.md") if "_build" not in p.parts), *ROOT.glob("deploy/*.md")]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_a_paragraph_is_a_comment(page):
    """In MyST a line that begins with a per cent sign is not shown."""
    lines = page.read_text(encoding="utf-8").splitlines()
    hidden = [
        line for before, line in zip(["", *lines], lines, strict=False) if before.strip() and re.match(r"\s*% ", line)
    ]
    assert hidden == []


@pytest.mark.parametrize("form", FORMATS)
def test_suffixes_of_images_are_listed(form):
    words = set(re.findall(r"\.[a-z0-9]+", (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")))
    suffixes = FORMATS[form][0].suffixes
    assert {part for suffix in suffixes for part in re.findall(r"\.[a-z0-9]+", suffix)} - words == set()
