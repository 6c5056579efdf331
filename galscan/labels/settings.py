"""What stands in a recipe, part by part, as frozen and validated data: rules of labels, settings of every station."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from galscan.core.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


def renamed(new: str, old: str) -> Any:
    """Return a field that recipes of version 0.1 call `old`; so does their hash, which names models and runs."""
    return Field(validation_alias=AliasChoices(new, old), serialization_alias=old)


class Section(BaseModel):
    """A table of a recipe: what is not known is an error, and nothing changes afterwards."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SyntheticRule(Section):
    """What to dream: conditions drawn from galaxies where ``base`` is true, with the ranges of ``set`` drawn anew."""

    base: str = Field(alias="from")
    set: dict[str, tuple[float, float]] = {}
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """How strongly to insist on an answer, relative to 1."""


class InjectRule(Section):
    """Which feature is injected into which real galaxies."""

    feature: Literal["dust_lane", "artefact"]
    """A module of `galscan.synthesis.features.base`."""
    hosts: str
    """Rule of the galaxies into which it is injected."""
    unlabelled_hosts: str = ""
    """Rule of the unlabelled galaxies into which it is injected as well, on the answers that a network trained on real
    galaxies predicts of them; by default that of ``hosts``. Predictions are seldom exactly 0 or 1."""
    values: dict[str, tuple[float, float]] = {}
    """Answers that the feature changes: their values where it is barely seen and where it is plain; all others stay
    those of the host."""
    plain: Annotated[float, Field(gt=0.1, le=1)] = 0.25
    """Depth, as a fraction of the displayed light, from which the feature is as plain as it can be."""
    measure: str = ""
    """Rule of the training galaxies, of any type, on which maps of the feature are measured."""


class LabelRules(Section):
    """What is positive and what negative under one label schema; the rest is ambiguous and left out."""

    positive: str
    negative: str
    morphology: tuple[str, ...] = ()
    """Answers the classifier predicts beside the target."""
    synthetic: Annotated[SyntheticRule, renamed("synthetic", "dream")]
    hard_negatives: tuple[SyntheticRule, ...] = ()
    """What is dreamt on purpose to be confused with the target: half of the dreamt negatives, in equal parts."""
    inject: InjectRule | None = None
    """What makes targets of galaxies that are none: a feature injected into real hosts."""
    inject_negatives: tuple[InjectRule, ...] = ()
    """What is injected and makes none, to be confused with it: a quarter as many, in equal parts."""
    mined_negatives: str = ""
    """Rule of hard negatives among the unlabelled galaxies: those whose predicted answers satisfy it and that a network
    trained on real galaxies takes for targets most."""


class Split(Section):
    """How the labelled objects are divided, by object, before anything else is done."""

    method: Literal["crossfit", "fixed"] = "crossfit"
    """Cross-fitting divides them into as many folds as there are networks: each network is trained without one fold and
    scores it, and these out-of-fold scores calibrate and test. Or fixed fractions train, calibrate and test; so it is
    with a single network, and where a generator draws whole images, as well."""
    train: Share = 0.5
    """Of a fixed split, the fraction that trains the networks."""
    calibration: Share = 0.25
    """Of a fixed split, what turns scores into probabilities, and decides whether synthetic galaxies help."""
    test: Share = 0.25
    """Of a fixed split, what the result is tested on, and nothing else."""

    @model_validator(mode="after")
    def _whole(self) -> Split:
        if (
            abs(self.train + self.calibration + self.test - 1) > 1e-6
            or not min(self.train, self.calibration, self.test) > 0
        ):
            raise ValueError("train, calibration and test must be above 0 and add up to 1")
        return self


class _TrainingSettings(Section):
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


class GeneratorSettings(_TrainingSettings):
    """The flow network of this project (`galscan.synthesis.diffusion.galaxy_model`)."""

    kind: Literal["flow"] = "flow"
    """Which network: this project's own, of whole images; or "stable-diffusion", or "maps" of features to inject, which
    have settings of their own."""
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


class StableDiffusionSettings(_TrainingSettings):
    """Stable Diffusion, tuned on captions (`galscan.synthesis.stable_diffusion.fine_tune`).

    The defaults are those of Ma et al. 2025, arXiv:2506.16233, and the configuration their code was run with; what
    neither says is so marked.
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


class MapSettings(Section):
    """The diffusion model of feature maps (`galscan.synthesis.diffusion.map_model`), injected into real galaxies."""

    kind: Literal["maps"]
    maps: Literal["both", "diffusion", "prior"] = "both"
    """Whether maps are sampled by the diffusion model, drawn from the physical prior it was trained on, or both: those
    that are like measured ones are sampled, the rest is drawn."""
    guidance: Annotated[float, Field(ge=0)] = 1.5
    """On the conditions of the diffusion model; 1 samples as it was trained, more follows them more closely."""
    widths: Annotated[tuple[Annotated[int, Field(ge=16, multiple_of=16)], ...], Field(min_length=2, max_length=4)] = (
        32,
        64,
        96,
    )
    """Channels by level, the first at a quarter of a map's resolution; the last a multiple of 32."""
    start: str = "base"
    """Weights to start from: "base" (those shipped), "none", or the path of a file."""
    steps: Annotated[int, Field(ge=0)] = 120
    """Steps of fine-tuning on measured maps; 0 samples with the weights as they are."""
    batch: Count = 32
    """Maps a step."""
    learning_rate: Positive = 3e-4
    """Of AdamW, at its highest."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """How much of the averaged weights, which sample, stays at each step."""
    measured_fraction: Share = 0.5
    """Fraction of the maps in training, and of those sampled, that are like measured ones; less where few were
    measured, and the rest is like the prior's."""

    @model_validator(mode="after")
    def _attention(self) -> MapSettings:
        if self.widths[-1] % 32:
            raise ValueError(f"the last of widths is {self.widths[-1]}, not a multiple of 32")
        return self

    def check_size(self, size: int) -> None:
        """Accept pictures of any size: maps have their own."""


KINDS: dict[str, type[GeneratorSettings] | type[StableDiffusionSettings] | type[MapSettings]] = {
    "flow": GeneratorSettings,
    "stable-diffusion": StableDiffusionSettings,
    "maps": MapSettings,
}


def _kind(value: Any) -> str:
    return str(value.get("kind", "flow") if isinstance(value, Mapping) else getattr(value, "kind", "flow"))


AnyGenerator = Annotated[
    Annotated[GeneratorSettings, Tag("flow")]
    | Annotated[StableDiffusionSettings, Tag("stable-diffusion")]
    | Annotated[MapSettings, Tag("maps")],
    Discriminator(_kind),
]


class SyntheticSettings(Section):
    injected: Annotated[int, Field(ge=0)] = 2000
    """Targets made by injecting the feature of the rules' ``inject`` into real galaxies, with a quarter as many hard
    negatives where they have ``inject_negatives``."""
    mined: Annotated[int, Field(ge=0)] = 200
    """Hard negatives taken from the unlabelled galaxies, where the rules have ``mined_negatives``."""
    positives: Annotated[int, Field(ge=0)] = 300
    """Targets drawn whole by the generator, where it draws whole images; 0 draws nothing, and needs no generator."""
    negatives: Count = 600
    """Others drawn beside them, half of them the hard ones of ``hard_negatives``."""
    guidance: Annotated[float, Field(ge=0)] | None = None
    """On the whole condition; by default as is good for the generator (1: images to learn from want variety more than
    beauty, so the weights push alone; Stable Diffusion 6.5)."""
    steps: Count | None = None
    """From noise to picture; by default as is good for the generator (20; Stable Diffusion 40)."""

    def summary(self, rules: LabelRules, *, whole: bool = True) -> str:
        """Return in words how many are made; `whole` says whether a generator draws whole images."""
        parts = []
        if rules.inject is not None and self.injected:
            negatives = f" and {self.injected // 4:,} negative" if rules.inject_negatives else ""
            parts += [f"{self.injected:,} positive{negatives} injected into real galaxies"]
            parts += [f"up to {self.injected // 4:,} too faint for a target, as negatives"]
            if rules.mined_negatives and self.mined:
                parts += [f"{self.mined:,} negatives mined"]
        if whole and self.positives:
            parts += [f"{self.positives:,} positive and {self.negatives:,} negative drawn"]
        return "; ".join(parts) or "none"


class ClassifierSettings(Section):
    width: Count = 16
    """Channels of the first layer of our own network; twice as many take about four times as long."""
    encoder: str = ""
    """Instead of our own network, one of timm's with its weights (extra ``encoders``): a name ("resnet18.a1_in1k"), a
    repository on the Hugging Face hub ("hf-hub:mwalmsley/zoobot-encoder-convnext_nano"), or the folder of one."""
    encoder_frozen: bool = False
    """Leave the encoder as it is: the heads alone learn, and all networks share it."""
    encoder_learning_rate: Positive = 2e-4
    """Of AdamW on the encoder, at its highest: a tenth of that on the heads."""
    encoder_size: Annotated[int, Field(ge=0, le=1024)] = 0
    """Pixels on a side of what an encoder is shown, resampled from the cutouts; 0 for the cutouts as they are, or for
    the one size that an encoder takes."""
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
    positive_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.16
    """Fraction of a batch that are real positives, where positives are oversampled."""
    sampling: Literal["oversampled", "natural"] = "oversampled"
    """Draw positives until they are `positive_fraction` of a batch, or every galaxy as often as any other."""
    loss: Literal["plain", "weighted", "focal"] = "plain"
    """Binary cross-entropy; with positives weighted up to balance; or focal (Lin et al. 2017, arXiv:1708.02002)."""
    synthetic_positives: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Fraction of a batch that are synthetic positives, beside the real ones; less where few were made."""
    synthetic_negatives: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Fraction of a batch that are synthetic negatives: faint features, features on other galaxies, mined ones."""
    hosts: Share = 0.5
    """Fraction of the injected galaxies of a batch whose untouched hosts are in it, too, as negatives."""
    real_last: Share = 0.4
    """Fraction of the steps, at the end, in which every galaxy is real: diverse first, real last (arXiv:2410.13674)."""
    morphology_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the morphology answers in the loss, beside 1 of the target; 0 for none."""

    @model_validator(mode="after")
    def _frozen(self) -> ClassifierSettings:
        if self.encoder_frozen and not self.encoder:
            raise ValueError("encoder_frozen needs an encoder: our own network learns from nothing")
        return self

    @model_validator(mode="after")
    def _room(self) -> ClassifierSettings:
        if (whole := self.positive_fraction + self.synthetic_positives + self.synthetic_negatives) >= 1:
            raise ValueError(
                f"positive_fraction, synthetic_positives and synthetic_negatives add up to {whole:g}; stay below 1: "
                "the rest are real negatives"
            )
        return self

    @property
    def network(self) -> str:
        """Return in words what the networks are, where they are not our own."""
        return f"{self.encoder} ({'frozen' if self.encoder_frozen else 'fine-tuned'})" if self.encoder else ""


class PrefilterSettings(Section):
    sample: Count = 30_000
    """Pictures, labelled or not, that teach a tiny network what the ensemble says of them."""
    steps: Annotated[int, Field(ge=0)] = 1600
    """Of 256 pictures; 0 for no first look."""


class ScanSettings(Section):
    batch: Count = 256
    """Galaxies that are scored at once."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16 only where the device is fast at it, fp32 always."""
    top: Count = 1000
    """Candidates that are kept; --top says otherwise."""


class PuritySettings(Section):
    bootstrap: Annotated[int, Field(ge=20)] = 2000
    """Draws from which the intervals come."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the intervals of purity and completeness."""
