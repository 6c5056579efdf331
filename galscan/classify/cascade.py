"""A first look: a tiny network that discards what surely is no candidate, so that the full one sees the rest.

It learns, from a random sample of the survey itself, to say what the full network will say. Nobody's labels are
needed. Where to cut is decided on objects of the sample that it did not learn from: not by its scores of the best,
of which a sample has too few, but by its *errors* on the better ones. If the worst of 600 errors is e, then with 95 %
confidence at most one in 200 is larger (the distribution-free tolerance bound of Wilks 1941, Ann. Math. Stat. 12, 91).
What the full network would put among the candidates is then kept in 99.5 % of cases by the cut
(score of the last candidate, as the first look would say it) - e, if errors on the very best are no larger than on the
better ones. That assumption is checked in the field: of what is discarded, one in a hundred is scored in full all the
same, in every scan (`galscan.scanning.worker`).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import beta, binom
from torch import nn
from torch.nn import functional as F

from galscan.classify.model import to_unit
from galscan.errors import InputError
from galscan.files import atomic_path

KEPT = 0.995  # share of the full network's candidates that must survive
CONFIDENCE = 0.95
PAYS = 0.35  # share that passes, above which a first look costs more than it saves
BETTER = math.ceil(math.log(1 - CONFIDENCE) / math.log(KEPT))  # 598 errors for the bound of Wilks
SIDE = 32  # pixels it looks at


class TinyNet(nn.Module):
    """Three convolutions on a reduced picture: some 1.3 million multiplications, a thirtieth of the full network's."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(), nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Linear(4 * width, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels (n, 3, 32, 32) in 0..1 to scores (n,)."""
        x = self.layers(pixels * 4 - 1)
        return self.last(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))[:, 0]


def reduced(images: np.ndarray) -> torch.Tensor:
    """Map images (n, S, S, 3) uint8 to square-rooted pixels (n, 3, 32, 32): means of blocks where S is larger."""
    pixels = to_unit(torch.from_numpy(np.ascontiguousarray(images)))
    size = pixels.shape[-1]
    if size == SIDE:
        return pixels
    return F.avg_pool2d(pixels, size // SIDE) if size % SIDE == 0 else F.interpolate(pixels, (SIDE, SIDE), mode="area")


@dataclass(frozen=True)
class FirstLook:
    """A trained first look, and where it cuts.

    Attributes
    ----------
    network : TinyNet
    cut : float
        Its score below which an object is discarded.
    passes : float
        Share of the held-out sample above the cut.
    slope, offset, error : float
        How its score follows the full one (offset + slope x full), and the bound of its error.
    last : float
        Full score of the last candidate, at most.
    sample, held : int
        Objects of the survey that it learnt from, and those by which the cut was set.
    """

    network: TinyNet
    cut: float
    passes: float
    slope: float
    offset: float
    error: float
    last: float
    sample: int
    held: int

    @property
    def pays(self) -> bool:
        """Whether it discards enough to be worth its time."""
        return self.passes <= PAYS

    @torch.inference_mode()
    def score(self, images: np.ndarray) -> np.ndarray:
        """Return its scores of images (n, S, S, 3) uint8; float32 of shape (n,)."""
        parts = [self.network(reduced(images[k : k + 512])).numpy() for k in range(0, len(images), 512)]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def told(self) -> dict[str, Any]:
        """Return all but the network, JSON-able."""
        return {k: v for k, v in asdict(self).items() if k != "network"}


def distil(
    images: np.ndarray, scores: np.ndarray, share: float, *, seed: int, steps: int = 400, batch: int = 256
) -> FirstLook:
    """Teach a first look what the full network says, and set its cut.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
        A random sample of the survey, in random order.
    scores : ndarray of float32, shape (n,)
        What the full network says of them.
    share : float
        Share of the survey that will be candidates.

    Raises
    ------
    InputError
        If the sample is too small for a bound.
    """
    n_held = max(len(images) * 2 // 5, BETTER)
    if len(images) < 2 * BETTER:
        raise InputError(f"a first look needs a sample of at least {2 * BETTER:,} objects, not {len(images):,}")
    held, learnt = slice(0, n_held), slice(n_held, None)
    network = _learn(images[learnt], scores[learnt], seed=seed, steps=steps, batch=batch)
    look = FirstLook(network, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, len(images) - n_held, n_held)
    return _cut(look, look.score(images[held]), scores[held].astype(np.float64), share)


def _learn(images: np.ndarray, scores: np.ndarray, *, seed: int, steps: int, batch: int) -> TinyNet:
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = TinyNet()
    target = torch.from_numpy((scores - scores.mean()) / max(float(scores.std()), 1e-6)).float()
    # The better half of the draws are of the best twentieth: that is where it must not err.
    rank = np.argsort(np.argsort(-scores))
    weight = torch.from_numpy(np.where(rank < len(scores) / 20, 10.0, 1.0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        rows = torch.multinomial(weight, batch, replacement=True, generator=random)
        pixels = reduced(images[rows.numpy()])
        pixels = torch.rot90(pixels, int(torch.randint(4, (), generator=random)), (2, 3))
        loss = F.smooth_l1_loss(network(pixels), target[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def _cut(look: FirstLook, own: np.ndarray, full: np.ndarray, share: float) -> FirstLook:
    """Return the first look with its cut, from its scores `own` and those of the full network on held-out objects."""
    order = np.argsort(-full)
    better = order[:BETTER] if len(order) > BETTER else order
    slope, offset = np.polyfit(full[better], own[better], 1) if np.ptp(full[better]) > 0 else (0.0, own[better].mean())
    slope = max(float(slope), 0.0)
    error = float((offset + slope * full[better] - own[better]).max())
    # The score of the last candidate: in a sample it is the one of this rank, or with little luck one further down.
    rank = int(binom.ppf(CONFIDENCE, len(full), min(share, 1.0)))
    last = float(full[order[min(rank, len(order) - 1)]])
    cut = offset + slope * last - error
    return FirstLook(
        look.network, float(cut), float((own >= cut).mean()), slope, float(offset), error, last, look.sample, look.held
    )


def kept_bounds(lost: int, audited: int, discarded: int, candidates: int) -> tuple[float, float]:
    """Return the share of candidates that survived the first look, and its lower bound at 95 % confidence.

    Parameters
    ----------
    lost : int
        Of the audited, those that the full network puts among the candidates.
    audited, discarded : int
        Objects below the cut that were scored in full, and all below it.
    candidates : int
        Candidates that were found above the cut.
    """
    if not audited or not candidates:
        return 1.0, 1.0 if not discarded else 0.0
    upper = float(beta.ppf(CONFIDENCE, lost + 1, audited - lost)) if lost < audited else 1.0
    expected, most = (rate * discarded for rate in (lost / audited, upper))
    return candidates / (candidates + expected), candidates / (candidates + most)


def save_first_look(look: FirstLook, path: Path) -> None:
    """Write a first look as safetensors, with its cut inside."""
    from safetensors.torch import save_file

    tensors = {key: value.contiguous() for key, value in look.network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"first_look": json.dumps(look.told() | {"width": look.network.width})})


def load_first_look(path: Path) -> FirstLook:
    """Read what `save_first_look` wrote.

    Raises
    ------
    InputError
        If it is missing or no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            told: dict[str, Any] = json.loads(handle.metadata()["first_look"])
            state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        if not 1 <= (width := told.pop("width")) <= 256:
            raise ValueError(f"its width is {width}")
        network = TinyNet(width)
        network.load_state_dict(state)
        return FirstLook(network.eval(), **told)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable first look ({reason:.200}); remove it and run again") from error
