"""One repeat of an ablation: from the generator to what each arm says of the test set.

Whatever is taught, generator or network, is first checked to hold no object of the repeat's test set.
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
from galscan.labels.recipe import Recipe
from galscan.labels.settings import GeneratorSettings, MapSettings, StableDiffusionSettings, SyntheticSettings
from galscan.models.ensemble import member_scores
from galscan.models.network import Network
from galscan.models.roles import once
from galscan.stats.metrics import Scored
from galscan.synthesis import backends
from galscan.synthesis.galaxies import GalaxySet
from galscan.synthesis.synthetic_set import SyntheticSet, generate_set, read_synthetic_set, write_synthetic_set
from galscan.training import synthetic
from galscan.training.ablation.arms import ARMS, CRITIC, IMAGES, MAP_KINDS, SYNTHETIC, Repeat, labelled_objects
from galscan.training.committee import Job, train_networks
from galscan.training.dataset import Galaxies, load_galaxies
from galscan.training.plan import Plan
from galscan.training.train import Examples

COMMON = "common"


def load(plan: Plan, repeats: Sequence[Repeat], *, unlabelled: bool) -> Galaxies:
    """Read the pictures of all objects that a repeat uses and, if asked, a sample of those without labels."""
    used = pd.Index(np.unique(np.concatenate([r.side.index.to_numpy(object) for r in repeats])))
    labelled = labelled_objects(plan.table, plan.schema.names).index
    keep = plan.table["object"].isin(used) | ~plan.table["object"].isin(labelled)
    table = plan.table[keep].reset_index(drop=True)
    return load_galaxies(plan.stores, table, plan.schema.names, plan.recipe.size, seed=plan.seed, unlabelled=unlabelled)


def without_labels(galaxies: Galaxies) -> np.ndarray:
    """Return which rows are of objects that have no labels in any store, and so are in no test set."""
    labelled = galaxies.labels.notna().any(axis=1)
    return (~galaxies.table["object"].isin(galaxies.table.loc[labelled, "object"])).to_numpy()


def common_generator(plan: Plan, galaxies: Galaxies, steps: int, work: Path, device: torch.device) -> None:
    """Teach a generator with the galaxies without labels alone, once for all repeats."""
    if backends.find(work, COMMON):
        return
    settings = whole_images(plan.recipe).model_copy(update={"steps": steps})
    teaching = _teaching(plan, galaxies, without_labels(galaxies))
    with _timed(work, "generator"):
        backends.teach(
            teaching, plan.schema, [s.name for s in plan.stores], settings, work, name=COMMON, seed=plan.seed,
            device=device,
        )  # fmt: skip


@dataclass(frozen=True)
class Repetition:
    """One repeat, with all it needs."""

    plan: Plan
    repeat: Repeat
    galaxies: Galaxies
    arms: tuple[str, ...]
    members: int
    generator_steps: int
    work: Path
    device: torch.device

    @property
    def folder(self) -> Path:
        return self.work / f"repeat-{self.repeat.number:02d}"

    @property
    def seed(self) -> int:
        """Of this repeat's generator, dreams and networks: the same for all arms."""
        return self.plan.seed * 1000 + self.repeat.number

    @property
    def finished(self) -> bool:
        """Whether every arm has scored the test set."""
        return all((self.folder / f"{arm}.parquet").is_file() for arm in self.arms)

    def scored(self) -> Scored:
        """Do the stages that are not done, and return what each arm scored; the order is the story."""
        if not self.finished:
            self.folder.mkdir(parents=True, exist_ok=True)
            real = self._examples()
            for kind in dict.fromkeys(ARMS[arm].kind for arm in self.arms):
                synthetic = self._synthetic(kind, real) if kind else None
                for arm in self.arms:
                    if ARMS[arm].kind == kind:
                        self._score(arm, real, synthetic)
        tables = {arm: pd.read_parquet(self.folder / f"{arm}.parquet") for arm in self.arms}
        first = next(iter(tables.values()))
        return Scored(
            first["id"].to_numpy(object), first["target"].to_numpy(int),
            {arm: table["score"].to_numpy() for arm, table in tables.items()},
        )  # fmt: skip

    def told(self) -> dict[str, Any]:
        """Return the sizes of everything in this repeat."""
        notes = {
            name: read_json(path)
            for name in ("generator", *SYNTHETIC)
            if (path := self.folder / f"{name}.json").is_file()
        }
        return {
            "repeat": self.repeat.number, "seed": self.repeat.seed, "fold": self.repeat.fold, **self.repeat.counts,
            "generator": notes.pop("generator", None), "synthetic": notes,
        }  # fmt: skip

    # -- stages ----------------------------------------------------------------------------------

    def _taught(self) -> np.ndarray:
        """Return the rows that teach the networks: labelled, and of the training objects."""
        labelled = self.galaxies.labels.notna().any(axis=1).to_numpy()
        rows = np.flatnonzero(self.repeat.has(self.galaxies.table["object"], "train") & labelled)
        check_apart(self.galaxies.table["object"].iloc[rows], self.repeat)
        return rows

    def _examples(self) -> Examples:
        rows, galaxies = self._taught(), self.galaxies
        return Examples.from_labels(
            galaxies.images[rows], galaxies.table["target"].to_numpy()[rows],
            galaxies.counted(self.plan.schema).iloc[rows], self.plan.answers, self.plan.schema,
        )  # fmt: skip

    def _allowed(self) -> np.ndarray:
        """Return which rows may be used for anything that is trained (bool): noted in ``generator_ids.txt``."""
        table = self.galaxies.table
        rows = self.repeat.has(table["object"], "train") | without_labels(self.galaxies)
        ids = sorted(set(table.loc[rows, "object"]))
        write_text(self.folder / "generator_ids.txt", "".join(f"{i}\n" for i in ids))
        check_apart(pd.Series(ids, dtype=object), self.repeat)
        return rows

    def _generator(self) -> None:
        if (self.folder / "generator.json").is_file():
            return
        start = backends.find(self.work, COMMON)
        settings = whole_images(self.plan.recipe).model_copy(update={"steps": self.generator_steps})
        rows = self._allowed()
        teaching = _teaching(self.plan, self.galaxies, rows)
        # Without a common stage, not even the mean of the pixels is of a test object.
        with _timed(self.folder, "generator"):
            outcome = backends.teach(
                teaching, self.plan.schema, [s.name for s in self.plan.stores], settings, self.folder, seed=self.seed,
                device=self.device, start=start,
            )  # fmt: skip
        told = {"galaxies": len(teaching.images), "steps": outcome["steps"], "common": start is not None}
        write_json(self.folder / "generator.json", told)

    def _synthetic(self, kind: str, real: Examples) -> Examples | None:
        """Make the synthetic training set of a kind; None if no target is left."""
        plan, path = self.plan, self.folder / f"{kind}.zarr"
        if not (self.folder / f"{kind}.json").is_file():
            if kind == IMAGES:
                made, dropped = self._drawn(real, self._taught())
                told: dict[str, Any] = {"made": len(made) + sum(dropped.values()), "dropped": dropped}
            else:
                made, told = self._injected(kind, real)
                told |= {"made": int(made.synthetic.sum())}
            told |= {"kept": int(made.synthetic.sum()), "kept_positive": int((made.target == 1).sum())}
            if told["kept_positive"]:
                provenance = {"seed": self.seed, "recipe": plan.recipe.hash, "kind": kind}
                write_synthetic_set(made, path, f"{kind}-{plan.recipe.name}", plan.schema, provenance)
            write_json(self.folder / f"{kind}.json", told)
        if not path.is_dir():
            return None
        found = read_synthetic_set(path, plan.schema.name)
        return synthetic.examples_of(found, found.target, plan.answers, plan.schema)

    def _injected(self, kind: str, real: Examples) -> tuple[SyntheticSet, dict[str, Any]]:
        """Inject features into hosts that the reference network, trained on real galaxies alone, helps to choose."""
        plan, recipe = self.plan, self.plan.recipe
        network = self._networks(CRITIC, real, None)[0]
        with _timed(self.folder, "synthetic"):
            candidates = synthetic.candidates_of(
                self.galaxies, np.flatnonzero(self._allowed()), plan.stores, network, plan.answers, plan.schema,
                self.device,
            )  # fmt: skip
            generator = recipe.generator if isinstance(recipe.generator, MapSettings) else MapSettings(kind="maps")
            generator = generator.model_copy(update={"maps": MAP_KINDS[kind]})
            return synthetic.inject(
                candidates, plan.schema, plan.rules, recipe.synthetic, generator, self.folder, seed=self.seed,
                device=self.device,
            )  # fmt: skip

    def _drawn(self, real: Examples, rows: np.ndarray) -> tuple[SyntheticSet, dict[str, int]]:
        """Let a generator draw; return what the critic keeps, and how many it drops for which reason."""
        from galscan.synthesis.evaluation import ReferenceClassifier, screen

        plan, table = self.plan, self.galaxies.table.iloc[rows]
        network = self._networks(CRITIC, real, None)[0]
        self._generator()
        with _timed(self.folder, "dreams"):
            dreams = generate_set(
                backends.load(self.folder), self.galaxies.conditions(rows),
                table["target"].to_numpy(), table["survey"].to_numpy(), plan.rules, drawing(plan.recipe),
                seed=self.seed, device=self.device,
            )  # fmt: skip
            judged = screen(
                dreams, self.galaxies.images[rows],
                ReferenceClassifier(network, plan.answers, plan.schema, self.device), plan.rules, plan.schema,
            )  # fmt: skip
        dropped = {str(k): int(n) for k, n in judged.loc[~judged["kept"], "reason"].value_counts().items()}
        return dreams.select(judged["kept"].to_numpy()), dropped

    def _networks(self, arm: str, real: Examples, synthetic: Examples | None) -> list[Network]:
        settings = ARMS[arm].settings(self.plan.recipe.classifier)
        jobs = [
            Job(
                self.folder / f"{arm}-{member}.safetensors", real, synthetic, settings, settings.steps,
                self.seed * 100 + member, f"repeat {self.repeat.number}, {arm}, network {member}",
            )
            for member in range(self.members)
        ]  # fmt: skip
        with _timed(self.folder, "classifiers"):
            return train_networks(jobs, self.device, workers=1)

    def _score(self, arm: str, real: Examples, synthetic: Examples | None) -> None:
        path = self.folder / f"{arm}.parquet"
        if path.is_file():
            return
        networks = self._networks(arm, real, synthetic)
        table = self.galaxies.table
        known = table["target"].notna().to_numpy()
        rows = np.flatnonzero(self.repeat.has(table["object"], "test") & known & once(table))
        with _timed(self.folder, "scores"):
            score = member_scores(networks, self.galaxies.images[rows], self.device).mean(0)[:, 0]
        frame = pd.DataFrame({"id": table["object"], "target": table["target"]}).loc[rows]
        frame = frame.astype({"target": int}).assign(score=score)
        with atomic_path(path) as temporary:
            frame.to_parquet(temporary, index=False)


def check_apart(ids: pd.Series, repeat: Repeat) -> None:
    """Refuse to teach anything with an object of the repeat's test set.

    Raises
    ------
    GalscanError
        If there is one: an error of galscan's, not of the user's.
    """
    if len(both := ids[repeat.has(ids, "test")]):
        raise GalscanError(
            f"repeat {repeat.number}: {len(both)} test objects (first {both.iloc[0]}) would be trained on; nothing was "
            "trained with them, and please report this"
        )


def seconds(work: Path) -> dict[str, float]:
    """Return how long each kind of stage took, over all repeats and calls."""
    whole: Counter[str] = Counter()
    for path in sorted(work.glob("**/seconds.json")):
        whole.update(read_json(path))
    return {stage: round(spent, 1) for stage, spent in whole.items()}


@contextmanager
def _timed(folder: Path, stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    spent = read_json(folder / "seconds.json") if (folder / "seconds.json").is_file() else {}
    spent[stage] = round(spent.get(stage, 0.0) + time.monotonic() - started, 1)
    write_json(folder / "seconds.json", spent)


def _teaching(plan: Plan, galaxies: Galaxies, rows: np.ndarray) -> GalaxySet:
    """Return what a generator learns from: these rows (bool) and no others."""
    part = Galaxies(
        galaxies.images[rows], galaxies.table[rows].reset_index(drop=True).assign(split="train"),
        galaxies.labels[rows].reset_index(drop=True),
    )  # fmt: skip
    return part.generator_set(whole_images(plan.recipe))


def whole_images(recipe: Recipe) -> GeneratorSettings | StableDiffusionSettings:
    """Return the settings of the generator of whole images: the recipe's, or by default where it injects features."""
    return GeneratorSettings() if isinstance(recipe.generator, MapSettings) else recipe.generator


def drawing(recipe: Recipe) -> SyntheticSettings:
    """Return how many whole images are drawn: as the recipe says, or by default where it draws none."""
    if recipe.synthetic.positives:
        return recipe.synthetic
    return recipe.synthetic.model_copy(update={"positives": SyntheticSettings().positives})
