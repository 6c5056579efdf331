"""The words of the code, its messages and its pages are those of the field (CONTRIBUTING.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OLD_NAMES = ROOT / "galscan" / "core" / "old_names.py"
SOURCES = [
    *sorted({p for p in (ROOT / "galscan").rglob("*") if p.suffix in (".py", ".j2", ".html")} - {OLD_NAMES}),
    ROOT / "README.md", ROOT / "CONTRIBUTING.md",
]  # fmt: skip
# Instead: synthetic or generated, injected, evaluation, reference classifier, negatives, similarity, quarantined,
# resumed, trained, command, request policy, errors, graded, experiment.
WORDS = (
    "told", "said", "dream", "dreams", "dreamt", "dreaming", "judge", "judged", "laid", "critic", "likeness", "lend",
    "manners", "trouble", "taught", "teach", "teaches", "learnt", "strangers", "set aside", "gone on",
    "goes on", "vetted", "verb", "verbs", "left alone",
)  # fmt: skip
# Names of version 0.1 that are still accepted, and a key on disk that it writes as well.
KEYS = ('"dream"', '"judge"')


@pytest.mark.parametrize("word", WORDS)
def test_no_private_idiom(word):
    pattern = re.compile(rf"(?<![a-zA-Z]){word.replace(' ', '[ _]')}(?![a-zA-Z])", re.IGNORECASE)
    found = []
    for path in SOURCES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for key in KEYS:
                line = line.replace(key, "")
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []
