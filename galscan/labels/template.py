"""Template of a recipe: all keys with comments, the answers of the label schemas, and valid example rules.

Comments and defaults of the settings are taken from `galscan.labels.settings`.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from galscan.core.errors import InputError, nearest
from galscan.core.home import model_path
from galscan.labels.recipe import Recipe, recipe_from_text, recipe_names
from galscan.labels.schema import Answer, Schema, Task, install_schema

WIDTH = 116  # characters of a comment line


def recipe_template(name: str, schemas: Sequence[str], answers: Sequence[str] = ()) -> str:
    """Return the text of a recipe for the target `name`, which `galscan.labels.recipe.recipe_from_text` accepts.

    Raises `InputError` if the name is invalid or that of a shipped target, a schema or answer is unknown, or one is
    given twice.

    Parameters
    ----------
    name : str
        Letters, digits, dots, dashes and underscores.
    schemas : sequence of str
        Label schemas for the rules; those given by path are installed.
    answers : sequence of str
        Answers that define the target, used for every schema that has them. Default: an example answer.
    """
    model_path(name)  # raises InputError for an invalid name
    if name in recipe_names():
        raise InputError(f"'{name}' is the name of a shipped target; choose another name")
    for option, values in (("--schema", schemas), ("--answer", answers)):
        if len(set(values)) < len(values):
            raise InputError(f"{option} {', '.join(values)}: give each once")
    loaded = {schema.name: schema for schema in map(install_schema, schemas)}
    known = [answer for schema in loaded.values() for answer in schema.names]
    for answer in answers:
        if answer not in known:
            raise InputError(f"unknown label '{answer}'{nearest(answer, known)}")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("galscan.labels", ""), trim_blocks=True, undefined=StrictUndefined,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip  # TOML, not HTML: nothing to escape
    text = environment.get_template("target.toml.j2").render(
        name=name, sections=_sections(), schemas=[_block(key, schema, answers) for key, schema in loaded.items()]
    )
    recipe_from_text(text, name)
    return text


def _block(key: str, schema: Schema, wanted: Sequence[str]) -> dict[str, Any]:
    """Return the values of the template for one schema."""
    about = next((a for a in schema.answers if a.name in wanted), None) or _example(schema)
    asked = {t.id: _asked(schema, t) for t in schema.tasks}
    leading = asked.get(about.task or "", "")
    least = next((t.leading_vote for t in schema.tasks if t.id == about.task), None)
    kind = schema.kind

    def at(fraction: float) -> str:
        return f"{about.low + fraction * (about.high - about.low):g}"

    low = {"tree": 0.1, "classes": 0.5, "attributes": 0.25}[kind]
    rules = {
        "positive": f"{about.name} >= {at(0.5)}", "negative": f"{about.name} < {at(low)}",
        "base": f"{about.name} >= {at(0.5 if kind == 'classes' else 0.25)}", "hard": f"{about.name} < {at(low)}",
    }  # fmt: skip
    if leading and least:  # at least 20 votes on the question for a positive; fewer than 10 make a negative
        rules["positive"] += f" and {leading} >= {least[1]}"
        rules["negative"] += f" or {leading} < {least[0]}"
        rules["base"] += f" and {leading} >= {least[0]}"
    return rules | {
        "key": key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key),
        "title": schema.title, "reference": textwrap.wrap(schema.reference, WIDTH),
        "width": max(map(len, schema.names)),
        "answer": about.name, "about": about.title or about.name, "answers": schema.answers,
        "set": [at(1.0 if kind == "classes" else 0.6), at(1.0)],
        "morphology": [about.name, *(leading.split(" + ") if leading else [])],
        "tasks": [
            {"title": t.title, "asked": asked[t.id] if t.leading_vote else "", "least": t.leading_vote,
             "answers": [a for a in schema.answers if a.task == t.id]}
            for t in schema.tasks
        ],
    }  # fmt: skip


def _example(schema: Schema) -> Answer:
    first = next((t for t in schema.tasks if t.leading_vote), None)
    return next(
        (a for a in schema.answers if (a.task == first.id if first else (a.low, a.high) == (0, 1))), schema.answers[0]
    )


def _asked(schema: Schema, task: Task) -> str:
    """Return the sum of the answers that lead to `task`, "" if it is asked for all objects.

    A question all of whose answers lead on is replaced by the answers that lead to that question.
    """
    if task.always or task is schema.tasks[0]:
        return ""
    leading, replaced = _leading(schema, {task.id}), set()
    while complete := [t for t in schema.tasks if t.id not in replaced and set(t.answers) <= leading]:
        replaced.add(complete[0].id)
        if complete[0] is schema.tasks[0]:
            return ""
        leading = leading - set(complete[0].answers) | _leading(schema, {complete[0].id})
    return " + ".join(a for a in schema.names if a in leading)


def _leading(schema: Schema, tasks: set[str]) -> set[str]:
    return {a for t in schema.tasks for a, after in t.answers.items() if after in tasks}


def _sections() -> list[dict[str, Any]]:
    """Return the settings of a recipe with their descriptions and defaults."""
    return [
        {
            "key": key, "words": field.description,
            "settings": [
                {
                    "key": name, "words": textwrap.wrap(_description(setting), WIDTH),
                    "value": None if setting.default is None else json.dumps(setting.default),
                }
                for name, setting in type(field.default).model_fields.items()
            ],
        }
        for key, field in Recipe.model_fields.items()
        if hasattr(field.default, "model_fields_set")
    ]  # fmt: skip


def _description(setting: FieldInfo) -> str:
    """Return the docstring of a setting, and its choices if it has some."""
    choices = get_args(setting.annotation) if get_origin(setting.annotation) is Literal else ()
    return " ".join(filter(None, [setting.description, " or ".join(map(json.dumps, choices))])).replace("``", "")
