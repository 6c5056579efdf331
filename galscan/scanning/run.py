"""The folder of a scan: who may write into it, and how a finished one is read."""

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
from galscan.core.staging import held
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
        What ``run.json`` says: plan, counts, rates, purity.
    """

    path: Path
    info: dict[str, Any]

    @property
    def targets(self) -> list[str]:
        """What was looked for, by name."""
        return list(self.info.get("targets", [self.info["target"]]))

    def of(self, target: str) -> Run:
        """Return the run of one of several targets.

        Raises
        ------
        InputError
            If it was not looked for.
        """
        if target not in self.targets:
            raise InputError(f"{self.path} looked for {', '.join(self.targets)}, not for '{target}'")
        return open_run(self.path / target) if several(self.info) else self

    @property
    def candidates(self) -> pd.DataFrame:
        """The ranked candidates, best first; of several targets, `of` gives each one's."""
        check_one(self.path, self.info)
        return pd.read_parquet(self.path / "candidates.parquet")

    @property
    def tables(self) -> Path:
        """The folder that holds the tables of scores and of the quarantined."""
        return tables(self.path, self.info)

    @property
    def quarantine(self) -> dict[str, int]:
        """Objects of parts that no worker survived or ended, by the reason."""
        reasons: dict[str, int] = self.info.get("quarantine_reasons", {})
        return {why: count for why, count in reasons.items() if why in (FATAL, SILENT)}

    def summary(self) -> dict[str, Any]:
        """Return what a script wants to know, JSON-able; ``text`` is the same in a few lines for people."""
        told = {"run": str(self.path), "set_aside": self.quarantine}
        told |= {k: v for k, v in self.info.items() if k not in ("run", "identity", "histogram", "histogram_discarded")}
        if self.info["status"] != "done":
            return told
        if not several(self.info):
            return told | {"text": self._text()}
        each = {target: self.of(target).summary() for target in self.targets}
        return told | {"runs": each, "text": "\n\n".join(one["text"] for one in each.values())}

    def _text(self) -> str:
        """Return the outcome of a finished scan for people."""
        info, purity = self.info, self.info["purity"]
        if is_like(info):
            files_there = [f"{name:<12} {self.path / file}" for name, file in OUTPUTS.items() if name != "report"]
            notes = [f"note         {note}" for note in purity["notes"]]
            return "\n".join([
                f"{info['candidates']:,} of {info['scanned']:,} galaxies, most like {len(info['like'])} examples first",
                *notes, *files_there, f"next         galscan vet {self.path}",
            ])  # fmt: skip
        rate = f" at {info['images_per_s']:,.0f}/s" if info["images_per_s"] else ""
        lines = [
            f"{info['candidates']:,} candidates for '{info['target']}' ranked among {info['scanned']:,} galaxies{rate}"
            + "".join(f"; {count:,} set aside: {why}" for why, count in info["quarantine_reasons"].items()),
            *self._estimates(),
            *(
                f"warning      {count:,} objects were never looked at: {why}; see {self.path / 'quarantine'}"
                for why, count in self.quarantine.items()
            ),
            *(f"note         {note}" for note in purity["notes"]),
            *(f"{name:<12} {self.path / file}" for name, file in OUTPUTS.items()),
        ]
        return "\n".join(lines)

    def _estimates(self) -> list[str]:
        """Return prevalence and purity as lines, or why they are unknown and what would tell."""
        purity = self.info["purity"]
        if why := purity.get("unknown"):
            return [f"purity       unknown: {why}", f"next         grade a sample: galscan vet {self.path}"]
        at = (f"purity       {_percent(entry)} among the best {rank}" for rank, entry in purity["at"].items())
        return [f"prevalence   {_percent(purity['prevalence'])} of the survey", *at]


def open_run(path: Path | str) -> Run:
    """Open a finished scan: of one target, of several, or that of one of several.

    Raises
    ------
    NotFoundError
        If there is no such folder.
    InputError
        If it is no scan, or not finished.
    """
    path = Path(path)
    if not path.is_dir():
        raise NotFoundError(f"no run at {path}; make one with: galscan scan")
    info = read_info(path)
    if info is None:
        raise InputError(f"{path} is not the folder of a scan (it has no {INFO}); make one with: galscan scan")
    if info["status"] != "done":
        raise InputError(f"the scan in {path} is not finished; run its scan command again, it goes on where it stopped")
    if not several(info) and not (path / CANDIDATES).is_file():
        raise InputError(f"{path} has lost its {CANDIDATES}; run its command again, which ranks what was scored")
    return Run(path, info)


def open_one(path: Path | str) -> Run:
    """Open a finished scan of one target, or that of one of several.

    Raises
    ------
    NotFoundError
        If there is no such folder.
    InputError
        If it is no scan, not finished, or of several targets.
    """
    run = open_run(path)
    check_one(run.path, run.info)
    return run


def is_like(info: Mapping[str, Any]) -> bool:
    """Tell whether a run is no scan for a target but the list of what is like some examples (`galscan.similar`)."""
    return "like" in info


def several(info: Mapping[str, Any]) -> bool:
    """Tell whether a scan is of several targets, each of which has a run of its own in its folder."""
    return len(info.get("targets", [])) > 1 and "tables" not in info


def lineages(info: Mapping[str, Any]) -> dict[str, str]:
    """Return, by name, whose ids the stores of a run have (`galscan.store.identity.lineage_of`)."""
    return {str(store["name"]): str(store.get("lineage") or store["name"]) for store in info["stores"]}


def astrometry(info: Mapping[str, Any]) -> float:
    """Return the coarsest astrometry (arcsec) that one of the stores of a run declares; 0 if none does."""
    return max((float(store.get("astrometry", 0)) for store in info["stores"]), default=0.0)


def check_one(path: Path, info: Mapping[str, Any]) -> None:
    """Refuse a scan of several targets where the candidates of one are wanted.

    Raises
    ------
    InputError
        Naming them.
    """
    if several(info):
        names = ", ".join(str(path / target) for target in info["targets"])
        raise InputError(f"{path} is a scan for several targets; name one of them: {names}")


def tables(path: Path, info: Mapping[str, Any]) -> Path:
    """Return the folder that holds the tables of a run: its own, or that of the scan it is of, or was searched in."""
    return Path(os.path.normpath(path / info["tables"])) if "tables" in info else path


def read_info(path: Path) -> dict[str, Any] | None:
    """Return what ``run.json`` in a folder says, or None where there is none."""
    if not (path / INFO).is_file():
        return None
    info = files.read_json(path / INFO)
    if not isinstance(info, dict) or not {"status", "fingerprint", "identity"} <= info.keys():
        raise InputError(f"{path / INFO} was not written by galscan scan; choose another --out")
    if info.get("format", FORMAT) != FORMAT:
        which = repr(info["format"])[:20]
        raise InputError(f"{path} is a scan of format {which}, not {FORMAT}; use the version that made it")
    return info


class Request(Protocol):
    """What a run folder is wanted for: a `galscan.scanning.plan.Plan`, or another that has one."""

    @property
    def out(self) -> Path: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...


@contextmanager
def claim(plan: Request) -> Iterator[dict[str, Any] | None]:
    """Hold the run folder of a plan for this process; give what its ``run.json`` says, None if it is new.

    A scan that has lost its candidates is not finished: what was scored is to be ranked again.

    Raises
    ------
    ConflictError
        If another scan is in the folder or at work in it, or something that is no scan.
    StorageError
        If the folder cannot be made.
    """
    out = plan.out
    if out.exists() and not out.is_dir():
        raise ConflictError(f"{out} is a file; choose another --out")
    if out.is_dir() and read_info(out) is None and (strange := _strange(out)):
        raise ConflictError(
            f"{out} is not empty and is not the folder of a scan (it holds {strange}); choose another --out"
        )
    with held(out):
        info = read_info(out)
        if info is not None and info["fingerprint"] != plan.fingerprint:
            what = differences(info["identity"], plan.identity)
            raise ConflictError(f"{out} holds another scan: {what}; choose another --out")
        if info is not None and info["status"] == "done":
            places = [out / target for target in info["targets"]] if several(info) else [out]
            if not all((place / CANDIDATES).is_file() for place in places):
                info = info | {"status": "running"}
        yield info


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return in words how two identities differ."""
    words = []
    for key in sorted({*old, *new}, key=lambda key: (key not in old, key)):
        was, now = old.get(key), new.get(key)
        if was == now:
            continue
        words.append(f"{key} was {_short(was)}, now {_short(now)}")
    return "; ".join(words) or "its fingerprint differs"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(" ".join(_short(v) for v in item) if isinstance(item, list) else _short(item) for item in value)
    text = str(value)
    return text[:12] if len(text) == 64 else text  # a hash is told by its beginning


def _strange(out: Path) -> str:
    """Return the name of something in a folder that a scan killed in its first moments would not leave, or ''."""
    return next((p.name for p in sorted(out.iterdir()) if not p.name.startswith(f".{INFO}.")), "")


def _percent(entry: dict[str, float | None]) -> str:
    """Return ``54 % (10-97)``; what is not known is a question mark."""
    value, low, high = (
        "?" if x is None else f"{100 * x:.0f}" if x >= 0.1 else f"{100 * x:.2g}"
        for x in (entry["value"], entry["low"], entry["high"])
    )  # fmt: skip
    return f"{value} % ({low}-{high})"
