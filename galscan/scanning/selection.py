"""Selection of the objects to scan, by a region of the sky or a condition on their columns."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from galscan.core.errors import InputError, NotFoundError, first_line
from galscan.core.sky import check_cone, in_cone
from galscan.labels.rules import parse_rule
from galscan.store.layout import Store

COLUMNS = ("ra", "dec", "pixel_scale", "flags")


@dataclass(frozen=True)
class Selection:
    """A choice of objects; an empty one is all of them.

    Attributes
    ----------
    where : str
        A rule over the store's columns and labels, by their names, as in a recipe. Objects with an unknown value are
        not selected.
    cone : tuple of float, optional
        Right ascension and declination of the centre, and the radius, in degrees.
    moc : str
        A multi-order coverage map (IVOA MOC 2.0) in its ASCII form.
    """

    where: str = ""
    cone: tuple[float, float, float] | None = None
    moc: str = ""

    def __bool__(self) -> bool:
        return self != Selection()

    def check(self, store: Store) -> None:
        """Check that `store` has the columns and positions that the selection needs.

        Raises
        ------
        InputError
            If a column is missing, with the nearest name that exists; or if no object has a position.
        """
        if self.where:
            try:
                parse_rule(self.where, _columns(store))
            except InputError as error:
                raise InputError(f"--where, {store.path}: {error}") from None
        if (self.cone is not None or self.moc) and not any(
            np.isfinite(store.column("ra", store.rows(shard))).any() for shard in range(store.n_shards)
        ):
            raise InputError(f"{store.path} has no positions to select by; omit --cone and --moc")

    def mask(self, store: Store, rows: slice) -> np.ndarray:
        """Return which of the rows are selected, bool of shape (n,); no pixels are read."""
        selected = np.ones(rows.stop - rows.start, bool)
        if self.where:
            columns = _columns(store)
            rule = parse_rule(self.where, columns)
            selected &= rule.evaluate({name: store.column(columns[name], rows) for name in rule.names})[0]
        if self.cone is not None or self.moc:
            ra, dec = store.column("ra", rows), store.column("dec", rows)
            if self.cone is not None:
                selected &= in_cone(ra, dec, self.cone)
            if self.moc:
                selected &= _in_moc(self.moc, ra, dec)
        return selected

    def described(self) -> dict[str, Any]:
        """Return the attributes, JSON-able."""
        return {"where": self.where, "cone": list(self.cone) if self.cone else None, "moc": self.moc}

    def text(self) -> str:
        """Return a description of the selection."""
        conditions = [f"where {self.where}"] if self.where else []
        if self.cone is not None:
            conditions.append("within {2:g} deg of {0:g} {1:+g}".format(*self.cone))
        return "; ".join([*conditions, "within the MOC"] if self.moc else conditions) or "all objects"


ALL = Selection()


def make_selection(where: str | None, cone: tuple[float, float, float] | None, moc: Path | str | None) -> Selection:
    """Return the selection given by command-line options; `moc` is a file.

    Raises
    ------
    InputError
        If the cone is not on the sky, the MOC cannot be read, or mocpy is not installed.
    """
    if cone is not None:
        check_cone(cone)
    return Selection(where or "", cone, _read_moc(Path(moc)) if moc is not None else "")


def _columns(store: Store) -> dict[str, str]:
    """Return the names allowed in conditions, and the store's column of each."""
    labels = {answer: f"labels/{schema}/{answer}" for schema, answers in store.schemas.items() for answer in answers}
    return labels | {name: name for name in COLUMNS}


def _mocpy() -> Any:
    try:
        import mocpy
    except ImportError:
        raise InputError("--moc needs mocpy, which is not installed: pip install 'galscan[moc]'") from None
    return mocpy


def _read_moc(path: Path) -> str:
    """Return a MOC in its ASCII form; the content tells the form of the file, which may be compressed."""
    mocpy = _mocpy()
    if not path.is_file():
        raise NotFoundError(f"no MOC at {path}; give a file in FITS, JSON or ASCII form")
    try:
        content = _decompressed(path.read_bytes())
        if content.startswith(b"SIMPLE  ="):
            _check_moc_header(path, content)
            with tempfile.NamedTemporaryFile(suffix=".fits") as file:  # mocpy reads FITS from files only
                file.write(content)
                file.flush()
                moc = mocpy.MOC.load(file.name, format="fits")
        else:
            text = content.decode("utf-8-sig").strip()
            moc = mocpy.MOC.from_string(text, format="json" if text.startswith("{") else "ascii")
        text = str(moc.to_string(format="ascii"))
    except InputError:
        raise
    except Exception as error:  # mocpy passes on errors of many classes from its Rust core
        raise InputError(
            f"{path} is not a readable MOC ({first_line(error)}); give one in FITS, JSON or ASCII form"
        ) from error
    if moc.empty():
        raise InputError(f"{path} is an empty MOC; give one that covers some sky")
    return text


def _decompressed(content: bytes) -> bytes:
    for start, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\x00", lzma)):
        if content.startswith(start):
            return bytes(module.decompress(content))  # type: ignore[attr-defined]
    return content


def _check_moc_header(path: Path, content: bytes) -> None:
    """Refuse other tables and coordinates in plain words; mocpy names only keywords."""
    from astropy.io import fits

    with fits.open(io.BytesIO(content)) as hdus:
        table = next((hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)), None)
        if table is None:
            raise InputError(f"{path} has no table, so it is not a MOC; give one in FITS, JSON or ASCII form")
        names, frame = table.columns.names, str(table.header.get("COORDSYS", "C")).strip().upper()
    if len(names) > 1:
        raise InputError(
            f"{path} is a table with the columns {', '.join(names[:6])}, not a MOC; give the MOC of a region, e.g. of "
            "a sky map's 90 % credible region (mocpy.MOC.from_valued_healpix_cells)"
        )
    if frame != "C":
        raise InputError(f"{path} is in coordinates '{frame}'; give a MOC in equatorial ones (COORDSYS = 'C')")


@lru_cache(maxsize=4)
def _moc(text: str) -> Any:
    return _mocpy().MOC.from_string(text, format="ascii")


def _in_moc(text: str, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    from astropy import units

    known = np.isfinite(ra) & np.isfinite(dec)
    inside = np.zeros(len(ra), bool)
    inside[known] = _moc(text).contains_lonlat(ra[known] * units.deg, dec[known] * units.deg)
    return inside
