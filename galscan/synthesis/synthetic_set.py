"""A set of synthetic galaxies to train on: the rare class, and in the same way what it must be told from.

There are two ways to make them. A feature is injected into real galaxies (`galscan.synthesis.injection`): nothing but
the combination is new. Or a generator draws whole images from noise. If every positive were synthetic and every
negative real, a classifier would learn "synthetic" instead of the class. So there are synthetic negatives, too, and
every host of an injected feature is one as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from galscan.core import thumbnails
from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import atomic_path, digest, storage_errors
from galscan.labels.schema import Schema
from galscan.labels.settings import LabelRules, SyntheticRule, SyntheticSettings
from galscan.store import layout
from galscan.synthesis.galaxies import MEASURED
from galscan.synthesis.sampling import ImageGenerator, has_start, sample_conditions, sample_images

DRAWN, INJECTED, HOST, MINED = range(4)  # origins
CONDITIONS = "conditions.parquet"  # in a model's folder: from what real galaxies its dreams are drawn


@dataclass(frozen=True)
class SyntheticSet:
    """Synthetic galaxies with what they were meant to be, and real ones that are trained on with them.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    labels : DataFrame of float32, n rows
        The condition of each: answers of the schema, NaN = left open.
    target : ndarray of float32, shape (n,)
        1 where the rare class was asked for, else 0.
    origin : ndarray of int, shape (n,)
        `DRAWN` whole by a generator, `INJECTED` into a real galaxy, a `HOST` as it is, or `MINED` from the unlabelled
        galaxies as a hard negative; the last two are real.
    host : ndarray of int, shape (n,)
        Of injected ones the row number of their host; else -1.
    depth : ndarray of float32, shape (n,)
        How plainly an injected feature is seen; else NaN.
    """

    images: np.ndarray
    labels: pd.DataFrame
    target: np.ndarray
    origin: np.ndarray
    host: np.ndarray
    depth: np.ndarray

    @classmethod
    def of_origin(
        cls, images: np.ndarray, labels: pd.DataFrame, target: np.ndarray, origin: int = DRAWN
    ) -> SyntheticSet:
        """Return galaxies of one origin, without hosts."""
        n = len(images)
        labels = labels.reset_index(drop=True)
        return cls(images, labels, target, np.full(n, origin), np.full(n, -1), np.full(n, np.nan, np.float32))

    @classmethod
    def joined(cls, parts: Sequence[SyntheticSet]) -> SyntheticSet:
        """Return all of `parts`, in their order."""
        before = np.cumsum([0, *(len(p) for p in parts)])
        return cls(
            np.concatenate([p.images for p in parts]), pd.concat([p.labels for p in parts], ignore_index=True),
            np.concatenate([p.target for p in parts]), np.concatenate([p.origin for p in parts]),
            np.concatenate([np.where(p.host >= 0, p.host + b, -1) for p, b in zip(parts, before[:-1], strict=True)]),
            np.concatenate([p.depth for p in parts]),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    @property
    def synthetic(self) -> np.ndarray:
        """Which are synthetic, bool, shape (n,): the others are real galaxies that they are trained with."""
        return self.origin <= INJECTED

    def select(self, rows: np.ndarray) -> SyntheticSet:
        """Return those of these row numbers, or where this mask is true; a host that is not among them is forgotten."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        place = np.full(len(self) + 1, -1)
        place[rows] = np.arange(len(rows))
        return SyntheticSet(
            self.images[rows], self.labels.iloc[rows].reset_index(drop=True), self.target[rows], self.origin[rows],
            place[self.host[rows]], self.depth[rows],
        )  # fmt: skip


def generate_set(
    generator: ImageGenerator,
    conditions: pd.DataFrame,
    target: np.ndarray,
    survey: np.ndarray,
    rules: LabelRules,
    settings: SyntheticSettings,
    *,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
) -> SyntheticSet:
    """Dream positives, and negatives of which half are hard on purpose.

    Parameters
    ----------
    conditions : DataFrame, n rows
        Labels and measured values of real *training* galaxies, from which conditions are drawn
        (`galscan.training.dataset.Galaxies.conditions`).
    target : ndarray, shape (n,)
        1, 0 or NaN.
    survey : ndarray of int, shape (n,)
    seconds : float, optional
        Dream no longer than this; fewer of every kind then.

    Raises
    ------
    InputError
        If no training galaxy satisfies a rule from which dreams start.
    """
    hard = rules.hard_negatives
    n_hard = settings.negatives // 2 // len(hard) if hard else 0
    tasks: list[tuple[str, float, SyntheticRule | None, int]] = [
        ("positives", 1.0, rules.synthetic, settings.positives)
    ]
    tasks += [("negatives", 0.0, None, settings.negatives - n_hard * len(hard))]
    tasks += [(f"hard negatives {k + 1}", 0.0, rule, n_hard) for k, rule in enumerate(hard) if n_hard]
    random = np.random.default_rng(seed)
    everything, whole = np.arange(len(conditions)), sum(task[3] for task in tasks)
    images: list[np.ndarray] = []
    values: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for number, (name, value, rule, count) in enumerate(tasks):
        pool = everything if rule is not None else np.flatnonzero(np.asarray(target) == 0)
        if number > 1 and rule is not None and not has_start(conditions, rule):
            continue  # this survey shows none of that kind, and dreams none
        drawn, rows = sample_conditions(conditions.iloc[pool], count, random, rule)
        # Plain negatives are as the survey has them, unless nobody asked for more than is good for the generator.
        guidance = settings.guidance if rule or settings.guidance is None else 1.0
        images.append(
            sample_images(
                generator, drawn, np.asarray(survey)[pool[rows]], guidance=guidance,
                weights=rule.weights if rule else {}, steps=settings.steps, seed=seed * 101 + number, device=device,
                seconds=None if seconds is None else seconds * count / whole, label=f"dream {name}",
            )
        )  # fmt: skip
        values.append(drawn[: len(images[-1])])
        targets.append(np.full(len(images[-1]), value, np.float32))
    labels = pd.DataFrame(np.concatenate(values), columns=conditions.columns).drop(columns=list(MEASURED))
    return SyntheticSet.of_origin(np.concatenate(images), labels, np.concatenate(targets))


def write_synthetic_set(
    dreams: SyntheticSet, path: Path, name: str, schema: Schema, provenance: dict[str, Any]
) -> None:
    """Keep dreams with their conditions as a store of their own."""
    partial = path.with_name(path.name + ".partial")
    group = layout.create(
        partial, survey=name, count=len(dreams), size=dreams.images.shape[1], id_dtype=np.dtype("int64"),
        schemas={schema.name: schema.names}, truth=["target", "origin", "host", "depth"],
        provenance={"dreamt": True, **provenance},
    )  # fmt: skip
    arrays = {"images": dreams.images, "id": np.arange(len(dreams)), "truth/target": dreams.target}
    arrays |= {f"truth/{k}": np.asarray(getattr(dreams, k), np.float32) for k in ("origin", "host", "depth")}
    arrays |= {f"labels/{schema.name}/{a}": dreams.labels[a].to_numpy(np.float32) for a in schema.names}
    with storage_errors(partial):
        for key, column in arrays.items():
            group[key][:] = column  # type: ignore[index]
    layout.finish(partial, digest([provenance, hashlib.sha256(dreams.images.tobytes()).hexdigest()]))
    shutil.rmtree(path, ignore_errors=True)  # of a call that was interrupted before it could note that it was done
    os.replace(partial, path)


def read_synthetic_set(path: Path | str, schema: str) -> SyntheticSet:
    """Read what `write_synthetic_set` wrote.

    Raises
    ------
    InputError
        If there is no such store.
    """
    store = layout.open_store(path)
    drawn = SyntheticSet.of_origin(store.images(), store.labels(schema), store.column("truth/target"))
    if "origin" not in store.attrs["truth"]:
        return drawn
    origin, host = (store.column(f"truth/{name}").astype(int) for name in ("origin", "host"))
    return SyntheticSet(drawn.images, drawn.labels, drawn.target, origin, host, store.column("truth/depth"))


def write_conditions(conditions: pd.DataFrame, target: np.ndarray, survey: np.ndarray, path: Path) -> None:
    """Keep what a generator is told of the real training galaxies, so that it can dream without them.

    Parameters
    ----------
    conditions : DataFrame, n rows
        As `generate_set` takes them.
    target : ndarray, shape (n,)
    survey : ndarray of str, shape (n,)
        Name of the store each is in.
    """
    with atomic_path(path) as temporary:
        conditions.assign(_target=target, _survey=survey).to_parquet(temporary, index=False)


def read_conditions(path: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Read what `write_conditions` wrote: conditions, targets, names of the surveys.

    Raises
    ------
    NotFoundError
        If it is not there.
    InputError
        If it is damaged.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} is missing: the model was trained with --no-synthetic, or before it was kept")
    try:
        table = pd.read_parquet(path)
        return table.drop(columns=["_target", "_survey"]), table["_target"].to_numpy(), table["_survey"].to_numpy()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); train the model again") from error


def sheet(dreams: SyntheticSet, path: Path, answers: list[str], title: str, *, rows: np.ndarray | None = None) -> Path:
    """Draw a contact sheet of 32 positives, injected and drawn, and 16 negatives (or of `rows`), with some answers."""
    if rows is None:
        made = [
            np.flatnonzero((dreams.target == target) & (dreams.origin == origin))
            for target, origin in ((1, INJECTED), (1, DRAWN), (0, INJECTED), (0, DRAWN))
        ]
        first = made[0][: 32 - min(16, len(made[1]))]
        last = np.concatenate([made[2][: 16 if not len(made[3]) else 8], made[3]])[:16]
        rows = np.concatenate([first, made[1][: 32 - len(first)], last])
    captions = ["\n".join(f"{a} {dreams.labels[a].iloc[i]:.2f}" for a in answers) for i in rows]
    return thumbnails.contact_sheet(dreams.images[rows], path, captions=captions, title=title)
