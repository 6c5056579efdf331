"""The sky that was scanned, as a multi-order coverage map (IVOA MOC): where no candidate is, and one would have been.

Every object that was scored, or discarded by the first look, is one HEALPix cell: that of its position, no wider than
its picture. What was quarantined is not covered. Whether one certain galaxy was scanned is better asked with
`galscan.candidates.crossmatch.recovered`: its position may lie in the next cell.

Cells are held as integers, 8 bytes each (four times that while they are merged), and the file is written from them:
mocpy would take a hundred. Four cells that fill a larger one become that one, as the standard asks.
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
_NARROW = 5  # percentile: a stamp as narrow as this decides; wider ones are covered in part
_SHARDS = 64  # of a store, looked at for the width of its stamps
_PENDING = 4_000_000  # cells that wait at least before they are merged
_LINE = 100_000  # cells written at a time


def moc(
    run: Path, out: Path, info: Mapping[str, Any], order: int | None, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the map of everything that run `run` scanned; JSON where `out` ends so, else FITS.

    Returns
    -------
    dict
        objects, without_position, order, cell_arcsec, square_degrees.

    Raises
    ------
    InputError
        If mocpy is missing, no object has a position, or the order is out of range or not known.
    """
    order = _order(info) if order is None else order
    if not 0 <= order <= LARGEST:
        raise InputError(f"--order {order}: a MOC has orders 0 to {LARGEST}")
    counts = {"objects": 0, "without_position": 0}
    cells = _merged(_cells(run, info, order, counts))
    if not len(cells):
        raise InputError(
            f"none of the {counts['objects']:,} objects that were scanned has a position: there is no map to write"
        )
    told = counts | {
        "order": order, "cell_arcsec": round(cell(order), 3), "square_degrees": len(cells) * (cell(order) / 3600) ** 2,
    }  # fmt: skip
    orders = _hierarchy(cells, order)
    del cells
    with atomic_path(out) as temporary:
        if out.suffix.lower() == ".json":
            with open(temporary, "w", encoding="ascii") as text:
                _write_json(text, orders)
        else:
            _write_fits(temporary, orders, told, provenance)
    return told


def cell(order: int) -> float:
    """Return the side of a cell in arcseconds: the root of its area."""
    return _CELL / 2**order


def _cells(run: Path, info: Mapping[str, Any], order: int, counts: dict[str, int]) -> Iterator[np.ndarray]:
    """Yield the cells of each part, sorted, none twice; count objects."""
    try:
        from mocpy import MOC
    except ImportError:
        raise InputError("a MOC needs mocpy, which is not installed: pip install 'galscan[moc]'") from None
    from astropy import units

    for _, part in scan_tables.parts(run, info, ["ra", "dec"], "coverage"):
        ra, dec = part["ra"].to_numpy(), part["dec"].to_numpy()
        placed = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
        counts["objects"] += len(ra)
        counts["without_position"] += int((~placed).sum())
        if placed.any():
            yield MOC.from_lonlat(ra[placed] * units.deg, dec[placed] * units.deg, max_norder=order).flatten()


def _merged(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Return the union of sorted cells; merging waits until as many are new as are there, so that it is seldom done."""
    whole, pending, count = np.empty(0, np.uint64), list[np.ndarray](), 0

    def union() -> np.ndarray:
        every = np.concatenate([whole, *pending])
        every.sort()
        return every[np.append(True, every[1:] != every[:-1])] if len(every) else every

    for part in parts:
        pending.append(part)
        count += len(part)
        if count > max(_PENDING, len(whole)):
            whole, pending, count = union(), [], 0
    return union()


def _hierarchy(cells: np.ndarray, order: int) -> dict[int, np.ndarray]:
    """Return the cells of each order, the largest that fill the map."""
    found: dict[int, np.ndarray] = {}
    while order and len(cells):
        # Sorted and distinct: a first of four siblings is followed by the others if the third after it is the last.
        first = np.flatnonzero(cells[:-3] % 4 == 0) if len(cells) > 3 else np.empty(0, int)
        first = first[cells[first + 3] == cells[first] + np.uint64(3)]
        alone = np.ones(len(cells), bool)
        for k in range(4):
            alone[first + k] = False
        found[order], cells = cells[alone], cells[first] // 4
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


def _write_fits(path: Path, orders: Mapping[int, np.ndarray], told: Mapping[str, Any], provenance: Any) -> None:
    """Write the map, and into its header what was scanned and how finely.

    In the coding of version 1 (NUNIQ), which version 2 allows: TOPCAT and STILTS of some years ago read no other.
    """
    header = fits_stream.structure("SCANNED", {"UNIQ": "K"}, 8, sum(map(len, orders.values())))
    for keyword, value in {
        "PIXTYPE": "HEALPIX", "ORDERING": "NUNIQ", "COORDSYS": "C", "MOCVERS": "2.0", "MOCDIM": "SPACE",
        "MOCORDER": (told["order"], "order of the smallest cells"), "MOCORD_S": told["order"],
        "MOCTOOL": f"galscan {__version__}",
        "CELLSIZE": (told["cell_arcsec"], "[arcsec] side of the smallest cells"),
        "NNOPLACE": (told["without_position"], "scanned objects without a position"),
    }.items():  # fmt: skip
        header[keyword] = value
    for keyword, value in columns.cards(provenance).items():
        header[keyword] = value
    header["HISTORY"] = "The cell of each object that was scanned; what was quarantined is not covered."
    with open(path, "wb") as handle:
        columns.write_hdus(handle, header, _uniq(orders))


def _uniq(orders: Mapping[int, np.ndarray]) -> Iterator[np.ndarray]:
    for order, cells in orders.items():
        for start in range(0, len(cells), _LINE):
            yield (cells[start : start + _LINE] + np.uint64(4 * 4**order)).astype(">i8")


def _order(info: Mapping[str, Any]) -> int:
    """Return the coarsest order whose cells are no wider than the stamps."""
    widths = [width for store in scan_tables.open_stores(info).values() if math.isfinite(width := _stamp(store))]
    if not widths:
        raise InputError(
            "how wide the stamps are is not known (their store has no pixel scales); choose the order of the MOC, e.g. "
            f"--order 13 for cells of {cell(13):.0f} arcsec"
        )
    return min(max(math.ceil(math.log2(_CELL / min(widths))), 0), LARGEST)


def _stamp(store: Store) -> float:
    """Return the width in arcseconds that nearly all stamps of a store have at least; NaN if it is not known."""
    some = np.unique(np.linspace(0, store.n_shards - 1, _SHARDS).round().astype(int))
    scales = np.concatenate([store.column("pixel_scale", store.rows(int(shard))) for shard in some])
    known = scales[np.isfinite(scales) & (scales > 0)]
    return float(np.percentile(known, _NARROW)) * store.size if len(known) else math.nan
