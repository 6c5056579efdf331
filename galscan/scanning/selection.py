"""Selection of the objects to scan, by a region of the sky or a condition on their columns."""

from __future__ import annotations

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
    mocpy = _mocpy()
    if not path.is_file():
        raise NotFoundError(f"no MOC at {path}; give a file in FITS, JSON or ASCII form")
    try:
        kind = {".fits": "fits", ".fit": "fits", ".json": "json"}.get(path.suffix.lower(), "ascii")
        moc = mocpy.MOC.load(path, format=kind)
        text = str(moc.to_string(format="ascii"))
    except Exception as error:  # mocpy passes on errors of many classes from its Rust core
        reason = first_line(error)
        raise InputError(f"{path} is not a readable MOC ({reason:.200})") from error
    if moc.empty():
        raise InputError(f"{path} is an empty MOC; give one that covers some sky")
    return text


@lru_cache(maxsize=4)
def _moc(text: str) -> Any:
    return _mocpy().MOC.from_string(text, format="ascii")


def _in_moc(text: str, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    from astropy import units

    known = np.isfinite(ra) & np.isfinite(dec)
    inside = np.zeros(len(ra), bool)
    inside[known] = _moc(text).contains_lonlat(ra[known] * units.deg, dec[known] * units.deg)
    return inside
