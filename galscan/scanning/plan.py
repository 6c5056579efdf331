"""What a scan will do, decided before anything runs: parts, and the fingerprint that names it."""

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

MAX_PARTS = 20_000  # schedulers and folders grow rough near 100,000
LAST = 4  # parts that are cut in quarters
LARGE = 100_000  # objects, below which a first look's sample costs more than it saves
PIECE = 1024  # objects read at a time: the fastest read measured, and what bounds a worker's memory
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True)
class StoreRef:
    """One store of a plan: enough to open it elsewhere and to notice that it changed."""

    name: str
    path: str
    content_hash: str
    count: int
    size: int = 0
    """Pixels on a side of its images; 0 where that does not matter."""
    lineage: str = ""
    """Whose ids it has (`galscan.store.identity.lineage_of`)."""
    astrometry: float = 0.0
    """Arcsec to which its survey knows positions, where it declares that."""


@dataclass(frozen=True)
class ModelRef:
    """One model of a plan: enough to open it elsewhere and to notice that it changed."""

    target: str
    path: str
    model_hash: str
    recipe_hash: str


@dataclass(frozen=True)
class Partition:
    """One unit of work: the rows `start` to `stop` of store number `store`, which are whole chunks of it."""

    number: int
    store: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Objects in the part."""
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """A scan, decided. Equal fingerprints give equal scores, whoever computes them.

    The device and the number of workers are not part of the fingerprint: an interrupted scan may go on
    with other machines.
    """

    models: tuple[ModelRef, ...]
    """One for each target."""
    stores: tuple[StoreRef, ...]
    parts: tuple[Partition, ...]
    size: int
    """Pixels on a side that the models take; images of larger stores are resampled to it."""
    answers: tuple[str, ...]
    top: int
    precision: str
    batch: int
    device: str
    place: str | None = None
    selection: Selection = ALL
    cascade: bool = False
    embedding: int = 0
    """Numbers an object's embedding has; 0 where none is written."""
    int8: bool = False
    """Whether networks in 8 bits may look before the full ones (`galscan.scanning.quantised`)."""

    @cached_property
    def objects(self) -> int:
        """Objects in the parts; without a selection, all of them are scored or quarantined."""
        return sum(part.count for part in self.parts)

    @property
    def target(self) -> str:
        """The target, or several joined by +."""
        return "+".join(self.targets)

    @property
    def targets(self) -> tuple[str, ...]:
        """What is looked for, by name."""
        return tuple(model.target for model in self.models)

    @property
    def bytes(self) -> int:
        """Bytes of pixels to read, uncompressed."""
        return sum(part.count * self.stored(self.stores[part.store]) ** 2 * 3 for part in self.parts)

    def stored(self, store: StoreRef) -> int:
        """Return the pixels on a side of the images of a store."""
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
            # Only where they are written: scans of before stay what was asked for.
            **({"embeddings": self.embedding} if self.embedding else {}),
            **({"int8": True} if self.int8 else {}),
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `identity`."""
        return files.digest(self.identity)

    @property
    def seed(self) -> int:
        """Seed of everything random that follows the scores."""
        return int(self.fingerprint[:8], 16)

    @property
    def out(self) -> Path:
        """The run folder: the place asked for, or one in the data home named after target, surveys and fingerprint."""
        if self.place is not None:
            return Path(self.place)
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([self.target, *(store.name for store in self.stores)]))
        return home.run_path(f"{words[:55].strip('-.')}-{self.fingerprint[:8]}")

    def folder(self, target: str) -> Path:
        """Return where the candidates of a target go: the run folder, or one in it where there are several targets."""
        return self.out / target if len(self.models) > 1 else self.out

    def where(self, part: Partition) -> str:
        """Return words for a message: which rows of which store."""
        store = self.stores[part.store]
        return f"part {part.number} (rows {part.start:,}-{part.stop - 1:,} of {store.path})"


def make_plan(
    stores: Sequence[Store],
    bundles: Sequence[Model],
    *,
    top: int | None = None,
    precision: str | None = None,
    device: str = "auto",
    out: Path | str | None = None,
    selection: Selection = ALL,
    limit: int | None = None,
    cascade: bool | None = None,
    embeddings: bool = False,
    int8: bool = False,
) -> Plan:
    """Decide a scan of `stores` with some models; `None` means what the first one's recipe says.

    Parameters
    ----------
    bundles : sequence of Bundle
        One for each target.
    selection : Selection
        Which objects; all by default.
    limit : int, optional
        Only the first so many rows of the stores, in their order.
    cascade : bool, optional
        Whether a first look discards what surely is no candidate; by default where the survey is large enough and all
        models have one.
    embeddings : bool
        Whether what the first network sees in each object is written as well. Then there is no first look: what it
        discards the network never sees, and who searches for what is alike wants to find it in all of the survey.
    int8 : bool
        Whether the networks in 8 bits look before the full ones, where they pay.

    Raises
    ------
    InputError
        If there is no store, one is named twice, one has fewer pixels than the models take, two models are of one
        target, `top`, `precision` or `device` is out of range, a first look is asked for of a model that has none or
        together with embeddings, or 8 bits together with them, on a GPU, or without nncf.
    """
    settings = bundles[0].recipe.scan
    top = settings.top if top is None else top
    precision = settings.precision if precision is None else precision
    if top < 1:
        raise InputError(f"--top {top}: ask for at least 1 candidate")
    if precision not in PRECISIONS:
        raise InputError(f"precision '{precision}' is unknown{nearest(precision, PRECISIONS)}")
    if device not in DEVICES:
        raise InputError(f"device '{device}' is unknown{nearest(device, DEVICES)}")
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: scan at least 1 object")
    _check_models(bundles)
    _check(stores, bundles[0])
    for store in stores:
        selection.check(store)
    parts = tuple(_parts(stores, limit))
    without = next((bundle for bundle in bundles if bundle.first_look is None), None)
    if cascade and without is not None:
        raise InputError(
            f"--cascade: {without.path} has no first look; train it with more pictures, or more [prefilter] steps"
        )
    if cascade and embeddings:
        raise InputError("--cascade: what a first look discards has no embedding; leave it out, or --embeddings")
    if int8:
        _check_int8(device, embeddings)
    if cascade is None:
        cascade = not embeddings and without is None and sum(part.count for part in parts) >= LARGE
    return Plan(
        models=tuple(ModelRef(b.target, str(Path(b.path).absolute()), b.model_hash, b.recipe.hash) for b in bundles),
        stores=tuple(map(_reference, stores)),
        parts=parts, size=bundles[0].size, answers=tuple(answer_names(bundles)), top=top, precision=precision,
        batch=settings.batch, device=device, place=None if out is None else str(Path(out).absolute()),
        selection=selection, cascade=cascade, embedding=embedding_size(bundles[0]) if embeddings else 0,
        int8=int8,
    )  # fmt: skip


def _reference(store: Store) -> StoreRef:
    of = identity.lineage_of(store), identity.astrometry_of(store)
    return StoreRef(store.name, store.location, store.content_hash, store.count, store.size, *of)


def _check_int8(device: str, embeddings: bool) -> None:
    """Refuse networks in 8 bits where they cannot be."""
    from galscan.core.device import pick
    from galscan.models.compiled import has_nncf

    if not has_nncf():
        raise InputError("--int8 needs nncf and OpenVINO; install them with: pip install 'galscan[int8]'")
    if pick(device).type != "cpu":
        raise InputError("--int8 is for CPUs, and this scan would use a GPU; leave it out, or add --device cpu")
    if embeddings:
        raise InputError("--int8: what networks in 8 bits discard has no embedding; leave it out, or --embeddings")


def _check(stores: Sequence[Store], bundle: Model) -> None:
    """Refuse stores that this model cannot score, or that would make two candidates indistinguishable."""
    if not stores:
        raise InputError("nothing to scan: name a survey with --survey, or a store with --store")
    seen: dict[str, Store] = {}
    for store in stores:
        if store.size < bundle.size:
            raise InputError(
                f"{store.path} holds {store.size} px cutouts but the model {bundle.path} needs {bundle.size} px; "
                f"ingest the survey again with: galscan ingest --size {bundle.size}, or train a model by a recipe with "
                f"size = {store.size} or less"
            )
        twin = seen.get(store.name)
        if twin is not None and twin.content_hash == store.content_hash:
            raise InputError(f"{store.path} is named twice (it holds the same as {twin.path}); name every store once")
        if twin is not None:
            raise InputError(
                f"{twin.path} and {store.path} are both named '{store.name}', so their candidates could not be told "
                f"apart; ingest one of them again with another --name, or scan them one by one"
            )
        seen[store.name] = store


def _check_models(bundles: Sequence[Model]) -> None:
    """Refuse models that cannot look at the same pictures, or whose candidates could not be told apart."""
    first, seen = bundles[0], set()
    for bundle in bundles:
        if bundle.target in seen:
            raise InputError(f"two models are of the target '{bundle.target}'; name one of them")
        seen.add(bundle.target)
        if bundle.size != first.size:
            raise InputError(
                f"{bundle.path} looks at {bundle.size} px, {first.path} at {first.size} px: scan with each alone"
            )


def _one_or_all(values: list[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else values


def _parts(stores: Sequence[Store], limit: int | None) -> list[Partition]:
    """Group shards so that there are about `MAX_PARTS` parts at most; the last few are quarters of such.

    Whole shards are read fastest, and by quarters all workers end at nearly the same time.
    """
    together = -(-sum(store.n_shards for store in stores) // MAX_PARTS)
    left = limit if limit is not None else sum(store.count for store in stores)
    pieces: list[tuple[int, int, int]] = []
    for index, store in enumerate(stores):
        end = min(store.count, left)
        pieces += [(index, at, min(at + together * store.shard, end)) for at in range(0, end, together * store.shard)]
        left -= end
    for index, start, stop in [pieces.pop() for _ in range(min(LAST, len(pieces)))][::-1]:
        quarter = -(-(stop - start) // (4 * CHUNK)) * CHUNK
        pieces += [(index, at, min(at + quarter, stop)) for at in range(start, stop, quarter)]
    return [Partition(number, *piece) for number, piece in enumerate(pieces)]
