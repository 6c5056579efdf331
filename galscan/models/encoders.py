"""Encoders of others behind our heads: Zoobot and whatever else timm builds, frozen or fine-tuned (extra ``encoders``).

Their weights are fetched, or read from a folder, when training begins. A trained network holds them itself, so that it
can be loaded where there is no network; timm then only builds what they fit into, and is imported where it is needed.
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

from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import read_json
from galscan.labels.settings import ClassifierSettings
from galscan.models.network import Network, content_hash

HUB, FOLDER = ("hf-hub:", "hf_hub:"), "local-dir:"
RGB = Field(min_length=3, max_length=3)


class Architecture(BaseModel):
    """What timm builds an encoder from, and what the encoder is shown. A model may come from a stranger."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    """As the recipe said."""
    architecture: str
    """As timm calls it."""
    args: dict[str, JsonValue] = {}
    size: Annotated[int, Field(ge=0, le=4096)]
    """Pixels on a side, to which pictures are resampled; 0 = as they are."""
    mean: Annotated[list[float], RGB]
    std: Annotated[list[Annotated[float, Field(gt=0)]], RGB]

    @field_validator("args")
    @classmethod
    def _nothing_is_fetched(cls, args: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for key in args:
            if key.startswith(("pretrained", "checkpoint", "cache")):
                raise ValueError(f"'{key}' is no part of an architecture")
        return args


class EncoderNet(Network):
    """An encoder of timm, and our heads.

    Parameters
    ----------
    told : Architecture
    encoder : Module
        Built so: maps pictures (n, 3, S, S) to features (n, ``head_hidden_size``).
    answers, targets : int
        As of `galscan.models.network.GalaxyNet`.
    frozen : bool
        Whether it stays as it is, the statistics of its normalisation layers included.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, told: Architecture, encoder: nn.Module, answers: int, targets: int = 1, frozen: bool = False):
        super().__init__()
        self.told, self.frozen, self.shared = told, frozen, "encoder." if frozen else ""
        self.encoder = encoder.requires_grad_(not frozen)
        for name, values in (("mean", told.mean), ("std", told.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self._add_heads(_width(encoder), answers, targets)

    @property
    def config(self) -> dict[str, Any]:
        told = {"encoder": self.told.model_dump(mode="json"), "frozen": self.frozen}
        return told | {"answers": self.answers, "targets": self.targets}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = images.clamp(min=0).square()  # as it was stored: `to_unit` took the root
        if self.told.size:
            x = F.interpolate(x, (self.told.size,) * 2, mode="bilinear", antialias=True)
        features: torch.Tensor = self.encoder((x - self.mean) / self.std)
        return features

    def train(self, mode: bool = True) -> EncoderNet:
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def trunk_hash(self) -> str:
        told = json.dumps(self.told.model_dump(mode="json", exclude={"name"}), sort_keys=True)
        return hashlib.sha256((told + content_hash(self.encoder)).encode()).hexdigest()


def check_encoder(name: str) -> None:
    """Refuse an encoder that timm does not know, or that cannot be used here; nothing is fetched.

    Raises
    ------
    NotFoundError
        If there is no such folder, or no such name.
    InputError
        If timm is not installed, or does not work.
    """
    _find(name)


def start_network(settings: ClassifierSettings, size: int, answers: int, targets: int) -> EncoderNet:
    """Return a network to train: the recipe's encoder with its weights, and new heads.

    Parameters
    ----------
    size : int
        Pixels on a side of the cutouts.

    Raises
    ------
    NotFoundError
        If the encoder is not there, or its weights are not to be had.
    InputError
        If it cannot be used.
    """
    told, encoder = _pretrained(settings.encoder, settings.encoder_size, size)
    return EncoderNet(told, copy.deepcopy(encoder), answers, targets, settings.encoder_frozen)


def build_network(config: dict[str, Any]) -> EncoderNet:
    """Build a network of `EncoderNet.config`; its weights are yet to be loaded.

    Raises
    ------
    InputError
        If that cannot be done here.
    """
    try:
        told = Architecture.model_validate(config["encoder"])
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"encoder.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    timm = require_timm(told.name)
    if not timm.is_model(told.architecture):
        raise InputError(
            f"timm {timm.__version__} knows no '{told.architecture:.60}', which the encoder '{told.name:.60}' is; "
            "install a newer timm"
        )
    with _told(f"the encoder '{told.name:.60}' cannot be built by timm {timm.__version__}", ""):
        encoder = timm.create_model(told.architecture, pretrained=False, num_classes=0, **told.args)
    return EncoderNet(told, encoder, config["answers"], config["targets"], bool(config["frozen"]))


def require_timm(name: str) -> Any:
    """Return the module timm.

    Raises
    ------
    InputError
        With what mends it, if it is not installed or does not work: it imports torchvision, and torchvision works with
        one build of torch only.
    """
    wanted = f"torchvision must be built for torch {torch.__version__}"
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name == "timm":
            raise InputError(
                f"the encoder '{name:.60}' needs timm, which is not installed: pip install 'galscan[encoders]' "
                f"({wanted}, from the same index as torch)"
            ) from None
        why: Exception = error
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        why = error
    else:
        return timm
    raise InputError(
        f"the encoder '{name:.60}' needs timm, which does not work here ({_line(why)}): {wanted}; from the index that "
        "torch came from, pip install --force-reinstall --no-deps torchvision"
    )


def _find(name: str) -> str:
    """Return what timm calls the encoder that a recipe names."""
    timm = require_timm(name)
    if name.startswith(HUB):
        return name
    folder = Path(name.removeprefix(FOLDER)).expanduser()
    if name.startswith(FOLDER) or "/" in name or folder.is_dir():
        if (folder / "config.json").is_file():
            return f"{FOLDER}{folder}"
        hub = "" if name.startswith((FOLDER, "/", ".", "~")) or name.count("/") != 1 else f", or hf-hub:{name}"
        raise NotFoundError(
            f"classifier.encoder = '{name}': no config.json in {folder}; name a folder in the form of timm{hub}"
        )
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; timm.list_models() lists those there are"
        raise NotFoundError(f"classifier.encoder = '{name}' is no model of timm {timm.__version__}{hint}")
    held = timm.list_pretrained(architecture)
    if not held or (tag and name not in held):
        there = f"there are {', '.join(held)}" if held else "there are none for it; name a folder"
        raise NotFoundError(f"classifier.encoder = '{name}': timm has no such weights; {there}")
    return name


@lru_cache(maxsize=1)  # a training starts from the same one many times
def _pretrained(name: str, shown: int, size: int) -> tuple[Architecture, nn.Module]:
    timm, found = require_timm(name), _find(name)
    failed, remedy = f"classifier.encoder = '{name}' cannot be loaded", ""
    if not found.startswith(FOLDER):
        place = found.partition(":")[2] or f"timm/{(timm.get_pretrained_cfg(found).tag and found) or found}"
        remedy = f"; fetch it where there is a network (hf download {place} --local-dir DIR), and name DIR"
    # Building draws random numbers, and only the first time: a network is not to depend on that.
    with torch.random.fork_rng(devices=[]), _told(failed, remedy):
        with torch.device("meta"):
            cfg = timm.create_model(found, pretrained=False, num_classes=0).pretrained_cfg
        args, resized = _args(timm, found), {}
        if cfg.get("fixed_input_size"):
            own = cfg["input_size"][-1]
            shown = shown or own
            resized = {"img_size": shown} if shown != own else {}
        encoder = timm.create_model(found, pretrained=True, num_classes=0, **resized)
    # Zoobot learnt from pixels in 0..1, whatever its configurations inherited from timm.
    scaling = ([0.0] * 3, [1.0] * 3) if "zoobot" in name.lower() else (list(cfg["mean"]), list(cfg["std"]))
    told = Architecture(
        name=name, architecture=cfg["architecture"], args=args | resized, size=shown if shown != size else 0,
        mean=scaling[0], std=scaling[1],
    )  # fmt: skip
    side = shown or size
    with _told(f"classifier.encoder = '{name}' takes no colour pictures of {side} px", "; try encoder_size = 224"):
        given = encoder.eval()(torch.zeros(1, 3, side, side)).shape
        if given != (1, _width(encoder)):
            raise ValueError(f"it gives {tuple(given)}")
    return told, encoder


def _args(timm: Any, found: str) -> dict[str, Any]:
    """Return with which arguments an encoder of the hub, or of a folder, was built."""
    if found.startswith(FOLDER):
        return dict(read_json(Path(found.removeprefix(FOLDER), "config.json")).get("model_args") or {})
    return dict(timm.models.load_model_config_from_hf(found.partition(":")[2])[2]) if found.startswith(HUB) else {}


def _width(encoder: nn.Module) -> int:
    return int(encoder.head_hidden_size)  # type: ignore[arg-type]


@contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    """Tell what timm, the hub's client or its HTTP client complain of in one line: their errors share no parent."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} ({_line(error)}){remedy}") from error


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0] if lines else type(error).__name__:.160}".rstrip(".:")
