"""Synthetic training sets: positives and negatives of the rare class.

They are made in two ways: a feature is injected into real galaxies (`galscan.synthesis.injection`), or a generator
samples whole images from noise. If all positives were synthetic and all negatives real, a classifier would learn
"synthetic" instead of the class. So there are synthetic negatives, too, and each unmodified host of an injected feature
is a negative.
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
from galscan.synthesis.sampling import ImageGenerator, sample_conditions, sample_images, satisfies_base

GENERATED, INJECTED, HOST, MINED = range(4)  # origins
CONDITIONS = "conditions.parquet"  # in a model's folder: conditions of real galaxies, from which it generates


@dataclass(frozen=True)
class SyntheticSet:
    """Synthetic galaxies with their conditions, and real hosts and negatives that are trained on with them."""

    images: np.ndarray  # uint8, (n, S, S, 3)
    labels: pd.DataFrame  # conditions: answers of the schema, float32; NaN = not given
    target: np.ndarray  # 1 for the rare class, else 0; float32, (n,)
    origin: np.ndarray
    """`GENERATED` whole image, feature `INJECTED` into a real galaxy, unmodified `HOST`, or hard negative `MINED` from
    the unlabelled galaxies; the last two are real. Int, (n,)."""
    host: np.ndarray  # row number of the host of an injected feature, else -1; int, (n,)
    depth: np.ndarray  # visible depth of an injected feature, else NaN; float32, (n,)

    @classmethod
    def of_origin(
        cls, images: np.ndarray, labels: pd.DataFrame, target: np.ndarray, origin: int = GENERATED
    ) -> SyntheticSet:
        """Build a set of galaxies of one origin, without hosts."""
        n = len(images)
        labels = labels.reset_index(drop=True)
        return cls(images, labels, target, np.full(n, origin), np.full(n, -1), np.full(n, np.nan, np.float32))

    @classmethod
    def joined(cls, sets: Sequence[SyntheticSet]) -> SyntheticSet:
        """Concatenate `sets`."""
        offsets = np.cumsum([0, *(len(s) for s in sets)])
        return cls(
            np.concatenate([s.images for s in sets]), pd.concat([s.labels for s in sets], ignore_index=True),
            np.concatenate([s.target for s in sets]), np.concatenate([s.origin for s in sets]),
            np.concatenate([np.where(s.host >= 0, s.host + k, -1) for s, k in zip(sets, offsets[:-1], strict=True)]),
            np.concatenate([s.depth for s in sets]),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    @property
    def synthetic(self) -> np.ndarray:
        """Mask of the synthetic galaxies, bool, shape (n,); hosts and mined negatives are real."""
        return self.origin <= INJECTED

    def select(self, rows: np.ndarray) -> SyntheticSet:
        """Return the galaxies of these row numbers, or of a mask; `host` is -1 where the host is not selected."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        position = np.full(len(self) + 1, -1)  # the last entry, of host -1, stays -1
        position[rows] = np.arange(len(rows))
        return SyntheticSet(
            self.images[rows], self.labels.iloc[rows].reset_index(drop=True), self.target[rows], self.origin[rows],
            position[self.host[rows]], self.depth[rows],
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
    """Generate positives and negatives; half of the negatives are hard negatives of the recipe.

    Raises `InputError` if no training galaxy satisfies the base rule (``from``) of a synthetic class.

    `conditions` are labels and measured values of real *training* galaxies, from which conditions are sampled
    (`galscan.training.dataset.Galaxies.conditions`), `target` their targets (1, 0 or NaN), and `survey` the numbers of
    their surveys. With a time limit of `seconds` there may be fewer of each kind.
    """
    hard = rules.hard_negatives
    n_hard = settings.negatives // 2 // len(hard) if hard else 0
    tasks: list[tuple[str, float, SyntheticRule | None, int]] = [
        ("positives", 1.0, rules.synthetic, settings.positives)
    ]
    tasks += [("negatives", 0.0, None, settings.negatives - n_hard * len(hard))]
    tasks += [(f"hard negatives {k + 1}", 0.0, rule, n_hard) for k, rule in enumerate(hard) if n_hard]
    random = np.random.default_rng(seed)
    all_rows, total = np.arange(len(conditions)), sum(task[3] for task in tasks)
    images, values, targets = [], [], []
    for number, (name, value, rule, count) in enumerate(tasks):
        pool = all_rows if rule is not None else np.flatnonzero(np.asarray(target) == 0)
        if number > 1 and rule is not None and not satisfies_base(conditions, rule).any():
            continue  # the survey has no galaxy of that kind
        sampled, rows = sample_conditions(conditions.iloc[pool], count, random, rule)
        # Plain negatives follow the survey, without guidance, unless the generator's own default applies.
        guidance = settings.guidance if rule or settings.guidance is None else 1.0
        images.append(
            sample_images(
                generator, sampled, np.asarray(survey)[pool[rows]], guidance=guidance,
                weights=rule.weights if rule else {}, steps=settings.steps, seed=seed * 101 + number, device=device,
                seconds=None if seconds is None else seconds * count / total, label=f"generate {name}",
            )
        )  # fmt: skip
        values.append(sampled[: len(images[-1])])
        targets.append(np.full(len(images[-1]), value, np.float32))
    labels = pd.DataFrame(np.concatenate(values), columns=conditions.columns).drop(columns=list(MEASURED))
    return SyntheticSet.of_origin(np.concatenate(images), labels, np.concatenate(targets))


def write_synthetic_set(
    synthetic: SyntheticSet, path: Path, name: str, schema: Schema, provenance: dict[str, Any]
) -> None:
    """Write a synthetic training set, with its conditions, as a store."""
    partial = path.with_name(path.name + ".partial")
    group = layout.create(
        partial, survey=name, count=len(synthetic), size=synthetic.images.shape[1], id_dtype=np.dtype("int64"),
        schemas={schema.name: schema.names}, truth=["target", "origin", "host", "depth"],
        provenance={"synthetic": True, **provenance},
    )  # fmt: skip
    arrays = {"images": synthetic.images, "id": np.arange(len(synthetic)), "truth/target": synthetic.target}
    arrays |= {f"truth/{k}": np.asarray(getattr(synthetic, k), np.float32) for k in ("origin", "host", "depth")}
    arrays |= {f"labels/{schema.name}/{a}": synthetic.labels[a].to_numpy(np.float32) for a in schema.names}
    with storage_errors(partial):
        for key, column in arrays.items():
            group[key][:] = column  # type: ignore[index]
    layout.finish(partial, digest([provenance, hashlib.sha256(synthetic.images.tobytes()).hexdigest()]))
    shutil.rmtree(path, ignore_errors=True)  # left by a call that was interrupted before it was recorded as finished
    os.replace(partial, path)


def read_synthetic_set(path: Path | str, schema: str) -> SyntheticSet:
    """Read a set written by `write_synthetic_set`; raises `InputError` if there is no such store."""
    store = layout.open_store(path)
    generated = SyntheticSet.of_origin(store.images(), store.labels(schema), store.column("truth/target"))
    if "origin" not in store.attrs["truth"]:
        return generated
    origin, host = (store.column(f"truth/{name}").astype(int) for name in ("origin", "host"))
    return SyntheticSet(generated.images, generated.labels, generated.target, origin, host, store.column("truth/depth"))


def write_conditions(conditions: pd.DataFrame, target: np.ndarray, survey: np.ndarray, path: Path) -> None:
    """Write the conditions of the real training galaxies, so that a generator can be used without these.

    `survey` has the name of the store of each galaxy.
    """
    with atomic_path(path) as temporary:
        conditions.assign(_target=target, _survey=survey).to_parquet(temporary, index=False)


def read_conditions(path: Path) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Read a file written by `write_conditions`: conditions, targets, names of the surveys.

    Raises `NotFoundError` if it does not exist; `InputError` if it is damaged.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} is missing: the model was trained with --no-synthetic, or by an older version")
    try:
        table = pd.read_parquet(path)
        return table.drop(columns=["_target", "_survey"]), table["_target"].to_numpy(), table["_survey"].to_numpy()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); train the model again") from error


def sheet(
    synthetic: SyntheticSet, path: Path, answers: list[str], title: str, *, rows: np.ndarray | None = None
) -> Path:
    """Write a contact sheet of 32 positives and 16 negatives, injected and generated, or of `rows`, with `answers`."""
    if rows is None:
        kinds = [
            np.flatnonzero((synthetic.target == target) & (synthetic.origin == origin))
            for target, origin in ((1, INJECTED), (1, GENERATED), (0, INJECTED), (0, GENERATED))
        ]
        injected = kinds[0][: 32 - min(16, len(kinds[1]))]
        negatives = np.concatenate([kinds[2][: 16 if not len(kinds[3]) else 8], kinds[3]])[:16]
        rows = np.concatenate([injected, kinds[1][: 32 - len(injected)], negatives])
    captions = ["\n".join(f"{a} {synthetic.labels[a].iloc[i]:.2f}" for a in answers) for i in rows]
    return thumbnails.contact_sheet(synthetic.images[rows], path, captions=captions, title=title)
