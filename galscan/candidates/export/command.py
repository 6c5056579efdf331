"""``galscan export``: candidates as catalog, regions, image pages or Zooniverse subjects; coverage; morphology."""

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
    """Write the candidates of a finished run to `out`, replacing an earlier export.

    Parameters
    ----------
    run : path
        The run's folder.
    out : path
        The file or folder to write; without `format`, its suffix (.fits .vot .parquet .csv .reg .pdf .moc.fits
        .moc.json) selects the format.
    format : {"fits", "votable", "parquet", "csv", "ds9", "pdf", "moc", "zooniverse", "hats"}, optional
    top : int, optional
        Maximum number of candidates, best first.
    min_purity : float, optional
        Down to the largest rank whose estimated purity is at least this. With `top`, both hold.
    known : path or sequence of paths
        Reference lists (CSV, FITS, VOTable, Parquet; decimal degrees): each candidate is marked known or new, and the
        recovered fraction of each list is reported.
    crossmatch : str or sequence of str
        Services to match in the same way: ``simbad``, ``ned``, ``vizier:TABLE``, separated by commas. Positions of the
        candidates are sent to them. Candidates without a response are marked "not asked".
    radius : float, optional
        Match radius in arcseconds; 3 by default.
    contact : str, optional
        Contact e-mail, sent in the User-Agent; by default the value of ``GALSCAN_CONTACT``.
    order : int, optional
        HEALPix order of a MOC; by default from the width of the stamps.
    morphology : bool
        Write a table of all fully scored galaxies instead of the candidates: for each answer of the model the expected
        vote fraction, with a 90 % interval.

    Returns
    -------
    Exported
        Summary of the export; also usable as a path: ``astropy.table.Table.read(galscan.export(run, "best.fits"))``.

    Raises
    ------
    InputError
        If the run is not finished, or an option is invalid; nothing is written.
    """
    lists = [known] if isinstance(known, str | os.PathLike) else known
    done = exports.export_run(
        run, out, format=format, top=top, min_purity=min_purity, known=lists, crossmatch=crossmatch, radius=radius,
        contact=contact, order=order, morphology=morphology,
    )  # fmt: skip
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return done
