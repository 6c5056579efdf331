"""Training of the generator of whole images.

All random numbers come from one generator whose state is in the checkpoint, so that interruptions do not change the
trained weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from galscan.labels.settings import GeneratorSettings
from galscan.models.augment import quarter_turns, rotate_flip_scale
from galscan.synthesis.diffusion.galaxy_model import AUGMENTATION, Generator, GeneratorConfig, shifted
from galscan.synthesis.galaxies import MEASURED, GalaxySet, measure

TIME_SPREAD = 1.4  # standard deviation of logit-normal times
ENLARGEMENT = 0.1  # of the augmentation; unit of the enlargement in conditions


def train_generator(
    galaxies: GalaxySet,
    config: GeneratorConfig,
    settings: GeneratorSettings,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
    start: Generator | None = None,
) -> dict[str, float]:
    """Train from `start`, or from random weights; see `galscan.synthesis.diffusion.network.FlowNetwork.fit`."""
    torch.manual_seed(seed)
    generator = Generator(config)
    if start is not None:
        generator.start_from(start)
    generator = generator.to(device).train()
    random = torch.Generator().manual_seed(seed)

    images = torch.from_numpy(galaxies.images)
    conditions = generator.encode_conditions(galaxies.values, galaxies.survey)
    weight = torch.from_numpy(galaxies.weight).double()
    pixel_weight = _pixel_weights(config.size).to(device)
    n_answers = len(config.answers)
    measured = [k for k, answer in enumerate(config.answers) if answer in MEASURED]
    encoded_columns = torch.zeros(config.condition_size, dtype=torch.bool)
    encoded_columns[[*measured, *(n_answers + k for k in measured)]] = True

    def loss() -> torch.Tensor:
        rows = torch.multinomial(weight, settings.batch, replacement=True, generator=random)
        x0 = generator.encode_images(images[rows].to(device))
        turned, enlargement = rotate_flip_scale(x0, random, scale=ENLARGEMENT, shift=0.0)
        changed = torch.rand(settings.batch, generator=random) < settings.augment
        x0 = torch.where(changed[:, None, None, None].to(device), turned, x0)
        x0 = quarter_turns(x0, random)
        batch_conditions = conditions[rows]
        if measured:  # measured properties are those of the augmented image
            values = np.full((settings.batch, n_answers), np.nan, np.float32)
            values[:, measured] = measure(generator.decode_images(x0).cpu().numpy())
            encoded = generator.encode_conditions(values, galaxies.survey[rows])
            batch_conditions = torch.where(encoded_columns, encoded, batch_conditions)

        # Mask all answers for guidance, and single answers for guidance of one answer.
        drop_all = torch.rand(settings.batch, 1, generator=random) < settings.drop
        drop_one = torch.rand(settings.batch, n_answers, generator=random) < settings.drop
        drop_one[:, measured] = drop_one[:, measured[:1]]  # measured properties are masked together
        condition = generator.mask(batch_conditions, drop_all | drop_one)
        condition = condition * ~(torch.rand(settings.batch, 1, generator=random) < settings.drop / 2)
        condition[:, -AUGMENTATION:] = torch.stack([torch.ones_like(enlargement), enlargement / ENLARGEMENT], 1)
        condition[:, -AUGMENTATION:] *= changed[:, None]

        # Half of the times are logit-normal and shifted towards noise, where the structure is determined; half are
        # uniform, for fine detail.
        times = shifted(torch.sigmoid(TIME_SPREAD * torch.randn(settings.batch, generator=random)))
        times[::2] = torch.rand(times[::2].shape, generator=random)
        return generator.loss(x0, times, condition, random, pixel_weight)

    return generator.fit(loss, settings, out, random, floor=0.02, label="train generator", seconds=seconds)


def _pixel_weights(size: int) -> torch.Tensor:
    """Return weights of the pixels in the loss, (size, size) with mean 1: up to 9 times larger in the middle.

    Most of a frame is sky. The weights do not change the optimum, only the order of learning.
    """
    line = (torch.arange(size) + 0.5) / size - 0.5
    weight = 1 + 8 * torch.exp(-(line[:, None] ** 2 + line**2) / 0.2**2)
    return weight / weight.mean()
