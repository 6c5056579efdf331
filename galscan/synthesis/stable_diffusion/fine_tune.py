"""Fine-tuning of Stable Diffusion on galaxies and their captions.

As in `galscan.synthesis.diffusion.galaxy_training`, all random numbers come from one generator whose state is in the
checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from galscan.core import device as devices
from galscan.core.staging import atomic_folder
from galscan.labels.schema import Schema
from galscan.labels.settings import StableDiffusionSettings
from galscan.models.augment import quarter_turns
from galscan.synthesis.diffusion.checkpoint import Checkpoint
from galscan.synthesis.galaxies import MEASURED, GalaxySet
from galscan.synthesis.stable_diffusion.captions import wording
from galscan.synthesis.stable_diffusion.initial_weights import (
    InitialWeights,
    find_initial_weights,
    open_initial_weights,
)
from galscan.synthesis.stable_diffusion.model import (
    CONFIG,
    Pipeline,
    StableDiffusion,
    StableDiffusionConfig,
    number_format,
)

STARTS = 512  # training galaxies that are stored as starting images of sampling
# Layers with adapters: the attention of the UNet and of the text encoder.
ADAPTED = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"]}


def fine_tune(
    galaxies: GalaxySet,
    schema: Schema,
    surveys: Sequence[str],
    settings: StableDiffusionSettings,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """Train for ``settings.steps`` or `seconds`, and write the averaged weights to the folder `out`.

    With 0 steps the initial weights are written as they are, and ``loss`` is None. See
    `galscan.synthesis.diffusion.checkpoint.Checkpoint` for errors and the result.

    Parameters
    ----------
    galaxies : GalaxySet
        Training galaxies; columns are the answers of `schema` and measured properties.
    start : path, optional
        Folder of initial weights, instead of ``settings.start``.
    """
    from diffusers import DDPMScheduler

    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    start_rows = torch.randperm(len(galaxies.images), generator=random)[:STARTS]
    images = torch.from_numpy(galaxies.images)
    pipeline = open_initial_weights(InitialWeights(start) if start else find_initial_weights(settings)).to(device)
    config = StableDiffusionConfig(
        size=images.shape[1], resolution=settings.resolution, schema=schema.name, wording=wording(schema),
        answers=(*schema.names, *MEASURED), surveys=tuple(surveys), begin=settings.begin, base=settings.start,
        caption_survey=settings.caption_survey,
    )  # fmt: skip
    model = StableDiffusion(pipeline, config, images[start_rows], schema)
    if not settings.steps:
        with atomic_folder(out, CONFIG) as folder:
            _save(model, folder)
        return {"steps": 0, "seconds": 0.0, "loss": None}
    networks = _trained(pipeline, settings)
    weights = {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.named_parameters() if value.requires_grad
    }  # fmt: skip
    optimizer = torch.optim.AdamW(weights.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    noising = DDPMScheduler.from_config(pipeline.scheduler.config)
    predicts_velocity = noising.config.prediction_type == "v_prediction"
    tokens, _ = model.tokens([*model.captions(galaxies.values, galaxies.survey), ""])
    tokens, no_caption = tokens[:-1], tokens[-1]
    weight = torch.from_numpy(galaxies.weight).double()

    def loss() -> torch.Tensor:
        rows = torch.multinomial(weight, settings.batch, replacement=True, generator=random)
        batch = quarter_turns(images[rows].permute(0, 3, 1, 2), random).permute(0, 2, 3, 1)
        numbers = tokens[rows]
        numbers[torch.rand(settings.batch, generator=random) < settings.drop] = no_caption
        t = torch.randint(noising.config.num_train_timesteps, (settings.batch,), generator=random).to(device)
        with devices.autocast(device, number_format(device)):
            with torch.no_grad():
                x0 = model.encode_images(batch.to(device), random).float()
            noise = torch.randn(x0.shape, generator=random).to(device)
            xt = noising.add_noise(x0, noise, t)
            predicted = networks["unet"](xt, t, model.embed(numbers.to(device))).sample
        return F.mse_loss(predicted.float(), noising.get_velocity(x0, noise, t) if predicts_velocity else noise)

    path = out.with_name(out.name + ".checkpoint.safetensors")
    checkpoint = Checkpoint(path, weights, optimizer, random, settings.ema)
    warmup = min(settings.warmup, math.ceil(settings.steps / 2))
    checkpoint.run(loss, settings.steps, seconds, warmup=warmup, floor=0.0, label="fine-tune Stable Diffusion")
    with torch.no_grad():
        for name, value in checkpoint.average.items():
            weights[name].copy_(value)
    with atomic_folder(out, CONFIG) as folder:
        if settings.lora:
            _save_adapters(networks, folder)
            pipeline.unet = networks["unet"].merge_and_unload()
            pipeline.text_encoder = networks["text_encoder"].merge_and_unload()
        _save(model, folder)
    return checkpoint.finish()


def _save(model: StableDiffusion, folder: Path) -> None:
    """Write the model in half precision."""
    for network in (model.pipeline.unet, model.pipeline.text_encoder, model.pipeline.vae):
        network.half()
    model.save(folder)


def _trained(pipeline: Pipeline, settings: StableDiffusionSettings) -> dict[str, Any]:
    """Return the networks to train: all weights, or adapters alone."""
    pipeline.vae.requires_grad_(False)
    networks = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    if settings.lora:
        from peft import LoraConfig, get_peft_model

        for name, network in networks.items():
            adapters = LoraConfig(r=settings.lora, lora_alpha=settings.lora, target_modules=ADAPTED[name])
            networks[name] = get_peft_model(network, adapters)
    if settings.recompute:
        pipeline.unet.enable_gradient_checkpointing()
        pipeline.text_encoder.activation_checkpointing_enable()
    for network in networks.values():
        network.train()
    return networks


def _save_adapters(networks: dict[str, Any], folder: Path) -> None:
    """Write the adapters in the format of ``StableDiffusionPipeline.load_lora_weights``."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    layers = {}
    for name, network in networks.items():
        adapters = {k.removeprefix("base_model.model."): v for k, v in get_peft_model_state_dict(network).items()}
        layers[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(adapters)
    StableDiffusionPipeline.save_lora_weights(folder, **layers)
