"""A set of dreams to train on: the rare class, and in the same way what it must be told from.

There are two ways to dream. The generator draws from noise: anything, as well as it has learnt. Or the lane of one
training galaxy is laid over another (`galscan.generate.lanes`): nothing but the combination is new, and it is plain.

If every positive were dreamt and every negative real, a classifier would learn "dreamt" instead of the
class. So negatives are dreamt, too: half as the survey has them, half hard ones on purpose.
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

from galscan import pictures
from galscan.errors import InputError, NotFoundError
from galscan.files import atomic_path, digest, storage_errors
from galscan.generate import lanes
from galscan.generate.galaxies import MEASURED
from galscan.generate.sample import Dreamer, draw_conditions, dream, has_start
from galscan.labels import Schema, parse_rule
from galscan.settings import DreamRule, DreamSettings, LabelRules
from galscan.store import layout

MAX_LIFTED = 500  # galaxies whose lanes are lifted for one rule
CONDITIONS = "conditions.parquet"  # in a model's folder: from what real galaxies its dreams are drawn


@dataclass(frozen=True)
class Dreams:
    """Dreamt galaxies with what they were meant to be.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    labels : DataFrame of float32, n rows
        The condition of each: answers of the schema, NaN = left open.
    target : ndarray of float32, shape (n,)
        1 where the rare class was asked for, else 0.
    laid : ndarray of bool, shape (n,)
        Where a lane was laid over a training galaxy; the others were drawn by the generator.
    """

    images: np.ndarray
    labels: pd.DataFrame
    target: np.ndarray
    laid: np.ndarray

    @classmethod
    def drawn(cls, images: np.ndarray, labels: pd.DataFrame, target: np.ndarray) -> Dreams:
        """Return dreams that the generator drew."""
        return cls(images, labels, target, np.zeros(len(images), bool))

    @classmethod
    def joined(cls, parts: Sequence[Dreams]) -> Dreams:
        """Return all dreams of `parts`, in their order."""
        return cls(
            np.concatenate([p.images for p in parts]), pd.concat([p.labels for p in parts], ignore_index=True),
            np.concatenate([p.target for p in parts]), np.concatenate([p.laid for p in parts]),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: np.ndarray) -> Dreams:
        """Return the dreams of these row numbers, or where this mask is true."""
        return Dreams(
            self.images[rows], self.labels.iloc[rows].reset_index(drop=True), self.target[rows], self.laid[rows]
        )  # fmt: skip


def dream_set(
    generator: Dreamer,
    conditions: pd.DataFrame,
    target: np.ndarray,
    survey: np.ndarray,
    rules: LabelRules,
    settings: DreamSettings,
    *,
    seed: int,
    device: torch.device,
    seconds: float | None = None,
) -> Dreams:
    """Dream positives, and negatives of which half are hard on purpose.

    Parameters
    ----------
    conditions : DataFrame, n rows
        Labels and measured values of real *training* galaxies, from which conditions are drawn
        (`galscan.classify.dataset.Galaxies.conditions`).
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
    tasks: list[tuple[str, float, DreamRule | None, int]] = [("positives", 1.0, rules.dream, settings.positives)]
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
        drawn, rows = draw_conditions(conditions.iloc[pool], count, random, rule)
        # Plain negatives are as the survey has them, unless nobody asked for more than is good for the generator.
        guidance = settings.guidance if rule or settings.guidance is None else 1.0
        images.append(
            dream(
                generator, drawn, np.asarray(survey)[pool[rows]], guidance=guidance,
                weights=rule.weights if rule else {}, steps=settings.steps, seed=seed * 101 + number, device=device,
                seconds=None if seconds is None else seconds * count / whole, label=f"dream {name}",
            )
        )  # fmt: skip
        values.append(drawn[: len(images[-1])])
        targets.append(np.full(len(images[-1]), value, np.float32))
    labels = pd.DataFrame(np.concatenate(values), columns=conditions.columns).drop(columns=list(MEASURED))
    return Dreams.drawn(np.concatenate(images), labels, np.concatenate(targets))


def lay_set(images: np.ndarray, labels: pd.DataFrame, rules: LabelRules, count: int, *, seed: int) -> Dreams:
    """Lay lanes of some training galaxies over others: `count` targets at most, and half as many hard negatives.

    A hard negative is one that a lane makes no target of, or a look-alike as it is.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
        Of *training* galaxies.
    labels : DataFrame, n rows
        All answers of the schema.

    Returns
    -------
    Dreams
        Those whose lane is to be seen. None at all where the rules have no ``laid``, or no galaxy satisfies them.
    """
    parts = [Dreams(images[:0], labels[:0], np.empty(0, np.float32), np.empty(0, bool))]
    columns = {name: labels[name].to_numpy() for name in labels}
    tasks = [(rules.laid, 1.0, count)] if rules.laid is not None else []
    if tasks and (hard := rules.laid_negatives):
        tasks += [(rule, 0.0, count // 2 // len(hard)) for rule in hard]
    for number, (rule, value, wanted) in enumerate(tasks):
        random = np.random.default_rng([seed, 17, number])
        onto = _satisfying(rule.onto, columns)
        if not (len(onto) and wanted):
            continue
        below = random.choice(onto, wanted)
        told, pictures_, seen = labels.iloc[below].reset_index(drop=True), images[below], np.ones(wanted, bool)
        if rule.lanes_of:
            of = _satisfying(rule.lanes_of, columns)[:MAX_LIFTED]
            if not len(of):
                continue
            above = random.integers(len(of), size=wanted)
            pictures_, seen = lanes.lay(pictures_, lanes.lift(images[of]), above, random)
            told[list(rule.take)] = labels.iloc[of[above]][list(rule.take)].to_numpy()
        parts.append(Dreams(pictures_, told, np.full(wanted, value, np.float32), np.ones(wanted, bool)).select(seen))
    return Dreams.joined(parts)


def _satisfying(rule: str, columns: dict[str, np.ndarray]) -> np.ndarray:
    return np.flatnonzero(parse_rule(rule, list(columns)).evaluate(columns)[0])


def write_dreams(dreams: Dreams, path: Path, name: str, schema: Schema, provenance: dict[str, Any]) -> None:
    """Keep dreams with their conditions as a store of their own."""
    partial = path.with_name(path.name + ".partial")
    group = layout.create(
        partial, survey=name, count=len(dreams), size=dreams.images.shape[1], id_dtype=np.dtype("int64"),
        schemas={schema.name: schema.names}, truth=["target", "laid"], provenance={"dreamt": True, **provenance},
    )  # fmt: skip
    arrays = {"images": dreams.images, "id": np.arange(len(dreams)), "truth/target": dreams.target}
    arrays["truth/laid"] = dreams.laid.astype(np.float32)
    arrays |= {f"labels/{schema.name}/{a}": dreams.labels[a].to_numpy(np.float32) for a in schema.names}
    with storage_errors(partial):
        for key, column in arrays.items():
            group[key][:] = column  # type: ignore[index]
    layout.finish(partial, digest([provenance, hashlib.sha256(dreams.images.tobytes()).hexdigest()]))
    shutil.rmtree(path, ignore_errors=True)  # of a call that was interrupted before it could note that it was done
    os.replace(partial, path)


def read_dreams(path: Path | str, schema: str) -> Dreams:
    """Read what `write_dreams` wrote.

    Raises
    ------
    InputError
        If there is no such store.
    """
    store = layout.open_store(path)
    laid = store.column("truth/laid") == 1 if "laid" in store.attrs["truth"] else np.zeros(store.count, bool)
    return Dreams(store.images(), store.labels(schema), store.column("truth/target"), laid)  # fmt: skip


def write_conditions(conditions: pd.DataFrame, target: np.ndarray, survey: np.ndarray, path: Path) -> None:
    """Keep what a generator is told of the real training galaxies, so that it can dream without them.

    Parameters
    ----------
    conditions : DataFrame, n rows
        As `dream_set` takes them.
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


def sheet(dreams: Dreams, path: Path, answers: list[str], title: str, *, rows: np.ndarray | None = None) -> Path:
    """Draw a contact sheet of 32 positives, laid and drawn, and 16 negatives (or of `rows`), with some conditions."""
    if rows is None:
        drawn = np.flatnonzero((dreams.target == 1) & ~dreams.laid)[:16]
        laid = np.flatnonzero((dreams.target == 1) & dreams.laid)[: 32 - len(drawn)]
        drawn = np.flatnonzero((dreams.target == 1) & ~dreams.laid)[: 32 - len(laid)]
        rows = np.concatenate([laid, drawn, np.flatnonzero(dreams.target == 0)[:16]])
    captions = ["\n".join(f"{a} {dreams.labels[a].iloc[i]:.2f}" for a in answers) for i in rows]
    return pictures.contact_sheet(dreams.images[rows], path, captions=captions, title=title)
