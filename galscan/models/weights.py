"""Safetensors files of single networks, and of a frozen encoder shared by several of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galscan.core.errors import InputError
from galscan.core.files import file_digest

if TYPE_CHECKING:
    import torch

    from galscan.models.network import Network

SHARED = "encoder-*.safetensors"  # filled with the beginning of `Network.trunk_hash`


def save_network(network: Network, path: Path) -> None:
    """Write one network, with the arguments that rebuild it in the metadata."""
    from safetensors.torch import save_file

    from galscan.core.files import atomic_path

    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    config = network.config
    if network.shared:
        encoder = {key: tensors.pop(key) for key in [*tensors] if key.startswith(network.shared)}
        encoder_path = path.with_name(SHARED.replace("*", network.trunk_hash()[:16]))
        if not encoder_path.is_file():
            with atomic_path(encoder_path) as temporary:
                save_file(encoder, temporary)
        config |= {"beside": encoder_path.name, "sha256": file_digest(encoder_path)}
    with atomic_path(path) as temporary:
        # One key: safetensors writes several in random order, and the hash would differ from run to run.
        save_file(tensors, temporary, metadata={"config": json.dumps(config)})


def load_network(path: Path, sha: str | None = None) -> Network:
    """Load one network, checked against its hash; it is rebuilt from the metadata of the file.

    Raises `InputError` if the file is missing, damaged or does not match `sha`, or if a package it needs is not
    installed.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    _check(path, sha)
    try:
        with safe_open(path, framework="pt") as handle:
            config = json.loads(handle.metadata()["config"])
            state: dict[str, torch.Tensor] = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        if "beside" in config:
            state |= _load_encoder(path, config)
        # First on the meta device, without memory: a file that claims a huge network fails on its tensors.
        with torch.device("meta"):
            _build(config).load_state_dict(state, assign=True)
        network = _build(config)
        network.load_state_dict(state)
    except InputError as error:
        raise InputError(str(error) if str(path.parent) in str(error) else f"{path}: {error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a readable safetensors file ({reason:.200}); train the model again") from error
    return network


def _check(path: Path, sha: str | None) -> None:
    if not path.is_file():
        raise InputError(f"{path} is missing; train the model again")
    if sha is not None and file_digest(path) != sha:
        raise InputError(f"{path} is not the file the model was written with; restore it or train again")


def _load_encoder(path: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    name = config["beside"]
    if not re.fullmatch(SHARED.replace(".", r"\.").replace("*", "[0-9a-f]{16}"), name):
        raise ValueError(f"encoder file name '{name:.60}'")
    _check(path.with_name(name), config["sha256"])
    return load_file(path.with_name(name))


def _build(config: dict[str, Any]) -> Network:
    if "encoder" in config:
        from galscan.models.encoders import build_network

        return build_network(config)
    from galscan.models.network import GalaxyNet

    return GalaxyNet(config["width"], config["answers"], config.get("targets", 1))
