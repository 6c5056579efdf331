"""Tables of a recipe as frozen, validated models: label rules, and the settings of every stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from galscan.core.errors import InputError

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
WITH_DONORS = ("companion",)  # features that are the light of other galaxies
NEGATIVES_ONLY = ("artefact", "star")  # features that make no targets
WITHOUT_PRIOR = ("residual",)  # features whose maps are only measured on labelled galaxies
STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""Version 1.5, on the Hugging Face hub."""
GALAXYSD = "CosmosDream/GalaxySD"
"""The weights that Ma et al. 2025 released, there."""


def renamed(new: str, old: str) -> Any:
    """Return a field named `old` in recipes of version 0.1, and in the recipe hash, the identity of models and runs."""
    return Field(validation_alias=AliasChoices(new, old), serialization_alias=old)


class Section(BaseModel):
    """A table of a recipe; immutable, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SyntheticRule(Section):
    """Conditions of synthetic galaxies: the answers of random galaxies that satisfy ``from``, except those in ``set``,
    which are uniform in their ranges."""

    base: str = Field(validation_alias="from", serialization_alias="base", description="Rule for those galaxies.")
    set: Annotated[dict[str, tuple[float, float]], Field(description="Lowest and highest value of answers.")] = {}
    weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Relative guidance of answers, 1 by default."""


class InjectRule(Section):
    """Injection of a feature into real galaxies."""

    feature: Literal["dust_lane", "artefact", "ring", "lens", "companion", "tidal", "star", "residual"]
    """A module of `galscan.synthesis.features.base`."""
    hosts: str
    """Rule for host galaxies."""
    unlabelled_hosts: str = ""
    """Rule for unlabelled host galaxies, on answers predicted by a network trained on real galaxies; by default that of
    ``hosts``. Predictions are seldom exactly 0 or 1."""
    values: dict[str, tuple[float, float]] = {}
    """Answers that the feature changes: their values for a barely visible and for a clear feature. All others are those
    of the host; in a decision tree, the other answers of the same question are rescaled, so that they add up to 1."""
    masked: tuple[str, ...] = ()
    """Answers that are unknown with the feature, and are not trained on: those that it may change in either way."""
    donors: str = ""
    """Of features that are the light of other galaxies: rule for these; by default all training galaxies."""
    plain: Annotated[float, Field(gt=0.1, le=1)] = 0.25
    """Depth of a clear feature, above which the answers do not change further: the fraction of the displayed light that
    it hides or adds."""
    measure: str = ""
    """Rule for the training galaxies, of any type, on which maps of the feature are measured. The feature "residual"
    needs it, as it has no prior: these galaxies are all that is known of it."""

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys added since version 0.2 where they are not used: they do not change the recipe hash."""
        return {k: v for k, v in handler(self).items() if v or k not in ("masked", "donors")}


class LabelRules(Section):
    """Rules of one label schema. Objects that are neither positive nor negative are ambiguous: they do not train the
    target, and count as no targets in calibration and test."""

    positive: Annotated[str, Field(description='Rule for the target, such as "bar >= 0.75".')]
    negative: Annotated[str, Field(description="Rule for galaxies that are certainly not the target.")]
    morphology: tuple[str, ...] = ()
    """Answers that the classifier predicts in addition to the target."""
    synthetic: Annotated[SyntheticRule, renamed("synthetic", "dream")]
    """Conditions of positives that are generated as whole images."""
    hard_negatives: tuple[SyntheticRule, ...] = ()
    """Synthetic galaxies that resemble the target: half of the synthetic negatives, in equal numbers."""
    inject: InjectRule | None = None
    """Injection of the target's feature into real galaxies, which makes positives."""
    inject_negatives: tuple[InjectRule, ...] = ()
    """Injection of similar features, which makes hard negatives: a quarter as many as positives, in equal numbers."""
    mined_negatives: str = ""
    """Rule for hard negatives among unlabelled galaxies: of those whose predicted answers satisfy it, the ones with the
    highest scores of a network trained on real galaxies are used."""


class Split(Section):
    """Split of the labelled objects, by object, before any other step."""

    method: Literal["crossfit", "fixed"] = "crossfit"
    """Cross-fitting splits them into as many folds as there are networks: each network is trained without one fold and
    scores it, and these out-of-fold scores are used for calibration and test. Or fixed fractions for training,
    calibration and test, which are also used for a single network, and with generators of whole images."""
    train: Fraction = 0.5
    """Of a fixed split: fraction for training."""
    calibration: Fraction = 0.25
    """Of a fixed split: fraction for the calibration of probabilities, and for the decision whether synthetic galaxies
    help."""
    test: Fraction = 0.25
    """Of a fixed split: fraction for the test, not used otherwise."""

    @model_validator(mode="after")
    def _check_sum(self) -> Split:
        if (
            abs(self.train + self.calibration + self.test - 1) > 1e-6
            or not min(self.train, self.calibration, self.test) > 0
        ):
            raise ValueError("train, calibration and test must be above 0 and add up to 1")
        return self


class _TrainingSettings(Section):
    """Settings common to all generators."""

    steps: Count
    """Training steps; fewer if --budget requires it."""
    batch: Count = 16
    """Galaxies per step."""
    labelled_weight: Positive = 3.0
    """Sampling weight of labelled galaxies, relative to unlabelled ones."""
    rare_share: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Minimum fraction of positives in the training samples, because only they show the rare class."""

    def check_size(self, size: int) -> None:
        """Raise `InputError` if this generator cannot generate images of `size` pixels."""


class GeneratorSettings(_TrainingSettings):
    """The flow-matching model of whole images (`galscan.synthesis.diffusion.galaxy_model`)."""

    kind: Literal["flow"] = "flow"
    """Generator: "flow" for whole images, "stable-diffusion", or "maps" for maps of features to inject; the settings
    depend on it."""
    widths: Annotated[tuple[Annotated[int, Field(ge=32, multiple_of=32)], ...], Field(min_length=2, max_length=5)] = (
        64,
        128,
    )
    """Channels per level, multiples of 32; the first level has a quarter of the resolution, each further one half."""
    start: str = "base"
    """Weights to start from: "base" (those shipped), "none", or the path of a generator.safetensors."""
    steps: Count = 2000
    """Training steps; fewer if --budget requires it."""
    learning_rate: Positive = 8e-4
    """Maximum learning rate of AdamW."""
    augment: Fraction = 0.3
    """Fraction of the images that are rotated by any angle and scaled; this is a condition of the network."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9985
    """Decay of the exponential moving average of the weights, which is used for sampling."""
    drop: Fraction = 0.12
    """Fraction of the steps without condition, for classifier-free guidance."""

    def check_size(self, size: int) -> None:
        """Raise `InputError` if `size` cannot be halved once per level."""
        if size % (step := 2 ** (len(self.widths) + 1)):
            raise InputError(
                f"images of {size} px cannot be halved {len(self.widths) + 1} times; give a size that is a multiple of "
                f"{step}, or fewer widths"
            )


class StableDiffusionSettings(_TrainingSettings):
    """Stable Diffusion, fine-tuned on captions (`galscan.synthesis.stable_diffusion.fine_tune`).

    The defaults are those of Ma et al. 2025, arXiv:2506.16233, and of the configuration of their code; exceptions are
    noted.
    """

    kind: Annotated[Literal["stable-diffusion"], Field(description="This generator.")]
    start: str = STABLE_DIFFUSION
    """Initial weights: a folder in the format of diffusers (also a fine-tuned one), or with checkpoints of
    HCP-Diffusion (unet-STEPS.safetensors, text_encoder-STEPS.safetensors); or a repository of either on the Hugging
    Face hub, such as CosmosDream/GalaxySD."""
    base: str = STABLE_DIFFUSION
    """Base model of such checkpoints, which have no autoencoder: a folder in the format of diffusers, or a name on the
    Hugging Face hub."""
    lora: Annotated[int, Field(ge=0)] = 0
    """Rank of the low-rank adapters that are trained instead of all weights; 0 trains all weights of U-Net and text
    encoder."""
    steps: Annotated[int, Field(ge=0)] = 10_000
    """Training steps; 0 uses the initial weights as they are."""
    learning_rate: Annotated[Positive, Field(default_factory=lambda values: 1e-4 if values.get("lora") else 1.6e-6)]
    """Maximum learning rate, reached after `warmup` steps; for adapters 1e-4, which is not from the paper."""
    warmup: Annotated[Count, Field(description="Steps of rising learning rate.")] = 400
    weight_decay: Annotated[float, Field(ge=0, description="Weight decay of AdamW.")] = 1e-3
    ema: Annotated[float, Field(ge=0, lt=1, description="Decay of the moving average of the weights.")] = 0.9997
    drop: Fraction = 0.1
    """Fraction of the steps without caption, for classifier-free guidance; that of Stable Diffusion."""
    resolution: Annotated[int, Field(ge=16, le=1024, multiple_of=8)] = 424
    """Pixels on a side of the network's images; cutouts are resampled to it, and synthetic galaxies back from it."""
    begin: Literal["galaxy", "noise"] = "galaxy"
    """Start of the sampling: a training galaxy with maximum noise, or pure noise. With pure noise the images are too
    bright, because in training the image below the noise determines the brightness."""
    caption_survey: Annotated[
        str,
        Field(default_factory=lambda values: "sdss" if values.get("start") == GALAXYSD else "", pattern=r"^[^{}:,]*$"),
    ]
    """Survey named in all captions, instead of the name of the store; sdss by default for CosmosDream/GalaxySD, which
    was trained with sdss, hubble and candels."""
    recompute: bool = True
    """Gradient checkpointing: recompute activations instead of storing them; less memory, a third more time."""

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys added since version 0.2 where they are not used: they do not change the recipe hash."""
        unused = {"base": STABLE_DIFFUSION, "caption_survey": ""}
        return {k: v for k, v in handler(self).items() if k not in unused or v != unused[k]}


class MapSettings(Section):
    """The diffusion model of feature maps (`galscan.synthesis.diffusion.map_model`), injected into real galaxies."""

    kind: Annotated[Literal["maps"], Field(description="This generator.")]
    maps: Literal["both", "diffusion", "prior"] = "both"
    """Source of the maps: the diffusion model, the physical prior it was trained on, or both: maps that resemble
    measured ones are from the model, the rest from the prior."""
    guidance: Annotated[float, Field(ge=0)] = 1.5
    """Classifier-free guidance of the diffusion model; 1 is without guidance, more follows the conditions more
    closely."""
    widths: Annotated[tuple[Annotated[int, Field(ge=16, multiple_of=16)], ...], Field(min_length=2, max_length=4)] = (
        32,
        64,
        96,
    )
    """Channels per level, the first at a quarter of a map's resolution; the last a multiple of 32."""
    start: str = "base"
    """Weights to start from: "base" (those shipped), "none", or the path of a file."""
    steps: Annotated[int, Field(ge=0)] = 120
    """Steps of fine-tuning on measured maps; 0 samples with the weights as they are."""
    batch: Count = 32
    """Maps per step."""
    learning_rate: Positive = 3e-4
    """Maximum learning rate of AdamW."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the exponential moving average of the weights, which is used for sampling."""
    measured_fraction: Fraction = 0.5
    """Fraction of measured maps in training, and of maps that resemble them in sampling; less if few were measured. The
    rest follows the prior."""

    @model_validator(mode="after")
    def _check_widths(self) -> MapSettings:
        if self.widths[-1] % 32:
            raise ValueError(f"the last of widths is {self.widths[-1]}, not a multiple of 32")
        return self

    def check_size(self, size: int) -> None:
        """Accept images of any size: maps have their own size."""


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
    """Positives made by injecting the feature of the rules' ``inject`` into real galaxies, with a quarter as many hard
    negatives if there are ``inject_negatives``."""
    mined: Annotated[int, Field(ge=0)] = 200
    """Hard negatives among unlabelled galaxies, if there are ``mined_negatives``."""
    positives: Annotated[int, Field(ge=0)] = 300
    """Positives generated as whole images; 0 for none, and no generator is trained."""
    negatives: Count = 600
    """Negatives generated as whole images, half of them by ``hard_negatives``."""
    guidance: Annotated[float, Field(ge=0)] | None = None
    """Classifier-free guidance of the whole condition; the default depends on the generator (1: a training set needs
    variety more than image quality, and only the answers with weights are guided; Stable Diffusion 6.5)."""
    steps: Count | None = None
    """Sampling steps; the default depends on the generator (20; Stable Diffusion 40)."""

    def summary(self, rules: LabelRules, *, whole: bool = True) -> str:
        """Return the numbers of synthetic galaxies as text; `whole` says whether whole images are generated."""
        items = []
        if rules.inject is not None and self.injected:
            negatives = f" and {self.injected // 4:,} negatives" if rules.inject_negatives else ""
            items += [f"{self.injected:,} positives{negatives} injected into real galaxies"]
            items += [f"up to {self.injected // 4:,} too faint for a target, as negatives"]
            if rules.mined_negatives and self.mined:
                items += [f"{self.mined:,} mined negatives"]
        if whole and self.positives:
            items += [f"{self.positives:,} positives and {self.negatives:,} negatives generated"]
        return "; ".join(items) or "none"


class ClassifierSettings(Section):
    width: Count = 16
    """Channels of the first layer of the built-in network; twice as many take about four times as long."""
    encoder: str = ""
    """Pretrained encoder of timm (extra ``encoders``) instead of the built-in network: a name ("resnet18.a1_in1k"), a
    repository on the Hugging Face hub ("hf-hub:mwalmsley/zoobot-encoder-convnext_nano"), or a folder."""
    encoder_frozen: bool = False
    """Do not train the encoder: only the heads are trained, and all networks share the encoder."""
    encoder_learning_rate: Positive = 2e-4
    """Maximum learning rate of AdamW for the encoder; a tenth of that for the heads."""
    encoder_size: Annotated[int, Field(ge=0, le=1024)] = 0
    """Input size of the encoder in pixels, to which cutouts are resampled; 0 for the size of the cutouts, or for the
    only size that the encoder accepts."""
    members: Count = 3
    """Networks of the ensemble, whose scores are averaged."""
    steps: Count = 1200
    """Training steps of each network; fewer if --budget requires it."""
    batch: Annotated[int, Field(ge=2)] = 64
    """Galaxies per step."""
    learning_rate: Positive = 2e-3
    """Maximum learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Weight decay of AdamW."""
    positive_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.16
    """Fraction of real positives in a batch, if positives are oversampled."""
    sampling: Literal["oversampled", "natural"] = "oversampled"
    """Oversample positives to `positive_fraction` of a batch, or sample all galaxies with equal probability."""
    loss: Literal["plain", "weighted", "focal"] = "plain"
    """Binary cross-entropy, without or with class weights; or focal loss (Lin et al. 2017, arXiv:1708.02002)."""
    synthetic_positives: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Fraction of synthetic positives in a batch, in addition to the real ones; less if there are few."""
    synthetic_negatives: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Fraction of synthetic negatives in a batch: faint features, features on other galaxies, mined ones."""
    hosts: Fraction = 0.5
    """Fraction of the injected galaxies of a batch whose unchanged hosts are in the batch as well, as negatives."""
    real_last: Fraction = 0.4
    """Fraction of the steps, at the end, with real galaxies only: first diverse, last real (arXiv:2410.13674)."""
    morphology_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the morphology answers in the loss, relative to 1 of the target; 0 for none."""

    @model_validator(mode="after")
    def _check_frozen(self) -> ClassifierSettings:
        if self.encoder_frozen and not self.encoder:
            raise ValueError("encoder_frozen needs an encoder: the built-in network has no pretrained weights")
        return self

    @model_validator(mode="after")
    def _check_fractions(self) -> ClassifierSettings:
        if (total := self.positive_fraction + self.synthetic_positives + self.synthetic_negatives) >= 1:
            raise ValueError(
                f"positive_fraction, synthetic_positives and synthetic_negatives add up to {total:g}; stay below 1: "
                "the rest are real negatives"
            )
        return self

    @property
    def network(self) -> str:
        """Return the encoder as text, "" for the built-in network."""
        return f"{self.encoder} ({'frozen' if self.encoder_frozen else 'fine-tuned'})" if self.encoder else ""


class PrefilterSettings(Section):
    sample: Count = 30_000
    """Images, labelled or not, on which the prefilter is trained to predict the scores of the ensemble."""
    steps: Annotated[int, Field(ge=0)] = 1600
    """Training steps of 256 images; 0 for no prefilter."""


class ScanSettings(Section):
    batch: Count = 256
    """Galaxies per batch."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Precision; bf16 is used only if the device supports it in hardware."""
    top: Count = 1000
    """Number of candidates; --top overrides it."""


class PuritySettings(Section):
    bootstrap: Annotated[int, Field(ge=20)] = 2000
    """Posterior draws for the intervals."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals of purity and completeness."""
