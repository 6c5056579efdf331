"""One repeat of an ablation: train generators and networks of all arms, and score the test set.

Every training set, of a generator or network, is first checked to have no object of the repeat's test set.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from galscan.core.errors import GalscanError
from galscan.core.files import atomic_path, read_json, write_json, write_text
from galscan.models.ensemble import member_scores
from galscan.models.network import Network
from galscan.models.roles import one_row_per_object
from galscan.stats.metrics import Scored
from galscan.synthesis import backends
from galscan.synthesis.galaxies import GalaxySet
from galscan.synthesis.synthetic_set import SyntheticSet, read_synthetic_set, write_synthetic_set
from galscan.training import synthetic
from galscan.training.ablation.arms import (
    ARMS,
    IMAGES,
    MAP_KINDS,
    REFERENCE,
    SYNTHETIC,
    Repeat,
    generator_settings,
    image_settings,
    labelled_objects,
)
from galscan.training.committee import Job, train_networks
from galscan.training.dataset import Galaxies, load_galaxies
from galscan.training.plan import Plan
from galscan.training.train import Examples

COMMON = "common"


def load(plan: Plan, repeats: Sequence[Repeat], *, unlabelled: bool) -> Galaxies:
    """Read the images of all objects of the repeats and, with `unlabelled`, a sample of unlabelled objects."""
    used = pd.Index(np.unique(np.concatenate([r.side.index.to_numpy(object) for r in repeats])))
    labelled = labelled_objects(plan.table, plan.schema.names).index
    keep = plan.table["object"].isin(used) | ~plan.table["object"].isin(labelled)
    table = plan.table[keep].reset_index(drop=True)
    return load_galaxies(plan.stores, table, plan.schema.names, plan.recipe.size, seed=plan.seed, unlabelled=unlabelled)


def without_labels(galaxies: Galaxies) -> np.ndarray:
    """Return a mask of the rows of objects without labels in any store, which are in no test set."""
    labelled = galaxies.labels.notna().any(axis=1)
    return (~galaxies.table["object"].isin(galaxies.table.loc[labelled, "object"])).to_numpy()


def common_generator(plan: Plan, galaxies: Galaxies, steps: int, work: Path, device: torch.device) -> None:
    """Train a generator on the unlabelled galaxies alone, once for all repeats."""
    if backends.find(work, COMMON):
        return
    settings = generator_settings(plan.recipe).model_copy(update={"steps": steps})
    training_set = _generator_set(plan, galaxies, without_labels(galaxies))
    with _timed(work, "generator"):
        backends.train(
            training_set, plan.schema, [s.name for s in plan.stores], settings, work, name=COMMON, seed=plan.seed,
            device=device,
        )  # fmt: skip


@dataclass(frozen=True)
class Repetition:
    """The computation of one repeat."""

    plan: Plan
    repeat: Repeat
    galaxies: Galaxies
    arms: tuple[str, ...]
    members: int
    generator_steps: int
    work: Path
    device: torch.device
    workers: int = 1
    """Networks trained at a time, each in a process with one thread; their number does not change the weights."""

    @property
    def folder(self) -> Path:
        return self.work / f"repeat-{self.repeat.number:02d}"

    @property
    def seed(self) -> int:
        """Seed of generator, synthetic galaxies and networks, the same for all arms."""
        return self.plan.seed * 1000 + self.repeat.number

    @property
    def finished(self) -> bool:
        """Whether every arm has scored the test set."""
        return all((self.folder / f"{arm}.parquet").is_file() for arm in self.arms)

    def scored(self) -> Scored:
        """Run the unfinished stages, and return the scores of each arm."""
        if not self.finished:
            self.folder.mkdir(parents=True, exist_ok=True)
            real = self._examples()
            for kind in dict.fromkeys(ARMS[arm].kind for arm in self.arms):
                synthetic = self._synthetic(kind, real) if kind else None
                arms = [arm for arm in self.arms if ARMS[arm].kind == kind]
                unscored = [arm for arm in arms if not (self.folder / f"{arm}.parquet").is_file()]
                # The networks of all these arms do not depend on each other.
                for arm, networks in self._networks(unscored, real, synthetic).items():
                    self._score(arm, networks)
        tables = {arm: pd.read_parquet(self.folder / f"{arm}.parquet") for arm in self.arms}
        first = next(iter(tables.values()))
        return Scored(
            first["id"].to_numpy(object), first["target"].to_numpy(int),
            {arm: table["score"].to_numpy() for arm, table in tables.items()},
        )  # fmt: skip

    def counts(self) -> dict[str, Any]:
        """Return the numbers of objects and synthetic galaxies of this repeat."""
        metadata = {
            name: read_json(path)
            for name in ("generator", *SYNTHETIC)
            if (path := self.folder / f"{name}.json").is_file()
        }
        return {
            "repeat": self.repeat.number, "seed": self.repeat.seed, "fold": self.repeat.fold, **self.repeat.counts,
            "generator": metadata.pop("generator", None), "synthetic": metadata,
        }  # fmt: skip

    def _training_rows(self) -> np.ndarray:
        """Return the rows that networks are trained on: labelled, and of training objects."""
        labelled = self.galaxies.labels.notna().any(axis=1).to_numpy()
        rows = np.flatnonzero(self.repeat.has(self.galaxies.table["object"], "train") & labelled)
        check_disjoint(self.galaxies.table["object"].iloc[rows], self.repeat)
        return rows

    def _examples(self) -> Examples:
        return Examples.from_galaxies(self.galaxies, self._training_rows(), self.plan.answers, self.plan.schema)

    def _allowed(self) -> np.ndarray:
        """Return a mask of the rows usable for training, and write their objects to ``generator_ids.txt``."""
        table = self.galaxies.table
        rows = self.repeat.has(table["object"], "train") | without_labels(self.galaxies)
        ids = sorted(set(table.loc[rows, "object"]))
        write_text(self.folder / "generator_ids.txt", "".join(f"{i}\n" for i in ids))
        check_disjoint(pd.Series(ids, dtype=object), self.repeat)
        return rows

    def _generator(self) -> None:
        if (self.folder / "generator.json").is_file():
            return
        start = backends.find(self.work, COMMON)
        settings = generator_settings(self.plan.recipe).model_copy(update={"steps": self.generator_steps})
        rows = self._allowed()
        training_set = _generator_set(self.plan, self.galaxies, rows)
        # Pixel statistics also come from this training set, or from the common generator.
        with _timed(self.folder, "generator"):
            outcome = backends.train(
                training_set, self.plan.schema, [s.name for s in self.plan.stores], settings, self.folder,
                seed=self.seed, device=self.device, start=start,
            )  # fmt: skip
        metadata = {"galaxies": len(training_set.images), "steps": outcome["steps"], "common": start is not None}
        write_json(self.folder / "generator.json", metadata)

    def _synthetic(self, kind: str, real: Examples) -> Examples | None:
        """Make the synthetic training set of a kind; None if it has no positive."""
        plan, path = self.plan, self.folder / f"{kind}.zarr"
        if not (self.folder / f"{kind}.json").is_file():
            if kind == IMAGES:
                made, dropped = self._generated(real, self._training_rows())
                metadata: dict[str, Any] = {"made": len(made) + sum(dropped.values()), "dropped": dropped}
            else:
                made, metadata = self._injected(kind, real)
                metadata |= {"made": int(made.synthetic.sum())}
            metadata |= {"kept": int(made.synthetic.sum()), "kept_positive": int((made.target == 1).sum())}
            if metadata["kept_positive"]:
                provenance = {"seed": self.seed, "recipe": plan.recipe.hash, "kind": kind}
                write_synthetic_set(made, path, f"{kind}-{plan.recipe.name}", plan.schema, provenance)
            write_json(self.folder / f"{kind}.json", metadata)
        if not path.is_dir():
            return None
        synthetic_set = read_synthetic_set(path, plan.schema.name)
        return synthetic.examples_of(synthetic_set, synthetic_set.target, plan.answers, plan.schema)

    def _injected(self, kind: str, real: Examples) -> tuple[SyntheticSet, dict[str, Any]]:
        """Inject features into hosts; the reference network selects unlabelled hosts."""
        plan = self.plan
        network = self._networks([REFERENCE], real, None)[REFERENCE][0]
        settings = synthetic.map_settings(plan.recipe).model_copy(update={"maps": MAP_KINDS[kind]})
        with _timed(self.folder, "synthetic"):
            candidates = synthetic.candidates_of(
                self.galaxies, np.flatnonzero(self._allowed()), plan.stores, network, plan.answers, plan.schema,
                self.device,
            )  # fmt: skip
            return synthetic.inject(
                candidates, plan.schema, plan.rules, plan.recipe.synthetic, settings, self.folder, seed=self.seed,
                device=self.device,
            )  # fmt: skip

    def _generated(self, real: Examples, rows: np.ndarray) -> tuple[SyntheticSet, dict[str, int]]:
        """Generate whole images and filter them; return those kept, and the numbers dropped by reason."""
        plan, network = self.plan, self._networks([REFERENCE], real, None)[REFERENCE][0]
        self._generator()
        with _timed(self.folder, "synthetic"):
            return synthetic.generate(
                backends.load(self.folder), self.galaxies, rows, self.galaxies.conditions(rows), network, plan.answers,
                plan, image_settings(plan.recipe), seed=self.seed, device=self.device,
            )  # fmt: skip

    def _networks(self, arms: Sequence[str], real: Examples, synthetic: Examples | None) -> dict[str, list[Network]]:
        """Train the networks of some arms, or load those that are trained."""
        jobs = []
        for arm in arms:
            settings = ARMS[arm].settings(self.plan.recipe.classifier)
            jobs += [
                Job(
                    self.folder / f"{arm}-{member}.safetensors", real, synthetic, settings, settings.steps,
                    self.seed * 100 + member, f"repeat {self.repeat.number}, {arm}, network {member}",
                )
                for member in range(self.members)
            ]  # fmt: skip
        with _timed(self.folder, "classifiers"):
            networks = train_networks(jobs, self.device, workers=self.workers)
        return {arm: networks[k * self.members : (k + 1) * self.members] for k, arm in enumerate(arms)}

    def _score(self, arm: str, networks: list[Network]) -> None:
        path = self.folder / f"{arm}.parquet"
        table = self.galaxies.table
        known = table["target"].notna().to_numpy()
        rows = np.flatnonzero(self.repeat.has(table["object"], "test") & known & one_row_per_object(table))
        with _timed(self.folder, "scores"):
            score = member_scores(networks, self.galaxies.images[rows], self.device).mean(0)[:, 0]
        target = table["target"].iloc[rows].astype(int)
        frame = pd.DataFrame({"id": table["object"].iloc[rows], "target": target, "score": score})
        with atomic_path(path) as temporary:
            frame.to_parquet(temporary, index=False)


def check_disjoint(ids: pd.Series, repeat: Repeat) -> None:
    """Raise an error, for a bug of galscan, if training objects are in the repeat's test set."""
    if len(overlap := ids[repeat.has(ids, "test")]):
        raise GalscanError(
            f"repeat {repeat.number}: {len(overlap)} test objects (first {overlap.iloc[0]}) would be trained on, so "
            "training was stopped; please report this bug"
        )


def seconds(work: Path) -> dict[str, float]:
    """Return the time spent on each kind of stage, over all repeats and calls."""
    total: Counter[str] = Counter()
    for path in sorted(work.glob("**/seconds.json")):
        total.update(read_json(path))
    return {stage: round(spent, 1) for stage, spent in total.items()}


@contextmanager
def _timed(folder: Path, stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    spent = read_json(folder / "seconds.json") if (folder / "seconds.json").is_file() else {}
    spent[stage] = round(spent.get(stage, 0.0) + time.monotonic() - started, 1)
    write_json(folder / "seconds.json", spent)


def _generator_set(plan: Plan, galaxies: Galaxies, rows: np.ndarray) -> GalaxySet:
    """Return the training set of a generator: the galaxies of these rows (bool)."""
    selected = Galaxies(
        galaxies.images[rows], galaxies.table[rows].reset_index(drop=True).assign(split="train"),
        galaxies.labels[rows].reset_index(drop=True),
    )  # fmt: skip
    return selected.generator_set(generator_settings(plan.recipe))
