"""Coverage of a scan as a multi-order coverage map (IVOA MOC).

Each object that was scored or discarded by the prefilter covers the HEALPix cell of its position, which is no wider
than its image. Quarantined objects are not covered. To find out whether a given galaxy was scanned, use
`galscan.candidates.crossmatch.recovered`: its catalogued position may lie in a neighbouring cell.

Cells are held as integers of 8 bytes (four times that while they are merged), and the file is written from these; mocpy
would take 100 bytes each. As the standard requires, four cells that fill a larger one are replaced by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from galscan.candidates import columns, scan_tables
from galscan.core import fits_stream
from galscan.core.errors import InputError
from galscan.core.files import atomic_path
from galscan.core.version import __version__
from galscan.store.layout import Store

LARGEST = 29  # order of a MOC
_CELL = math.degrees(math.sqrt(math.pi / 3)) * 3600  # arcsec, the side of a cell of order 0
_NARROW = 5  # percentile of stamp widths that sets the cell size; wider stamps are covered in part
_SHARDS = 64  # of a store, read for the width of its stamps
_PENDING = 4_000_000  # minimum number of new cells before a merge
_LINE = 100_000  # cells written at a time


def moc(
    run: Path, out: Path, info: Mapping[str, Any], order: int | None, provenance: Mapping[str, Any]
) -> dict[str, Any]:
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
    order = _order(info) if order is None else order
    if not 0 <= order <= LARGEST:
        raise InputError(f"--order {order}: a MOC has orders 0 to {LARGEST}")
    counts = {"objects": 0, "without_position": 0}
    cells = _merged(_cells(run, info, order, counts))
    if not len(cells):
        raise InputError(
            f"none of the {counts['objects']:,} scanned objects has a position, so there is no map to write; "
            "positions come from the store's catalog"
        )
    summary = counts | {
        "order": order, "cell_arcsec": round(cell(order), 3), "square_degrees": len(cells) * (cell(order) / 3600) ** 2,
    }  # fmt: skip
    orders = _hierarchy(cells, order)
    del cells
    with atomic_path(out) as temporary:
        if out.suffix.lower() == ".json":
            with open(temporary, "w", encoding="ascii") as text:
                _write_json(text, orders)
        else:
            _write_fits(temporary, orders, summary, provenance)
    return summary


def cell(order: int) -> float:
    """Return the side of a cell in arcseconds, the square root of its area."""
    return _CELL / 2**order


def _cells(run: Path, info: Mapping[str, Any], order: int, counts: dict[str, int]) -> Iterator[np.ndarray]:
    """Yield the distinct cells of each partition, sorted; add its objects to `counts`."""
    try:
        from mocpy import MOC
    except ImportError:
        raise InputError("a MOC needs mocpy, which is not installed: pip install 'galscan[moc]'") from None
    from astropy import units

    for _, table in scan_tables.iter_partitions(run, info, ["ra", "dec"], "coverage"):
        ra, dec = table["ra"].to_numpy(), table["dec"].to_numpy()
        has_position = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
        counts["objects"] += len(ra)
        counts["without_position"] += int((~has_position).sum())
        if has_position.any():
            yield MOC.from_lonlat(
                ra[has_position] * units.deg, dec[has_position] * units.deg, max_norder=order
            ).flatten()


def _merged(partitions: Iterable[np.ndarray]) -> np.ndarray:
    """Return the union of the cells, sorted; new cells are merged when they outnumber the merged ones."""
    merged, pending, count = np.empty(0, np.uint64), list[np.ndarray](), 0

    def union() -> np.ndarray:
        cells = np.concatenate([merged, *pending])
        cells.sort()
        return cells[np.append(True, cells[1:] != cells[:-1])] if len(cells) else cells

    for cells in partitions:
        pending.append(cells)
        count += len(cells)
        if count > max(_PENDING, len(merged)):
            merged, pending, count = union(), [], 0
    return union()


def _hierarchy(cells: np.ndarray, order: int) -> dict[int, np.ndarray]:
    """Return the cells by order; four siblings are replaced by their parent."""
    found: dict[int, np.ndarray] = {}
    while order and len(cells):
        # Cells are sorted and distinct: the four siblings are there if the third cell after the first is the last one.
        first = np.flatnonzero(cells[:-3] % 4 == 0) if len(cells) > 3 else np.empty(0, int)
        first = first[cells[first + 3] == cells[first] + np.uint64(3)]
        incomplete = np.ones(len(cells), bool)
        for k in range(4):
            incomplete[first + k] = False
        found[order], cells = cells[incomplete], cells[first] // 4
        order -= 1
    found[order] = cells
    return {order: found[order] for order in sorted(found) if len(found[order])}


def _write_json(text: TextIO, orders: Mapping[int, np.ndarray]) -> None:
    text.write("{")
    for n, (order, cells) in enumerate(orders.items()):
        text.write(f'{"," if n else ""}\n"{order}":[')
        for start in range(0, len(cells), _LINE):
            text.write(("," if start else "") + ",".join(map(str, cells[start : start + _LINE].tolist())))
        text.write("]")
    text.write("\n}\n")


def _write_fits(path: Path, orders: Mapping[int, np.ndarray], summary: Mapping[str, Any], provenance: Any) -> None:
    """Write the map with provenance and resolution in its header.

    It has the NUNIQ coding of MOC 1, which MOC 2 allows: older versions of TOPCAT and STILTS read no other.
    """
    header = fits_stream.structure("SCANNED", {"UNIQ": "K"}, 8, sum(map(len, orders.values())))
    for keyword, value in {
        "PIXTYPE": "HEALPIX", "ORDERING": "NUNIQ", "COORDSYS": "C", "MOCVERS": "2.0", "MOCDIM": "SPACE",
        "MOCORDER": (summary["order"], "order of the smallest cells"), "MOCORD_S": summary["order"],
        "MOCTOOL": f"galscan {__version__}",
        "CELLSIZE": (summary["cell_arcsec"], "[arcsec] side of the smallest cells"),
        "NNOPLACE": (summary["without_position"], "scanned objects without a position"),
    }.items():  # fmt: skip
        header[keyword] = value
    for keyword, value in columns.cards(provenance).items():
        header[keyword] = value
    header["HISTORY"] = "The cell of each scanned object; quarantined objects are not covered."
    with open(path, "wb") as handle:
        columns.write_hdus(handle, header, _uniq(orders))


def _uniq(orders: Mapping[int, np.ndarray]) -> Iterator[np.ndarray]:
    for order, cells in orders.items():
        for start in range(0, len(cells), _LINE):
            yield (cells[start : start + _LINE] + np.uint64(4 * 4**order)).astype(">i8")


def _order(info: Mapping[str, Any]) -> int:
    """Return the coarsest order whose cells are no wider than the stamps."""
    widths = [width for store in scan_tables.open_stores(info).values() if math.isfinite(width := _stamp_width(store))]
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
