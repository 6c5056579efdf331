"""A run: the folder of a scan, opened, checked and read in one way.

    run.json                 plan, identity, counts, rates, purity
    candidates.parquet  candidates.fits        ranked candidates
    contact.png  report.html                   contact sheet, page
    map.html                 map of the embeddings (galscan map)
    scores/part-<k>.parquet                    scores of each partition
    quarantine/part-<k>.parquet                objects without a score, with the reason
    embeddings/part-<k>.parquet                features of each object (--embeddings)
    ledger.jsonl             outcome of each partition, in order of time
    network.xml  prefilter.xml                 networks converted to OpenVINO (with .bin)
    grades.sqlite  vetting/                    grade book, images of the grading page (galscan vet)
    purity.json  candidates-graded.<suffix>    purity and candidates with the grades (galscan purity)
    <target>/                                  the run of each target, where there are several

Opening a run reads its ``run.json`` only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from galscan.core import files, progress
from galscan.core.errors import GalscanError, InputError, NotFoundError
from galscan.models.model import open_model
from galscan.scanning.partitions import FATAL, SILENT, quarantine_path, read_table, scores_path
from galscan.scanning.run_info import CANDIDATES, INFO, RunInfo, read_info
from galscan.stats.histogram import ScoreHistogram
from galscan.store.layout import Store, open_store

if TYPE_CHECKING:
    import pandas as pd

    from galscan.models.model import Model

GRADED, GRADED_PURITY = "candidates-graded", "purity.json"
OUTPUTS = {"FITS": "candidates.fits", "pictures": "contact.png", "report": "report.html"}


@dataclass(frozen=True)
class Run:
    """A scan on disk, or its plan.

    Attributes
    ----------
    path : Path
        Its folder.
    info : RunInfo
        Content of ``run.json``: plan, counts, rates, purity.
    """

    path: Path
    info: RunInfo

    @classmethod
    def open(cls, path: Path | str) -> Self:
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
        if info.status != "done":
            raise InputError(f"the scan in {path} is not finished; run its scan command again to resume it")
        if not info.is_multi_target and not (path / CANDIDATES).is_file():
            raise InputError(f"{path} has lost its {CANDIDATES}; run its command again to rank the scored objects")
        return cls(path, info)

    def __repr__(self) -> str:
        info = self.info
        head = f"Run {'+'.join(self.own_targets)}"
        if info.status != "done":
            return f"<{head}: {info.status}, {info.objects:,} objects, in {self.path}>"
        counts = f"{info.scanned:,} scored"
        counts = counts if info.is_multi_target else f"{info.candidates:,} candidates of {counts}"
        return f"<{head}: {counts}, {info.quarantined:,} quarantined, in {self.path}>"

    @property
    def targets(self) -> list[str]:
        """Names of the targets of the scan; for one of several, of all."""
        return self.info.targets or [self.info.target]

    @property
    def own_targets(self) -> list[str]:
        """Names of the targets whose candidates are in this folder or its subfolders."""
        return self.targets if self.info.tables is None else [self.info.target]

    def of(self, target: str) -> Self:
        """Return the run of one of the targets.

        Raises
        ------
        InputError
            If the scan was not for this target.
        """
        if target not in self.own_targets:
            raise InputError(f"{self.path} is a scan for {', '.join(self.own_targets)}, not for '{target}'")
        return type(self).open(self.path / target) if self.info.is_multi_target else self

    def require_single_target(self) -> Self:
        """Return this run.

        Raises
        ------
        InputError
            If it has several targets, with the folder of each.
        """
        if self.info.is_multi_target:
            names = ", ".join(str(self.path / target) for target in self.targets)
            raise InputError(f"{self.path} is a scan for several targets; name one of them: {names}")
        return self

    @property
    def candidates(self) -> pd.DataFrame:
        """Ranked candidates, best first; with several targets use ``run.of(target).candidates``."""
        import pandas as pd

        return pd.read_parquet(self.require_single_target().path / CANDIDATES)

    @property
    def table_file(self) -> Path:
        """File of the candidates; after ``galscan purity``, the one with grades."""
        graded = self.path / f"{GRADED}.parquet"
        return graded if graded.is_file() else self.path / CANDIDATES

    @property
    def purity(self) -> dict[str, Any]:
        """Summary of purity; after ``galscan purity``, with the grades."""
        if self.table_file.stem == GRADED:
            return dict(files.read_json(self.path / GRADED_PURITY)["after"])
        return self.info.purity

    @property
    def histogram(self) -> ScoreHistogram:
        """Histogram of the scores of all objects scored in full.

        Raises
        ------
        InputError
            If it is damaged, or was not recorded.
        """
        if "histogram" not in self.info.model_fields_set:
            raise InputError(
                f"{self.path} was scanned by a version that kept no histogram of its scores; scan it again"
            )
        return ScoreHistogram.from_list(self.info.histogram)

    @property
    def histogram_discarded(self) -> ScoreHistogram:
        """Histogram of the scores of the objects that the prefilter discarded, estimated from the rescored ones."""
        return ScoreHistogram.from_list(self.info.histogram_discarded)

    def model(self) -> Model:
        """Open the model, checked to be that of the scan.

        Raises
        ------
        InputError
            If it is missing or has changed.
        """
        return open_model(self.info.models[0], self.info.model_hashes[0])

    def model_if_unchanged(self) -> Model | None:
        """Open the model; None if it is missing or has changed."""
        try:
            return self.model()
        except (GalscanError, OSError):
            return None

    def stores(self) -> dict[str, Store]:
        """Open the stores, by name, checked to be those of the scan.

        Raises
        ------
        InputError
            If one is missing or has changed.
        """
        return {ref.name: open_store(ref.path, ref.content_hash) for ref in self.info.stores}

    def stores_if_unchanged(self) -> dict[str, Store]:
        """Open the stores, by name, without those that are missing or have changed."""
        stores = {}
        for ref in self.info.stores:
            try:
                stores[ref.name] = open_store(ref.path, ref.content_hash)
            except (GalscanError, OSError):
                continue
        return stores

    @property
    def tables(self) -> Path:
        """Folder of the score and quarantine tables: the run's own, or that of the scan it belongs to or searched."""
        return Path(os.path.normpath(self.path / self.info.tables)) if self.info.tables else self.path

    def partition(self, number: int, columns: Sequence[str], *, path: Path | None = None) -> pa.Table:
        """Read columns of the scores of a partition, or of another of its tables.

        Raises
        ------
        InputError
            If it is missing, damaged, or of another scan.
        """
        path = scores_path(self.tables, number) if path is None else path
        return read_table(path, self.info.scan or self.info.fingerprint, columns)

    def scores(self, columns: Sequence[str], label: str = "scores") -> Iterator[pa.Table]:
        """Yield columns of the scores of each partition, with a progress bar.

        Raises
        ------
        InputError
            If a partition is missing, damaged, or of another scan.
        """
        return self._partitions(scores_path, columns, label)

    def quarantined(self, columns: Sequence[str], label: str = "quarantine") -> Iterator[pa.Table]:
        """Yield columns of the quarantined objects of each partition, as `scores`."""
        return self._partitions(quarantine_path, columns, label)

    def _partitions(
        self, path_of: Callable[[Path, int], Path], columns: Sequence[str], label: str
    ) -> Iterator[pa.Table]:
        with progress.track(label, self.info.parts, "partitions") as advance:
            for number in range(self.info.parts):
                yield self.partition(number, columns, path=path_of(self.tables, number))
                advance()

    @property
    def unscored(self) -> dict[str, int]:
        """Numbers of objects in partitions that killed their workers or never ended, by reason."""
        return {why: count for why, count in self.info.quarantine_reasons.items() if why in (FATAL, SILENT)}

    def summary(self) -> dict[str, Any]:
        """Return the outcome as JSON-able values; ``text`` holds a few lines for people."""
        hidden = ("run", "identity", "histogram", "histogram_discarded", "completeness_limits")
        summary = {"run": str(self.path), "unscored": self.unscored}
        summary |= {k: v for k, v in self.info.to_dict().items() if k not in hidden}
        if self.info.status != "done":
            return summary
        if not self.info.is_multi_target:
            return summary | {"text": self._text()}
        runs = {target: self.of(target).summary() for target in self.targets}
        return summary | {"runs": runs, "text": "\n\n".join(run["text"] for run in runs.values())}

    def _text(self) -> str:
        """Return the outcome of a finished scan for people."""
        info = self.info
        notes = [f"note         {note}" for note in info.purity["notes"]]
        outputs = [f"{name:<12} {self.path / file}" for name, file in OUTPUTS.items()]
        if info.like is not None:
            head = (
                f"{info.candidates:,} of {info.scanned:,} galaxies, ranked by similarity to {len(info.like)} examples"
                if info.like
                else f"{info.candidates:,} chosen galaxies"
            )
            written = [
                line for line, file in zip(outputs, OUTPUTS.values(), strict=True) if (self.path / file).is_file()
            ]
            return "\n".join([head, *notes, *written, f"next         galscan vet {self.path}"])
        rate = f" at {info.images_per_s:,.0f}/s" if info.images_per_s else ""
        head = f"{info.candidates:,} candidates for '{info.target}' ranked among {info.scanned:,} galaxies{rate}"
        quarantined = (f"; {count:,} quarantined: {why}" for why, count in info.quarantine_reasons.items())
        warnings = [
            f"warning      {count:,} objects were not scored: {why}; see {self.path / 'quarantine'}"
            for why, count in self.unscored.items()
        ]
        return "\n".join([head + "".join(quarantined), *self._estimates(), *warnings, *notes, *outputs])

    def _estimates(self) -> list[str]:
        """Return lines with prevalence and purity, or why they are unknown and how to measure them."""
        purity = self.info.purity
        if why := purity.get("unknown"):
            return [f"purity       unknown: {why}", f"next         grade a sample: galscan vet {self.path}"]
        at = (f"purity       {_percent(entry)} in the top {rank}" for rank, entry in purity["at"].items())
        return [f"prevalence   {_percent(purity['prevalence'])} of the survey", *at]


def open_run(path: Path | str) -> Run:
    """Open a finished scan of one or several targets, or the subfolder of one target; see `Run.open`."""
    return Run.open(path)


def _percent(entry: dict[str, float | None]) -> str:
    """Return e.g. ``54 % (10-97)``, with a question mark for unknown values."""
    value, low, high = (
        "?" if x is None else f"{100 * x:.0f}" if x >= 0.1 else f"{100 * x:.2g}"
        for x in (entry["value"], entry["low"], entry["high"])
    )  # fmt: skip
    return f"{value} % ({low}-{high})"
