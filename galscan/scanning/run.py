"""Run folder of a scan: locked while a scan writes, and read when it is finished."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from galscan.core import files
from galscan.core.errors import ConflictError, InputError, NotFoundError
from galscan.core.staging import locked
from galscan.scanning.partitions import FATAL, SILENT

INFO, FORMAT = "run.json", 1
CANDIDATES = "candidates.parquet"
OUTPUTS = {"FITS": "candidates.fits", "pictures": "contact.png", "report": "report.html"}


@dataclass(frozen=True)
class Run:
    """A scan on disk.

    Attributes
    ----------
    path : Path
        Its folder.
    info : dict
        Content of ``run.json``: plan, counts, rates, purity.
    """

    path: Path
    info: dict[str, Any]

    @property
    def targets(self) -> list[str]:
        """Names of the targets."""
        return list(self.info.get("targets", [self.info["target"]]))

    def of(self, target: str) -> Run:
        """Return the run of one of the targets.

        Raises
        ------
        InputError
            If the scan was not for this target.
        """
        if target not in self.targets:
            raise InputError(f"{self.path} is a scan for {', '.join(self.targets)}, not for '{target}'")
        return open_run(self.path / target) if is_multi_target(self.info) else self

    @property
    def candidates(self) -> pd.DataFrame:
        """Ranked candidates, best first; with several targets use ``run.of(target).candidates``."""
        check_single_target(self.path, self.info)
        return pd.read_parquet(self.path / "candidates.parquet")

    @property
    def tables(self) -> Path:
        """Folder that holds the score and quarantine tables."""
        return tables(self.path, self.info)

    @property
    def quarantine(self) -> dict[str, int]:
        """Numbers of objects in partitions that killed their workers or never ended, by reason."""
        reasons: dict[str, int] = self.info.get("quarantine_reasons", {})
        return {why: count for why, count in reasons.items() if why in (FATAL, SILENT)}

    def summary(self) -> dict[str, Any]:
        """Return the outcome as JSON-able values; ``text`` holds a few lines for people."""
        summary = {"run": str(self.path), "set_aside": self.quarantine}
        summary |= {
            k: v for k, v in self.info.items() if k not in ("run", "identity", "histogram", "histogram_discarded")
        }
        if self.info["status"] != "done":
            return summary
        if not is_multi_target(self.info):
            return summary | {"text": self._text()}
        runs = {target: self.of(target).summary() for target in self.targets}
        return summary | {"runs": runs, "text": "\n\n".join(run["text"] for run in runs.values())}

    def _text(self) -> str:
        """Return the outcome of a finished scan for people."""
        info, purity = self.info, self.info["purity"]
        if is_similarity_list(info):
            files_there = [f"{name:<12} {self.path / file}" for name, file in OUTPUTS.items() if name != "report"]
            notes = [f"note         {note}" for note in purity["notes"]]
            return "\n".join([
                f"{info['candidates']:,} of {info['scanned']:,} galaxies, ranked by similarity to "
                f"{len(info['like'])} examples",
                *notes, *files_there, f"next         galscan vet {self.path}",
            ])  # fmt: skip
        rate = f" at {info['images_per_s']:,.0f}/s" if info["images_per_s"] else ""
        lines = [
            f"{info['candidates']:,} candidates for '{info['target']}' ranked among {info['scanned']:,} galaxies{rate}"
            + "".join(f"; {count:,} quarantined: {why}" for why, count in info["quarantine_reasons"].items()),
            *self._estimates(),
            *(
                f"warning      {count:,} objects were not scored: {why}; see {self.path / 'quarantine'}"
                for why, count in self.quarantine.items()
            ),
            *(f"note         {note}" for note in purity["notes"]),
            *(f"{name:<12} {self.path / file}" for name, file in OUTPUTS.items()),
        ]
        return "\n".join(lines)

    def _estimates(self) -> list[str]:
        """Return lines with prevalence and purity, or why they are unknown and how to measure them."""
        purity = self.info["purity"]
        if why := purity.get("unknown"):
            return [f"purity       unknown: {why}", f"next         grade a sample: galscan vet {self.path}"]
        at = (f"purity       {_percent(entry)} in the top {rank}" for rank, entry in purity["at"].items())
        return [f"prevalence   {_percent(purity['prevalence'])} of the survey", *at]


def open_run(path: Path | str) -> Run:
    """Open a finished scan of one or several targets, or the subfolder of one target.

    Raises
    ------
    NotFoundError
        If there is no such folder.
    InputError
        If the folder is not that of a scan, or the scan is not finished.
    """
    path = Path(path)
    if not path.is_dir():
        raise NotFoundError(f"no run at {path}; make one with: galscan scan")
    info = read_info(path)
    if info is None:
        raise InputError(f"{path} is not the folder of a scan (it has no {INFO}); make one with: galscan scan")
    if info["status"] != "done":
        raise InputError(f"the scan in {path} is not finished; run its scan command again to resume it")
    if not is_multi_target(info) and not (path / CANDIDATES).is_file():
        raise InputError(f"{path} has lost its {CANDIDATES}; run its command again to rank the scored objects")
    return Run(path, info)


def open_single_target(path: Path | str) -> Run:
    """Open a finished scan of one target, or the subfolder of one target.

    Raises
    ------
    NotFoundError
        If there is no such folder.
    InputError
        If the folder is not that of a scan, or the scan is not finished or has several targets.
    """
    run = open_run(path)
    check_single_target(run.path, run.info)
    return run


def is_similarity_list(info: Mapping[str, Any]) -> bool:
    """Tell whether a run ranks objects by similarity to examples (`galscan.similar`) instead of a target's score."""
    return "like" in info


def is_multi_target(info: Mapping[str, Any]) -> bool:
    """Tell whether a scan is for several targets, each with a run in a subfolder."""
    return len(info.get("targets", [])) > 1 and "tables" not in info


def lineages(info: Mapping[str, Any]) -> dict[str, str]:
    """Return the lineage of the ids of each store of a run, by store name (`galscan.store.identity.lineage_of`)."""
    return {str(store["name"]): str(store.get("lineage") or store["name"]) for store in info["stores"]}


def astrometry(info: Mapping[str, Any]) -> float:
    """Return the largest astrometric uncertainty (arcsec) declared by a store of a run; 0 if none is."""
    return max((float(store.get("astrometry", 0)) for store in info["stores"]), default=0.0)


def check_single_target(path: Path, info: Mapping[str, Any]) -> None:
    """Raise `InputError` for a scan of several targets, naming the folder of each."""
    if is_multi_target(info):
        names = ", ".join(str(path / target) for target in info["targets"])
        raise InputError(f"{path} is a scan for several targets; name one of them: {names}")


def tables(path: Path, info: Mapping[str, Any]) -> Path:
    """Return the folder of a run's tables: its own, or that of the scan it belongs to or searched."""
    return Path(os.path.normpath(path / info["tables"])) if "tables" in info else path


def read_info(path: Path) -> dict[str, Any] | None:
    """Return the content of a folder's ``run.json``, or None without that file."""
    if not (path / INFO).is_file():
        return None
    info = files.read_json(path / INFO)
    if not isinstance(info, dict) or not {"status", "fingerprint", "identity"} <= info.keys():
        raise InputError(f"{path / INFO} was not written by galscan scan; choose another --out")
    if info.get("format", FORMAT) != FORMAT:
        found = repr(info["format"])[:20]
        raise InputError(f"{path} is a scan of format {found}, not {FORMAT}; use the galscan version that wrote it")
    return info


class Request(Protocol):
    """A plan that writes a run folder, e.g. `galscan.scanning.plan.Plan`."""

    @property
    def out(self) -> Path: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...


@contextmanager
def claim(plan: Request) -> Iterator[dict[str, Any] | None]:
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
        if info is not None and info["fingerprint"] != plan.fingerprint:
            changes = differences(info["identity"], plan.identity)
            raise ConflictError(f"{out} holds another scan: {changes}; choose another --out")
        if info is not None and info["status"] == "done":
            folders = [out / target for target in info["targets"]] if is_multi_target(info) else [out]
            if not all((folder / CANDIDATES).is_file() for folder in folders):
                info = info | {"status": "running"}
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


def _percent(entry: dict[str, float | None]) -> str:
    """Return e.g. ``54 % (10-97)``, with a question mark for unknown values."""
    value, low, high = (
        "?" if x is None else f"{100 * x:.0f}" if x >= 0.1 else f"{100 * x:.2g}"
        for x in (entry["value"], entry["low"], entry["high"])
    )  # fmt: skip
    return f"{value} % ({low}-{high})"
