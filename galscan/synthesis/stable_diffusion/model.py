"""GalaxySD: Stable Diffusion that reads captions of galaxies (Ma et al. 2025, arXiv:2506.16233).

A tuned one is a folder in the form of diffusers, so that ``StableDiffusionPipeline.from_pretrained`` opens it, with
what galscan needs beside::

    model_index.json, unet/ text_encoder/ vae/ tokenizer/ scheduler/      half precision, safetensors
    galscan.json                          `StableDiffusionConfig`
    starts.safetensors                    training galaxies that drawing begins with
    pytorch_lora_weights.safetensors      the adapters alone, if such were trained; the weights above have them in
    LICENSES.md                           under whose terms all of this is

transformers and peft (extra ``stable-diffusion``) are imported where they are needed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from galscan.core import device as devices
from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import atomic_path, read_json, write_json, write_text
from galscan.labels.schema import Schema, load_schema
from galscan.synthesis.stable_diffusion.captions import captions, parse, wording

Pipeline = Any  # diffusers.StableDiffusionPipeline, which says little of its parts
CONFIG, STARTS = "galscan.json", "starts.safetensors"
RESAMPLED = "bicubic, antialiased"  # cutouts on their way in, dreams on their way out
LICENSES = """# Under whose terms this folder is

- **Weights**: tuned, and so changed, from `{base}`. Stable Diffusion 1.x is under the CreativeML OpenRAIL-M licence:
  whoever passes on these weights must pass on that licence with its restrictions of use (Attachment A), and say that
  they were changed.
- **Labels**: captions were made from labels of the schema `{schema}` ({reference}).
  Galaxy Zoo's votes are free for research with credit to the volunteers and to the papers; some of its data sets are
  CC BY-NC-SA 4.0 and ask that models trained on them be published as source code. See where your table comes from.
- **Pictures**: `starts.safetensors` holds cutouts of the surveys it learnt from ({surveys}), which stay under the terms
  of these; SDSS asks for credit (CC BY).
"""


@dataclass(frozen=True)
class StableDiffusionConfig:
    """What is needed beside the weights, and how they came to be."""

    size: int  # of the cutouts it learnt from, and of what it draws
    resolution: int  # at which the network works
    schema: str
    wording: str  # hash of the words it knows
    answers: tuple[str, ...]
    surveys: tuple[str, ...]
    begin: str  # with what drawing begins: "galaxy" or "noise"
    base: str
    resampled: str = RESAMPLED

    def __post_init__(self) -> None:
        for name in ("size", "resolution"):
            if type(value := getattr(self, name)) is not int or not 8 <= value <= 4096:
                raise ValueError(f"{name} is {value!r}")
        texts = (self.schema, self.wording, self.begin, self.base, self.resampled, *self.answers, *self.surveys)
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"{wrong[0]!r} is no text")
        if self.begin not in ("galaxy", "noise"):
            raise ValueError(f"begin is {self.begin!r}")


class StableDiffusion:
    """A generator that reads: captions of its conditions go in, galaxies come out."""

    guidance, steps, batch = 6.5, 40, 8

    def __init__(self, pipeline: Pipeline, config: StableDiffusionConfig, starts: torch.Tensor):
        self.pipeline, self.config, self.starts = pipeline, config, starts
        self.schema: Schema = load_schema(config.schema)
        pipeline.vae.eval()
        check_resolution(pipeline, config.resolution)

    # -- pixels in and out ---------------------------------------------------------------------

    def encode_images(self, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Map (n, S, S, 3) uint8 to latents, drawn by `random` from the distribution the autoencoder gives."""
        side = (self.config.resolution,) * 2
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        pixels = F.interpolate(pixels, side, mode="bicubic", antialias=True).clamp(-1, 1)
        vae = self.pipeline.vae
        return vae.encode(pixels).latent_dist.sample(random) * vae.config.scaling_factor

    def decode_images(self, latents: torch.Tensor) -> torch.Tensor:
        """Map latents to (n, S, S, 3) uint8; values beyond the range of a byte are clipped."""
        vae = self.pipeline.vae
        pixels = vae.decode(latents.float() / vae.config.scaling_factor).sample
        pixels = F.interpolate(pixels, (self.config.size,) * 2, mode="bicubic", antialias=True)
        return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    # -- words in ------------------------------------------------------------------------------

    def captions(self, values: np.ndarray, survey: np.ndarray, weights: Mapping[str, float] | None = None) -> list[str]:
        """Return what is told of each condition: `values` (n, answers), `survey` (n,), -1 = none in particular."""
        names = [self.config.surveys[k] if k >= 0 else "" for k in np.asarray(survey)]
        columns = [self.config.answers.index(name) for name in self.schema.names]
        return captions(self.schema, np.asarray(values)[:, columns], names, weights)

    def tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token numbers and weights, both (n, 77). What does not fit is left out, and said.

        Raises
        ------
        InputError
            If a caption's braces are wrong (`galscan.synthesis.stable_diffusion.captions.parse`).
        """
        tokenizer = self.pipeline.tokenizer
        room = self.pipeline.text_encoder.config.max_position_embeddings - 2
        numbers, weights, cut = [], [], {}
        known: dict[str, tuple[list[int], list[float]]] = {}
        for text in texts:
            if text not in known:
                ids: list[int] = []
                factors: list[float] = []
                for piece, weight in parse(text):
                    more = tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
                    ids, factors = ids + more, factors + [weight] * len(more)
                if len(ids) > room:
                    cut[text] = tokenizer.decode(ids[room:])
                rest = room - len(ids[:room])
                known[text] = (
                    [tokenizer.bos_token_id, *ids[:room], tokenizer.eos_token_id, *[tokenizer.pad_token_id] * rest],
                    [1.0, *factors[:room], *[1.0] * (rest + 1)],
                )
            numbers.append(known[text][0])
            weights.append(known[text][1])
        for text, lost in list(cut.items())[:1]:
            print(
                f"captions longer than the {room} tokens that are read: {len(cut):,}; of {text!r} {lost!r} is cut",
                file=sys.stderr,
            )
        return torch.tensor(numbers), torch.tensor(weights)

    def embed(self, numbers: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the text encoder makes of tokens (n, 77): (n, 77, C).

        A token of weight w is multiplied by it, and all of the caption is brought back to its norm. (HCP-Diffusion,
        with which the authors worked, brings it back to its mean, which can be zero.)
        """
        read = self.pipeline.text_encoder(numbers)[0]
        if weights is None:
            return read
        pushed = read * weights[:, :, None].to(read)
        return pushed * (read.norm(dim=(1, 2)) / pushed.norm(dim=(1, 2)).clamp(min=1e-9))[:, None, None]

    # -- drawing -------------------------------------------------------------------------------

    @torch.inference_mode()
    def draw(
        self,
        values: np.ndarray,
        survey: np.ndarray,
        *,
        guidance: float,
        weights: Mapping[str, float],
        steps: int,
        seed: int,
        device: torch.device,
    ) -> np.ndarray:
        """Draw one picture for each condition, each of its own seed (see `galscan.synthesis.sampling`)."""
        return self.paint(
            self.captions(values, survey, weights), guidance=guidance, steps=steps, seed=seed, device=device
        )

    @torch.inference_mode()
    def paint(
        self, texts: Sequence[str], *, guidance: float, steps: int, seed: int, device: torch.device
    ) -> np.ndarray:
        """Draw one picture for each caption, by Euler's ancestral method: uint8, (n, S, S, 3)."""
        from diffusers import EulerAncestralDiscreteScheduler

        pipeline = self.pipeline.to(device)
        pipeline.unet.eval(), pipeline.text_encoder.eval()
        # From the noisiest time of all: there the network was taught that hardly anything is left of the picture.
        scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
        scheduler.set_timesteps(steps, device=device)
        randoms = [torch.Generator().manual_seed(seed + k) for k in range(len(texts))]
        numbers, weights = self.tokens([*texts, ""])
        with devices.autocast(device, number_format(device)):
            told = self.embed(numbers.to(device), weights.to(device))
            told, nothing = told[:-1], told[-1:].expand(len(texts), -1, -1)
            side = self.config.resolution // pipeline.vae_scale_factor
            shape = (pipeline.unet.config.in_channels, side, side)
            noise = torch.stack([torch.randn(shape, generator=r) for r in randoms]).to(device)
            if self.config.begin == "galaxy":
                rows = [int(torch.randint(len(self.starts), (), generator=r)) for r in randoms]
                galaxies = torch.cat(
                    [self.encode_images(self.starts[[k]].to(device), r) for k, r in zip(rows, randoms, strict=True)]
                )
                x = scheduler.add_noise(galaxies.float(), noise, scheduler.timesteps[:1].expand(len(texts)))
            else:
                x = noise * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                given = scheduler.scale_model_input(x, t)
                if guidance == 1:
                    predicted = pipeline.unet(given, t, told).sample.float()
                else:
                    both = pipeline.unet(given.repeat(2, 1, 1, 1), t, torch.cat([nothing, told])).sample.float()
                    without, predicted = both.chunk(2)
                    predicted = without + guidance * (predicted - without)
                x = scheduler.step(predicted, t, x, generator=randoms).prev_sample
        return self.decode_images(x).cpu().numpy()

    # -- on disk -------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write it into the folder `folder`, which is there and empty; the weights in the precision they have."""
        from diffusers import EulerAncestralDiscreteScheduler

        self.pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(self.pipeline.scheduler.config)
        self.pipeline.save_pretrained(folder, safe_serialization=True)
        with atomic_path(folder / STARTS) as temporary:
            save_file({"images": self.starts.contiguous()}, temporary)
        c = self.config
        told = {"base": c.base, "schema": c.schema, "reference": self.schema.reference, "surveys": ", ".join(c.surveys)}
        write_text(folder / "LICENSES.md", LICENSES.format(**told))
        write_json(folder / CONFIG, asdict(c))


def load_stable_diffusion(folder: Path) -> StableDiffusion:
    """Open a folder written by `StableDiffusion.save`.

    Raises
    ------
    InputError
        If it is not one, is damaged, or knows other words than the schema has now.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} is not a readable generator: it has no {CONFIG}; a Stable Diffusion that galscan did not tune "
            f"is to be tuned first, with generator.start = '{folder}'"
        )
    raw: Any = read_json(folder / CONFIG)
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        config = StableDiffusionConfig(**values)
        starts = load_file(folder / STARTS)["images"]
        if not len(starts) or starts.shape[1:] != (config.size, config.size, 3) or starts.dtype != torch.uint8:
            raise ValueError(f"{STARTS} holds {starts.dtype} of shape {tuple(starts.shape)}")
        schema = load_schema(config.schema)
        if lost := [name for name in schema.names if name not in config.answers]:
            raise ValueError(f"no answer {lost[0]}")
    except InputError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{folder} is damaged ({str(error).splitlines()[0]:.200}); train it again") from error
    if wording(schema) != config.wording:
        raise InputError(
            f"{folder} was tuned with other phrases than those of the label schema '{config.schema}' now; restore the "
            "schema's file, or train it again"
        )
    return StableDiffusion(open_pipeline(folder), config, starts)


def open_pipeline(folder: Path) -> Pipeline:
    """Open a Stable Diffusion in the form of diffusers; from safetensors alone, nothing is unpickled.

    Raises
    ------
    InputError
        If the extra is not installed, or the folder holds no such thing.
    """
    require_extra()
    from diffusers import StableDiffusionPipeline

    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False, use_safetensors=True, local_files_only=True,
        )  # fmt: skip
        _check_weights(folder, pipeline)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise InputError(
            f"{folder} is no readable Stable Diffusion ({str(error).strip().splitlines()[0]:.200}); it must hold "
            "model_index.json and the weights as .safetensors"
        ) from error
    return pipeline


def _check_weights(folder: Path, pipeline: Pipeline) -> None:
    """Refuse files that lack weights: what is not there would be drawn at random, and nobody told."""
    for part in ("unet", "vae", "text_encoder"):
        there = 0
        for path in (folder / part).glob("*.safetensors"):
            with safe_open(path, framework="pt") as handle:
                there += sum(math.prod(handle.get_slice(key).get_shape()) for key in handle.keys())  # noqa: SIM118
        lost = sum(weight.numel() for weight in getattr(pipeline, part).parameters()) - there
        if lost > 0:
            raise ValueError(f"{part} lacks {lost:,} of its weights")


def find_start(start: str) -> Path:
    """Return the folder of the weights to start from: itself, or what the Hugging Face hub has by that name.

    Raises
    ------
    NotFoundError
        If there is no such folder, or the hub cannot be reached and the weights were not fetched before.
    InputError
        If the extra is not installed, or it is a folder of something else.
    """
    require_extra()
    folder = Path(start)
    if (folder / "model_index.json").is_file():
        return folder
    if folder.exists():
        raise InputError(f"generator.start = '{start}' has no model_index.json: name a folder in the form of diffusers")
    remedy = f"fetch it where there is a network (hf download {start} --local-dir sd), and set generator.start = 'sd'"
    if start.count("/") != 1 or start.startswith((".", "/", "~")):
        raise NotFoundError(f"generator.start = '{start}' does not exist; name a folder, or owner/name on the hub")
    from diffusers import StableDiffusionPipeline

    for local in (True, False):  # what was fetched once is not asked for again
        try:
            found = StableDiffusionPipeline.download(start, use_safetensors=True, local_files_only=local)
            return Path(found)
        except Exception as error:  # of the hub's client, its HTTP client, or of diffusers: they share no parent
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise NotFoundError(
        f"generator.start = '{start}' is neither a folder nor to be had from the hub ({why:.90}...); {remedy}"
    )


def check_resolution(pipeline: Pipeline, resolution: int) -> None:
    """Refuse a resolution that the autoencoder cannot divide.

    Raises
    ------
    InputError
        Naming its unit.
    """
    if resolution % (unit := pipeline.vae_scale_factor):
        raise InputError(f"generator.resolution = {resolution} is not a multiple of {unit}, what the autoencoder folds")


def number_format(device: torch.device) -> torch.dtype:
    """Return what the networks are computed in: bfloat16 on a GPU that has it, float32 elsewhere."""
    return devices.training_dtype(device) if device.type == "cuda" else torch.float32


def require_extra() -> None:
    """Refuse to go on without the packages of the extra, and keep them from talking of themselves.

    Raises
    ------
    InputError
        With the line that installs them.
    """
    try:
        import diffusers.utils.logging
        import peft  # noqa: F401
        import transformers.utils.logging
    except ImportError as error:
        raise InputError(
            f"Stable Diffusion needs {error.name}, which is not installed: pip install 'galscan[stable-diffusion]'"
        ) from None
    for package in (diffusers, transformers):
        package.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
