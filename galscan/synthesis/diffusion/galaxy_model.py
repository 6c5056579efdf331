"""The generator: a conditional UNet under flow matching, on folded pixels.

An image is square-root scaled, standardised, and folded four by four (``pixel_unshuffle``): a sixteenth
of the positions, 48 channels. Two coordinate channels
tell the network where it is. Four more sketch the galaxy, where its size and shape are given: the distance
along its major and minor axis, and two profiles of that shape. So the network need not find out, deep in noise,
where a galaxy of that shape would be, and a lane along the major axis is the same thing at every angle.

The condition of a galaxy is its label vector: each answer scaled to -1..1, a flag "asked" for each,
and which survey it is from. An answer that was not asked, or is masked to let another lead, is zero
with its flag at zero; with all flags zero the network is unconditional. Two more entries tell which pictures
were resampled by an augmentation, and by how much they were enlarged (Karras et al. 2022, arXiv:2206.00364):
samples are drawn with both at zero, so that neither blur nor mirrored borders leak into them.
"""

from __future__ import annotations

import importlib.resources
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from galscan.core import device as devices
from galscan.core.errors import InputError
from galscan.core.files import atomic_path
from galscan.labels.schema import Schema
from galscan.synthesis.galaxies import MEASURED, SHAPE, pixel_statistics

FOLD = 4  # pixels a side; in a short time on two cores it learns more than with 2
SKETCH = 4  # channels
AUGMENTATION = 2  # condition entries: resampled or not, enlargement
# A galaxy is a few hundred bright pixels on a dark sky, seen through noise a hundred times as strong: what it is
# gets decided close to pure noise. So training and sampling dwell there (Esser et al. 2024, arXiv:2403.03206, 5.3.2).
TIME_SHIFT = 3.3
# What standardised pixels scatter by where size, shape and brightness are known: less than 1, as most are sky.
SCATTER = 0.5
GUIDED = (0.2, 0.98)  # times between which guidance acts (1 = pure noise)


SETTLED = 0.3  # time below which the way from noise to picture is straight; above, each step begins with new noise


@dataclass(frozen=True)
class GeneratorConfig:
    """All that is needed to build the network again; it travels inside the weights file."""

    size: int
    schema: str
    answers: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    surveys: tuple[str, ...]
    widths: tuple[int, ...]
    mean: tuple[float, float, float]  # of square-rooted pixels, per band
    std: float

    @property
    def condition_size(self) -> int:
        return 2 * len(self.answers) + len(self.surveys) + AUGMENTATION


def shifted(u: torch.Tensor) -> torch.Tensor:
    """Map times u in 0..1 so that more of them lie near 1, pure noise; 0 and 1 stay."""
    return TIME_SHIFT * u / (1 + (TIME_SHIFT - 1) * u)


class Generator(nn.Module):
    """Velocity field v(x_t, t, condition) of a rectified flow from galaxies (t=0) to noise (t=1).

    Liu et al. 2022 (arXiv:2209.03003); Lipman et al. 2022 (arXiv:2210.02747).
    """

    guidance, steps, batch = 1.0, 20, 64  # of drawing, where nobody asks for something else
    grid: torch.Tensor

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        widths, side = config.widths, config.size // FOLD
        levels = len(widths)
        self.unet = UNet2DModel(
            sample_size=side, in_channels=3 * FOLD**2 + 2 + SKETCH, out_channels=3 * FOLD**2, layers_per_block=1,
            block_out_channels=widths,
            # Attention where it is cheap: at the coarsest level, and in the middle block.
            down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
            attention_head_dim=32, norm_num_groups=16, class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )  # fmt: skip
        embedding = 4 * widths[0]
        self.condition = nn.Sequential(
            nn.Linear(config.condition_size, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        # Unfolding leaves a faint grid; two convolutions across the seams of the fold remove it.
        self.smooth = nn.Sequential(nn.Conv2d(6, 24, 3, 1, 1), nn.SiLU(), nn.Conv2d(24, 3, 3, 1, 1))
        for parameter in self.smooth[2].parameters():
            nn.init.zeros_(parameter)
        line = (2 * torch.arange(side) + 1) / side - 1  # middles of the folded pixels, over half of the frame
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="ij"))[None], persistent=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Map noisy pixels (n, 3, S, S), times (n,) in 0..1 and conditions (n, C) to velocities (n, 3, S, S)."""
        # What a line through the noisy pixels tells of the velocity need not be learned: the network is left with the
        # galaxy where all is noise, and with the noise where all is galaxy. It is the preconditioning of Karras et al.
        # 2022 (arXiv:2206.00364, table 1) for pixels that scatter by SCATTER, written in t.
        time = t[:, None, None, None]
        variance = (1 - time) ** 2 * SCATTER**2 + time**2
        pixels = x / variance.sqrt()
        grid = self.grid.to(x.dtype).expand(len(x), -1, -1, -1)
        folded = torch.cat([F.pixel_unshuffle(pixels, FOLD), grid, self.sketch(condition).to(x.dtype)], 1)
        output = self.unet(folded, t * 1000, class_labels=self.condition(condition))  # type: ignore[operator]
        rest = F.pixel_shuffle(output.sample, FOLD)
        rest = rest + self.smooth(torch.cat([rest, pixels], 1))
        return (time - (1 - time) * SCATTER**2) / variance * x + SCATTER / variance.sqrt() * rest

    def sketch(self, condition: torch.Tensor) -> torch.Tensor:
        """Draw the shape that conditions (n, C) ask for, (n, 4, S/4, S/4); zero where it is left open."""
        answers, side = self.config.answers, self.grid.shape[-1]
        if not set(SHAPE) <= set(answers):
            return condition.new_zeros(len(condition), SKETCH, side, side)
        columns = [answers.index(name) for name in SHAPE]
        low, high = (
            condition.new_tensor([bounds[k] for k in columns]) for bounds in (self.config.low, self.config.high)
        )
        size, e1, e2 = (low + (condition[:, columns] + 1) / 2 * (high - low))[:, :, None, None].unbind(1)
        asked = condition[:, [len(answers) + k for k in columns]].prod(1)[:, None, None, None]
        angle, axis_ratio = torch.atan2(e2, e1) / 2, (1 - torch.hypot(e1, e2)).clamp(min=0.15)
        y, x = self.grid[0, 0] / 2, self.grid[0, 1] / 2  # fractions of the frame
        major = (x * angle.cos() + y * angle.sin()).abs() / size.clamp(min=0.02)
        minor = (y * angle.cos() - x * angle.sin()).abs() / size.clamp(min=0.02)
        # The half-light radius is that of a circle; an ellipse of as large an area is longer and thinner.
        along, across = major * axis_ratio.sqrt(), minor / axis_ratio.sqrt()
        square = along**2 + across**2
        drawn = torch.stack([torch.tanh(major / 2), torch.tanh(minor / 2), (-square.sqrt()).exp(), (-square).exp()], 1)
        return drawn * asked

    def draw(self, values: np.ndarray, survey: np.ndarray, **how: Any) -> np.ndarray:
        """Draw one picture for each condition (`flow`)."""
        return flow(self, values, survey, **how)

    # -- pixels and conditions in and out ------------------------------------------------------

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Map (n, S, S, 3) uint8 to standardised pixels (n, 3, S, S)."""
        pixels = images.permute(0, 3, 1, 2).float().div_(255).sqrt_()
        return (pixels - pixels.new_tensor(self.config.mean)[:, None, None]) / self.config.std

    def decode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Undo `encode_images`; values beyond the range of a byte are clipped."""
        roots = pixels * self.config.std + pixels.new_tensor(self.config.mean)[:, None, None]
        return (roots.clamp(0, 1) ** 2 * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    def encode_conditions(self, values: np.ndarray, survey: np.ndarray) -> torch.Tensor:
        """Build condition vectors from answers in their own units.

        Parameters
        ----------
        values : ndarray, shape (n, answers)
            NaN = not asked.
        survey : ndarray of int, shape (n,)
            Index into ``config.surveys``; -1 = none in particular.
        """
        low, high = np.array(self.config.low), np.array(self.config.high)
        scaled = 2 * (values - low) / (high - low) - 1
        asked = np.isfinite(scaled)
        onehot = np.asarray(survey)[:, None] == np.arange(len(self.config.surveys))
        exact = np.zeros((len(values), AUGMENTATION))
        parts = [np.where(asked, scaled, 0), asked, onehot, exact]
        return torch.from_numpy(np.concatenate(parts, 1).astype(np.float32))

    def mask(self, condition: torch.Tensor, drop: torch.Tensor) -> torch.Tensor:
        """Forget the answers where `drop` (n, answers) is true; survey and augmentation stay."""
        keep = (~drop).to(condition.dtype)
        rest = keep.new_ones(len(keep), condition.shape[1] - 2 * keep.shape[1])
        return condition * torch.cat([keep, keep, rest], 1)

    def check_widths(self, widths: Sequence[int]) -> None:
        """Refuse to be the start of a network of other `widths`.

        Raises
        ------
        InputError
            Naming both.
        """
        if tuple(widths) != self.config.widths:
            raise InputError(
                f"generator widths {list(widths)} differ from those of the weights to start from, "
                f"{list(self.config.widths)}; set these widths, or start from nothing with generator.start = 'none'"
            )

    def start_from(self, other: Generator) -> None:
        """Take over the weights of `other`, also where it knows other answers or surveys.

        Answers and surveys of the same name keep their meaning; a new answer starts without influence, and a new
        survey looks at first like the mean of those of `other`.

        Raises
        ------
        InputError
            If the networks differ in their widths.
        """
        other.check_widths(self.config.widths)
        state = other.state_dict()
        weight = torch.zeros_like(self.condition[0].weight)  # type: ignore[arg-type]
        ours, theirs = self.config.answers, other.config.answers
        old = state["condition.0.weight"]
        for k, answer in enumerate(ours):
            if answer in theirs:
                j = theirs.index(answer)
                weight[:, k] = old[:, j]
                weight[:, len(ours) + k] = old[:, len(theirs) + j]
        surveys = old[:, 2 * len(theirs) : -AUGMENTATION]
        for k, survey in enumerate(self.config.surveys):
            known = survey in other.config.surveys
            like = surveys[:, other.config.surveys.index(survey)] if known else surveys.mean(1)
            weight[:, 2 * len(ours) + k] = like
        weight[:, -AUGMENTATION:] = old[:, -AUGMENTATION:]
        self.load_state_dict(state | {"condition.0.weight": weight})


def make_config(images: np.ndarray, schema: Schema, surveys: Sequence[str], widths: tuple[int, ...]) -> GeneratorConfig:
    """Return the configuration for galaxies `images` (n, S, S, 3): the answers of `schema` and what is measured."""
    mean, std = pixel_statistics(images)
    ranges = {name: schema.ranges[name] for name in schema.names} | MEASURED
    low, high = zip(*ranges.values(), strict=True)
    return GeneratorConfig(
        size=images.shape[1], schema=schema.name, answers=tuple(ranges), low=tuple(map(float, low)),
        high=tuple(map(float, high)), surveys=tuple(surveys), widths=tuple(widths), mean=mean, std=std,
    )  # fmt: skip


def load_start(start: str) -> Generator | None:
    """Return the weights to start from: "base" (those shipped), "none" (None), or a path.

    Raises
    ------
    InputError
        If the file is missing or no generator.
    """
    if start == "none":
        return None
    if start == "base":
        with importlib.resources.as_file(
            importlib.resources.files("galscan.synthesis.diffusion") / "base.safetensors"
        ) as path:
            return load_generator(path)
    return load_generator(Path(start))


def save_generator(generator: Generator, state: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights `state` (usually the moving average) with the configuration inside."""
    tensors = {k: v.detach().cpu().half().contiguous() for k, v in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"config": json.dumps(asdict(generator.config))})


def load_generator(path: Path) -> Generator:
    """Read a generator written by `save_generator`.

    Raises
    ------
    InputError
        If the file is missing or not such a file.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            raw: dict[str, Any] = json.loads(handle.metadata()["config"])
            state = {key: handle.get_tensor(key).float() for key in handle.keys()}  # noqa: SIM118
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        config = GeneratorConfig(**settings)
        # First without memory: a file that boasts of a huge network is found out by its tensors.
        with torch.device("meta"):
            Generator(config).load_state_dict(state, assign=True)
        generator = Generator(config)
        generator.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path} is not a readable generator of this version ({reason:.200}); train it again"
        ) from error
    return generator.eval()


@torch.inference_mode()
def flow(
    generator: Generator,
    values: np.ndarray,
    survey: np.ndarray,
    *,
    guidance: float,
    weights: Mapping[str, float],
    steps: int,
    seed: int,
    device: torch.device,
) -> np.ndarray:
    """Draw a batch with the flow network: `ImageGenerator.draw`."""
    generator = generator.to(device).eval()
    config, n = generator.config, len(values)
    pushed: dict[float, list[int]] = {}
    for answer, weight in weights.items():
        if weight != 1:
            pushed.setdefault(weight, []).append(config.answers.index(answer))
    condition = generator.encode_conditions(values, survey).to(device)
    times = shifted(torch.linspace(1, 0, steps + 1, device=device))
    dtype = devices.training_dtype(device)
    # One seed and whole batches of noise: image k is the same however many are asked for.
    random = torch.Generator().manual_seed(seed)
    shape = (generator.batch, 3, config.size, config.size)
    x = torch.randn(shape, generator=random)[:n].to(device)
    for t, after in itertools.pairwise(times):
        terms = [(condition, 1.0)]
        if GUIDED[0] <= t <= GUIDED[1]:
            terms = _guidance_terms(generator, condition, guidance, pushed)
        with devices.autocast(device, dtype):
            out = generator(
                x.repeat(len(terms), 1, 1, 1), t.expand(n * len(terms)), torch.cat([c for c, _ in terms])
            ).float()
        factors = out.new_tensor([f for _, f in terms])
        velocity = torch.einsum("k,knchw->nchw", factors, out.unflatten(0, (len(terms), n)))
        picture, noise = x - t * velocity, x + (1 - t) * velocity
        if after > SETTLED:
            noise = torch.randn(shape, generator=random)[:n].to(device)
        x = (1 - after) * picture + after * noise
    return generator.decode_images(x).cpu().numpy()


def _guidance_terms(
    generator: Generator, condition: torch.Tensor, guidance: float, pushed: Mapping[float, Sequence[int]]
) -> list[tuple[torch.Tensor, float]]:
    """Return (condition, factor) pairs whose factors sum to 1; `pushed` holds the answers by their weight.

    v = v(none) + g [v(all) - v(none)] + sum_w g (w - 1) [v(all) - v(all but those of weight w)]
    """
    extra = {w: guidance * (w - 1) for w in pushed}
    terms = [(condition, guidance + sum(extra.values()))]
    drop = torch.zeros(len(condition), len(generator.config.answers), dtype=torch.bool, device=condition.device)
    for w, answers in pushed.items():
        some = drop.clone()
        some[:, answers] = True
        terms.append((generator.mask(condition, some), -extra[w]))
    if guidance != 1:
        terms.append((generator.mask(condition, ~drop), 1 - guidance))
    return terms
