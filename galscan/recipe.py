"""Recipes (``pipelines/*.toml``): everything that makes a target, as frozen and validated data.

A new rare class is a new file, not new code. A key that is not known is an error that names the
nearest right one; so is a rule that names a missing label or can never be true.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    model_validator,
)

from galscan.errors import InputError, nearest
from galscan.files import digest
from galscan.labels import Schema, find_toml, load_schema, parse_rule, schema_names, toml_names

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


P = TypeVar("P", bound=BaseModel)


def validated(part: type[P], where: str, values: Mapping[str, Any]) -> P:
    """Make a part of a recipe, or other declared data, from `values`; `where` names it in messages.

    Raises
    ------
    InputError
        If they are not valid.
    """
    try:
        return part.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error.errors()[0], part)}") from None


class DreamRule(_Part):
    """What to dream: conditions drawn from galaxies where ``base`` is true, with the ranges of ``set`` drawn anew."""

    base: str = Field(alias="from")
    set: dict[str, tuple[float, float]] = {}
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """How strongly to insist on an answer, relative to 1."""


class LaidRule(_Part):
    """Which lanes are laid over which galaxies."""

    lanes_of: str = ""
    """Rule of the galaxies whose lanes are lifted; smooth ones, as arms would be taken for dust. Without one, galaxies
    are shown as they are: look-alikes, more often than the survey has them."""
    onto: str
    """Rule of the galaxies they are laid over."""
    take: tuple[str, ...] = ()
    """Answers that come with the lane; all others stay those of the galaxy it is laid over."""


class LabelRules(_Part):
    """What is positive and what negative under one label schema; the rest is ambiguous and left out."""

    positive: str
    negative: str
    morphology: tuple[str, ...] = ()
    """Answers the classifier predicts beside the target."""
    dream: DreamRule
    hard_negatives: tuple[DreamRule, ...] = ()
    """What is dreamt on purpose to be confused with the target: half of the dreamt negatives, in equal parts."""
    laid: LaidRule | None = None
    """What makes targets of galaxies that are none."""
    laid_negatives: tuple[LaidRule, ...] = ()
    """What is laid and makes none, to be confused with it: half as many, in equal parts."""


class Split(_Part):
    """Shares of the labelled objects, divided by object before anything else is done."""

    train: Share = 0.5
    """What networks learn from."""
    calibration: Share = 0.25
    """What turns scores into probabilities, and decides whether dreams help."""
    test: Share = 0.25
    """What the result is judged by, and nothing else."""

    @model_validator(mode="after")
    def _whole(self) -> Split:
        if (
            abs(self.train + self.calibration + self.test - 1) > 1e-6
            or not min(self.train, self.calibration, self.test) > 0
        ):
            raise ValueError("train, calibration and test must be above 0 and add up to 1")
        return self


class _Taught(_Part):
    """What every generator's settings have."""

    steps: Count
    """Steps of training; fewer where --budget allows no more."""
    batch: Count = 16
    """Galaxies a step."""
    labelled_weight: Positive = 3.0
    """How many times as often as an unlabelled galaxy a labelled one is drawn."""
    rare_share: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of the draws that are examples of the target, at least: they alone show what is new in the rare class."""

    def check_size(self, size: int) -> None:
        """Refuse pictures of a size that this generator cannot draw."""


class GeneratorSettings(_Taught):
    """The flow network of this project (`galscan.generate.model`)."""

    kind: Literal["flow"] = "flow"
    """Which network: this project's own, or "stable-diffusion", which has settings of its own."""
    widths: Annotated[tuple[Annotated[int, Field(ge=32, multiple_of=32)], ...], Field(min_length=2, max_length=5)] = (
        64,
        128,
    )
    """Channels by level, the first at a quarter of the resolution, each at half of the one before; multiples of 32."""
    start: str = "base"
    """Weights to start from: "base" (those shipped), "none", or the path of a generator.safetensors."""
    steps: Count = 2000
    """Steps of training; fewer where --budget allows no more."""
    learning_rate: Positive = 8e-4
    """Of AdamW, at its highest."""
    augment: Share = 0.3
    """Share of the pictures that are rotated by any angle and scaled; the network is told which."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9985
    """How much of the averaged weights, which dream, stays at each step."""
    drop: Share = 0.12
    """Share of the steps that see no condition, for classifier-free guidance."""

    def check_size(self, size: int) -> None:
        """Refuse pictures of `size` pixels that cannot be halved as often as there are widths.

        Raises
        ------
        InputError
            Naming a size that can.
        """
        if size % (step := 2 ** (len(self.widths) + 1)):
            raise InputError(
                f"{size} px pictures cannot be halved {len(self.widths) + 1} times; give a size that is a multiple of "
                f"{step}, or fewer widths"
            )


class StableDiffusionSettings(_Taught):
    """Stable Diffusion, tuned on captions (`galscan.generate.fine_tune`); the defaults are those of Ma et al. 2025.

    arXiv:2506.16233, and the configuration their code was run with; what neither says is so marked.
    """

    kind: Literal["stable-diffusion"]
    start: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """What to start from: a folder in the form of diffusers (one that was tuned before, too), or a name on the
    Hugging Face hub."""
    lora: Annotated[int, Field(ge=0)] = 0
    """Rank of the low-rank adapters that are trained instead of all weights; 0 trains all of the network that draws and
    of the one that reads."""
    steps: Count = 10_000
    learning_rate: Annotated[Positive, Field(default_factory=lambda values: 1e-4 if values.get("lora") else 1.6e-6)]
    """The largest, which is reached after `warmup` steps; for adapters 1e-4, which is not theirs."""
    warmup: Count = 400
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9997
    drop: Share = 0.1
    """Share of the steps that see no caption, for classifier-free guidance; as for Stable Diffusion itself."""
    resolution: Annotated[int, Field(ge=16, le=1024, multiple_of=8)] = 424
    """Pixels on a side of what is shown to the network; cutouts are resampled to it, and dreams back from it."""
    begin: Literal["galaxy", "noise"] = "galaxy"
    """What drawing begins with: a training galaxy under as much noise as there is, or noise alone. With the latter
    pictures come out too bright: what is left of a picture below that noise tells its brightness."""
    recompute: bool = True
    """Compute what lies between the layers again, instead of keeping it: less memory, a third more time."""


KINDS: dict[str, type[GeneratorSettings] | type[StableDiffusionSettings]] = {
    "flow": GeneratorSettings,
    "stable-diffusion": StableDiffusionSettings,
}


def _kind(value: Any) -> str:
    return str(value.get("kind", "flow") if isinstance(value, Mapping) else getattr(value, "kind", "flow"))


AnyGenerator = Annotated[
    Annotated[GeneratorSettings, Tag("flow")] | Annotated[StableDiffusionSettings, Tag("stable-diffusion")],
    Discriminator(_kind),
]


class DreamSettings(_Part):
    laid: Annotated[int, Field(ge=0)] = 2000
    """Targets made by laying the lanes of some training galaxies over others, where the rules have ``laid``; with
    half as many hard negatives where they have ``laid_negatives``."""
    positives: Annotated[int, Field(ge=0)] = 300
    """Targets drawn by the generator; 0 draws nothing, and needs no generator."""
    negatives: Count = 600
    """Others drawn beside them, half of them the hard ones of ``hard_negatives``."""
    guidance: Annotated[float, Field(ge=0)] | None = None
    """On the whole condition; by default as is good for the generator (1: images to learn from want variety more than
    beauty, so the weights push alone; Stable Diffusion 6.5)."""
    steps: Count | None = None
    """From noise to picture; by default as is good for the generator (20; Stable Diffusion 40)."""

    def told(self, rules: LabelRules, *, drawn: bool = True) -> str:
        """Return in words how many are made."""
        parts = []
        if rules.laid is not None and self.laid:
            negatives = f" and {self.laid // 2:,} negative" if rules.laid_negatives else ""
            parts += [f"{self.laid:,} positive{negatives} laid"]
        if drawn and self.positives:
            parts += [f"{self.positives:,} positive and {self.negatives:,} negative drawn"]
        return "; ".join(parts) or "none"


class ClassifierSettings(_Part):
    width: Count = 16
    """Channels of the first layer; twice as many take about four times as long."""
    members: Count = 3
    """Networks whose scores are averaged."""
    steps: Count = 1200
    """Steps of training of each; fewer where --budget allows no more."""
    batch: Annotated[int, Field(ge=2)] = 64
    """Galaxies a step."""
    learning_rate: Positive = 2e-3
    """Of AdamW, at its highest."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Of AdamW."""
    positive_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of a batch that is positive, where positives are oversampled."""
    sampling: Literal["oversampled", "natural"] = "oversampled"
    """Draw positives until they are `positive_fraction` of a batch, or every galaxy as often as any other."""
    loss: Literal["plain", "weighted", "focal"] = "plain"
    """Binary cross-entropy; with positives weighted up to balance; or focal (Lin et al. 2017, arXiv:1708.02002)."""
    dreamt_fraction: Share = 0.7
    """Share of the positives that are dreamt, in the training that uses dreams at all; less where few are left."""
    dreamt_negatives: Share = 0.1
    """Share of all others that are dreamt there: so that "dreamt" does not come to mean the target."""
    dreams_first: Share = 0.0
    """Share of the steps, at the beginning, in which all is dreamt; afterwards as the two above say."""
    morphology_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the morphology answers in the loss, beside 1 of the target; 0 for none."""


class FirstLookSettings(_Part):
    sample: Count = 30_000
    """Pictures, labelled or not, that teach a tiny network what the ensemble says of them."""
    steps: Annotated[int, Field(ge=0)] = 1600
    """Of 256 pictures; 0 for no first look."""


class ScanSettings(_Part):
    batch: Count = 256
    """Galaxies that are scored at once."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 only where the device is fast at it, fp32 always."""
    top: Count = 1000
    """Candidates that are kept; --top says otherwise."""


class PuritySettings(_Part):
    bootstrap: Annotated[int, Field(ge=20)] = 2000
    """Draws from which the intervals come."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the intervals of purity and completeness."""


class Recipe(_Part):
    """A target: rules by label schema, and the settings of every station. Get one with `load_recipe`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    title: str
    science: str = ""
    size: Annotated[int, Field(ge=16, le=512, multiple_of=8)] = 64
    schemas: Annotated[dict[str, LabelRules], Field(min_length=1)]
    split: Split = Split()
    """Shares of the labelled objects; they add up to 1."""
    generator: AnyGenerator = GeneratorSettings()
    """The network that draws galaxies."""
    dream: DreamSettings = DreamSettings()
    """How many galaxies are dreamt, and how."""
    classifier: ClassifierSettings = ClassifierSettings()
    """The networks that score galaxies."""
    first_look: FirstLookSettings = FirstLookSettings()
    """The tiny network that discards, in large scans, what surely is no candidate."""
    scan: ScanSettings = ScanSettings()
    """How a survey is scored."""
    purity: PuritySettings = PuritySettings()
    """How purity is estimated."""
    _text: str = PrivateAttr("")

    @property
    def text(self) -> str:
        """The TOML source, as written."""
        return self._text

    @property
    def hash(self) -> str:
        """SHA-256 of the content: the same for the same settings, however the file is laid out."""
        return digest(self.model_dump(mode="json"))

    def schema_for(self, available: Iterable[str]) -> str:
        """Return the recipe's first label schema among those `available`.

        Raises
        ------
        InputError
            If there is none.
        """
        held = sorted(set(available))
        for name in self.schemas:
            if name in held:
                return name
        raise InputError(
            f"target '{self.name}' has rules for {', '.join(self.schemas)} labels, but the stores hold "
            f"{', '.join(held) or 'none'}; ingest with --labels {next(iter(self.schemas))}, or add rules to the recipe"
        )


def recipe_names() -> list[str]:
    """Return the names of all shipped recipes, the targets."""
    return toml_names("pipelines")


def load_recipe(name_or_path: str) -> Recipe:
    """Load a shipped recipe by its target's name, or one from a path ending in ``.toml``.

    Raises
    ------
    NotFoundError
        If there is none; the nearest name is offered.
    InputError
        If the recipe is not valid; the message names the key and the remedy.
    """
    name = str(name_or_path)
    source = find_toml("pipelines", "target", name)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {name} cannot be read: {error}") from error
    return recipe_from_text(text, name)


def recipe_from_text(text: str, where: str = "recipe") -> Recipe:
    """Parse and validate a recipe; `where` names its origin in messages.

    Raises
    ------
    InputError
        If it is not valid.
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
    for schema, rules in recipe.schemas.items():
        try:
            _check_rules(schema, rules)
        except InputError as error:
            raise InputError(f"recipe {where}, schemas.{schema}: {error}") from None
    return recipe


def _check_rules(name: str, rules: LabelRules) -> None:
    if name not in (known := schema_names()) and not name.endswith(".toml"):
        raise InputError(f"unknown label schema '{name}'{nearest(name, known)}")
    schema = load_schema(name)
    for text in (rules.positive, rules.negative):
        parse_rule(text, schema.names).check(schema.ranges)
    _check_names("morphology", rules.morphology, schema)
    if len(set(rules.morphology)) < len(rules.morphology):
        raise InputError("morphology names a label twice")
    check_dream("dream", rules.dream, schema)
    for k, rule in enumerate(rules.hard_negatives):
        check_dream(f"hard_negatives.{k}", rule, schema)
    if rules.laid is not None and not rules.laid.lanes_of:
        raise InputError("laid.lanes_of is missing: without a lane nothing becomes the target")
    for laid in (*filter(None, [rules.laid]), *rules.laid_negatives):
        for text in filter(None, (laid.lanes_of, laid.onto)):
            parse_rule(text, schema.names).check(schema.ranges)
        _check_names("laid.take", laid.take, schema)


def check_dream(key: str, rule: DreamRule, schema: Schema) -> None:
    """Refuse a dream rule that does not fit `schema`; `key` names it in messages.

    Raises
    ------
    InputError
        If it names an unknown label, can never be true, or sets an answer beyond its range.
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
    """Return pydantic's first complaint as one line that names the key."""
    path = [str(p) for p in error["loc"]]
    where = ".".join(p for p in path if p not in KINDS) or "the whole"
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
    """Return the keys that may stand in the table at `path`."""
    part: Any = root
    for step in path:
        if part is Recipe and step == "schemas":
            part = dict
        elif part is dict:
            part = LabelRules
        elif step.isdigit():  # of a list of tables
            part = get_args(part)[0]
        elif step in KINDS:
            part = KINDS[step]
        else:
            part = next(f.annotation for n, f in part.model_fields.items() if step in (n, f.alias))
        if type(None) in get_args(part):
            part = get_args(part)[0]
    return [f.alias or n for n, f in part.model_fields.items()]
