"""What the documents contain: blocks of code, command lines, links and anchors of headings."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from galscan.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(p for p in ROOT.glob("docs/**/*.md") if "_build" not in p.parts), *ROOT.glob("deploy/*.md")]
)
COMMANDS = typer.main.get_command(app)
REPOSITORY = re.compile(r"https://github\.com/galscan/galscan/(?:blob|tree)/main/")

_FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=fence)[ ]*$\n?", re.M | re.S)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}[^\n]*\n|\n)+", re.M)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield the language ("" if none is named) and the code of each block of a page."""
    for match in _FENCE.finditer(text):
        if match["fence"].startswith("`"):
            yield match["language"].strip(), match["code"]
    for match in _INDENTED.finditer(_FENCE.sub("", text)):
        if code := textwrap.dedent(match[0]).strip():
            yield "", code + "\n"


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return _INDENTED.sub("\n", _FENCE.sub(lambda m: m[0] if m["fence"].startswith(":") else "", text))


def inline(text: str) -> list[str]:
    """Return the inline code of a page, one line each."""
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]


def lines_of(text: str, program: str) -> list[str]:
    """Return the command lines of a page's blocks that begin with `program`, continued lines joined."""
    found = []
    for language, code in blocks(text):
        if language in ("", "sh", "bash", "console") or language.startswith("{code-cell}"):
            joined = re.sub(r"\\\n\s*", "", code)
            candidates = (re.sub(r"^\s*[$!] ?", "", line) for line in joined.splitlines())
            found += [line for line in candidates if line.startswith(program + " ")]
    return found


def parse(line: str) -> dict[str, Any]:
    """Parse a command line of galscan without running it, and return its options; raises a usage error of typer."""
    words = shlex.split(line, comments=True)[1:]
    command, name = COMMANDS, "galscan"
    context = command.make_context(name, words[:], resilient_parsing=True)
    while hasattr(command, "get_command") and words and not words[0].startswith("-"):
        name = words.pop(0)
        command = command.get_command(context, name)
        if command is None:
            raise LookupError(f"no command {name!r}")
    if hasattr(command, "get_command"):  # options of galscan itself
        unknown = set(words) - {opt for parameter in command.params for opt in parameter.opts} - {"--help", "-h"}
        if unknown:
            raise LookupError(f"no option {unknown}")
        return {}
    return dict(command.make_context(name, words).params)


def unknown_words(code: str) -> set[str]:
    """Return the commands and options in inline code, such as ``galscan vet ... --width 0.1``, that do not exist."""
    words = [word for word in code.split()[1:] if word != "..."]
    command, context = COMMANDS, COMMANDS.make_context("galscan", [], resilient_parsing=True)
    while hasattr(command, "get_command") and words and not words[0].startswith("-"):
        if words[0].isupper():  # a placeholder, as in `galscan COMMAND --help`
            return set()
        name = words.pop(0)
        command = command.get_command(context, name)
        if command is None:
            return {name}
    options = {opt for parameter in command.params for opt in (*parameter.opts, *parameter.secondary_opts)}
    return {word for word in words if word.startswith("--")} - options - {"--help"}


def links(text: str) -> list[str]:
    """Return the targets of links and images of a page."""
    text = re.sub(r"(?<!`)`[^`]+`(?!`)", "", prose(text))
    return [link for link in re.findall(r"\]\(<?([^)\s>]+)", text)]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them, and explicit ones."""
    page = _FENCE.sub("", text)
    made: dict[str, int] = {}
    found = set(re.findall(r"^\(([\w-]+)\)=$", page, re.M))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", page, re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found.add(f"{slug}-{made[slug]}" if slug in made else slug)
        made[slug] = made.get(slug, 0) + 1
    return found


def broken_links(page: Path) -> list[str]:
    """Return the links of a page to files or anchors that do not exist; links to other sites are not followed."""
    broken = []
    for link in links(page.read_text(encoding="utf-8")):
        address, _, anchor = link.partition("#")
        if match := REPOSITORY.match(address):
            target = ROOT / address[match.end() :]
        elif re.match(r"[a-z]+:", address):
            continue
        else:
            target = page.parent / address if address else page
        found = target.exists()
        if found and anchor and target.suffix == ".md":
            found = anchor in anchors(target.read_text(encoding="utf-8"))
        broken += [] if found else [link]
    return broken
