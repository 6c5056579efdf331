"""Fragments of the changelog, and how they are collected (changes/collect.py)."""

from __future__ import annotations

import datetime

import pytest

from tests.docs.module import ROOT, load

collect = load("changes/collect.py")
TODAY = datetime.date(2026, 12, 1)
CHANGELOG = "# Changelog\n\n## [0.2.0] - 2026-11-30\n\n### Added\n\n- Old.\n\n## [0.1.0] - 2026-11-01\n\n- First.\n"


def test_fragments_of_this_version_are_valid():
    assert set(collect.fragments(ROOT / "changes").values()) <= collect.KINDS.keys()


@pytest.mark.parametrize(("name", "text"), [("x.md", "a"), ("x.news.md", "a"), ("x.fix.md", " \n")])
def test_a_wrong_fragment_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        collect.fragments(tmp_path)


def test_entries_are_added_to_the_section_of_the_version():
    new = collect.collect(CHANGELOG, "0.2.0", {"feature": ["New,\nof two lines.\n"], "fix": ["Mended."]}, TODAY)
    assert "## [0.2.0] - 2026-11-30\n\n### Added\n\n- New,\n  of two lines.\n- Old.\n\n### Fixed\n\n- Mended.\n" in new
    assert new.endswith("\n\n## [0.1.0] - 2026-11-01\n\n- First.\n")


def test_a_new_version_has_a_dated_section():
    new = collect.collect(CHANGELOG, "0.3.0", {"change": ["Other."]}, TODAY)
    assert "# Changelog\n\n## [0.3.0] - 2026-12-01\n\n### Changed\n\n- Other.\n\n## [0.2.0]" in new
    assert collect.collect(new, "0.3.0", {}, TODAY) == new
