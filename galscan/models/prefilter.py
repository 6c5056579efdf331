"""A first look: a tiny network that discards what surely is no candidate, so that the full one sees the rest.

It learns with the model, from pictures with or without labels, to say what the full network says (`teach`). Its
threshold is set for each survey (`set_threshold`), on objects that it did not learn from: which those are follows from
their ids, so that none is both. Not by its scores of the best, of which a sample has too few, but by its *errors* on
the better ones: if the worst of 600 errors is e, then with 95 % confidence at most one in 200 is larger (the
distribution-free tolerance bound of Wilks 1941, Ann. Math. Stat. 12, 91). What the full network would put among the
candidates is then kept in 99.5 % of cases by the cut (score of the last candidate, as the first look would say it) -
e, if errors on the very best are no larger than on the better ones. That assumption is checked in the field: of what
is discarded, one in a hundred is scored in full all the same, in every scan (`galscan.scanning.worker`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy.stats import beta, binom
from torch import nn
from torch.nn import functional as F

from galscan.core import device as devices
from galscan.core.errors import InputError
from galscan.core.files import atomic_path
from galscan.core.progress import track
from galscan.models.compiled import compiled
from galscan.models.network import content_hash, to_unit
from galscan.store.layout import CHUNK, Store
from galscan.surveys.base import UNUSABLE
from galscan.surveys.resampling import resample

KEPT = 0.995  # share of the full network's candidates that must survive
CONFIDENCE = 0.95
PAYS = 0.35  # share that passes, above which a first look costs more than it saves
BETTER = math.ceil(math.log(1 - CONFIDENCE) / math.log(KEPT))  # 598 errors for the bound of Wilks
SIDE = 64  # pixels it looks at, at most
BATCH = 256


class TinyNet(nn.Module):
    """Four convolutions: at 64 px some 2.2 million multiplications, the full network's 18.

    It sees every pixel of a 64 px picture, as a lane may be two pixels wide, but in steps of four: at full resolution
    nearly all of its time would go into the first convolution.
    """

    def __init__(self, width: int = 12, targets: int = 1):
        super().__init__()
        self.width, self.targets = width, targets
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 6, 4, 2), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(2 * width, 3 * width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(3 * width, 3 * width, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Linear(6 * width, targets)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels (n, 3, S, S) in 0..1 to scores (n, targets)."""
        return self.last(self.features(pixels))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels (n, 3, S, S) in 0..1 to what the scores are read from, (n, 6 width)."""
        if pixels.shape[-1] > SIDE:
            pixels = F.interpolate(pixels, (SIDE, SIDE), mode="area")
        x = self.layers(pixels * 4 - 1)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def only(self, target: int) -> TinyNet:
        """Return a network of the same convolutions for one of the targets."""
        network = TinyNet(self.width)
        network.layers.load_state_dict(self.layers.state_dict())
        network.last.load_state_dict({k: v[target : target + 1].clone() for k, v in self.last.state_dict().items()})
        return network.eval()


class TinyNets(nn.Module):
    """The first looks of one or several models, each with one target; convolutions that are equal are done once."""

    def __init__(self, networks: Sequence[TinyNet]):
        super().__init__()
        hashes = [content_hash(network.layers) for network in networks]
        self.which = [sorted(set(hashes), key=hashes.index).index(sha) for sha in hashes]
        self.trunks = nn.ModuleList(networks[self.which.index(k)] for k in range(len(set(hashes))))
        self.last = nn.ModuleList(network.last for network in networks)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """Map stored images (n, S, S, 3) uint8 to scores (n, targets)."""
        pixels = to_unit(images)
        features = [cast(TinyNet, trunk).features(pixels) for trunk in self.trunks]
        return (torch.cat([last(features[k]) for last, k in zip(self.last, self.which, strict=True)], 1),)


@dataclass(frozen=True)
class Prefilter:
    """A trained first look, and where it cuts.

    Attributes
    ----------
    network : TinyNet
    cut : float
        Its score below which an object is discarded.
    passes : float
        Share of the sample above the cut.
    slope, offset, error : float
        How its score follows the full one (offset + slope x full), and the bound of its error.
    last : float
        Full score of the last candidate, at most.
    sample : int
        Objects of the survey by which the cut was set.
    """

    network: TinyNet
    cut: float = -math.inf
    passes: float = 1.0
    slope: float = 0.0
    offset: float = 0.0
    error: float = 0.0
    last: float = 0.0
    sample: int = 0

    @property
    def pays(self) -> bool:
        """Whether it discards enough to be worth its time."""
        return self.passes <= PAYS

    def told(self) -> dict[str, Any]:
        """Return all but the network, JSON-able."""
        return {k: v for k, v in asdict(self).items() if k != "network"}


def load_prefilter_scorer(
    looks: Sequence[Prefilter], device: str = "auto", precision: str = "fp32", converted: Path | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from images (n, S, S, 3) uint8 to the scores of some first looks, float32, (n, looks)."""
    network = TinyNets([look.network for look in looks]).eval()
    run = compiled(network, devices.pick(device), devices.precision(precision), converted)
    # In batches that the processor's cache holds.
    return lambda images: np.concatenate([run(images[k : k + BATCH])[0] for k in range(0, len(images), BATCH)])


def teaches(ids: np.ndarray) -> np.ndarray:
    """Return which objects may teach a first look; the others, as many, are for setting its cut."""
    return pd.util.hash_array(np.array([str(i) for i in ids], object), categorize=False) % 2 == 0


def teaching_sample(stores: Sequence[Store], count: int, seed: int, size: int | None = None) -> np.ndarray:
    """Return about `count` random usable images that may train it, with labels or without; (n, S, S, 3) uint8.

    Parameters
    ----------
    size : int, optional
        Pixels on a side that the full network takes, to which larger stores are resampled; by default as stored.
    """
    chunks = [
        (store, slice(at, min(at + CHUNK, store.count))) for store in stores for at in range(0, store.count, CHUNK)
    ]
    got: list[np.ndarray] = []
    for k in np.random.default_rng(seed).permutation(len(chunks)):
        store, rows = chunks[k]
        usable = teaches(store.column("id", rows)) & ((store.column("flags", rows) & np.uint8(UNUSABLE)) == 0)
        got.append(resample(store.images(rows)[usable], size or store.size))
        if sum(map(len, got)) >= count:
            break
    return np.concatenate(got)[:count]


def teach(
    images: np.ndarray, scores: np.ndarray, *, steps: int, seed: int, device: torch.device, seconds: float | None = None
) -> TinyNet:
    """Teach a first look what the full network says.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    scores : ndarray of float32, shape (n, targets)
        What the full network says of them.
    steps : int
        Of 256 pictures each; fewer where they would take more than `seconds`.
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = TinyNet(targets=scores.shape[1]).to(device)
    # What is far from a candidate need not be told apart: below the better fifth, all is the same.
    wanted = np.maximum(scores, np.quantile(scores, 0.8, axis=0))
    target = torch.from_numpy((wanted - wanted.mean(0)) / np.maximum(wanted.std(0), 1e-6)).float()
    # A third of the draws are of the best twentieth: that is where it must not err.
    rank = np.argsort(np.argsort(-scores, axis=0), axis=0).min(1)
    weight = torch.from_numpy(np.where(rank < len(scores) / 20, 10.0, 1.0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-4)
    data, timed, step = torch.from_numpy(images), 0.0, 0
    with track("first look", steps, "step") as advance:
        while step < steps:
            if step == 4:  # the first is slower
                timed = time.monotonic()
            if step == 12 and seconds is not None:
                steps = max(min(steps, int(seconds * 8 / (time.monotonic() - timed))), 20)
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = torch.multinomial(weight, BATCH, replacement=True, generator=random)
            pixels = to_unit(data[rows].to(device))
            pixels = torch.rot90(pixels, int(torch.randint(4, (), generator=random)), (2, 3))
            if torch.randint(2, (), generator=random):
                pixels = pixels.flip(3)
            loss = F.smooth_l1_loss(network(pixels), target[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            advance(1, f"loss {loss.item():.3f}")
    return network.eval().cpu()


def set_threshold(network: TinyNet, own: np.ndarray, full: np.ndarray, share: float) -> Prefilter:
    """Return the first look with its cut (`find_threshold`)."""
    return Prefilter(network, **find_threshold(own, full, share))


def find_threshold(own: np.ndarray, full: np.ndarray, share: float) -> dict[str, Any]:
    """Return where to cut by scores that follow the full ones roughly: what `Prefilter` tells of its cut.

    Parameters
    ----------
    own, full : ndarray, shape (n,)
        The rough scores, and those of the full network, of a random sample of the survey that did not teach the rough.
    share : float
        Share of the survey that will be candidates.

    Raises
    ------
    InputError
        If the sample is too small for a bound.
    """
    if len(full) < 2 * BETTER:
        raise InputError(f"a first look needs a sample of at least {2 * BETTER:,} objects, not {len(full):,}")
    order = np.argsort(-full)
    better = order[:BETTER]
    slope, offset = np.polyfit(full[better], own[better], 1) if np.ptp(full[better]) > 0 else (0.0, own[better].mean())
    slope = max(float(slope), 0.0)
    error = float((offset + slope * full[better] - own[better]).max())
    # The score of the last candidate: in a sample it is the one of this rank, or with little luck one further down.
    rank = int(binom.ppf(CONFIDENCE, len(full), min(share, 1.0)))
    last = float(full[order[min(rank, len(order) - 1)]])
    cut = float(offset + slope * last - error)
    return {
        "cut": cut, "passes": float((own >= cut).mean()), "slope": slope, "offset": float(offset), "error": error,
        "last": last, "sample": len(full),
    }  # fmt: skip


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


def save_prefilter(look: Prefilter, path: Path) -> None:
    """Write a first look as safetensors, with its cut inside."""
    from safetensors.torch import save_file

    tensors = {key: value.contiguous() for key, value in look.network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"first_look": json.dumps(look.told() | {"width": look.network.width})})


def load_prefilter(path: Path) -> Prefilter:
    """Read what `save_prefilter` wrote.

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
        if not all(isinstance(value, int | float) for value in told.values()):
            raise ValueError("its cut is no number")
        network = TinyNet(width)
        network.load_state_dict(state)
        return Prefilter(network.eval(), **told)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable first look ({reason:.200}); remove it and run again") from error
