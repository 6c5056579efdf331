"""Training of one classifier on real galaxies, or on real and synthetic ones."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
from galscan.training.dataset import Galaxies

MOST_POSITIVE = 0.6  # largest fraction of positives in a batch, with several targets


@dataclass(frozen=True)
class Examples:
    """Training examples: galaxies with targets and answers.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    target : ndarray of float32, shape (n, targets)
        1, 0, or NaN (ambiguous: no loss for this target).
    answers : ndarray of float32, shape (n, answers)
        Morphology scaled to 0..1, NaN = not asked.
    votes : ndarray of float32, shape (n, questions), optional
        Number of votes on each question, where the answers are vote fractions.
    groups : list of list of int
        Columns of the answers of each question.
    host : ndarray of int, shape (n,), optional
        Row number of the unmodified host of an injected feature; -1 for all other galaxies. A host appears only in
        batches with the galaxy made from it.
    """

    images: np.ndarray
    target: np.ndarray
    answers: np.ndarray
    votes: Any = None
    groups: Groups = ()
    host: Any = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.votes is None:
            object.__setattr__(self, "votes", np.empty((n, 0), np.float32))
        if self.host is None:
            object.__setattr__(self, "host", np.full(n, -1))

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
        """Build examples from labels in their units; networks are trained on `answers`.

        ``schema.assumed_votes`` is used where `labels` has no number of votes (`galscan.labels.columns.votes_column`).
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

    @classmethod
    def from_galaxies(
        cls,
        galaxies: Galaxies,
        rows: np.ndarray,
        answers: Sequence[str],
        schema: Schema,
        columns: Sequence[str] = ("target",),
    ) -> Examples:
        """Build examples of these row numbers, with a target for each of `columns` of the table."""
        targets = galaxies.table[list(columns)].to_numpy(np.float32)[rows]
        labels = galaxies.labels_and_votes(schema).iloc[rows]
        return cls.from_labels(galaxies.images[rows], targets, labels, answers, schema)

    def joined(self, other: Examples) -> Examples:
        """Concatenate these examples and `other`."""
        images, target, answers, votes = map(np.concatenate, zip(self.columns, other.columns, strict=True))
        hosts = np.where(other.host >= 0, other.host + len(self.images), -1)
        return Examples(images, target, answers, votes, self.groups, np.concatenate([self.host, hosts]))

    def select(self, rows: np.ndarray) -> Examples:
        """Return the examples of these row numbers; `host` is -1 where the host is not selected."""
        position = np.full(len(self.images) + 1, -1)  # the last entry, of host -1, stays -1
        position[rows] = np.arange(len(rows))
        images, target, answers, votes = (column[rows] for column in self.columns)
        return Examples(images, target, answers, votes, self.groups, position[self.host[rows]])

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        return self.images, self.target, self.answers, self.votes

    def useful(self, settings: ClassifierSettings) -> np.ndarray:
        """Mask of the galaxies with any loss: those without a target count only if morphology is trained."""
        return np.isfinite(self.target).any(1) | (settings.morphology_weight > 0)


def sampling_weights(
    real: Examples, synthetic: Examples | None, settings: ClassifierSettings, *, only_real: bool = False
) -> torch.Tensor:
    """Return the sampling weights of real and then synthetic galaxies; float64, normalised to a sum of 1.

    With oversampling, real positives are ``settings.positive_fraction`` of a batch, synthetic positives
    ``settings.synthetic_positives`` in addition, and synthetic negatives ``settings.synthetic_negatives``; positives
    are divided equally among targets. No synthetic positive is sampled more often than a real one, to avoid overfitting
    on a few. Without real positives, synthetic ones replace them. Hosts have weight 0 (see `Examples.host`). With
    `only_real` (see ``settings.real_last``) so have synthetic galaxies, but those of targets without real positives.
    """
    pools = [real] if synthetic is None else [real, synthetic]
    any_positive = [(pool.target == 1).any(1) for pool in pools]
    negatives = [pool.useful(settings) & ~rows for pool, rows in zip(pools, any_positive, strict=True)]
    targets = real.target.shape[1]
    positive_mass = min(targets * settings.positive_fraction, max(MOST_POSITIVE, settings.positive_fraction))
    if settings.sampling == "natural":
        positive_mass = any_positive[0].sum() / max(any_positive[0].sum() + negatives[0].sum(), 1)
    kinds = [([pool.target[:, k] == 1 for pool in pools], positive_mass / targets) for k in range(targets)]
    if settings.sampling == "natural":
        kinds = [(any_positive, positive_mass)]
    weights = [np.zeros(len(pool.target)) for pool in pools]
    use_synthetic = synthetic is not None and not only_real
    if use_synthetic:
        hosts = np.zeros(len(pools[1].target), bool)
        hosts[pools[1].host[pools[1].host >= 0]] = True
        negatives[1] &= ~hosts
    for rows, mass in kinds:
        n_real = int(rows[0].sum())
        n_synthetic = int(rows[1].sum()) if synthetic is not None and (use_synthetic or not n_real) else 0
        extra = settings.synthetic_positives / len(kinds) if use_synthetic and n_synthetic else 0.0
        if n_real and extra:
            extra = min(extra, mass * n_synthetic / n_real)
        weights[0] += rows[0] * (mass / max(n_real, 1))
        if n_synthetic:
            weights[1] += rows[1] * ((extra if n_real else mass + extra) / n_synthetic)
    if use_synthetic and negatives[1].any():
        weights[1] += negatives[1] * (settings.synthetic_negatives / negatives[1].sum())
    rest = 1 - sum(float(column.sum()) for column in weights)
    weights[0] += negatives[0] * (max(rest, 0.0) / max(int(negatives[0].sum()), 1))
    return torch.from_numpy(np.concatenate(weights))


def with_hosts(
    rows: torch.Tensor, host: torch.Tensor, positive: torch.Tensor, fraction: float, random: torch.Generator
) -> torch.Tensor:
    """Replace negatives of a batch of row numbers by the unmodified hosts of a `fraction` of its injected galaxies.

    `host` (`Examples.host`) and `positive` (bool) are of all galaxies.
    """
    injected = rows[host[rows] >= 0]
    replaceable = torch.nonzero(~positive[rows] & (host[rows] < 0)).flatten()
    count = min(round(fraction * len(injected)), len(replaceable))
    if not count:
        return rows
    chosen = injected[torch.randperm(len(injected), generator=random)[:count]]
    positions = replaceable[torch.randperm(len(replaceable), generator=random)[:count]]
    return rows.index_put((positions,), host[chosen])


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

    The network has a score for each column of ``real.target``. With `synthetic`, a fraction of the galaxies is
    synthetic (`sampling_weights`), except in the last ``settings.real_last`` of the steps. The loss of the target is
    ``settings.loss``. `advance`, called as ``advance(1, note)`` after each step, replaces the progress line.

    Returns the moving average of the weights. BatchNorm statistics are recomputed on *real* training images only, as
    the network is applied to real images.
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = _start(real, settings).to(device)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(_parameter_groups(network, settings), weight_decay=settings.weight_decay)
    dtype = devices.training_dtype(device)

    examples = real if synthetic is None else real.joined(synthetic)
    columns = [torch.from_numpy(column) for column in examples.columns]
    host, positive = torch.from_numpy(examples.host), torch.from_numpy((examples.target == 1).any(1))
    real_from = steps - round(steps * settings.real_last) if synthetic is not None else steps
    weights = [sampling_weights(real, synthetic, settings, only_real=only) for only in (False, True)]
    counts = (real.target == 0).sum(0), np.maximum((real.target == 1).sum(0), 1)
    balance = torch.tensor(counts[0] / counts[1], device=device).float()

    network.train()
    with track(label, steps, "step") if advance is None else nullcontext(advance) as advance:
        for step in range(steps):
            schedule = min(1.0, (step + 1) / (0.05 * steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * schedule
            rows = torch.multinomial(weights[step >= real_from], settings.batch, replacement=True, generator=random)
            rows = with_hosts(rows, host, positive, settings.hosts, random)
            images, target, answers, votes = (column[rows].to(device) for column in columns)

            pixels = quarter_turns(rotate_flip_scale(to_unit(images), random)[0], random)
            pixels = noise_and_gain(pixels, random).to(memory_format=torch.channels_last)
            with devices.autocast(device, dtype):
                logit, morphology = network(pixels)
            loss = _target_loss(logit.float(), target, settings.loss, balance)
            morphology_loss = (
                negative_log_likelihood(morphology.float(), answers, votes, examples.groups)
                if examples.groups
                else _masked_bce(morphology.float(), answers)
            )
            loss = loss + settings.morphology_weight * morphology_loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            keep = min(0.99, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                    if value.requires_grad:
                        mean.lerp_(value, 1 - keep)
            advance(1, f"loss {loss.item():.3f}")
    _recompute_batch_norm(average, real.images, device, random)
    return average.eval().cpu()


def _start(examples: Examples, settings: ClassifierSettings) -> Network:
    heads = examples.answers.shape[1], examples.target.shape[1]
    if not settings.encoder:
        return GalaxyNet(settings.width, *heads)
    from galscan.models.encoders import start_network

    return start_network(settings, examples.images.shape[1], *heads)


def _parameter_groups(network: Network, settings: ClassifierSettings) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups with their highest learning rates: head and encoder."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, value in network.named_parameters():
        if value.requires_grad:
            of_encoder = name.startswith("encoder.")
            rate = settings.encoder_learning_rate if of_encoder else settings.learning_rate
            groups.setdefault(rate, []).append(value)
    return [{"params": values, "highest": rate} for rate, values in groups.items()]


def affordable_steps(
    real: Examples, settings: ClassifierSettings, *, device: torch.device, seconds: float | None
) -> int:
    """Return the number of steps of `train_classifier` that fit into `seconds`, at most ``settings.steps``."""
    if seconds is None:
        return settings.steps
    with devices.one_thread() if device.type == "cpu" else nullcontext():
        for timed in (2, 8):  # the first call warms up
            started = time.monotonic()
            train_classifier(real, None, settings, steps=timed, seed=0, device=device, label="time a step")
    return int(min(settings.steps, max(20, seconds * timed / (time.monotonic() - started))))


def _target_loss(logits: torch.Tensor, target: torch.Tensor, kind: str, balance: torch.Tensor) -> torch.Tensor:
    """Loss of the target over the galaxies that have one.

    "weighted" multiplies the loss of positives by `balance`. "focal" is equation 5 of Lin et al. 2017
    (arXiv:1708.02002) with gamma 2 and alpha 0.25, their best values.
    """
    if kind == "focal":
        probability = torch.sigmoid(torch.where(target == 1, logits, -logits))  # of the true class
        factor = torch.where(target == 1, 0.25, 0.75) * (1 - probability) ** 2
        return _masked_bce(logits, target, factor)
    return _masked_bce(logits, target, torch.where(target == 1, balance, 1.0) if kind == "weighted" else 1.0)


def _masked_bce(logits: torch.Tensor, values: torch.Tensor, factor: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Binary cross-entropy, times `factor`, over the known values; these may be fractions."""
    known = values.isfinite()
    losses = F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(values), reduction="none")
    return (losses * factor * known).sum() / known.sum().clamp(min=1)


@torch.no_grad()
def _recompute_batch_norm(network: Network, images: np.ndarray, device: torch.device, random: torch.Generator) -> None:
    """Recompute the statistics of BatchNorm layers on up to 2,048 random `images`.

    Those of a frozen encoder are unchanged.
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
