"""Train the generator: one loop, read from top to bottom.

Every random choice comes from one generator whose state is in the checkpoint, so that a run that was
interrupted and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from galscan.core import device as devices
from galscan.core.progress import track
from galscan.labels.settings import GeneratorSettings
from galscan.models.augment import quarter_turns, resample
from galscan.synthesis.diffusion.checkpoint import Checkpoint
from galscan.synthesis.diffusion.galaxy_model import AUGMENTATION, Generator, GeneratorConfig, save_generator, shifted
from galscan.synthesis.galaxies import MEASURED, GalaxySet, measure

TIME_SPREAD = 1.4  # standard deviation of logit-normal times
ENLARGEMENT = 0.1  # of the augmentation; it is told to the network in units of this


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

    It begins with the weights of `start`, or at random. A checkpoint beside `out` is written every two minutes;
    after an interruption the same call goes on from it.

    Returns
    -------
    dict
        ``steps``, ``seconds`` and ``loss`` (mean over the last tenth of the steps).

    Raises
    ------
    GalscanError
        If it diverges.
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
    attention = _attention(config.size).to(device)
    n_answers = len(config.answers)
    measured = [k for k, answer in enumerate(config.answers) if answer in MEASURED]
    encoded_columns = torch.zeros(config.condition_size, dtype=torch.bool)
    encoded_columns[[*measured, *(n_answers + k for k in measured)]] = True

    at = Checkpoint(out.with_suffix(".checkpoint.safetensors"), generator.state_dict(), average, optimizer, random)
    at.resume()

    with track("train generator", settings.steps, "step", done=at.step) as advance:
        while (done := at.behind(settings.steps, seconds)) < 1:
            falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
            rate = settings.learning_rate * min(1.0, (at.step + 1) / 100) * falling

            rows = torch.multinomial(weight, settings.batch, replacement=True, generator=random)
            x0 = generator.encode_images(images[rows].to(device))
            turned, enlargement = resample(x0, random, scale=ENLARGEMENT, shift=0.0)
            changed = torch.rand(settings.batch, generator=random) < settings.augment
            x0 = torch.where(changed[:, None, None, None].to(device), turned, x0)
            x0 = quarter_turns(x0, random)
            told = conditions[rows]
            if measured:  # what is told is measured on what is shown
                shown = measure(generator.decode_images(x0).cpu().numpy())
                encoded = generator.encode_conditions(_beside(shown, measured, n_answers), galaxies.survey[rows])
                told = torch.where(encoded_columns, encoded, told)

            # Forget everything for some galaxies, single answers for others: the first makes guidance
            # possible, the second lets one answer be pushed by itself.
            forget_all = torch.rand(settings.batch, 1, generator=random) < settings.drop
            forget_one = torch.rand(settings.batch, n_answers, generator=random) < settings.drop
            forget_one[:, measured] = forget_one[:, measured[:1]]  # what is measured goes together
            condition = generator.mask(told, forget_all | forget_one)
            condition = condition * ~(torch.rand(settings.batch, 1, generator=random) < settings.drop / 2)
            condition[:, -AUGMENTATION:] = torch.stack([torch.ones_like(enlargement), enlargement / ENLARGEMENT], 1)
            condition[:, -AUGMENTATION:] *= changed[:, None]

            # Half of the times logit-normal, wide and shifted towards noise, where it is settled what is drawn;
            # half uniform, so that detail and grain are learned too.
            times = shifted(torch.sigmoid(TIME_SPREAD * torch.randn(settings.batch, generator=random)))
            times[::2] = torch.rand(times[::2].shape, generator=random)
            t = times.to(device)
            noise = torch.randn(x0.shape, generator=random).to(device)
            xt = torch.lerp(x0, noise, t[:, None, None, None])
            with devices.autocast(device, dtype):
                velocity = generator(xt, t, condition.to(device))
            loss = (attention * (velocity.float() - (noise - x0)).square()).mean()
            advance(1, at.learn(loss, rate, settings.ema))
            at.save_now_and_then()

    save_generator(generator, average, out)
    return at.done()


def _attention(size: int) -> torch.Tensor:
    """Return how much each pixel counts in the loss, (size, size) of mean 1: up to 9 times more in the middle.

    Most of a frame is sky. What is best for a pixel does not depend on it, only what is learned first.
    """
    line = (torch.arange(size) + 0.5) / size - 0.5
    weight = 1 + 8 * torch.exp(-(line[:, None] ** 2 + line**2) / 0.2**2)
    return weight / weight.mean()


def _beside(shown: np.ndarray, measured: list[int], n_answers: int) -> np.ndarray:
    """Return answers (n, answers) of which only what is measured is known."""
    values = np.full((len(shown), n_answers), np.nan, np.float32)
    values[:, measured] = shown
    return values
