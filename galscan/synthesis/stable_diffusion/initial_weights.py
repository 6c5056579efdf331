"""Initial weights of Stable Diffusion: a folder of diffusers, one on the Hugging Face hub, or released checkpoints.

Ma et al. 2025 release GalaxySD as checkpoints of HCP-Diffusion, without the parts that they did not train::

    unet-10000.safetensors            U-Net after 10,000 steps
    text_encoder-10000.safetensors    text encoder after as many steps

Each file holds state dicts, the levels of whose keys are joined by colons: ``base:conv_in.weight`` are the weights,
``base_ema:conv_in.weight`` their moving average, if it was kept (then the text encoder's has a buffer as well). Both
files replace the weights of a base model, Stable Diffusion 1.5. Names are those of diffusers and transformers; before
transformers 5 those of a text encoder began with ``text_model.``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from galscan.core.errors import InputError, NotFoundError, first_line
from galscan.labels.settings import StableDiffusionSettings
from galscan.synthesis.stable_diffusion.model import Pipeline, open_pipeline, require_extra

INDEX = "model_index.json"  # of a folder of diffusers
COMPONENTS = ("unet", "text_encoder")  # with weights in a released checkpoint
SECTIONS = ("base_ema", "base")  # of a checkpoint, best first
BUFFER = "embeddings.position_ids"  # of the text encoder: the numbers 0, 1, 2, ..., no weights
FORM = "unet-STEPS.safetensors and text_encoder-STEPS.safetensors"
_CHECKPOINT = re.compile(r"(?:.*/)?(unet|text_encoder)-(\d+)\.safetensors")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class InitialWeights:
    """Weights on disk: a pipeline in the format of diffusers, and checkpoints that replace some of its weights."""

    folder: Path
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    """By component, "unet" and "text_encoder"; or empty."""


def find_initial_weights(settings: StableDiffusionSettings) -> InitialWeights:
    """Return the weights ``settings.start``; those on the Hugging Face hub are downloaded.

    Released checkpoints are compared with the base model, ``settings.base``, by the names and shapes of all weights.

    Raises
    ------
    NotFoundError
        If there is no such folder, or the hub cannot be reached and the weights are not in its cache.
    InputError
        If the extra is not installed, the folder has another format, or the checkpoints are cut off, incomplete, of
        another base model, or hold anything else.
    """
    require_extra()
    folder = _find("start", settings.start)
    if (folder / INDEX).is_file():
        return InitialWeights(folder)
    checkpoints = {name: folder / path for name, path in latest_checkpoints(_files(folder), settings.start).items()}
    base = _find("base", settings.base)
    if not (base / INDEX).is_file():
        raise InputError(
            f"generator.base = '{settings.base}' has no {INDEX}: name the model that '{settings.start}' was trained "
            "from, in the format of diffusers"
        )
    for name, path in checkpoints.items():
        _section(name, path, _shapes_on_disk(base / name), settings.base)
    return InitialWeights(base, checkpoints)


def open_initial_weights(initial: InitialWeights) -> Pipeline:
    """Load the pipeline, with the weights of the checkpoints in place of its own; `InputError` if one is damaged."""
    pipeline = open_pipeline(initial.folder)
    for name, path in initial.checkpoints.items():
        weights = dict(getattr(pipeline, name).named_parameters())
        shapes = {key: tuple(value.shape) for key, value in weights.items()}
        section = _section(name, path, shapes, str(initial.folder))
        with safe_open(path, framework="pt") as handle, torch.no_grad():
            for key, weight in weights.items():
                value = handle.get_tensor(section[key])
                if not value.is_floating_point() or not value.isfinite().all():
                    raise InputError(f"{path} is damaged: {section[key]} holds no finite numbers; download it again")
                weight.copy_(value)
    return pipeline


def latest_checkpoints(files: Iterable[str], start: str) -> dict[str, str]:
    """Return the checkpoint of each component after the largest number of steps that both have.

    Parameters
    ----------
    files : iterable of str
        Paths below the folder or repository `start`, with slashes.

    Raises `InputError` if there is no such pair, or there are two of the same number of steps.
    """
    found: dict[int, dict[str, list[str]]] = {}
    for path in files:
        if match := _CHECKPOINT.fullmatch(path):
            found.setdefault(int(match[2]), {}).setdefault(match[1], []).append(path)
    if not found:
        raise InputError(
            f"generator.start = '{start}' has neither {INDEX} nor {FORM}: name a folder in the format of diffusers, or "
            "one with released checkpoints"
        )
    pairs = [steps for steps, by_component in found.items() if len(by_component) == len(COMPONENTS)]
    if not pairs:
        (component, (path, *_)), *_ = found[max(found)].items()
        other = next(name for name in COMPONENTS if name != component)
        raise InputError(
            f"generator.start = '{start}' has {path} and no {other}-{max(found)}.safetensors; a checkpoint is "
            "both files"
        )
    chosen = found[max(pairs)]
    for paths in chosen.values():
        if len(paths) > 1:
            raise InputError(
                f"generator.start = '{start}' has both {' and '.join(sorted(paths)[:2])}: name the folder of one"
            )
    return {name: chosen[name][0] for name in COMPONENTS}


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")]


def _find(key: str, name: str) -> Path:
    """Return the folder `name`, or that of the hub's repository of this name, from the cache or else downloaded."""
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists():
        raise InputError(f"generator.{key} = '{name}' is a file; name the folder of the weights")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise NotFoundError(f"generator.{key} = '{name}' does not exist; name a folder, or owner/name on the hub")
    reason = ""
    for find in (_cached_pipeline, _cached_checkpoints, _download):
        try:
            return find(name)
        except InputError:
            raise
        except Exception as error:  # errors of the hub client, its HTTP client and diffusers have no common base class
            reason = first_line(error)
    raise NotFoundError(
        f"generator.{key} = '{name}' is neither a folder nor available from the hub ({reason:.90}...); download it "
        f"on a machine with network access (hf download {name} --local-dir sd), and set generator.{key} = 'sd'"
    )


def _cached_pipeline(name: str) -> Path:
    return _pipeline(name, local_files_only=True)


def _pipeline(name: str, *, local_files_only: bool) -> Path:
    from diffusers import StableDiffusionPipeline

    return Path(StableDiffusionPipeline.download(name, use_safetensors=True, local_files_only=local_files_only))


def _cached_checkpoints(name: str) -> Path:
    from huggingface_hub import snapshot_download

    # A pattern that matches nothing: the cache may lack other files of the repository.
    folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=["-"]))
    try:
        latest_checkpoints(_files(folder), name)
    except InputError as error:
        raise FileNotFoundError(f"{name} is not complete in the cache") from error
    return folder


def _download(name: str) -> Path:
    """Download a pipeline, or only the latest checkpoints: a repository may hold many, of gigabytes each."""
    from huggingface_hub import list_repo_files, snapshot_download

    files = list_repo_files(name)
    if INDEX in files:
        return _pipeline(name, local_files_only=False)
    wanted = latest_checkpoints(files, name)
    return Path(snapshot_download(name, allow_patterns=list(wanted.values())))


def _shapes_on_disk(folder: Path) -> Shapes:
    """Return the shapes of the weights of a component of the base model, from the headers of its files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes |= {_name(key): shape for key, shape in _header(path).items()}
    shapes.pop(BUFFER, None)
    if not shapes:
        raise InputError(f"{folder} has no weights as .safetensors; download the base model again")
    return shapes


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a file."""
    try:
        with safe_open(path, framework="pt") as handle:
            return {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} is cut off or damaged ({first_line(error)}); download it again") from error


def _name(key: str) -> str:
    return key.removeprefix("text_model.")


def _section(component: str, path: Path, expected: Shapes, base: str) -> dict[str, str]:
    """Return the keys of a checkpoint by the names of weights: the moving average if there is one.

    Raises `InputError`, naming keys, unless each section has exactly the weights of the base model.
    """
    sections: dict[str, dict[str, str]] = {name: {} for name in SECTIONS}
    left_over, other_shape = [], []
    for key, shape in _header(path).items():
        section, _, weight = key.partition(":")
        weight = _name(weight)
        if section in SECTIONS and weight in expected and weight not in sections[section]:
            sections[section][weight] = key
            if shape != expected[weight]:
                other_shape.append(f"{key} {list(shape)} instead of {list(expected[weight])}")
        elif not (section in SECTIONS and weight == BUFFER and component == "text_encoder"):
            left_over.append(key)
    present = [name for name in SECTIONS if sections[name]] or [SECTIONS[-1]]
    missing = [f"{name}:{weight}" for name in present for weight in expected if weight not in sections[name]]
    problems = {"holds other keys": left_over, "lacks": missing, "has other shapes": other_shape}
    if found := [f"{problem}: {_some(keys)}" for problem, keys in problems.items() if keys]:
        raise InputError(
            f"{path} does not fit the {component} of '{base}': it {'; '.join(found)}; set generator.base to the model "
            "that it was trained from, or download it again"
        )
    return sections[present[0]]


def _some(keys: Sequence[str]) -> str:
    """Return two keys and the number of the others."""
    others = f" and {len(keys) - 2:,} more" if len(keys) > 2 else ""
    return ", ".join(keys[:2]) + others
