"""Training of the generator of whole images.

All random numbers come from one generator whose state is in the checkpoint, so that interruptions do not change the
trained weights.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from galscan.core import device as devices
from galscan.core.progress import track
from galscan.labels.settings import GeneratorSettings
from galscan.models.augment import quarter_turns, rotate_flip_scale
from galscan.synthesis.diffusion.checkpoint import Checkpoint
from galscan.synthesis.diffusion.galaxy_model import AUGMENTATION, Generator, GeneratorConfig, save_generator, shifted
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
    """Train until ``settings.steps`` or `seconds` are used up, and write the averaged weights to `out`.

    Initial weights are those of `start`, or random. A checkpoint beside `out` is written every two minutes; after an
    interruption the same call resumes from it.

    Returns
    -------
    dict
        ``steps``, ``seconds`` and ``loss`` (mean over the last tenth of the steps).

    Raises
    ------
    GalscanError
        If the training diverges.
    """
    torch.manual_seed(seed)
    generator = Generator(config)
    if start is not None:
        generator.start_from(start)
    generator = generator.to(device).train()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=settings.learning_rate, weight_decay=1e-2, fused=True)
    average = {k: v.detach().clone() for k, v in generator.state_dict().items()}
    random = torch.Generator().manual_seed(seed)
    dtype = devices.training_dtype(device)

    images = torch.from_numpy(galaxies.images)
    conditions = generator.encode_conditions(galaxies.values, galaxies.survey)
    weight = torch.from_numpy(galaxies.weight).double()
    pixel_weight = _pixel_weights(config.size).to(device)
    n_answers = len(config.answers)
    measured = [k for k, answer in enumerate(config.answers) if answer in MEASURED]
    encoded_columns = torch.zeros(config.condition_size, dtype=torch.bool)
    encoded_columns[[*measured, *(n_answers + k for k in measured)]] = True

    checkpoint = Checkpoint(
        out.with_suffix(".checkpoint.safetensors"), generator.state_dict(), average, optimizer, random
    )
    checkpoint.resume()

    with track("train generator", settings.steps, "step", done=checkpoint.step) as advance:
        while (done := checkpoint.progress(settings.steps, seconds)) < 1:
            decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
            rate = settings.learning_rate * min(1.0, (checkpoint.step + 1) / 100) * decay

            rows = torch.multinomial(weight, settings.batch, replacement=True, generator=random)
            x0 = generator.encode_images(images[rows].to(device))
            turned, enlargement = rotate_flip_scale(x0, random, scale=ENLARGEMENT, shift=0.0)
            changed = torch.rand(settings.batch, generator=random) < settings.augment
            x0 = torch.where(changed[:, None, None, None].to(device), turned, x0)
            x0 = quarter_turns(x0, random)
            batch_conditions = conditions[rows]
            if measured:  # measured properties are those of the augmented image
                values = measure(generator.decode_images(x0).cpu().numpy())
                encoded = generator.encode_conditions(
                    _measured_only(values, measured, n_answers), galaxies.survey[rows]
                )
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
            t = times.to(device)
            noise = torch.randn(x0.shape, generator=random).to(device)
            xt = torch.lerp(x0, noise, t[:, None, None, None])
            with devices.autocast(device, dtype):
                velocity = generator(xt, t, condition.to(device))
            loss = (pixel_weight * (velocity.float() - (noise - x0)).square()).mean()
            advance(1, checkpoint.update(loss, rate, settings.ema))
            checkpoint.save_if_due()

    save_generator(generator, average, out)
    return checkpoint.finish()


def _pixel_weights(size: int) -> torch.Tensor:
    """Return weights of the pixels in the loss, (size, size) with mean 1: up to 9 times larger in the middle.

    Most of a frame is sky. The weights do not change the optimum, only the order of learning.
    """
    line = (torch.arange(size) + 0.5) / size - 0.5
    weight = 1 + 8 * torch.exp(-(line[:, None] ** 2 + line**2) / 0.2**2)
    return weight / weight.mean()


def _measured_only(measurements: np.ndarray, measured: list[int], n_answers: int) -> np.ndarray:
    """Return answers (n, answers) that are NaN except for the measured properties."""
    values = np.full((len(measurements), n_answers), np.nan, np.float32)
    values[:, measured] = measurements
    return values
