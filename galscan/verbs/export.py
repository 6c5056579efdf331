"""``galscan export``: a run's candidates as FITS, VOTable, Parquet, CSV or a DS9 region file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from galscan.candidates import export as exports


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    top: int | None = None,
    min_purity: float | None = None,
) -> Path:
    """Write the candidates of a finished run to `out`, replacing a file that was there.

    Parameters
    ----------
    run : path
        The run's folder.
    out : path
        The file to write; its suffix (.fits .vot .parquet .csv .reg) says the format unless `format` does.
    format : {"fits", "votable", "parquet", "csv", "ds9"}, optional
    top : int, optional
        At most so many candidates, best first.
    min_purity : float, optional
        Down to the largest rank whose estimated purity is at least this. With `top`, both hold.

    Raises
    ------
    InputError
        If the run is not finished, or an option makes no sense; nothing was written.
    """
    replaced = Path(out).is_file()
    path = exports.export_run(run, out, format=format, top=top, min_purity=min_purity)
    frame, _ = exports.read_run(run)
    chosen = exports.select(frame, top=top, min_purity=min_purity)
    said = f"{len(chosen):,} of {len(frame):,} candidates written to {path}"
    if replaced:
        said += " (the old file was replaced)"
    if (format or exports.SUFFIXES.get(path.suffix.lower())) == "ds9" and (
        missing := exports.without_coordinates(chosen)
    ):
        said += f"; {missing:,} of them have no coordinates and are left out of the region file"
    if not len(chosen) and min_purity is not None:
        best = float(frame["purity"].max()) if len(frame) else 0.0
        said += f"; none reaches purity {min_purity:g} (the purest rank has {best:.2f})"
    print(said, file=sys.stderr, flush=True)
    return path
