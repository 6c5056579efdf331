"""Pretrained encoders with galscan's heads: Zoobot and other timm models, frozen or fine-tuned (extra ``encoders``).

Pretrained weights are downloaded, or read from a folder, when training begins. A trained network stores all its
weights, so that it can be loaded offline; timm then only builds the architecture. timm is imported where it is needed.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator
from torch import nn
from torch.nn import functional as F

from galscan.core.errors import InputError, NotFoundError, first_line
from galscan.core.files import read_json
from galscan.labels.settings import ClassifierSettings
from galscan.models.network import Network, content_hash

HUB, FOLDER = ("hf-hub:", "hf_hub:"), "local-dir:"
RGB = Field(min_length=3, max_length=3)


class Architecture(BaseModel):
    """Architecture and input normalisation of an encoder, validated as model files may come from untrusted sources."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    """Name in the recipe."""
    architecture: str
    """Name in timm."""
    args: dict[str, JsonValue] = {}
    size: Annotated[int, Field(ge=0, le=4096)]
    """Pixels on a side to which images are resampled; 0 = not resampled."""
    mean: Annotated[list[float], RGB]
    std: Annotated[list[Annotated[float, Field(gt=0)]], RGB]

    @field_validator("args")
    @classmethod
    def _no_downloads(cls, args: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for key in args:
            if key.startswith(("pretrained", "checkpoint", "cache")):
                raise ValueError(f"'{key}' is not an argument of an architecture")
        return args


class EncoderNet(Network):
    """A timm encoder with galscan's heads.

    Parameters
    ----------
    architecture : Architecture
    encoder : Module
        Built from `architecture`: maps images (n, 3, S, S) to features (n, ``head_hidden_size``).
    answers, targets : int
        As of `galscan.models.network.GalaxyNet`.
    frozen : bool
        Whether the encoder is not trained; this includes the statistics of its normalisation layers.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, architecture: Architecture, encoder: nn.Module, answers: int, targets: int = 1, frozen: bool = False
    ):
        super().__init__()
        self.architecture, self.frozen, self.shared = architecture, frozen, "encoder." if frozen else ""
        self.encoder = encoder.requires_grad_(not frozen)
        for name, values in (("mean", architecture.mean), ("std", architecture.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self._add_heads(_width(encoder), answers, targets)

    @property
    def config(self) -> dict[str, Any]:
        config = {"encoder": self.architecture.model_dump(mode="json"), "frozen": self.frozen}
        return config | {"answers": self.answers, "targets": self.targets}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = images.clamp(min=0).square()  # stored pixel values; `to_unit` took the root
        if self.architecture.size:
            x = F.interpolate(x, (self.architecture.size,) * 2, mode="bilinear", antialias=True)
        features: torch.Tensor = self.encoder((x - self.mean) / self.std)
        return features

    def train(self, mode: bool = True) -> EncoderNet:
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def trunk_hash(self) -> str:
        description = json.dumps(self.architecture.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return hashlib.sha256((description + content_hash(self.encoder)).encode()).hexdigest()


def start_network(settings: ClassifierSettings, size: int, answers: int, targets: int) -> EncoderNet:
    """Return a network to train: the recipe's pretrained encoder with new heads.

    Raises `NotFoundError` if the encoder or its weights do not exist; `InputError` if they cannot be used.

    Parameters
    ----------
    size : int
        Pixels on a side of the cutouts.
    """
    architecture, encoder = _pretrained(settings.encoder, settings.encoder_size, size)
    return EncoderNet(architecture, copy.deepcopy(encoder), answers, targets, settings.encoder_frozen)


def build_network(config: dict[str, Any]) -> EncoderNet:
    """Build a network from `EncoderNet.config`, with random weights.

    Raises `InputError` if it cannot be built with the installed timm.
    """
    try:
        spec = Architecture.model_validate(config["encoder"])
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"encoder.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    timm = require_timm(spec.name)
    if not timm.is_model(spec.architecture):
        raise InputError(
            f"timm {timm.__version__} has no model '{spec.architecture:.60}', the encoder '{spec.name:.60}'; "
            "install a newer timm"
        )
    with _as_input_error(f"the encoder '{spec.name:.60}' cannot be built by timm {timm.__version__}", ""):
        encoder = timm.create_model(spec.architecture, pretrained=False, num_classes=0, **spec.args)
    return EncoderNet(spec, encoder, config["answers"], config["targets"], bool(config["frozen"]))


def require_timm(name: str) -> Any:
    """Return the module timm.

    Raises `InputError` if it is not installed or does not work, with the remedy: it imports torchvision, and
    torchvision works with one build of torch only.
    """
    requirement = f"torchvision must be built for torch {torch.__version__}"
    try:
        import timm
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "timm":
            raise InputError(
                f"the encoder '{name:.60}' needs timm, which is not installed: pip install 'galscan[encoders]' "
                f"({requirement}, from the same index as torch)"
            ) from None
        raise InputError(
            f"the encoder '{name:.60}' needs timm, which cannot be imported ({first_line(error)}): "
            f"{requirement}; from the same index as torch, pip install --force-reinstall --no-deps torchvision"
        ) from error
    return timm


def find_encoder(name: str) -> str:
    """Return the timm name of the encoder that a recipe names, after checking that it exists; nothing is downloaded.

    Raises `NotFoundError` if it does not; `InputError` if timm is not installed or does not work.
    """
    timm = require_timm(name)
    if name.startswith(HUB):
        return name
    folder = Path(name.removeprefix(FOLDER)).expanduser()
    if name.startswith(FOLDER) or "/" in name or folder.is_dir():
        if (folder / "config.json").is_file():
            return f"{FOLDER}{folder}"
        hub = "" if name.startswith((FOLDER, "/", ".", "~")) or name.count("/") != 1 else f", or hf-hub:{name}"
        raise NotFoundError(
            f"classifier.encoder = '{name}': no config.json in {folder}; give a folder in timm's format{hub}"
        )
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; timm.list_models() lists all"
        raise NotFoundError(f"classifier.encoder = '{name}' is not a model of timm {timm.__version__}{hint}")
    pretrained = timm.list_pretrained(architecture)
    if not pretrained or (tag and name not in pretrained):
        available = f"available: {', '.join(pretrained)}" if pretrained else "none are available; give a folder"
        raise NotFoundError(f"classifier.encoder = '{name}': timm has no such pretrained weights; {available}")
    return name


@lru_cache(maxsize=1)  # all networks of an ensemble start from the same encoder
def _pretrained(name: str, input_size: int, size: int) -> tuple[Architecture, nn.Module]:
    timm, timm_name = require_timm(name), find_encoder(name)
    failure, remedy = f"classifier.encoder = '{name}' cannot be loaded", ""
    if not timm_name.startswith(FOLDER):
        repository = (
            timm_name.partition(":")[2] or f"timm/{(timm.get_pretrained_cfg(timm_name).tag and timm_name) or timm_name}"
        )
        remedy = f"; with internet access run: hf download {repository} --local-dir DIR, then give DIR"
    # timm draws random numbers on the first build only: they must not change the random state of the training.
    with torch.random.fork_rng(devices=[]), _as_input_error(failure, remedy):
        with torch.device("meta"):
            cfg = timm.create_model(timm_name, pretrained=False, num_classes=0).pretrained_cfg
        args, resized = _args(timm, timm_name), {}
        if cfg.get("fixed_input_size"):
            fixed_size = cfg["input_size"][-1]
            input_size = input_size or fixed_size
            resized = {"img_size": input_size} if input_size != fixed_size else {}
        encoder = timm.create_model(timm_name, pretrained=True, num_classes=0, **resized)
    # Zoobot was trained on pixels in 0..1, whatever its configuration inherited from timm.
    scaling = ([0.0] * 3, [1.0] * 3) if "zoobot" in name.lower() else (list(cfg["mean"]), list(cfg["std"]))
    architecture = Architecture(
        name=name, architecture=cfg["architecture"], args=args | resized, size=input_size if input_size != size else 0,
        mean=scaling[0], std=scaling[1],
    )  # fmt: skip
    side = input_size or size
    with _as_input_error(
        f"classifier.encoder = '{name}' does not take colour images of {side} px", "; try encoder_size = 224"
    ):
        output_shape = encoder.eval()(torch.zeros(1, 3, side, side)).shape
        if output_shape != (1, _width(encoder)):
            raise ValueError(f"its output has shape {tuple(output_shape)}")
    return architecture, encoder


def _args(timm: Any, timm_name: str) -> dict[str, Any]:
    """Return the arguments with which an encoder of the hub or of a folder was built."""
    if timm_name.startswith(FOLDER):
        return dict(read_json(Path(timm_name.removeprefix(FOLDER), "config.json")).get("model_args") or {})
    return (
        dict(timm.models.load_model_config_from_hf(timm_name.partition(":")[2])[2]) if timm_name.startswith(HUB) else {}
    )


def _width(encoder: nn.Module) -> int:
    return int(encoder.head_hidden_size)  # type: ignore[arg-type]


@contextmanager
def _as_input_error(failure: str, remedy: str) -> Iterator[None]:
    """Turn any error of timm, the hub's client or its HTTP client into an `InputError` of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # these errors share no base class
        raise InputError(f"{failure} ({first_line(error).rstrip('.:')}){remedy}") from error
