"""``galscan export``: a run's candidates as a catalog, regions, pages of pictures or subjects; and the sky scanned."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from galscan.candidates.export import formats as exports


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    top: int | None = None,
    min_purity: float | None = None,
    known: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    crossmatch: str | Sequence[str] = (),
    radius: float | None = None,
    contact: str | None = None,
    order: int | None = None,
    morphology: bool = False,
) -> exports.Exported:
    """Write the candidates of a finished run to `out`, replacing what was there from an earlier export.

    Parameters
    ----------
    run : path
        The run's folder.
    out : path
        The file or folder to write; its suffix (.fits .vot .parquet .csv .reg .pdf .moc.fits .moc.json) says the format
        unless `format` does.
    format : {"fits", "votable", "parquet", "csv", "ds9", "pdf", "moc", "zooniverse", "hats"}, optional
    top : int, optional
        At most so many candidates, best first.
    min_purity : float, optional
        Down to the largest rank whose estimated purity is at least this. With `top`, both hold.
    known : path or sequence of paths
        Reference lists (CSV, FITS, VOTable, Parquet; decimal degrees): each candidate is told known or new, and of each
        list how much was found again.
    crossmatch : str or sequence of str
        Services to ask in the same way: ``simbad``, ``ned``, ``vizier:TABLE``, with commas between. Positions of the
        candidates are sent to them. What a service did not answer is told "not asked".
    radius : float, optional
        Within which a position is the same, in arcseconds; 3 when not given.
    contact : str, optional
        Who asks, told to services; default: what ``GALSCAN_CONTACT`` says.
    order : int, optional
        HEALPix order of a MOC; by the width of the stamps when not given.
    morphology : bool
        Write a table of all galaxies that were scanned in full, instead of the candidates: for each answer of the model
        what is expected of the volunteers, with a 90 % interval.

    Returns
    -------
    Exported
        What was written. It is a path, too: ``astropy.table.Table.read(galscan.export(run, "best.fits"))``.

    Raises
    ------
    InputError
        If the run is not finished, or an option makes no sense; nothing was written.
    """
    lists = [known] if isinstance(known, str | os.PathLike) else known
    done = exports.export_run(
        run, out, format=format, top=top, min_purity=min_purity, known=lists, crossmatch=crossmatch, radius=radius,
        contact=contact, order=order, morphology=morphology,
    )  # fmt: skip
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return done
