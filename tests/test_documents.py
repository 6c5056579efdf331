"""The documents: their links lead somewhere, their commands and Python are valid, files.md names what is read."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib

import pytest

import galscan
from galscan.surveys.files.formats import FORMATS
from tests.documents import PAGES, ROOT, blocks, broken_links, inline, lines_of, parse, unknown_words

USED = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which speaks of what there was
every_page = pytest.mark.parametrize("page", USED, ids=lambda page: str(page.relative_to(ROOT)))


@every_page
def test_links_lead_to_files_and_headings(page):
    assert broken_links(page) == []


@every_page
def test_commands_exist_with_their_options(page):
    text = page.read_text(encoding="utf-8")
    failures = []
    for line in lines_of(text, "galscan"):
        try:
            parse(line)
        except Exception as error:
            describe = getattr(error, "format_message", error.__str__)
            failures.append(f"{line}: {describe()}")
    mentioned = {code: unknown_words(code) for code in inline(text) if code.startswith("galscan ")}
    assert failures == [] and {code: words for code, words in mentioned.items() if words} == {}


@pytest.mark.parametrize(
    "line",
    [
        "galscan scam run/", "galscan scan --sruvey sdss", "galscan scan --limit many", "galscan export run/",
        "galscan ingest --survey sdss --cone 1,2", "galscan target make arcs", "galscan --verzion",
    ],
)  # fmt: skip
def test_wrong_commands_are_found(line):
    with pytest.raises(Exception):  # noqa: B017 (usage errors have no public class in typer)
        parse(line)


@every_page
def test_programs_and_extras_exist(page):
    text = page.read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"(?:galscan|\.)\[([a-z0-9,-]+)\]['\"]", text))
    assert {extra for names in named for extra in names.split(",")} - set(extras) == set()
    modules = set(re.findall(r"python -m (tests\.[\w.]+)", text)) - {"tests.benchmarks.NAME"}
    assert [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []


def names_of(kind: type) -> set[str]:
    """Return the public names of instances: methods, fields, and what `__init__` sets."""
    source = inspect.getsource(kind)
    return {*dir(kind), *getattr(kind, "__dataclass_fields__", ()), *re.findall(r"self\.([a-z]\w*)\b.*? = ", source)}


KINDS = {"store": galscan.Store, "model": galscan.Model, "run": galscan.Run}


@every_page
def test_python_compiles_and_uses_public_names(page):
    wrong = []
    for language, code in blocks(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(code, filename=page.name)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner, name = node.value.id, node.attr
                known = set(galscan.__all__) if owner == "galscan" else None
                known = names_of(KINDS[owner]) if owner in KINDS else known
                wrong += [f"{owner}.{name}"] if known is not None and name not in known else []
            if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("galscan.") in galscan.__all__:
                function = getattr(galscan, ast.unparse(node.func).removeprefix("galscan."))
                given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
                try:
                    inspect.signature(function).bind(*node.args, **given)
                except TypeError as error:
                    wrong.append(f"{ast.unparse(node)}: {error}")
    assert wrong == []


@every_page
def test_dotted_names_of_galscan_exist(page):
    wrong = []
    for name in {code for code in inline(page.read_text(encoding="utf-8")) if re.fullmatch(r"galscan(\.\w+)+", code)}:
        parts = name.split(".")
        depth = next(n for n in range(len(parts), 0, -1) if n == 1 or _is_module(parts[:n]))
        path = ROOT.joinpath(*parts[:depth])
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
        wrong += [name for tail in parts[depth : depth + 1] if not re.search(rf"\b{tail}\b", source)]
    assert wrong == []


def _is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_readme_is_one_screen():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90 and len(text.encode()) <= 6144
    assert {"    make demo", "    make test"} <= {line.partition("  #")[0].rstrip() for line in text.splitlines()}
    assert any(language == "python" and "galscan.scan(" in code for language, code in blocks(text))


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
