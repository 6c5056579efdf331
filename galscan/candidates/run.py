"""The run that users get, with its table; selection of candidates by rank or purity, and provenance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from galscan.candidates import columns, display
from galscan.candidates.table_stream import TableStream, from_parquet
from galscan.core.display.figures import given_or_new
from galscan.core.errors import InputError
from galscan.scanning import run as scanning
from galscan.scanning.run_info import RunInfo

if TYPE_CHECKING:
    from astropy.table import QTable
    from matplotlib.axes import Axes


class Run(scanning.Run):
    """A finished scan, as `galscan.scan`, `galscan.similar` and `galscan.open` return it.

    Attributes
    ----------
    path : Path
        Its folder.
    info : RunInfo
        Content of ``run.json``: plan, counts, rates, purity.
    """

    def table(self, target: str | None = None, *, top: int | None = None) -> QTable:
        """Return the ranked candidates with units, descriptions and UCDs; after ``galscan purity``, with the grades.

        The columns and the metadata are those of the FITS file that ``galscan export`` writes.

        Parameters
        ----------
        target : str, optional
            Name of the target, of a scan for several.
        top : int, optional
            Number of candidates, best first; all by default.

        Returns
        -------
        QTable
            ``ra`` and ``dec`` in deg (ICRS). The UCD of a column is ``table[name].info.meta["ucd"]``; ``table.meta``
            has the keywords of the FITS header.

        Raises
        ------
        InputError
            If the scan has several targets and none is given, was not for this one, or `top` is less than 1.
        """
        run = self._single(target)
        rows = select(from_parquet(run.table_file), top=top, option="top=")
        return columns.as_qtable(rows, provenance(run.info, run.purity), run.info.answers)

    def plot_purity(self, ax: Axes | None = None, target: str | None = None) -> Axes:
        """Draw purity against rank with its interval; after ``galscan purity``, with the grades and without.

        Where purity is unknown, the axes show the reason.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw in; those of a new figure by default.
        target : str, optional
            Name of the target, of a scan for several.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If the scan has several targets and none is given, or was not for this one.
        """
        run = self._single(target)
        axes = given_or_new(ax)
        display.plot_purity(axes, run)
        return axes

    def _repr_html_(self) -> str:
        return display.run_card(self)

    def _single(self, target: str | None) -> Self:
        """Return the run of one target."""
        if self.info.status != "done":
            raise InputError(f"{self.path} is the plan of a scan (status {self.info.status}); run the scan first")
        return self.require_single_target() if target is None else self.of(target)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a finished scan of one or several targets, or the subfolder of one target.

    Raises
    ------
    NotFoundError
        If there is no such folder.
    InputError
        If the folder is not that of a scan, or the scan is not finished.
    """
    return Run.open(os.fspath(path))


def open_candidates(run: str | os.PathLike[str]) -> tuple[TableStream, Run]:
    """Return the candidates of a finished run of one target (after ``galscan purity``, with the grades), and the run.

    Raises
    ------
    NotFoundError
        If there is no run.
    InputError
        If it is not finished, or has several targets.
    """
    opened = open_run(run).require_single_target()
    return from_parquet(opened.table_file), opened


def select(
    rows: TableStream, *, top: int | None = None, min_purity: float | None = None, option: str = "--top "
) -> TableStream:
    """Return the candidates down to rank `top` and to the largest rank with purity >= `min_purity`.

    `option` is what the error calls `top`.

    Raises
    ------
    InputError
        If an option is out of range.
    """
    keep = rows.count
    if top is not None:
        if top < 1:
            raise InputError(f"{option}{top}: at least 1 candidate is needed")
        keep = min(keep, top)
    if min_purity is not None:
        if not 0 <= min_purity <= 1:  # also refuses NaN
            raise InputError(f"--min-purity {min_purity}: purity is a fraction; use 0 to 1")
        pure = start = 0
        for piece in rows.select(["purity"]):
            found = np.flatnonzero(piece["purity"].to_numpy() >= min_purity)
            pure = start + int(found[-1]) + 1 if len(found) else pure
            start += len(piece)
        keep = min(keep, pure)
    return rows.head(keep)


def max_purity(rows: TableStream) -> float:
    """Return the largest purity of any rank; 0 if there is none."""
    return max((float(np.nanmax(piece["purity"].to_numpy())) for piece in rows.select(["purity"])), default=0.0)


def _kind(purity: Mapping[str, Any]) -> str | None:
    """Return how purity was measured; None if the ranking is not by a calibrated score."""
    if purity.get("confidence") is None:
        return None
    return "unknown" if purity.get("unknown") else "graded" if purity.get("graded") else "estimated"


def provenance(info: RunInfo, purity: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the values for a catalogue's header (keys of `columns.write_fits`); `purity` replaces that of the scan."""
    purity = info.purity if purity is None else purity
    prevalence = purity.get("prevalence") or {}
    return {
        "target": info.target,
        "stores": [store.name for store in info.stores] or None,
        "model": info.identity.get("model"),
        "recipe": info.identity.get("recipe"),
        "fingerprint": info.fingerprint,
        "version": info.identity.get("version"),
        "precision": info.precision,
        "seed": info.seed,
        "scanned": info.scanned,
        "quarantined": info.quarantined,
        "candidates": info.candidates,
        "prevalence": prevalence.get("value"),
        "prevalence_lo": prevalence.get("low"),
        "prevalence_hi": prevalence.get("high"),
        "confidence": purity.get("confidence"),
        "purity": _kind(purity),
        "ranked_by": "similarity to examples" if info.like else "score",
        "notes": list(purity.get("notes", [])),
    }
