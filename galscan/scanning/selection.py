"""Which objects of a survey are scanned: those in a region of the sky, and those for which a condition holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from galscan.core.errors import InputError, NotFoundError
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
        A rule over the store's columns and labels, by their names, as in a recipe. Where a value is not known the
        object is not chosen.
    cone : tuple of float, optional
        Right ascension and declination of the middle, and the radius, in degrees.
    moc : str
        A multi-order coverage map (IVOA MOC 2.0) in its ASCII form.
    """

    where: str = ""
    cone: tuple[float, float, float] | None = None
    moc: str = ""

    def __bool__(self) -> bool:
        return self != Selection()

    def check(self, store: Store) -> None:
        """Refuse a condition on what `store` does not hold.

        Raises
        ------
        InputError
            Naming the column, and the nearest that is there; or that no object has a position.
        """
        if self.where:
            try:
                parse_rule(self.where, _known(store))
            except InputError as error:
                raise InputError(f"--where, {store.path}: {error}") from None
        if (self.cone is not None or self.moc) and not any(
            np.isfinite(store.column("ra", store.rows(shard))).any() for shard in range(store.n_shards)
        ):
            raise InputError(f"{store.path} has no positions to choose by; leave out --cone and --moc")

    def mask(self, store: Store, rows: slice) -> np.ndarray:
        """Return which of the rows are chosen, bool of shape (n,); no pixels are read."""
        chosen = np.ones(rows.stop - rows.start, bool)
        if self.where:
            known = _known(store)
            rule = parse_rule(self.where, known)
            chosen &= rule.evaluate({name: store.column(known[name], rows) for name in rule.names})[0]
        if self.cone is not None or self.moc:
            ra, dec = store.column("ra", rows), store.column("dec", rows)
            if self.cone is not None:
                chosen &= in_cone(ra, dec, self.cone)
            if self.moc:
                chosen &= _inside(self.moc, ra, dec)
        return chosen

    def described(self) -> dict[str, Any]:
        """Return what decides the choice, JSON-able."""
        return {"where": self.where, "cone": list(self.cone) if self.cone else None, "moc": self.moc}

    def text(self) -> str:
        """Return the choice in words."""
        parts = [f"where {self.where}"] if self.where else []
        if self.cone is not None:
            parts.append("within {2:g} deg of {0:g} {1:+g}".format(*self.cone))
        return "; ".join([*parts, "within the MOC"] if self.moc else parts) or "all objects"


ALL = Selection()


def make_selection(where: str | None, cone: tuple[float, float, float] | None, moc: Path | str | None) -> Selection:
    """Return the selection that options ask for; `moc` is a file.

    Raises
    ------
    InputError
        If the cone is not on the sky, the MOC cannot be read, or mocpy is not installed.
    """
    if cone is not None:
        check_cone(cone)
    return Selection(where or "", cone, _read_moc(Path(moc)) if moc is not None else "")


def _known(store: Store) -> dict[str, str]:
    """Return what conditions may name, and the column of each."""
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
    except Exception as error:  # mocpy raises what its core in Rust says, of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is not a MOC that can be read ({reason:.200})") from error
    if moc.empty():
        raise InputError(f"{path} is a MOC of nothing; give one that covers some sky")
    return text


@lru_cache(maxsize=4)
def _moc(text: str) -> Any:
    return _mocpy().MOC.from_string(text, format="ascii")


def _inside(text: str, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    from astropy import units

    placed = np.isfinite(ra) & np.isfinite(dec)
    inside = np.zeros(len(ra), bool)
    inside[placed] = _moc(text).contains_lonlat(ra[placed] * units.deg, dec[placed] * units.deg)
    return inside
