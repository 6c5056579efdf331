"""GalaxySD: Stable Diffusion conditioned on captions of galaxies (Ma et al. 2025, arXiv:2506.16233).

A fine-tuned model is a folder in the format of diffusers, readable by ``StableDiffusionPipeline.from_pretrained``, with
some files of galscan::

    model_index.json, unet/ text_encoder/ vae/ tokenizer/ scheduler/      half precision, safetensors
    galscan.json                          `StableDiffusionConfig`
    starts.safetensors                    training galaxies, the starting images of sampling
    pytorch_lora_weights.safetensors      the adapters, if trained; they are merged into the weights above
    LICENSES.md                           licences of weights, labels and images

transformers and peft (extra ``stable-diffusion``) are imported when needed.
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
from galscan.core.errors import InputError, first_line
from galscan.core.files import atomic_path, read_json, write_json, write_text
from galscan.labels.schema import Schema, save_schema, saved_schema
from galscan.synthesis.stable_diffusion.captions import captions, parse, wording

Pipeline = Any  # diffusers.StableDiffusionPipeline, whose components are not typed
CONFIG, STARTS = "galscan.json", "starts.safetensors"
RESAMPLED = "bicubic, antialiased"  # resampling of cutouts before encoding and of images after decoding
LICENSES = """# Licences of the contents of this folder

- **Weights**: fine-tuned, and so changed, from `{base}`. Stable Diffusion 1.x has the CreativeML OpenRAIL-M licence:
  anyone who distributes these weights must include that licence with its use restrictions (Attachment A), and state
  that the weights were changed.
- **Labels**: captions were made from labels of the schema `{schema}` ({reference}).
  Galaxy Zoo's votes are free for research with credit to the volunteers and to the papers; some of its data sets are
  CC BY-NC-SA 4.0 and ask that models trained on them be published as source code. Check the source of your table.
- **Images**: `starts.safetensors` holds cutouts of the surveys it was trained on ({surveys}), whose terms apply; SDSS
  requires credit (CC BY).
"""


@dataclass(frozen=True)
class StableDiffusionConfig:
    """Configuration stored beside the weights."""

    size: int  # of the training cutouts and of generated images
    resolution: int  # of the images that the autoencoder encodes
    schema: str
    wording: str  # hash of the phrases (`captions.wording`)
    answers: tuple[str, ...]
    surveys: tuple[str, ...]
    begin: str  # start of sampling: "galaxy" or "noise"
    base: str  # initial weights, as in the recipe
    resampled: str = RESAMPLED
    caption_survey: str = ""  # survey in all captions, instead of that of `surveys`

    def __post_init__(self) -> None:
        for name in ("size", "resolution"):
            if type(value := getattr(self, name)) is not int or not 8 <= value <= 4096:
                raise ValueError(f"{name} is {value!r}")
        texts = [self.schema, self.wording, self.begin, self.base, self.resampled, self.caption_survey]
        texts += [*self.answers, *self.surveys]
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"{wrong[0]!r} must be a string")
        if self.begin not in ("galaxy", "noise"):
            raise ValueError(f"begin is {self.begin!r}")


class StableDiffusion:
    """A generator of galaxy images conditioned on captions."""

    guidance, steps, batch = 6.5, 40, 8

    def __init__(self, pipeline: Pipeline, config: StableDiffusionConfig, starts: torch.Tensor, schema: Schema):
        self.pipeline, self.config, self.starts, self.schema = pipeline, config, starts, schema
        pipeline.vae.eval()
        check_resolution(pipeline, config.resolution)

    # -- encoding of pixels --------------------------------------------------------------------

    def encode_images(self, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Map (n, S, S, 3) uint8 to latents, sampled from the autoencoder's distribution."""
        side = (self.config.resolution,) * 2
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        pixels = F.interpolate(pixels, side, mode="bicubic", antialias=True).clamp(-1, 1)
        vae = self.pipeline.vae
        return vae.encode(pixels).latent_dist.sample(random) * vae.config.scaling_factor

    def decode_images(self, latents: torch.Tensor) -> torch.Tensor:
        """Map latents to (n, S, S, 3) uint8; values outside 0..255 are clipped."""
        vae = self.pipeline.vae
        pixels = vae.decode(latents.float() / vae.config.scaling_factor).sample
        pixels = F.interpolate(pixels, (self.config.size,) * 2, mode="bicubic", antialias=True)
        return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    # -- encoding of captions ------------------------------------------------------------------

    def captions(self, values: np.ndarray, survey: np.ndarray, weights: Mapping[str, float] | None = None) -> list[str]:
        """Return the captions of conditions: `values` (n, answers), `survey` (n,), -1 = any."""
        words = [self.config.caption_survey or name for name in self.config.surveys]
        names = [words[k] if k >= 0 else "" for k in np.asarray(survey)]
        columns = [self.config.answers.index(name) for name in self.schema.names]
        return captions(self.schema, np.asarray(values)[:, columns], names, weights)

    def tokens(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token numbers and weights, both (n, 77). Longer captions are truncated, with a warning.

        Raises `InputError` if a caption has invalid braces (`galscan.synthesis.stable_diffusion.captions.parse`).
        """
        tokenizer = self.pipeline.tokenizer
        limit = self.pipeline.text_encoder.config.max_position_embeddings - 2
        known: dict[str, tuple[list[int], list[float]]] = {}
        truncated = {}
        for text in dict.fromkeys(texts):
            ids: list[int] = []
            factors: list[float] = []
            for piece, weight in parse(text):
                piece_ids = tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
                ids, factors = ids + piece_ids, factors + [weight] * len(piece_ids)
            if len(ids) > limit:
                truncated[text] = tokenizer.decode(ids[limit:])
            ids, factors = ids[:limit], factors[:limit]
            padding = limit - len(ids)
            numbers = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding]
            known[text] = numbers, [1.0, *factors, *[1.0] * (padding + 1)]
        for text, lost in list(truncated.items())[:1]:
            print(
                f"captions truncated to {limit} tokens: {len(truncated):,}; of {text!r}, {lost!r} is lost",
                file=sys.stderr,
            )
        return torch.tensor([known[text][0] for text in texts]), torch.tensor([known[text][1] for text in texts])

    def embed(self, numbers: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Return text embeddings (n, 77, C) of tokens (n, 77).

        Embeddings are multiplied by the weights of their tokens, and each caption is rescaled to its original norm.
        (HCP-Diffusion, which the authors used, rescales to the original mean, which can be zero.)
        """
        embedding = self.pipeline.text_encoder(numbers)[0]
        if weights is None:
            return embedding
        weighted = embedding * weights[:, :, None].to(embedding)
        return weighted * (embedding.norm(dim=(1, 2)) / weighted.norm(dim=(1, 2)).clamp(min=1e-9))[:, None, None]

    # -- sampling ------------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(
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
        """Generate one image for each condition, each with its own seed (see `galscan.synthesis.sampling`)."""
        return self.generate_from_captions(
            self.captions(values, survey, weights), guidance=guidance, steps=steps, seed=seed, device=device
        )

    @torch.inference_mode()
    def generate_from_captions(
        self, texts: Sequence[str], *, guidance: float, steps: int, seed: int, device: torch.device
    ) -> np.ndarray:
        """Generate one image for each caption with Euler ancestral sampling: uint8, (n, S, S, 3)."""
        from diffusers import EulerAncestralDiscreteScheduler

        pipeline = self.pipeline.to(device)
        pipeline.unet.eval(), pipeline.text_encoder.eval()
        # "linspace" includes the last, noisiest time, as in training.
        scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
        scheduler.set_timesteps(steps, device=device)
        randoms = [torch.Generator().manual_seed(seed + k) for k in range(len(texts))]
        numbers, weights = self.tokens([*texts, ""])
        with devices.autocast(device, number_format(device)):
            embeddings = self.embed(numbers.to(device), weights.to(device))
            embeddings, unconditional = embeddings[:-1], embeddings[-1:].expand(len(texts), -1, -1)
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
                    predicted = pipeline.unet(given, t, embeddings).sample.float()
                else:
                    both = pipeline.unet(
                        given.repeat(2, 1, 1, 1), t, torch.cat([unconditional, embeddings])
                    ).sample.float()
                    without, predicted = both.chunk(2)
                    predicted = without + guidance * (predicted - without)
                x = scheduler.step(predicted, t, x, generator=randoms).prev_sample
        return self.decode_images(x).cpu().numpy()

    # -- on disk -------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the model to an existing, empty folder, in the current precision of its weights."""
        from diffusers import EulerAncestralDiscreteScheduler

        self.pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(self.pipeline.scheduler.config)
        self.pipeline.save_pretrained(folder, safe_serialization=True)
        with atomic_path(folder / STARTS) as temporary:
            save_file({"images": self.starts.contiguous()}, temporary)
        c = self.config
        fields = asdict(c) | {"reference": self.schema.reference, "surveys": ", ".join(c.surveys)}
        write_text(folder / "LICENSES.md", LICENSES.format(**fields))
        save_schema(self.schema, folder)
        write_json(folder / CONFIG, asdict(c))


def load_stable_diffusion(folder: Path) -> StableDiffusion:
    """Load a model written by `StableDiffusion.save`.

    Raises `InputError` if the folder is no such model, is damaged, or was trained with other phrases than the schema
    has now.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} is not a readable generator: it has no {CONFIG}; fine-tune a Stable Diffusion model first, "
            f"with generator.start = '{folder}'"
        )
    raw: Any = read_json(folder / CONFIG)
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        config = StableDiffusionConfig(**values)
        starts = load_file(folder / STARTS)["images"]
        if not len(starts) or starts.shape[1:] != (config.size, config.size, 3) or starts.dtype != torch.uint8:
            raise ValueError(f"{STARTS} holds {starts.dtype} of shape {tuple(starts.shape)}")
        schema = saved_schema(folder, config.schema)
        if lost := [name for name in schema.names if name not in config.answers]:
            raise ValueError(f"no answer {lost[0]}")
    except InputError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{folder} is damaged ({first_line(error)}); train it again") from error
    if wording(schema) != config.wording:
        raise InputError(
            f"{folder} was trained with other phrases than those of the label schema '{config.schema}' now; restore "
            "the schema's file, or train it again"
        )
    return StableDiffusion(open_pipeline(folder), config, starts, schema)


def open_pipeline(folder: Path) -> Pipeline:
    """Load a Stable Diffusion pipeline in the format of diffusers, from safetensors only, without pickle.

    Raises `InputError` if the extra is not installed, or the folder holds no such pipeline.
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
            f"{folder} is not a readable Stable Diffusion model ({first_line(error)}); it must "
            "hold model_index.json and the weights as .safetensors"
        ) from error
    return pipeline


def _check_weights(folder: Path, pipeline: Pipeline) -> None:
    """Check that no weights are missing: these would be initialised at random without a warning."""
    for component in ("unet", "vae", "text_encoder"):
        found = 0
        for path in (folder / component).glob("*.safetensors"):
            with safe_open(path, framework="pt") as handle:
                found += sum(math.prod(handle.get_slice(key).get_shape()) for key in handle.keys())  # noqa: SIM118
        missing = sum(weight.numel() for weight in getattr(pipeline, component).parameters()) - found
        if missing > 0:
            raise ValueError(f"{component} lacks {missing:,} of its weights")


def check_resolution(pipeline: Pipeline, resolution: int) -> None:
    """Check that a resolution is a multiple of the autoencoder's scale factor; raises `InputError` if it is not."""
    if resolution % (unit := pipeline.vae_scale_factor):
        raise InputError(
            f"generator.resolution = {resolution} is not a multiple of {unit}, the scale factor of the autoencoder"
        )


def number_format(device: torch.device) -> torch.dtype:
    """Return the floating-point type of the networks: bfloat16 on a GPU that supports it, else float32."""
    return devices.training_dtype(device) if device.type == "cuda" else torch.float32


def require_extra() -> None:
    """Check that the packages of the extra are installed, and silence their progress bars and warnings.

    Raises `InputError` if a package is missing.
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
