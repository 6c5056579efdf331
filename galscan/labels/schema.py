"""Label schemas (``catalogs/*.toml``): the answers of a set of labels, and their columns in catalogs.

NaN means "not asked". `galscan.labels.columns` reads answers from a catalog; `galscan.labels.rules` evaluates rules on
them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np

from galscan.core import files, home
from galscan.core.errors import InputError, nearest
from galscan.core.home import find_toml, toml_names

SCHEMA = "schema.toml"  # in the folder of a model, a label schema that is not shipped


@dataclass(frozen=True)
class Answer:
    """One label: a number between `low` and `high`, or NaN where the question was not asked."""

    name: str
    low: float = 0.0
    high: float = 1.0
    title: str = ""
    columns: tuple[str, ...] = ()
    """Possible names of the catalog column, best first (attributes only)."""
    task: str | None = None
    missing: float | None = None
    """Value in the catalog that means "undefined" (attributes only)."""
    value: str | None = None
    """Value of the class column (classes only)."""
    alias: str = ""
    """Alternative name in catalogs, after an alternative name of the question (trees only)."""
    phrases: tuple[tuple[float, str], ...] = ()
    """Phrases for captions, each with its lower limit (`galscan.synthesis.stable_diffusion.captions`)."""


@dataclass(frozen=True)
class Task:
    """One question of a decision tree. ``answers`` maps an answer's name to the next task's id, or None."""

    id: str
    stem: str
    title: str
    answers: Mapping[str, str | None]
    always: bool = False
    """In the cumulative form asked for every object, independent of the tree."""
    leading_vote: tuple[float, float] | None = None
    """The leading answer's fraction above which this question counts as asked (10 and 20 votes)."""
    aliases: tuple[str, ...] = ()
    """Alternative names of the question in catalogs, best first."""


@dataclass(frozen=True)
class Naming:
    """Suffixes of vote columns: of fractions (best first) and counts of an answer, of the votes on a question."""

    suffixes: tuple[str, ...]
    count: str = "_count"
    total: str = "_total-votes"
    whole: bool = False
    """Read a question only if the catalog has all its answers, because campaigns asked it in different forms."""


@dataclass(frozen=True)
class Schema:
    """A set of labels and their columns in catalogs. Created by `load_schema`."""

    name: str
    title: str
    kind: str
    reference: str
    answers: tuple[Answer, ...]
    tasks: tuple[Task, ...] = ()
    column: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ("",)
    aliases: Naming = Naming(("",))
    min_votes: float = 0.0
    min_reach: float = 0.0
    assumed_votes: float = 20.0
    """Votes on a question, if the catalog does not have their number (trees only)."""
    captions: tuple[tuple[tuple[str, str], ...], ...] = ()
    """Answers and phrases: where all answers of an entry lead, a caption has its phrases alone (trees only)."""
    text: str = field(default="", init=False, repr=False, compare=False)
    """The TOML source."""
    names: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", [a.name for a in self.answers])

    @property
    def low(self) -> np.ndarray:
        """Lowest value of every answer, shape (A,), float32."""
        return np.array([a.low for a in self.answers], np.float32)

    @property
    def high(self) -> np.ndarray:
        """Highest value of every answer, shape (A,), float32."""
        return np.array([a.high for a in self.answers], np.float32)

    @property
    def naming(self) -> Naming:
        """Suffixes of the vote columns with the schema's own names."""
        return Naming(self.suffixes)

    @property
    def groups(self) -> list[list[str]]:
        """The answers of each question of a tree; empty for other labels."""
        return [list(task.answers) for task in self.tasks]

    def complete(self, answers: Iterable[str]) -> list[str]:
        """Return `answers` and, for a tree, all other answers of their questions."""
        group_of = {name: group for group in self.groups for name in group}
        return list(dict.fromkeys(name for answer in answers for name in group_of.get(answer, [answer])))

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value by answer name."""
        return {a.name: (a.low, a.high) for a in self.answers}


def schema_names() -> list[str]:
    """Return the names of all label schemas, shipped or installed by the user."""
    installed = (path.stem for path in home.data_home().glob("labels/*.toml"))
    return sorted({*toml_names("catalogs"), *installed})


def is_shipped(name: str) -> bool:
    """Return whether a schema is shipped with galscan."""
    return name in toml_names("catalogs")


def load_schema(name: str | Path) -> Schema:
    """Load a schema by name, or one from a path ending in ``.toml``.

    Raises `NotFoundError` if there is none; the message has the nearest name; `InputError` if the file is not a schema.
    """
    name = str(name)
    if home.is_name(name) and not name.endswith(".toml") and not is_shipped(name) and home.labels_path(name).is_file():
        source: Traversable = home.labels_path(name)
    else:
        source = find_toml("catalogs", "label schema", name, schema_names())
    return _parsed(files.read_text(source, f"label schema {name}"), name)


def install_schema(name: str) -> Schema:
    """Load a schema as `load_schema`; one from a path is copied to the data home, and can be loaded by its name.

    Raises `InputError` if the file is not a schema, or another schema has its name: rules refer to schemas by name.
    """
    schema = load_schema(name)
    if str(name).endswith(".toml"):
        if is_shipped(schema.name):
            raise InputError(f"{name}: '{schema.name}' is the name of a shipped label schema; choose another name")
        installed = home.labels_path(schema.name)
        if installed.is_file() and load_schema(schema.name) != schema:
            raise InputError(
                f"{name}: '{schema.name}' is the name of another label schema; choose another name, or remove "
                f"{installed}"
            )
        files.write_text(installed, schema.text)
    return schema


def save_schema(schema: Schema, folder: Path) -> None:
    """Write a schema that is not shipped into the folder of a model, which keeps it if the user changes theirs."""
    if not is_shipped(schema.name):
        files.write_text(folder / SCHEMA, schema.text)


def saved_schema(folder: Path, name: str) -> Schema:
    """Return the schema of a model: that in its folder, or else the shipped or installed one of this name."""
    if not (folder / SCHEMA).is_file():
        return load_schema(name)
    schema = load_schema(folder / SCHEMA)
    if schema.name != name:
        raise InputError(f"{folder / SCHEMA} is the label schema '{schema.name}', not '{name:.60}'; restore it")
    return schema


@lru_cache(maxsize=32)
def _parsed(text: str, name: str) -> Schema:
    try:
        schema = _checked(_schema(tomllib.loads(text)))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"lacks the key {error}" if type(error) is KeyError else str(error)
        raise InputError(f"label schema {name}: {what}") from error
    object.__setattr__(schema, "text", text)
    return schema


def _checked(schema: Schema) -> Schema:
    """Check types and ranges, for schemas written by users or read from models."""
    for key in ("name", "title", "reference"):
        if not isinstance(value := getattr(schema, key), str):
            raise ValueError(f"{key} = {value!r} must be a string")
    if not schema.answers:
        raise ValueError("it has no answers")
    for answer in schema.answers:
        if not isinstance(answer.name, str) or not answer.name or schema.names.count(answer.name) > 1:
            raise ValueError(f"the answer {answer.name!r} is not a string, or occurs twice")
        if not all(type(limit) in (int, float) for limit in (answer.low, answer.high)) or not answer.low < answer.high:
            raise ValueError(
                f"the range of answer '{answer.name}' is {answer.low!r} to {answer.high!r}; it must be increasing"
            )
    for name in (name for entry in schema.captions for name, _ in entry):
        if name not in schema.names:
            raise ValueError(f"unknown answer '{name}' in [[caption]]{nearest(name, schema.names)}")
    return schema


def _schema(raw: dict[str, Any]) -> Schema:
    head = {k: raw.pop(k) for k in ("name", "title", "kind", "reference")}
    if head["kind"] not in ("attributes", "classes", "tree"):
        raise InputError(f"kind '{head['kind']}' is not attributes, classes or tree")
    if head["kind"] == "tree":
        tasks, answers = [], []
        for task in raw.pop("task"):
            stem = "_".join(part for part in (task["id"], task.get("stem")) if part)
            full = {f"{stem}_{a['id']}": a for a in task["answers"]}
            vote = task.get("leading_vote")
            tasks.append(
                Task(task["id"], task.get("stem", ""), task["title"], {n: a.get("next") for n, a in full.items()},
                     task.get("always", False), tuple(vote) if vote else None, tuple(task.get("aliases", ())))
            )  # fmt: skip
            answers += [
                Answer(
                    n,
                    title=a.get("title", ""),
                    task=task["id"],
                    alias=a.get("alias", a["id"]),
                    phrases=_phrases(a.get("phrase", [])),
                )
                for n, a in full.items()
            ]
        naming: dict[str, Any] = {"suffixes": ("",)} | raw.pop("aliases", {})
        given = [{name: _phrases(text)[0][1] for name, text in entry.items()} for entry in raw.pop("caption", [])]
        raw["captions"] = tuple(tuple(entry.items()) for entry in given)
        raw["aliases"] = Naming(**naming | {"suffixes": tuple(naming["suffixes"])})
        raw = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return Schema(**head, answers=tuple(answers), tasks=tuple(tasks), **raw)
    fields: list[dict[str, Any]] = [
        {k: tuple(v) if isinstance(v, list) else v for k, v in a.items()} for a in raw.pop("answer")
    ]
    if head["kind"] == "attributes":
        fields = [{"columns": (f["name"],)} | f for f in fields]
    answers = [Answer(phrases=_phrases(f.pop("phrase", ())), **f) for f in fields]
    return Schema(**head, answers=tuple(answers), column=tuple(raw.pop("column", ())), **raw)


def _phrases(given: Any) -> tuple[tuple[float, str], ...]:
    """Parse ``phrase``: a string, used from 0.5 on, or pairs of a lower limit and a string."""
    phrases = ((0.5, given),) if isinstance(given, str) else tuple((float(low), str(text)) for low, text in given)
    if list(phrases) != sorted(phrases):
        raise ValueError(f"the values of phrase = {given} must increase")
    if wrong := [text for _, text in phrases if not text.strip() or set(text) & set("{}:,")]:
        raise ValueError(f"the phrase {wrong[0]!r} is empty, or contains one of {{}}:,")
    return phrases
