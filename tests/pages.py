"""What every page must be: self-contained, and accessible to screen readers, on paper and on small screens."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"img", "meta", "br", "link", "input"}


class Page(HTMLParser):
    """Collects the tags of a page, with their attributes, their text and the tags around them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.around: list[list[str]] = []
        self._open: list[int] = []
        self.feed(text)
        assert not self._open, [self.tags[k] for k in self._open]

    def handle_starttag(self, tag, attrs):
        self.around.append([self.tags[k][0] for k in self._open])
        self.tags.append((tag, dict(attrs)))
        self.words.append("")
        if tag not in VOID:
            self._open.append(len(self.tags) - 1)

    def handle_endtag(self, tag):
        assert self.tags[self._open[-1]][0] == tag, f"{tag} closes {self.tags[self._open[-1]]}"
        self._open.pop()

    def handle_data(self, data):
        for k in self._open:
            self.words[k] += data

    def all(self, *names: str) -> list[int]:
        return [k for k, (tag, _) in enumerate(self.tags) if tag in names]


def check_page(text: str, scripts: int = 0) -> None:
    """Check that a page loads nothing, has no other scripts, and is accessible (headings, tables, alt texts ...)."""
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert names.count("script") == scripts
    assert not {"link", "iframe", "object", "embed", "form"} & set(names)
    assert "@import" not in text and not re.search(r"url\(", text)
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("src") or "data:").startswith("data:")
        if tag == "img":
            assert (attributes.get("alt") or "").strip()
        if tag == "a":
            link = attributes["href"]
            assert link.startswith("https://arxiv.org/") or link[1:] in ids, link
        if labelled := attributes.get("aria-labelledby"):
            assert labelled in ids
    assert ("html", {"lang": "en"}) in page.tags and "<title>" in text
    # Landmarks: one main, one footer beside it; a navigation has a name, and a section that of its heading.
    assert names.count("main") == names.count("footer") == 1 and "main" not in page.around[page.all("footer")[0]]
    assert all(page.tags[k][1].get("aria-label") for k in page.all("nav"))
    assert all(page.tags[k][1].get("aria-labelledby") for k in page.all("section"))
    levels = [int(page.tags[k][0][1]) for k in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert all(page.words[k].strip() for k in page.all("h1", "h2", "h3", "th", "caption", "a", "dt"))
    for k in page.all("th"):
        assert page.tags[k][1].get("scope") in ("row", "col")
    for k in page.all("table"):
        assert page.tags[k + 1][0] == "caption" and "th" in names[k:]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, #rrggbb, as WCAG 2.2 defines it: from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
