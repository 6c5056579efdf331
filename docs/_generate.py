"""Blocks of the reference that are made from the code: ``python docs/_generate.py`` writes them.

A block of a page is between the lines ``<!-- NAME: made by docs/_generate.py -->`` and ``<!-- end -->``. The
documentation is built with current blocks; tests/test_reference.py fails if a committed one is not current, and
``--check`` lists the pages with such.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import galscan
from galscan.cli import main
from galscan.core import errors, home

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
BLOCK = re.compile(r"(<!-- ([a-z-]+): made by docs/_generate.py -->\n).*?(<!-- end -->)", re.DOTALL)


# Markdown.


def cell(text: Any) -> str:
    """Return text for a cell of a table, on one line."""
    return " ".join(str(text).replace("|", r"\|").split())


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Return a table; columns that are empty in all rows are left out."""
    used = [k for k, _ in enumerate(head) if any(str(row[k]) for row in rows)]
    lines = [[head[k] for k in used], ["---"] * len(used), *([cell(row[k]) for k in used] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def code(text: Any) -> str:
    return f"`{text}`" if str(text) else ""


def prose(text: str | None) -> str:
    """Return a docstring as Markdown: code is in single backticks."""
    return " ".join((text or "").replace("``", "`").split())


# The code without importing it.


def tree(module: str) -> ast.Module:
    """Return the syntax tree of a module below galscan, such as ``store/layout.py``."""
    return ast.parse((ROOT / "galscan" / module).read_text(encoding="utf-8"))


def documentation(module: str) -> str:
    return ast.get_docstring(tree(module)) or ""


def constant(module: str, name: str) -> Any:
    """Return the value of a constant at the top of a module."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            pairs = zip(target.elts, value.elts, strict=True) if isinstance(target, ast.Tuple) else [(target, value)]
            for key, item in pairs:
                if getattr(key, "id", "") == name:
                    return ast.literal_eval(item)
    raise LookupError(f"{module} has no constant {name}")


def fields(module: str, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and docstring of each field of a class."""
    body = next(n for n in tree(module).body if isinstance(n, ast.ClassDef) and n.name == name).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            yield ast.unparse(node.target), ast.unparse(node.annotation), prose(text)


# Command line.


TYPES = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


def without_none(annotation: Any) -> Any:
    """Return what remains of ``X | None`` without None, and of ``Annotated[X, ...]`` without the rest."""
    if get_origin(annotation) is Annotated:
        return without_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return without_none(next(a for a in get_args(annotation) if a is not type(None)))
    return annotation


def value_of(parameter: Any, annotation: Any) -> str:
    """Return the kind of value that an option takes, "" for a flag."""
    base = without_none(annotation)
    if base is bool:
        return ""
    name = parameter.metavar or TYPES.get(get_args(base)[0] if get_origin(base) is list else base, "TEXT")
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if low is None or high is None:
        return name if low is None else f"{name}, at least {low}"
    return f"{name}, {low} to {high}"


def default_of(parameter: Any) -> str:
    default = getattr(parameter, "default", None)
    if default is None or default is False or default == [] or not isinstance(default, int | float | str | Path):
        return ""
    return "yes" if default is True else code(default)


def command_line() -> str:
    """Return all commands: each with its options, defaults and example."""
    group: Any = typer.main.get_command(main.app)
    commands = []
    for command in main.COMMANDS:
        found: Any = group
        for word in command.name.split():
            found = found.commands[word]
        commands.append((command, found))
    anchors = {c.name: f"galscan-{c.name.replace(' ', '-')}" for c, _ in commands}
    text = table(["command", "what it does"], [[f"[{c.name}](#{anchors[c.name]})", prose(f.help)] for c, f in commands])
    for command, found in commands:
        hints = get_type_hints(command.run, include_extras=True)
        arguments = [p for p in found.params if p.param_type_name == "argument"]
        rows = []
        for p in found.params:
            positional = p.param_type_name == "argument"
            flags = [p.metavar or p.name.upper()] if positional else [*p.opts]
            off = [] if positional else [flag.strip() for flag in p.secondary_opts]
            name = " / ".join(code(flag) for flag in [*flags, *off])
            needed = "**required**" if p.required else default_of(p)
            rows.append([name, value_of(p, hints.get(p.name, str)), prose(p.help), needed])
        usage = " ".join(["galscan", command.name, *(p.metavar or p.name.upper() for p in arguments), "[OPTIONS]"])
        example = f"galscan {command.name} {command.example}".rstrip()
        text += f"\n## galscan {command.name}\n\n{prose(found.help)} Usage: `{usage}`\n\n```bash\n{example}\n```\n\n"
        text += table(["option", "value", "meaning", "default"], rows)
    return text


# Recipe.


def limits(metadata: list[Any]) -> str:
    """Return the limits of a number or of a list, from the metadata of pydantic."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
    found = [f"{word} {getattr(m, key)}" for m in metadata for key, word in words.items() if hasattr(m, key)]
    return ", ".join(found)


def kind_of(annotation: Any, metadata: list[Any]) -> str:
    """Return the type of a recipe's value in words."""
    extra: list[Any] = []
    optional = get_origin(annotation) in (Union, types.UnionType)
    base = next(a for a in get_args(annotation) if a is not type(None)) if optional else annotation
    while get_origin(base) is Annotated:
        base, *more = get_args(base)
        extra += more
    extra = [m for item in extra for m in (item.metadata if isinstance(item, FieldInfo) else [item])]
    if get_origin(base) is Literal:
        return " or ".join(f'`"{choice}"`' for choice in get_args(base))
    if get_origin(base) is tuple:
        return "list of " + {str: "texts", int: "integers"}.get(without_none(get_args(base)[0]), "tables")
    if get_origin(base) is dict:
        value = without_none(get_args(base)[1])
        return (
            "table of numbers" if value is float else "table of [low, high]" if get_origin(value) is tuple else "tables"
        )
    if inspect.isclass(base) and issubclass(base, BaseModel):
        return "table"
    name = {int: "integer", float: "number", str: "text", bool: "true or false"}[base]
    return ", ".join(filter(None, [name, limits([*metadata, *extra])]))


def default_in_toml(field: FieldInfo) -> str:
    """Return the default of a setting as in a recipe."""
    if field.is_required():
        return "**required**"
    if field.default_factory is not None:
        return "see meaning"
    default = field.default
    if default is None or default == "" or isinstance(default, BaseModel):
        return ""
    if isinstance(default, bool):
        return code(str(default).lower())
    if isinstance(default, tuple | list | dict):
        return code(list(default)) if default else ""
    return code(
        f'"{default}"' if isinstance(default, str) else f"{default:g}" if isinstance(default, float) else default
    )


def key_of(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    return alias if isinstance(alias, str) else name


def settings(model: type[BaseModel], *skipped: str) -> str:
    rows = [
        [
            code(key_of(name, field)),
            kind_of(field.annotation, field.metadata),
            prose(field.description),
            default_in_toml(field),
        ]
        for name, field in model.model_fields.items()
        if name not in skipped
    ]
    rows.sort(key=lambda row: row[0] != "`kind`")  # which decides what the others are
    return table(["key", "value", "meaning", "default"], rows)


def recipe() -> str:
    """Return all keys of a recipe."""
    from galscan.labels import settings as parts
    from galscan.labels.recipe import Recipe

    sections = {
        name: field
        for name, field in Recipe.model_fields.items()
        if isinstance(field.default, BaseModel) and name != "generator"
    }
    text = settings(Recipe, *sections, "generator")
    for head, model in (
        ("[schemas.NAME]", parts.LabelRules),
        ("[schemas.NAME.synthetic], [[schemas.NAME.hard_negatives]]", parts.SyntheticRule),
        ("[schemas.NAME.inject], [[schemas.NAME.inject_negatives]]", parts.InjectRule),
    ):
        text += f"\n## {head}\n\n{prose(inspect.getdoc(model))}\n\n{settings(model)}"
    for name, field in sections.items():
        text += f"\n## [{name}]\n\n{prose(field.description)}\n\n{settings(type(field.default))}"
        if name == "split":
            for kind, model in parts.KINDS.items():
                words = inspect.getdoc(model) or ""
                text += f'\n## [generator] kind = "{kind}"\n\n{prose(words)}\n\n{settings(model)}'
    return text


# Errors, environment variables, columns, formats.


def vars_of(value: Any) -> dict[str, Any]:
    """Return the attributes that a class of errors defines itself, nothing for other objects."""
    return dict(vars(value)) if inspect.isclass(value) and issubclass(value, errors.GalscanError) else {}


def error_codes() -> str:
    """Return the error codes: those of the classes, and those of the command line."""
    import galscan.surveys.services.errors as services

    classes: list[Any] = [c for module in (errors, services) for c in vars(module).values() if "code" in vars_of(c)]
    rows = [
        [code(c.code), c.exit_code, code(f"{c.__module__}.{c.__name__}"), prose(c.__doc__).split(" (exit code")[0]]
        for c in dict.fromkeys(classes)
    ]
    rows += [[code(name), number, "", words] for name, (number, words) in main.CODES.items()]
    return table(["code", "exit code", "class", "meaning"], rows)


def variables(meanings: dict[str, str]) -> str:
    """Return a table of environment variables."""
    return table(["variable", "meaning"], [[code(name), meaning] for name, meaning in meanings.items()])


def columns() -> str:
    """Return the columns of the candidates."""
    from galscan.candidates import columns as catalog

    return table(
        ["column", "unit", "UCD", "meaning"], [[code(c.name), c.unit, code(c.ucd), c.comment] for c in catalog.COLUMNS]
    )


def morphology() -> str:
    """Return the columns of a morphology answer."""
    from galscan.candidates.columns import describe_columns

    rows = [
        [code(f"ANSWER{end}"), c.unit, code(c.ucd), c.comment]
        for end in ("", "_lo", "_hi", "_joint", "_concentration")
        for c in describe_columns([f"answer{end}"])
    ]
    return table(["column", "unit", "UCD", "meaning"], rows)


def keywords() -> str:
    """Return the keywords of the FITS header."""
    from galscan.candidates.columns import HEADER

    rows = [[code(keyword), code(key), meaning] for key, (keyword, meaning) in HEADER.items()]
    return table(["keyword", "provenance key", "meaning"], rows)


def listing(module: str) -> str:
    """Return the listing in a module's docstring: its indented lines."""
    lines = [line[4:] for line in documentation(module).splitlines() if line.startswith("    ")]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def files(module: str) -> str:
    """Return the listing in a module's docstring as a table: names, two or more blanks, and what they are."""
    lines = [line for line in documentation(module).splitlines() if line.startswith("    ")]
    parts = [re.split(r" {2,}", line.strip()) for line in lines]
    return table(["file", "content"], [[", ".join(map(code, names)), meaning] for *names, meaning in parts])


def formats() -> str:
    """Return the versions of what galscan writes."""
    rows = [
        ["store", code("zarr.json"), constant("store/layout.py", "FORMAT"), "Zarr 3"],
        ["model", code("model.json"), constant("models/model.py", "FORMAT"), "JSON, TOML, safetensors, Parquet"],
        ["run", code("run.json"), constant("scanning/run_info.py", "FORMAT"), "JSON, Parquet, FITS, PNG, HTML"],
        ["grade book", code("grades.sqlite"), constant("vetting/gradebook.py", "FORMAT"), "SQLite"],
    ]
    return table(["form", "version in", "version", "written as"], rows)


def run_keys() -> str:
    """Return the keys of ``run.json``."""
    rows = [[code(name), code(kind), words] for name, kind, words in fields("scanning/run_info.py", "RunInfo")]
    return table(["key", "type", "meaning"], rows)


# Python.

OBJECTS = ("Store", "Model", "Run", "Recipe")


def api() -> str:
    """Return the public names of galscan; Sphinx adds their docstrings."""
    functions = [n for n in galscan.__all__ if n[0].islower()]
    opening = sorted(n for n in functions if n.split("_")[0] in ("open", "load"))
    groups = {
        "Commands": (
            "The functions of the command line, with the same parameters.",
            [n for n in functions if n not in opening],
        ),
        "Open what is there": ("", opening),
        "Objects": ("", [n for n in OBJECTS if n in galscan.__all__]),
        "Errors": ("All [error classes](errors.md) are below it.", ["GalscanError"]),
    }
    missing = set(galscan.__all__) - {"__version__"} - {n for _, names in groups.values() for n in names}
    if missing:
        raise LookupError(f"add {', '.join(sorted(missing))} to a group of docs/_generate.py")
    text = ""
    for head, (words, names) in groups.items():
        text += f"\n## {head}\n" + (f"\n{words}\n" if words else "")
        for name in sorted(names, key=str.lower):
            kind = "autoclass" if name[0].isupper() else "autofunction"
            members = "   :members:\n" if kind == "autoclass" else ""
            members += "   :inherited-members:\n" if name in ("Store", "Model", "Run") else ""
            text += f"\n```{{eval-rst}}\n.. {kind}:: galscan.{name}\n{members}```\n"
    return text


BLOCKS: dict[str, Callable[[], str]] = {
    "commands": command_line,
    "recipe": recipe,
    "errors": error_codes,
    "variables": lambda: variables(home.ENVIRONMENT),
    "variables-of-libraries": lambda: variables(home.LIBRARY_ENVIRONMENT),
    "columns": columns,
    "morphology": morphology,
    "keywords": keywords,
    "formats": formats,
    "store": lambda: listing("store/layout.py"),
    "model": lambda: files("models/model.py"),
    "run": lambda: files("scanning/run.py"),
    "run-keys": run_keys,
    "grade-book": lambda: "```sql\n" + constant("vetting/gradebook.py", "_TABLES").strip() + "\n```\n",
    "api": api,
}


def refreshed(text: str) -> str:
    """Return the text of a page with current blocks."""

    def block(found: re.Match[str]) -> str:
        content = re.sub(r"\n{3,}", "\n\n", BLOCKS[found[2]]()).strip()
        return f"{found[1]}\n{content}\n\n{found[3]}"

    return BLOCK.sub(block, text)


def stale() -> dict[Path, str]:
    """Return the pages whose blocks are not what the code says, with the text that they should have."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
    return {path: new for path, text in texts.items() if (new := refreshed(text)) != text}


def write() -> list[Path]:
    """Write the pages that have changed; return their paths."""
    changed = stale()
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
    return list(changed)


if __name__ == "__main__":
    check = "--check" in sys.argv
    found = stale() if check else write()
    print("\n".join(str(path.relative_to(ROOT)) for path in found))
    sys.exit(check and bool(found))
