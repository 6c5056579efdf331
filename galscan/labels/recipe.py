"""Recipes (``pipelines/*.toml``): rules and settings of a target, as frozen, validated models.

A new rare class needs a new file, and no code. Unknown keys, rules with unknown labels, and rules that can never be
true are errors; the message has the nearest valid name.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from galscan.core.errors import InputError, nearest
from galscan.core.files import digest, read_text
from galscan.core.home import find_toml, toml_names
from galscan.labels.rules import parse_rule
from galscan.labels.schema import Schema, load_schema, schema_names
from galscan.labels.settings import (
    KINDS,
    NEGATIVES_ONLY,
    WITH_DONORS,
    WITHOUT_PRIOR,
    AnyGenerator,
    ClassifierSettings,
    GeneratorSettings,
    InjectRule,
    LabelRules,
    PrefilterSettings,
    PuritySettings,
    ScanSettings,
    Section,
    Split,
    SyntheticRule,
    SyntheticSettings,
    renamed,
)

RENAMED = {"dream": "synthetic", "first_look": "prefilter"}  # tables of recipes since version 0.1


class Recipe(Section):
    """A target: rules by label schema, and the settings of every stage. Created by `load_recipe`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the target: letters, digits, dots, dashes and underscores."""
    title: str
    """The target in a few words."""
    science: str = ""
    """Why it is of interest, in two or three sentences, with references."""
    size: Annotated[int, Field(ge=16, le=512, multiple_of=8)] = 64
    """Width in pixels of the images that the networks take; cutouts of a larger store are resampled."""
    schemas: Annotated[dict[str, LabelRules], Field(min_length=1)]
    """Rules of each label schema."""
    split: Split = Split()
    """Split of the labelled objects; fractions add up to 1."""
    generator: AnyGenerator = GeneratorSettings()
    """Generator of synthetic galaxies."""
    synthetic: Annotated[SyntheticSettings, renamed("synthetic", "dream")] = SyntheticSettings()
    """Synthetic training set."""
    classifier: ClassifierSettings = ClassifierSettings()
    """Ensemble of networks that score galaxies."""
    prefilter: Annotated[PrefilterSettings, renamed("prefilter", "first_look")] = PrefilterSettings()
    """Small network that rejects most objects of a large scan before the ensemble scores them."""
    scan: ScanSettings = ScanSettings()
    """Scan of a survey."""
    purity: PuritySettings = PuritySettings()
    """Estimate of the purity."""
    _text: str = PrivateAttr("")

    @property
    def text(self) -> str:
        """The TOML source, as written."""
        return self._text

    @property
    def hash(self) -> str:
        """SHA-256 of the settings, independent of the layout of the file."""
        return digest(self.model_dump(mode="json", by_alias=True))

    def schema_for(self, available: Iterable[str]) -> str:
        """Return the recipe's first label schema among those `available`.

        Raises
        ------
        InputError
            If there is none.
        """
        stored = sorted(set(available))
        for name in self.schemas:
            if name in stored:
                return name
        raise InputError(
            f"target '{self.name}' has rules for {', '.join(self.schemas)} labels, but the stores have "
            f"{', '.join(stored) or 'none'}; ingest with --labels {next(iter(self.schemas))}, or add rules for them"
        )


def recipe_names() -> list[str]:
    """Return the names of all shipped recipes, the targets."""
    return toml_names("pipelines")


def load_recipe(name_or_path: str) -> Recipe:
    """Load a shipped recipe by its target's name, or one from a path ending in ``.toml``.

    Raises
    ------
    NotFoundError
        If there is none; the message has the nearest name.
    InputError
        If the recipe is not valid; the message names the key and the remedy.
    """
    name = str(name_or_path)
    text = read_text(find_toml("pipelines", "target", name), f"recipe {name}")
    recipe = recipe_from_text(text, name)
    for old, new in RENAMED.items():
        if re.search(rf"^\s*\[(schemas\.\w+\.)?{old}[.\]]", text, re.MULTILINE):
            print(
                f"note: {name}: [{old}] is renamed to [{new}]; version 0.3 will not accept the old name",
                file=sys.stderr,
            )
    return recipe


def recipe_from_text(text: str, where: str = "recipe", schema: Schema | None = None) -> Recipe:
    """Parse and validate a recipe; `where` names its origin in messages.

    The rules are checked against the installed schemas or, for the recipe of a model, those for its `schema` only.
    Raises `InputError` if it is not valid.
    """
    try:
        recipe = Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {where} is not TOML: {error}") from error
    except ValidationError as error:
        raise InputError(f"recipe {where}: {_explain(error.errors()[0])}") from None
    recipe._text = text
    try:
        recipe.generator.check_size(recipe.size)
    except InputError as error:
        raise InputError(f"recipe {where}: {error}") from None
    if schema is not None and schema.name not in recipe.schemas:
        raise InputError(f"recipe {where} has no rules for '{schema.name}' labels")
    for name in recipe.schemas if schema is None else [schema.name]:
        try:
            rules, known = recipe.schemas[name], schema or _known_schema(name)
            _check_rules(rules, known)
            if schema is None:
                _check_predicted(rules, known)
        except InputError as error:
            raise InputError(f"recipe {where}, schemas.{name}: {error}") from None
    return recipe


P = TypeVar("P", bound=BaseModel)


def validated(model: type[P], where: str, values: Mapping[str, Any]) -> P:
    """Validate `values` as the pydantic model `model`; `where` names their origin in messages.

    Raises `InputError` if they are not valid.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error.errors()[0], model)}") from None


def _known_schema(name: str) -> Schema:
    if name.endswith(".toml"):
        raise InputError("give the name of a label schema, not a file; galscan ingest --labels FILE.toml installs it")
    if name not in (known := schema_names()):
        raise InputError(f"unknown label schema '{name}'{nearest(name, known)}")
    return load_schema(name)


def _check_rules(rules: LabelRules, schema: Schema) -> None:
    for text in (rules.positive, rules.negative):
        parse_rule(text, schema.names).check(schema.ranges)
    _check_names("morphology", rules.morphology, schema)
    if len(set(rules.morphology)) < len(rules.morphology):
        raise InputError("morphology names a label twice")
    check_synthetic("synthetic", rules.synthetic, schema)
    for k, rule in enumerate(rules.hard_negatives):
        check_synthetic(f"hard_negatives.{k}", rule, schema)
    negatives = ((f"inject_negatives.{k}", rule) for k, rule in enumerate(rules.inject_negatives))
    for where, injected in (("inject", rules.inject), *negatives):
        if injected is None:
            continue
        for text in filter(None, (injected.hosts, injected.unlabelled_hosts, injected.donors, injected.measure)):
            parse_rule(text, schema.names).check(schema.ranges)
        _check_names(f"{where}.values", injected.values, schema)
        _check_names(f"{where}.masked", injected.masked, schema)
        if where != "inject" and injected.measure:
            raise InputError(f"{where}.measure: maps are measured only for the target; remove it")
        if injected.feature in WITHOUT_PRIOR:
            _check_examples(where, injected, rules)
        if injected.donors and injected.feature not in WITH_DONORS:
            raise InputError(
                f"{where}.donors: the feature '{injected.feature}' is not the light of other galaxies; remove the key"
            )
        for answer, ends in injected.values.items():
            least, most = schema.ranges[answer]
            if not all(least <= end <= most for end in ends):
                raise InputError(f"{where}.values.{answer} = {list(ends)} must lie within {least:g}..{most:g}")
    if rules.inject is not None and rules.inject.feature in NEGATIVES_ONLY:
        raise InputError(f"inject.feature = '{rules.inject.feature}' makes no targets; use it in inject_negatives")
    if rules.mined_negatives:
        parse_rule(rules.mined_negatives, schema.names).check(schema.ranges)


def _check_predicted(rules: LabelRules, schema: Schema) -> None:
    """Raise an `InputError` if a rule for unlabelled galaxies needs answers that networks do not predict.

    It would never apply. A model that was trained with such a rule is used all the same.
    """
    texts = {"mined_negatives": rules.mined_negatives}
    if rules.inject is not None:
        texts["inject.unlabelled_hosts"] = rules.inject.unlabelled_hosts
    texts |= {
        f"inject_negatives.{k}.unlabelled_hosts": rule.unlabelled_hosts for k, rule in enumerate(rules.inject_negatives)
    }
    predicted = schema.complete(rules.morphology)
    for where, text in texts.items():
        for name in parse_rule(text, schema.names).names if text else ():
            if name not in predicted:
                raise InputError(
                    f"{where} needs '{name}', which no network predicts for unlabelled galaxies: add it to morphology, "
                    "or remove it from the rule"
                )


def _check_examples(where: str, rule: InjectRule, rules: LabelRules) -> None:
    """Raise an `InputError` if no galaxies are named on which a feature without a prior is measured."""
    if where == "inject" and not rule.measure:
        raise InputError(
            f"inject.measure is missing: the feature '{rule.feature}' has no prior and is measured on labelled "
            "galaxies that show it; add a rule that selects them, or use a feature with a prior"
        )
    if where != "inject" and (rules.inject is None or rules.inject.feature != rule.feature):
        raise InputError(
            f"{where}.feature: '{rule.feature}' is measured for the target only; use it in 'inject' as well, or remove "
            "it"
        )


def check_synthetic(key: str, rule: SyntheticRule, schema: Schema) -> None:
    """Check a rule for synthetic galaxies against `schema`; `key` names it in messages.

    Raises `InputError` if it names an unknown label, can never be true, or sets an answer beyond its range.
    """
    parse_rule(rule.base, schema.names).check(schema.ranges)
    _check_names(f"{key}.set", rule.set, schema)
    _check_names(f"{key}.weights", rule.weights, schema)
    for answer, (low, high) in rule.set.items():
        least, most = schema.ranges[answer]
        if not least <= low <= high <= most:
            raise InputError(f"{key}.set.{answer} = [{low:g}, {high:g}] must rise and lie within {least:g}..{most:g}")


def _check_names(key: str, names: Iterable[str], schema: Schema) -> None:
    for answer in names:
        if answer not in schema.names:
            raise InputError(f"{key} names the unknown label '{answer}'{nearest(answer, schema.names)}")


def _explain(error: Any, root: type[BaseModel] | None = None) -> str:
    """Return a pydantic error as one line with the key."""
    path = [str(p) for p in error["loc"]]
    # pydantic adds the generator's kind to the path, which is no key; only "maps" is also the name of a key.
    kept = (p for before, p in zip(["", *path], path, strict=False) if before != "generator" or p not in KINDS)
    where = ".".join(kept) or "file"
    if error["type"] == "union_tag_invalid":
        return f"{where}.kind: unknown generator '{error['ctx']['tag']}'{nearest(error['ctx']['tag'], KINDS)}"
    if error["type"] == "extra_forbidden":
        return f"unknown key '{where}'{nearest(path[-1], _keys(path[:-1], root or Recipe))}"
    if error["type"] == "missing":
        return f"the key '{where}' is missing"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}"
    given = f" (got {error['input']!r:.60})" if not isinstance(error["input"], dict) else ""
    return f"{where}: {error['msg'][:1].lower()}{error['msg'][1:]}{given}"


def _keys(path: list[str], root: type[BaseModel]) -> list[str]:
    """Return the valid keys of the table at `path`."""
    model: Any = root
    for step in path:
        if model is Recipe and step == "schemas":
            model = dict
        elif model is dict:
            model = LabelRules
        elif step.isdigit():  # of a list of tables
            model = get_args(model)[0]
        elif step in KINDS:
            model = KINDS[step]
        else:
            model = next(f.annotation for n, f in model.model_fields.items() if step in _spellings(n, f))
        if type(None) in get_args(model):
            model = get_args(model)[0]
    return [_spellings(n, f)[0] for n, f in model.model_fields.items()]


def _spellings(name: str, field: FieldInfo) -> list[str]:
    """Return what a recipe may call a field; the name that it should have comes first."""
    alias = field.validation_alias
    return [name] if alias is None else [alias] if isinstance(alias, str) else [str(c) for c in alias.choices]  # type: ignore[union-attr]
