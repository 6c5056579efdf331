"""Coverage of a scan as a multi-order coverage map (IVOA MOC).

Each object that was scored or discarded by the prefilter covers the HEALPix cell of its position, which is no wider
than its image. Quarantined objects are not covered. To find out whether a given galaxy was scanned, use
`galscan.candidates.crossmatch.recovered`: its catalogued position may lie in a neighbouring cell.

The map takes 16 bytes per cell, four times that while the partitions are united.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from galscan.candidates import columns
from galscan.core import fits_stream
from galscan.core.errors import InputError
from galscan.core.files import atomic_path
from galscan.core.version import __version__
from galscan.scanning.run import Run
from galscan.store.layout import Store

LARGEST = 29  # order of a MOC
_CELL = math.degrees(math.sqrt(math.pi / 3)) * 3600  # arcsec, the side of a cell of order 0
_NARROW = 5  # percentile of stamp widths that sets the cell size; wider stamps are covered in part
_SHARDS = 64  # of a store, read for the width of its stamps


def moc(run: Run, out: Path, order: int | None, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Write the coverage map of a run, as JSON if `out` ends with ``.json``, else as FITS.

    Returns
    -------
    dict
        objects, without_position, order, cell_arcsec, square_degrees.

    Raises
    ------
    InputError
        If mocpy is missing, no object has a position, or the order is out of range or cannot be determined.
    """
    order = _order(run) if order is None else order
    if not 0 <= order <= LARGEST:
        raise InputError(f"--order {order}: a MOC has orders 0 to {LARGEST}")
    counts = {"objects": 0, "without_position": 0}
    maps = list(_maps(run, order, counts))
    if not maps:
        raise InputError(
            f"none of the {counts['objects']:,} scanned objects has a position, so there is no map to write; "
            "positions come from the store's catalog"
        )
    covered = maps[0].union(*maps) if len(maps) > 1 else maps[0]
    square_degrees = covered.sky_fraction * 4 * math.pi * math.degrees(1) ** 2
    summary = counts | {"order": order, "cell_arcsec": round(cell(order), 3), "square_degrees": square_degrees}
    with atomic_path(out) as temporary:
        if out.suffix.lower() == ".json":
            covered.save(temporary, format="json")
        else:
            _write_fits(temporary, covered.uniq_hpx.astype(">i8"), summary, provenance)
    return summary


def cell(order: int) -> float:
    """Return the side of a cell in arcseconds, the square root of its area."""
    return _CELL / 2**order


def _maps(run: Run, order: int, counts: dict[str, int]) -> Iterator[Any]:
    """Yield the map of each partition with positions; add its objects to `counts`."""
    try:
        from mocpy import MOC
    except ImportError:
        raise InputError("a MOC needs mocpy, which is not installed: pip install 'galscan[moc]'") from None
    from astropy import units

    for table in run.scores(["ra", "dec"], "coverage"):
        ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
        has_position = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
        counts["objects"] += len(ra)
        counts["without_position"] += int((~has_position).sum())
        if has_position.any():
            yield MOC.from_lonlat(ra[has_position] * units.deg, dec[has_position] * units.deg, max_norder=order)


def _write_fits(path: Path, uniq: np.ndarray, summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Write the map with provenance and resolution in its header.

    It has the NUNIQ coding of MOC 1, which MOC 2 allows: older versions of TOPCAT and STILTS read no other.
    """
    header = fits_stream.structure("SCANNED", {"UNIQ": "K"}, 8, len(uniq))
    header.update({
        "PIXTYPE": "HEALPIX", "ORDERING": "NUNIQ", "COORDSYS": "C", "MOCVERS": "2.0", "MOCDIM": "SPACE",
        "MOCORDER": (summary["order"], "order of the smallest cells"), "MOCORD_S": summary["order"],
        "MOCTOOL": f"galscan {__version__}",
        "CELLSIZE": (summary["cell_arcsec"], "[arcsec] side of the smallest cells"),
        "NNOPLACE": (summary["without_position"], "scanned objects without a position"),
        **columns.cards(provenance),
    })  # fmt: skip
    header["HISTORY"] = "The cell of each scanned object; quarantined objects are not covered."
    with open(path, "wb") as handle:
        columns.write_hdus(handle, header, np.array_split(uniq, len(uniq) // 100_000 + 1))


def _order(run: Run) -> int:
    """Return the coarsest order whose cells are no wider than the stamps."""
    widths = [width for store in run.stores().values() if math.isfinite(width := _stamp_width(store))]
    if not widths:
        raise InputError(
            "the width of the stamps is unknown, as their store has no pixel scales; set the order of the MOC, e.g. "
            f"--order 13 for cells of {cell(13):.0f} arcsec"
        )
    return min(max(math.ceil(math.log2(_CELL / min(widths))), 0), LARGEST)


def _stamp_width(store: Store) -> float:
    """Return the 5th percentile of a store's stamp widths in arcseconds; NaN if unknown."""
    shards = np.unique(np.linspace(0, store.n_shards - 1, _SHARDS).round().astype(int))
    scales = np.concatenate([store.column("pixel_scale", store.rows(int(shard))) for shard in shards])
    known = scales[np.isfinite(scales) & (scales > 0)]
    return float(np.percentile(known, _NARROW)) * store.size if len(known) else math.nan
