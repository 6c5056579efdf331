"""Plan of a scan: its partitions, and the fingerprint that identifies it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galscan.core import files, home
from galscan.core.errors import InputError, nearest
from galscan.core.version import __version__
from galscan.models.ensemble import answer_names, embedding_size
from galscan.scanning.selection import ALL, Selection
from galscan.store import identity
from galscan.store.layout import CHUNK, Store

if TYPE_CHECKING:
    from galscan.models.model import Model

MAX_PARTITIONS = 20_000  # schedulers and folders become slow near 100,000
LAST = 4  # partitions that are divided into quarters
LARGE = 100_000  # objects, below which the sample for a prefilter's threshold costs more than it saves
PIECE = 1024  # objects read at a time; the fastest of the sizes measured, and a bound of a worker's memory
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True)
class StoreRef:
    """A store of a plan: enough to open it on a worker and to notice changes."""

    name: str
    path: str
    content_hash: str
    count: int
    size: int = 0
    """Image size in pixels; 0 where it is not needed."""
    lineage: str = ""
    """Origin of its ids (`galscan.store.identity.lineage_of`)."""
    astrometry: float = 0.0
    """Astrometric uncertainty of its survey in arcsec; 0 where not declared."""


@dataclass(frozen=True)
class ModelRef:
    """A model of a plan: enough to open it on a worker and to notice changes."""

    target: str
    path: str
    model_hash: str
    recipe_hash: str


@dataclass(frozen=True)
class Partition:
    """One unit of work: the rows `start` to `stop` (whole chunks) of store number `store`."""

    number: int
    store: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Number of objects."""
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """Everything that decides a scan. Equal fingerprints give equal scores, up to rounding, on any machine.

    Device and number of workers are not part of the fingerprint: an interrupted scan may be resumed on other machines.
    """

    models: tuple[ModelRef, ...]
    """One for each target."""
    stores: tuple[StoreRef, ...]
    partitions: tuple[Partition, ...]
    size: int
    """Input size of the models in pixels; images of larger stores are resampled to it."""
    answers: tuple[str, ...]
    top: int
    precision: str
    batch: int
    device: str
    requested_out: str | None = None
    selection: Selection = ALL
    cascade: bool = False
    embedding: int = 0
    """Dimension of an embedding; 0 where none is written."""

    @cached_property
    def objects(self) -> int:
        """Objects in the partitions; without a selection, all of them are scored or quarantined."""
        return sum(partition.count for partition in self.partitions)

    @property
    def target(self) -> str:
        """Name of the target; those of several targets joined by +."""
        return "+".join(self.targets)

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets."""
        return tuple(model.target for model in self.models)

    @property
    def bytes(self) -> int:
        """Bytes of pixels to read, uncompressed."""
        return sum(
            partition.count * self.stored(self.stores[partition.store]) ** 2 * 3 for partition in self.partitions
        )

    def stored(self, store: StoreRef) -> int:
        """Return the image size of a store in pixels."""
        return store.size or self.size

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the scores and the candidates, by name."""
        return {
            "model": _one_or_all([model.model_hash for model in self.models]),
            "recipe": _one_or_all([model.recipe_hash for model in self.models]),
            "stores": [[store.name, store.content_hash] for store in self.stores],
            "version": __version__,
            "top": self.top,
            "precision": self.precision,
            "size": self.size,
            "objects": self.objects,
            "selection": self.selection.described(),
            "cascade": self.cascade,
            # Only where used, so that earlier scans keep their fingerprints.
            **({"embeddings": self.embedding} if self.embedding else {}),
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `identity`."""
        return files.digest(self.identity)

    @property
    def seed(self) -> int:
        """Seed of the scan's random samples."""
        return int(self.fingerprint[:8], 16)

    @property
    def out(self) -> Path:
        """Run folder: the requested one, or one in the data home named after target, surveys and fingerprint."""
        if self.requested_out is not None:
            return Path(self.requested_out)
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([self.target, *(store.name for store in self.stores)]))
        return home.run_path(f"{words[:55].strip('-.')}-{self.fingerprint[:8]}")

    def folder(self, target: str) -> Path:
        """Return the folder for a target's candidates: the run folder, or a subfolder if there are several targets."""
        return self.out / target if len(self.models) > 1 else self.out

    def where(self, partition: Partition) -> str:
        """Return a partition's number, rows and store for messages."""
        store = self.stores[partition.store]
        return f"partition {partition.number} (rows {partition.start:,}-{partition.stop - 1:,} of {store.path})"


def make_plan(
    stores: Sequence[Store],
    models: Sequence[Model],
    *,
    top: int | None = None,
    precision: str | None = None,
    device: str = "auto",
    out: Path | str | None = None,
    selection: Selection = ALL,
    limit: int | None = None,
    cascade: bool | None = None,
    embeddings: bool = False,
) -> Plan:
    """Plan a scan of `stores` with one or several models; `None` stands for the value in the first model's recipe.

    Parameters
    ----------
    models : sequence of Model
        One for each target.
    selection : Selection
        Which objects; all by default.
    limit : int, optional
        Scan only the first `limit` rows of the stores, in their order.
    cascade : bool, optional
        Whether a prefilter discards objects that are surely no candidates; by default for surveys of at least `LARGE`
        objects if all models have one.
    embeddings : bool
        Whether to write the first network's embedding of each object. This excludes a prefilter: discarded objects
        would have no embedding, and could not be found by similarity.

    Raises
    ------
    InputError
        If there is no store, a store is named twice, its images are smaller than the models' input, two models have
        the same target, or `top`, `precision` or `device` is out of range; if a prefilter is requested with
        embeddings or for a model that has none.
    """
    settings = models[0].recipe.scan
    top = settings.top if top is None else top
    precision = settings.precision if precision is None else precision
    if top < 1:
        raise InputError(f"--top {top}: at least 1 candidate is needed")
    if precision not in PRECISIONS:
        raise InputError(f"precision '{precision}' is unknown{nearest(precision, PRECISIONS)}")
    if device not in DEVICES:
        raise InputError(f"device '{device}' is unknown{nearest(device, DEVICES)}")
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: scan at least 1 object")
    _check_models(models)
    _check_stores(stores, models[0])
    for store in stores:
        selection.check(store)
    partitions = tuple(_partitions(stores, limit))
    without_prefilter = next((model for model in models if model.prefilter is None), None)
    if cascade and without_prefilter is not None:
        raise InputError(
            f"--cascade: {without_prefilter.path} has no prefilter; train it with more images or more [prefilter] steps"
        )
    if cascade and embeddings:
        raise InputError("--cascade: objects discarded by a prefilter have no embedding; omit it, or --embeddings")
    if cascade is None:
        cascade = (
            not embeddings and without_prefilter is None and sum(partition.count for partition in partitions) >= LARGE
        )
    return Plan(
        models=tuple(ModelRef(b.target, str(Path(b.path).absolute()), b.model_hash, b.recipe.hash) for b in models),
        stores=tuple(map(_reference, stores)),
        partitions=partitions, size=models[0].size, answers=tuple(answer_names(models)), top=top, precision=precision,
        batch=settings.batch, device=device, requested_out=None if out is None else str(Path(out).absolute()),
        selection=selection, cascade=cascade, embedding=embedding_size(models[0]) if embeddings else 0,
    )  # fmt: skip


def _reference(store: Store) -> StoreRef:
    lineage, astrometry = identity.lineage_of(store), identity.astrometry_of(store)
    return StoreRef(store.name, store.location, store.content_hash, store.count, store.size, lineage, astrometry)


def _check_stores(stores: Sequence[Store], model: Model) -> None:
    """Raise `InputError` for stores that the model cannot score, or whose names are equal."""
    if not stores:
        raise InputError("nothing to scan: name a survey with --survey, or a store with --store")
    by_name: dict[str, Store] = {}
    for store in stores:
        if store.size < model.size:
            raise InputError(
                f"{store.path} holds {store.size} px cutouts but the model {model.path} needs {model.size} px; "
                f"ingest the survey again with: galscan ingest --size {model.size}, or train a model by a recipe with "
                f"size = {store.size} or less"
            )
        same_name = by_name.get(store.name)
        if same_name is not None and same_name.content_hash == store.content_hash:
            raise InputError(f"{store.path} is given twice (it equals {same_name.path}); give every store once")
        if same_name is not None:
            raise InputError(
                f"{same_name.path} and {store.path} are both named '{store.name}', so their candidates would be "
                f"ambiguous; ingest one of them again with another --name, or scan them one by one"
            )
        by_name[store.name] = store


def _check_models(models: Sequence[Model]) -> None:
    """Raise `InputError` for models of different input sizes, or of the same target."""
    first, targets = models[0], set()
    for model in models:
        if model.target in targets:
            raise InputError(f"two models are for the target '{model.target}'; give one of them")
        targets.add(model.target)
        if model.size != first.size:
            raise InputError(
                f"{model.path} takes images of {model.size} px, {first.path} of {first.size} px: scan with each alone"
            )


def _one_or_all(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values


def _partitions(stores: Sequence[Store], limit: int | None) -> list[Partition]:
    """Group shards into about `MAX_PARTITIONS` partitions at most, and divide the last few into quarters.

    Whole shards are read fastest; the small last partitions let all workers end at nearly the same time.
    """
    shards_each = -(-sum(store.n_shards for store in stores) // MAX_PARTITIONS)
    remaining = limit if limit is not None else sum(store.count for store in stores)
    ranges: list[tuple[int, int, int]] = []
    for index, store in enumerate(stores):
        end = min(store.count, remaining)
        step = shards_each * store.shard
        ranges += [(index, start, min(start + step, end)) for start in range(0, end, step)]
        remaining -= end
    for index, start, stop in [ranges.pop() for _ in range(min(LAST, len(ranges)))][::-1]:
        quarter = -(-(stop - start) // (4 * CHUNK)) * CHUNK
        ranges += [(index, row, min(row + quarter, stop)) for row in range(start, stop, quarter)]
    return [Partition(number, *limits) for number, limits in enumerate(ranges)]
