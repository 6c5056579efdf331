"""Train one network on real, or on real and synthetic, galaxies: one loop, read from top to bottom."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from galscan.core import device as devices
from galscan.core.progress import Advance, track
from galscan.labels.columns import votes_column
from galscan.labels.schema import Schema
from galscan.labels.settings import ClassifierSettings
from galscan.models.augment import noise_and_gain, quarter_turns, rotate_flip_scale
from galscan.models.network import GalaxyNet, Network, to_unit
from galscan.models.votes import Groups, groups_of, negative_log_likelihood

MOST_POSITIVE = 0.6  # of a batch, where several targets share it


@dataclass(frozen=True)
class Examples:
    """Galaxies with what they are.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    target : ndarray of float32, shape (n, targets)
        1, 0, or NaN (ambiguous: teaches nothing of this target).
    answers : ndarray of float32, shape (n, answers)
        Morphology scaled to 0..1, NaN = not asked.
    votes : ndarray of float32, shape (n, questions), optional
        On each question, where the answers are votes.
    groups : list of list of int
        Columns of the answers of each question.
    host : ndarray of int, shape (n,), optional
        Of a galaxy into which a feature was injected, the row number of its untouched host among these; -1 where there
        is none. A host is drawn in the same batch as the galaxy made of it, and in no other.
    """

    images: np.ndarray
    target: np.ndarray
    answers: np.ndarray
    votes: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    groups: Groups = ()
    host: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def from_labels(
        cls,
        images: np.ndarray,
        target: np.ndarray,
        labels: pd.DataFrame,
        answers: Sequence[str],
        schema: Schema,
        host: np.ndarray | None = None,
    ) -> Examples:
        """Build examples from labels in their own units, of which the networks are trained on `answers`.

        Of votes that `labels` does not count (`galscan.labels.columns.votes_column`) there are
        ``schema.assumed_votes``.
        """
        columns = [schema.names.index(a) for a in answers]
        low, high = schema.low[columns], schema.high[columns]
        scaled = np.clip((labels[list(answers)].to_numpy(np.float32) - low) / (high - low), 0, 1)
        groups = groups_of(answers, schema)
        asked = [votes_column(task.id) for task in schema.tasks if set(task.answers) & set(answers)]
        votes = labels.reindex(columns=asked).to_numpy(np.float32)
        return cls(
            images, np.asarray(target, np.float32).reshape(len(images), -1), scaled.astype(np.float32),
            np.where(np.isfinite(votes), votes, np.float32(schema.assumed_votes)), groups,
            np.full(len(images), -1) if host is None else host,
        )  # fmt: skip

    def joined(self, others: Examples) -> Examples:
        """Return these galaxies, and after them the others."""
        images, target, answers, votes = map(np.concatenate, zip(self.columns, others.columns, strict=True))
        theirs = np.where(others.hosts >= 0, others.hosts + len(self.images), -1)
        return Examples(images, target, answers, votes, self.groups, np.concatenate([self.hosts, theirs]))

    def select(self, rows: np.ndarray) -> Examples:
        """Return the galaxies of these row numbers; a host that is not among them is forgotten."""
        place = np.full(len(self.images) + 1, -1)
        place[rows] = np.arange(len(rows))
        images, target, answers, votes = (column[rows] for column in self.columns)
        return Examples(images, target, answers, votes, self.groups, place[self.hosts[rows]])

    @property
    def hosts(self) -> np.ndarray:
        """`host`, with a row for each galaxy also where none was injected."""
        return self.host if len(self.host) else np.full(len(self.images), -1)

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """Everything that has a row for each galaxy."""
        votes = self.votes if self.groups else np.empty((len(self.images), 0), np.float32)
        return self.images, self.target, self.answers, votes

    def useful(self, settings: ClassifierSettings) -> np.ndarray:
        """Return which galaxies teach anything: one without a target does only where morphology is learnt."""
        return np.isfinite(self.target).any(1) | (settings.morphology_weight > 0)


def drawing_weights(
    real: Examples, synthetic: Examples | None, settings: ClassifierSettings, *, only_real: bool = False
) -> torch.Tensor:
    """Return how often each galaxy is drawn, the real ones and after them the synthetic; float64, their sum is 1.

    Real positives are ``settings.positive_fraction`` of a batch where they are oversampled, synthetic ones
    ``settings.synthetic_positives`` beside them, synthetic negatives ``settings.synthetic_negatives``; each of several
    targets has an equal part of the positives. Few synthetic positives are drawn less often: none more often than a
    real one, else a handful would be learnt by heart. Without real positives the synthetic ones take their place.
    Hosts are not drawn by themselves (`Examples.host`).

    Parameters
    ----------
    only_real : bool
        No synthetic galaxy is drawn, but for those of a target without real positives: see ``settings.real_last``.
    """
    pools = [real] if synthetic is None else [real, synthetic]
    any_positive = [(pool.target == 1).any(1) for pool in pools]
    others = [pool.useful(settings) & ~rows for pool, rows in zip(pools, any_positive, strict=True)]
    targets = real.target.shape[1]
    mass = min(targets * settings.positive_fraction, max(MOST_POSITIVE, settings.positive_fraction))
    if settings.sampling == "natural":
        mass = any_positive[0].sum() / max(any_positive[0].sum() + others[0].sum(), 1)
    kinds = [([pool.target[:, k] == 1 for pool in pools], mass / targets) for k in range(targets)]
    if settings.sampling == "natural":
        kinds = [(any_positive, mass)]
    weights = [np.zeros(len(pool.target)) for pool in pools]
    use = synthetic is not None and not only_real
    if use:
        hosts = np.zeros(len(pools[1].target), bool)
        hosts[pools[1].hosts[pools[1].hosts >= 0]] = True
        others[1] &= ~hosts
    for rows, each in kinds:
        n_real = int(rows[0].sum())
        n_synthetic = int(rows[1].sum()) if synthetic is not None and (use or not n_real) else 0
        extra = settings.synthetic_positives / len(kinds) if use and n_synthetic else 0.0
        if n_real and extra:
            extra = min(extra, each * n_synthetic / n_real)
        weights[0] += rows[0] * (each / max(n_real, 1))
        if n_synthetic:
            weights[1] += rows[1] * ((extra if n_real else each + extra) / n_synthetic)
    if use and others[1].any():
        weights[1] += others[1] * (settings.synthetic_negatives / others[1].sum())
    rest = 1 - sum(float(each.sum()) for each in weights)
    weights[0] += others[0] * (max(rest, 0.0) / max(int(others[0].sum()), 1))
    return torch.from_numpy(np.concatenate(weights))


def with_hosts(
    rows: torch.Tensor, host: torch.Tensor, positive: torch.Tensor, fraction: float, random: torch.Generator
) -> torch.Tensor:
    """Put the untouched hosts of a `fraction` of the injected galaxies of a batch in the place of other negatives.

    Parameters
    ----------
    rows : tensor of int, shape (batch,)
        What was drawn.
    host : tensor of int, shape (n,)
        `Examples.host` of all galaxies.
    positive : tensor of bool, shape (n,)
    """
    injected = rows[host[rows] >= 0]
    free = torch.nonzero(~positive[rows] & (host[rows] < 0)).flatten()
    count = min(round(fraction * len(injected)), len(free))
    if not count:
        return rows
    chosen = injected[torch.randperm(len(injected), generator=random)[:count]]
    places = free[torch.randperm(len(free), generator=random)[:count]]
    return rows.index_put((places,), host[chosen])


def train_classifier(
    real: Examples,
    synthetic: Examples | None,
    settings: ClassifierSettings,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    label: str = "train classifier",
    advance: Advance | None = None,
) -> Network:
    """Train a network for `steps` batches of ``settings.batch`` galaxies.

    The network has a score for each column of ``real.target``.
    With `synthetic`, a part of the galaxies is synthetic (`drawing_weights`), but for the last ``settings.real_last``
    of the steps. The loss of the target is ``settings.loss``.

    Parameters
    ----------
    advance : callable, optional
        Called as ``advance(1, note)`` after each step, instead of a progress line of its own.

    Returns
    -------
    Network
        The moving average of the weights, with the statistics of its normalisation layers taken from the pixels
        of *real* training images only: synthetic ones have statistics of their own, and it is real ones it will see.
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = _start(real, settings).to(device)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(_learning(network, settings), weight_decay=settings.weight_decay)
    dtype = devices.training_dtype(device)

    all_ = real if synthetic is None else real.joined(synthetic)
    columns = [torch.from_numpy(column) for column in all_.columns]
    host, positive = torch.from_numpy(all_.hosts), torch.from_numpy((all_.target == 1).any(1))
    real_from = steps - round(steps * settings.real_last) if synthetic is not None else steps
    weights = [drawing_weights(real, synthetic, settings, only_real=only) for only in (False, True)]
    counts = (real.target == 0).sum(0), np.maximum((real.target == 1).sum(0), 1)
    balance = torch.tensor(counts[0] / counts[1], device=device).float()

    network.train()
    with track(label, steps, "step") if advance is None else nullcontext(advance) as advance:
        for step in range(steps):
            share = min(1.0, (step + 1) / (0.05 * steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * share
            rows = torch.multinomial(weights[step >= real_from], settings.batch, replacement=True, generator=random)
            rows = with_hosts(rows, host, positive, settings.hosts, random)
            images, target, answers, votes = (column[rows].to(device) for column in columns)

            pixels = quarter_turns(rotate_flip_scale(to_unit(images), random), random)
            pixels = noise_and_gain(pixels, random).to(memory_format=torch.channels_last)
            with devices.autocast(device, dtype):
                logit, morphology = network(pixels)
            loss = _target_loss(logit.float(), target, settings.loss, balance)
            if all_.groups:
                told = negative_log_likelihood(morphology.float(), answers, votes, all_.groups)
            else:
                told = _masked_bce(morphology.float(), answers)
            loss = loss + settings.morphology_weight * told
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            keep = min(0.99, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                    if value.requires_grad:
                        mean.lerp_(value, 1 - keep)
            advance(1, f"loss {loss.item():.3f}")
    _restate(average, real.images, device, random)
    return average.eval().cpu()


def _start(examples: Examples, settings: ClassifierSettings) -> Network:
    heads = examples.answers.shape[1], examples.target.shape[1]
    if not settings.encoder:
        return GalaxyNet(settings.width, *heads)
    from galscan.models.encoders import start_network

    return start_network(settings, examples.images.shape[1], *heads)


def _learning(network: Network, settings: ClassifierSettings) -> list[dict[str, Any]]:
    """Return what of a network learns, with the highest learning rate of each part: an encoder's is its own."""
    parts: dict[float, list[nn.Parameter]] = {}
    for name, value in network.named_parameters():
        if value.requires_grad:
            theirs = name.startswith("encoder.")
            parts.setdefault(settings.encoder_learning_rate if theirs else settings.learning_rate, []).append(value)
    return [{"params": values, "highest": rate} for rate, values in parts.items()]


def affordable_steps(
    real: Examples, settings: ClassifierSettings, *, device: torch.device, seconds: float | None
) -> int:
    """Return how many steps of `train_classifier` fit into `seconds`, at most what the recipe asks for."""
    if seconds is None:
        return settings.steps
    with devices.one_thread() if device.type == "cpu" else nullcontext():
        train_classifier(real, None, settings, steps=2, seed=0, device=device, label="warm up")
        timed = 8
        started = time.monotonic()
        train_classifier(real, None, settings, steps=timed, seed=0, device=device, label="time a step")
    return int(min(settings.steps, max(20, seconds * timed / (time.monotonic() - started))))


def _target_loss(logits: torch.Tensor, target: torch.Tensor, kind: str, balance: torch.Tensor) -> torch.Tensor:
    """Loss of the target over the galaxies that have one.

    "weighted" counts a positive `balance` times. "focal" is equation 5 of Lin et al. 2017 (arXiv:1708.02002)
    with gamma 2 and alpha 0.25, the pair they found best.
    """
    if kind == "focal":
        chance = torch.sigmoid(torch.where(target == 1, logits, -logits))  # of what is true
        factor = torch.where(target == 1, 0.25, 0.75) * (1 - chance) ** 2
        return _masked_bce(logits, target, factor)
    return _masked_bce(logits, target, torch.where(target == 1, balance, 1.0) if kind == "weighted" else 1.0)


def _masked_bce(logits: torch.Tensor, values: torch.Tensor, factor: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Binary cross-entropy, times `factor`, over the values that are known; soft values are allowed."""
    known = values.isfinite()
    losses = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(values), reduction="none")
    return (losses * factor * known).sum() / known.sum().clamp(min=1)


@torch.no_grad()
def _restate(network: Network, images: np.ndarray, device: torch.device, random: torch.Generator) -> None:
    """Take the statistics of the normalisation layers from up to 2,048 of `images`, in natural proportions.

    Those of a frozen encoder, which is never in training, stay.
    """
    layers = [m for m in network.train().modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    if not layers:
        return
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative mean
    rows = torch.randperm(len(images), generator=random)[:2048].numpy()
    for start in range(0, len(rows), 256):
        network(to_unit(torch.from_numpy(images[rows[start : start + 256]]).to(device)))
