"""``galscan export`` and ``send``: candidates as a file, or in the tools that are open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from galscan.cli.options import Contact, Json, RunFolder, command, option


@command("export", "run/ --min-purity 0.5 --known kaviraj2012.csv --out candidates.fits")
def export(
    run: RunFolder,
    out: Annotated[Path, option("File to write: .fits .vot .parquet .csv .reg .pdf .moc.fits .moc.json.")],
    format: Annotated[
        str | None,
        option("fits, votable, parquet, csv, ds9, pdf, moc; folders: zooniverse, hats. Default: by the name of --out."),
    ] = None,
    top: Annotated[int | None, option("Only the top K.", min=1)] = None,
    min_purity: Annotated[float | None, option("Only down to this purity.", min=0, max=1)] = None,
    known: Annotated[
        list[Path] | None, option("Table of known objects (name, ra, dec in degrees); repeatable.")
    ] = None,
    table: Annotated[str | None, option("Of known objects: name or number of the table in its file.")] = None,
    position_unit: Annotated[str | None, option("Unit of their positions: hour,deg or rad; default: degrees.")] = None,
    crossmatch: Annotated[str | None, option("simbad,ned,vizier:TABLE: services to query with the positions.")] = None,
    radius: Annotated[float | None, option("Match radius in arcseconds; default: 3.")] = None,
    contact: Contact = None,
    order: Annotated[int | None, option("HEALPix order of a MOC; default: by the width of the cutouts.")] = None,
    morphology: Annotated[bool, option("Write the morphology of every galaxy instead.", "--morphology")] = False,
    as_json: Json = False,
) -> None:
    """Export candidates or the sky coverage. Tables, catalogs, regions, cutouts or a MOC."""


@command("send", "run/ --top 100")
def send(
    run: RunFolder,
    target: Annotated[str | None, option("The target, for a scan of several.")] = None,
    top: Annotated[int | None, option("Only the top K.", min=1)] = None,
    min_purity: Annotated[float | None, option("Only down to this purity.", min=0, max=1)] = None,
    client: Annotated[str | None, option("Only to the tool of this name, e.g. topcat; default: all.")] = None,
    ds9: Annotated[bool, option("Send regions to ds9 instead of a table.", "--ds9")] = False,
    out: Annotated[Path | None, option("File to write and send: .vot, .fits, or .reg; default: in the run.")] = None,
    as_json: Json = False,
) -> None:
    """Show candidates in TOPCAT, Aladin or ds9. Those that are open get them by SAMP."""
