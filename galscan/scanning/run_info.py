"""Content of ``run.json``, and the lock of a run folder while a scan writes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from galscan.core import files
from galscan.core.errors import ConflictError, InputError
from galscan.core.staging import locked
from galscan.scanning.plan import StoreRef

INFO, FORMAT = "run.json", 1
CANDIDATES = "candidates.parquet"


class RunInfo(BaseModel):
    """Content of ``run.json``. Keys that a version did not write keep their defaults, and are not written back."""

    model_config = ConfigDict(frozen=True, extra="allow")

    format: int = FORMAT
    """Version of this file."""
    status: Literal["planned", "running", "done"]
    """Of a dry run, an unfinished and a finished scan."""
    fingerprint: str
    """SHA-256 of `identity`."""
    identity: dict[str, Any]
    """Everything that decides scores and candidates (`galscan.scanning.plan.Plan.identity`)."""
    target: str = ""
    """Name of the target; those of several targets joined by +."""
    targets: list[str] = []
    """Names of all targets."""
    run: str = ""
    """Path of the run when it was written."""
    tables: str | None = None
    """Folder of the score tables, where it is not that of the run; relative to the run."""
    scan: str | None = None
    """Of a similarity list: fingerprint of the scan that was searched."""
    model: str | list[str] = ""
    """Path of the model; with several targets, of each."""
    stores: list[StoreRef] = []
    """Name, path and content hash of each store."""
    objects: int = 0
    """Number of selected objects."""
    parts: int = 0
    """Number of partitions."""
    size: int = 0
    """Input size of the networks in pixels."""
    answers: list[str] = []
    """Morphology answers that are predicted."""
    top: int = 0
    """Maximum number of candidates."""
    precision: str = ""
    """Precision of the networks: bf16 or fp32."""
    device: str = ""
    """Device of the networks: cpu or cuda."""
    batch: int = 0
    """Galaxies per batch."""
    cascade: bool = True
    """Whether a prefilter is used."""
    selection: str = "all objects"
    """Selection of objects, as text."""
    seed: int = 0
    """Random seed of the objects that are rescored."""
    embedding: int = 0
    """Dimension of an embedding; 0 without embeddings."""
    versions: dict[str, str] = {}
    """Versions of galscan and its libraries."""
    wall_s: float | None = None
    """Duration in seconds; of a command line, from the start of its process."""
    seconds: dict[str, float] = {}
    """Duration of each phase: start, prepare, prefilter, scan, rank, report, close."""
    images_per_s: float | None = None
    """Objects scored per second."""
    busy: float | None = None
    """Fraction of the scan in which the networks were busy."""
    scanned: int = 0
    """Number of scored objects."""
    quarantined: int = 0
    """Number of objects without a score."""
    quarantine_reasons: dict[str, int] = {}
    """Number of quarantined objects by reason."""
    candidates: int = 0
    """Number of ranked candidates."""
    purity: dict[str, Any] = {}
    """Purity by the scores alone (`galscan.stats.purity.summary`)."""
    completeness_limits: dict[str, list[float | None]] = {}
    """Limits of the completeness at selected ranks; the tables have no such columns."""
    histogram: list[list[int]] = []
    """Histogram of the scores of all objects scored in full."""
    histogram_discarded: list[list[int]] = []
    """Histogram of the scores of the objects that the prefilter discarded, estimated."""
    known_beyond: tuple[int, int] = (0, 0)
    """Number of objects of known label that are no candidates, and of targets among them."""
    first_look: dict[str, Any] | None = None
    """Objects that the prefilter discarded; absent in runs of versions that did not record the stages of objects."""
    like: list[dict[str, Any]] | None = None
    """Of a similarity list: its examples."""

    @property
    def is_similarity_list(self) -> bool:
        """Whether objects are ranked by similarity to examples (`galscan.similar`) instead of a target's score."""
        return self.like is not None

    @property
    def is_multi_target(self) -> bool:
        """Whether the scan is for several targets, each with a run in a subfolder."""
        return len(self.targets) > 1 and self.tables is None

    @property
    def models(self) -> list[str]:
        """Path of the model of each target."""
        return [self.model] if isinstance(self.model, str) else self.model

    @property
    def model_hashes(self) -> list[str]:
        """Hash of the model of each target."""
        hashes = self.identity.get("model", "")
        return hashes if isinstance(hashes, list) else [hashes]

    @property
    def lineages(self) -> dict[str, str]:
        """Lineage of the ids of each store, by store name (`galscan.store.identity.lineage_of`)."""
        return {store.name: store.lineage or store.name for store in self.stores}

    @property
    def astrometry(self) -> float:
        """Largest astrometric uncertainty (arcsec) declared by a store; 0 if none is."""
        return max((store.astrometry for store in self.stores), default=0.0)

    def updated(self, **changes: Any) -> RunInfo:
        """Return a copy with other values."""
        return RunInfo(**self.to_dict() | changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``run.json``."""
        return self.model_dump(exclude_unset=True)

    def write(self, folder: Path) -> None:
        """Write ``run.json`` into a folder."""
        files.write_json(folder / INFO, self.to_dict())


def read_info(path: Path) -> RunInfo | None:
    """Return the content of a folder's ``run.json``, or None without that file.

    Raises
    ------
    InputError
        If it is damaged, or of another version's format.
    """
    if not (path / INFO).is_file():
        return None
    content = files.read_json(path / INFO)
    if not isinstance(content, dict) or not {"status", "fingerprint", "identity"} <= content.keys():
        raise InputError(f"{path / INFO} was not written by galscan scan; choose another --out")
    if content.get("format", FORMAT) != FORMAT:
        found = repr(content["format"])[:20]
        raise InputError(f"{path} is a scan of format {found}, not {FORMAT}; use the galscan version that wrote it")
    try:
        return RunInfo(**content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path / INFO} is damaged ({key}: {first['msg']}); run its scan command again") from None


class Request(Protocol):
    """A plan that writes a run folder, e.g. `galscan.scanning.plan.Plan`."""

    @property
    def out(self) -> Path: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...


@contextmanager
def claim(plan: Request) -> Iterator[RunInfo | None]:
    """Lock the run folder of a plan; yield the content of its ``run.json``, None if it is new.

    A finished scan without its candidates file is reported as still running, so that its candidates are ranked again.

    Raises
    ------
    ConflictError
        If the folder holds another scan, is locked by one, or holds other files.
    StorageError
        If the folder cannot be created.
    """
    out = plan.out
    if out.exists() and not out.is_dir():
        raise ConflictError(f"{out} is a file; choose another --out")
    if out.is_dir() and read_info(out) is None and (foreign := _foreign_file(out)):
        raise ConflictError(
            f"{out} is not empty and is not the folder of a scan (it holds {foreign}); choose another --out"
        )
    with locked(out):
        info = read_info(out)
        if info is not None and info.fingerprint != plan.fingerprint:
            changes = differences(info.identity, plan.identity)
            raise ConflictError(f"{out} holds another scan: {changes}; choose another --out")
        if info is not None and info.status == "done":
            folders = [out / target for target in info.targets] if info.is_multi_target else [out]
            if not all((folder / CANDIDATES).is_file() for folder in folders):
                info = info.updated(status="running")
        yield info


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return a text that lists how two identities differ."""
    changes = []
    for key in sorted({*old, *new}, key=lambda key: (key not in old, key)):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        changes.append(f"{key} was {_short(before)}, now {_short(after)}")
    return "; ".join(changes) or "its fingerprint differs"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(" ".join(_short(v) for v in item) if isinstance(item, list) else _short(item) for item in value)
    text = str(value)
    return text[:12] if len(text) == 64 else text  # the first digits of a hash are enough


def _foreign_file(out: Path) -> str:
    """Return the name of a file that a scan does not write before its ``run.json``, or ''."""
    return next((p.name for p in sorted(out.iterdir()) if not p.name.startswith(f".{INFO}.")), "")
