"""When two rows of stores or tables are the same object of the sky. Everything that has to know asks this module.

An object is its position: two rows are one object where they are within a radius of each other, whatever they are
called, and two objects where they are not. Only a row without a position is recognised by its name, and a name is
unique within one naming scheme only: row 17 of one catalogue is not row 17 of another. The naming scheme is the
*lineage* of a store (`lineage_of`). An id of ten digits or more (SDSS, Gaia, Legacy Surveys, IAU designations) is
unique over all catalogues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from galscan.core.sky import arcseconds, chord, unit_vectors

if TYPE_CHECKING:
    from galscan.store.layout import Store

RADIUS = 1.5  # arcsec: positions of one object in two surveys of today agree within it
LARGEST = 60.0  # arcsec, of what a survey may declare
UNIQUE_DIGITS = 10  # an id with so many is unique over all catalogues
FRAME = 0.05  # fraction by which frames of one imaging may differ
_PIXELS = ("bands", "rendering", "stretch", "sky_noise")
_SLACK = 1 + 1e-9  # the tree leaves out what is exactly at its bound


class Described(Protocol):
    """What is needed of a store: what ingest wrote about its source."""

    @property
    def attrs(self) -> dict[str, Any]: ...
    @property
    def name(self) -> str: ...


def lineage_of(store: Described) -> str:
    """Return the naming scheme of a store's ids: the source that ingest read them from.

    It is the survey, with the folder of its files or else its catalogue, so that two ingests of one source have one
    lineage, at whatever size. A store that does not say where it is from has its own name.
    """
    provenance = store.attrs.get("provenance") or {}
    survey = provenance.get("survey")
    if not isinstance(survey, str):
        return store.name
    source = provenance.get("path") or provenance.get("catalog")
    return f"{survey} {source}" if source else survey


def imaging_of(store: Store) -> dict[str, Any]:
    """Return what images of two stores have in common if scores of the one tell anything of the other's; JSON-able.

    It is the survey (of files of one's own, the name that the store was given), the frame (arcsec on a side, None where
    pixels have no known scale), and how flux became pixels, as far as ingest wrote that.
    """
    provenance = store.attrs.get("provenance") or {}
    own = "path" in provenance or not isinstance(provenance.get("survey"), str)
    scale = store.column("pixel_scale")
    scale = scale[np.isfinite(scale)]
    return {
        "survey": store.name if own else provenance["survey"],
        "frame": round(float(np.median(scale)) * store.size, 3) if len(scale) else None,
        "pixels": {key: provenance[key] for key in _PIXELS if provenance.get(key) is not None},
    }


def same_imaging(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether `imaging_of` two stores is alike: frames may differ by `FRAME`."""
    frames = one["frame"], other["frame"]
    framed = None in frames or abs(frames[0] - frames[1]) <= FRAME * max(frames)
    return framed and one["survey"] == other["survey"] and one["pixels"] == other["pixels"]


def astrometry_of(store: Described) -> float:
    """Return how well the survey of a store knows positions (arcsec), as its description declares; 0 if it does not."""
    value = (store.attrs.get("provenance") or {}).get("astrometry")
    return min(float(value), LARGEST) if isinstance(value, int | float) and value > 0 else 0.0


def radius_of(stores: Sequence[Described]) -> float:
    """Return the matching radius (arcsec): `RADIUS`, or the coarsest astrometry that one of the stores declares."""
    return max([RADIUS, *(astrometry_of(store) for store in stores)])


def separation(ra: ArrayLike, dec: ArrayLike, ra2: ArrayLike, dec2: ArrayLike) -> np.ndarray:
    """Return the distance (arcsec) of pairs of positions (deg), NaN where one is not known."""
    one, two = ([np.asarray(values, np.float64) for values in pair] for pair in ((ra, dec), (ra2, dec2)))
    apart = arcseconds(np.linalg.norm(unit_vectors(*one) - unit_vectors(*two), axis=-1))
    return np.where(_placed(*one) & _placed(*two), apart, np.nan)


def groups(ra: ArrayLike, dec: ArrayLike, lineage: ArrayLike, id: ArrayLike, *, radius: float = RADIUS) -> np.ndarray:
    """Return which rows are the same object.

    Rows with positions are grouped by position, also through a third one between them. A row without a position is
    the object of the same name and lineage; if there are several of these at different places it could be any of them,
    and is none.

    Parameters
    ----------
    ra, dec : array of float, shape (n,)
        Degrees, ICRS. NaN where unknown, as is 0, 0, which catalogues write for it.
    lineage : str or array of str, shape (n,)
        `lineage_of` the store of each row.
    id : array of int or str, shape (n,)
    radius : float
        Arcsec.

    Returns
    -------
    ndarray of int, shape (n,)
        The number of the first row of the same object.
    """
    ra, dec, text, schemes = _columns(ra, dec, lineage, id)
    found = np.arange(len(text))
    placed = np.flatnonzero(_placed(ra, dec))
    found[placed] = placed[_clusters(ra[placed], dec[placed], radius)]
    unplaced = np.flatnonzero(~_placed(ra, dec))
    if not len(unplaced):
        return found
    code = pd.factorize(_keys(schemes, text))[0]
    at = pd.Series(found[placed]).groupby(code[placed]).agg(["min", "max"])
    one = at.loc[at["min"] == at["max"], "min"]
    first = pd.Series(unplaced).groupby(code[unplaced]).transform("min").to_numpy()
    # As first rows of groups are compared, what joins one may come before it.
    found[unplaced] = pd.Series(code[unplaced]).map(one).fillna(pd.Series(first)).to_numpy(int)
    return _first(found)


def names(group: np.ndarray, ra: ArrayLike, dec: ArrayLike, lineage: ArrayLike, id: ArrayLike) -> np.ndarray:
    """Return one name an object, for each of its rows: text, shape (n,).

    It is the first of its ids (in the order of text) that no other object has. Where others have all of them, the
    lineage goes before, and if that does not help the position comes after. The order of rows does not matter.
    """
    ra, dec, text, schemes = _columns(ra, dec, lineage, id)
    rows = pd.DataFrame({"group": group, "name": text})
    if not rows["name"].duplicated().any() and not rows["group"].duplicated().any():
        return text
    found = pd.Series(index=pd.Index(np.unique(group)), dtype=object)
    longer = rows["name"].where(schemes == "", pd.Series(schemes, dtype=object) + "/" + rows["name"])
    for name in (rows["name"], longer, longer + [f" at {a:.6f} {d:+.6f}" for a, d in zip(ra, dec, strict=True)]):
        own = rows["group"].groupby(name).transform("nunique") == 1
        found = found.fillna(name[own].groupby(rows.loc[own, "group"]).min())
        if not found.isna().any():
            break
    return found.loc[group].to_numpy(object)


def names_of(table: pd.DataFrame, *, radius: float = RADIUS) -> np.ndarray:
    """Return `names` of the objects of a table with the columns ra, dec, lineage and id."""
    columns = tuple(table[name] for name in ("ra", "dec", "lineage", "id"))
    return names(groups(*columns, radius=radius), *columns)


class Objects:
    """Objects that are known, to look others up in.

    Parameters
    ----------
    ra, dec, lineage, id
        As of `groups`. Where nothing but ids was kept, as by early versions, the others are None: then any row of
        the same id is the object.
    radius : float
        Arcsec.
    """

    def __init__(
        self,
        ra: ArrayLike | None,
        dec: ArrayLike | None,
        lineage: ArrayLike | None,
        id: ArrayLike,
        *,
        radius: float = RADIUS,
    ):
        self.radius, self.by_id = radius, ra is None or dec is None or lineage is None
        if self.by_id:
            self.id = _text(id)
            self._group = pd.Series(np.arange(len(self.id))).groupby(self.id).transform("min").to_numpy(int)
            return
        assert ra is not None and dec is not None and lineage is not None
        self.ra, self.dec, self.id, self.lineage = _columns(ra, dec, lineage, id)
        self._group = groups(self.ra, self.dec, self.lineage, self.id, radius=radius)
        self._placed = _placed(self.ra, self.dec)

    @classmethod
    def of(cls, table: pd.DataFrame, *, radius: float = RADIUS) -> Objects:
        """Return the objects of a table with the columns ra, dec, lineage and id, or with id alone."""
        if not {"ra", "dec", "lineage"} <= set(table.columns):
            return cls(None, None, None, table["id"], radius=radius)
        return cls(*(table[name] for name in ("ra", "dec", "lineage", "id")), radius=radius)

    def __len__(self) -> int:
        return len(self.id)

    def find(self, ra: ArrayLike, dec: ArrayLike, lineage: ArrayLike, id: ArrayLike) -> np.ndarray:
        """Return which known object each row is, -1 for none.

        Rows are looked up one by one: the result does not depend on how they are divided into calls.

        Parameters
        ----------
        ra, dec : array of float, shape (n,)
            Degrees, NaN where unknown.
        lineage : str or array of str, shape (n,)
        id : array of int or str, shape (n,)

        Returns
        -------
        ndarray of int, shape (n,)
            The first row of the known object.
        """
        if self.by_id:
            return self._lookup(self._group, self.id, _text(id))
        values = np.asarray(id)
        ra, dec, schemes = _broadcast(ra, dec, lineage, len(values))
        found = np.full(len(values), -1)
        if not len(self.id):
            return found
        placed = _placed(ra, dec)
        if self._tree is not None and placed.any():
            reach = chord(self.radius) * _SLACK
            apart, nearest = self._tree.query(unit_vectors(ra[placed], dec[placed]), distance_upper_bound=reach)
            there = np.isfinite(apart)
            found[np.flatnonzero(placed)[there]] = self._group[np.flatnonzero(self._placed)[nearest[there]]]
        if len(rest := np.flatnonzero(~placed)):
            found[rest] = self._lookup(*self._of_name, _keys(schemes[rest], _text(values[rest])))
        if len(rest := np.flatnonzero(placed & (found < 0))) and len(self._nowhere[0]):
            found[rest] = self._lookup(*self._nowhere, _keys(schemes[rest], _text(values[rest])))
        return found

    def find_in(self, table: pd.DataFrame) -> np.ndarray:
        """Return `find` of a table with the columns ra, dec, lineage and id."""
        return self.find(*(table[name] for name in ("ra", "dec", "lineage", "id")))

    @staticmethod
    def _lookup(group: np.ndarray, keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        known = pd.Series(group).groupby(keys).min()
        at = known.index.get_indexer(pd.Index(wanted))
        return np.where(at < 0, -1, known.to_numpy(int)[at] if len(known) else -1)

    @cached_property
    def _tree(self) -> cKDTree | None:
        placed = self._placed
        return cKDTree(unit_vectors(self.ra[placed], self.dec[placed])) if placed.any() else None

    @cached_property
    def _keys(self) -> np.ndarray:
        return _keys(self.lineage, self.id)

    @cached_property
    def _of_name(self) -> tuple[np.ndarray, np.ndarray]:
        """The objects, and names that are of one of them: what a row without a position may be."""
        table = pd.DataFrame({"key": self._keys, "group": self._group, "placed": self._placed})
        at = table[table["placed"]].groupby("key")["group"].agg(["min", "max"])
        one = at.loc[at["min"] == at["max"], "min"]
        nowhere = table[~table["placed"]].groupby("key")["group"].min()
        every = one.combine_first(nowhere)
        return every.to_numpy(int), every.index.to_numpy(object)

    @cached_property
    def _nowhere(self) -> tuple[np.ndarray, np.ndarray]:
        """The objects without any position, and their names: what a row with one may be, that is near no other."""
        table = pd.DataFrame({"key": self._keys, "group": self._group})
        rest = table[~table["key"].isin(table.loc[self._placed, "key"])]
        return rest["group"].to_numpy(int), rest["key"].to_numpy(object)


def _columns(
    ra: ArrayLike, dec: ArrayLike, lineage: ArrayLike, id: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return right ascension, declination, id as text and lineage as arrays of one length."""
    text = _text(id)
    ra, dec, lineage = _broadcast(ra, dec, lineage, len(text))
    return ra, dec, text, lineage


def _broadcast(
    ra: ArrayLike, dec: ArrayLike, lineage: ArrayLike, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    places = (np.broadcast_to(np.asarray(values, np.float64), count) for values in (ra, dec))
    return *places, np.broadcast_to(np.asarray(lineage, object), count)  # type: ignore[return-value]


def _text(id: ArrayLike) -> np.ndarray:
    values = np.asarray(id)
    if values.dtype.kind == "O":
        return np.array([str(value) for value in values], object)
    return values.astype(str).astype(object)


def _placed(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90) & ((ra != 0) | (dec != 0)))


def _keys(lineage: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Return what a row without a position is recognised by: its id, after its lineage unless it is unique anyway."""
    ids = pd.Series(text, dtype=object)
    if not len(ids):
        return np.empty(0, object)
    unique = ids.str.count(r"\d") >= UNIQUE_DIGITS
    return np.asarray(ids.where(unique, pd.Series(lineage, dtype=object) + "\n" + ids), object)


def _clusters(ra: np.ndarray, dec: np.ndarray, radius: float) -> np.ndarray:
    """Return the number of the first position that is within the radius of each, perhaps through others."""
    if not len(ra):
        return np.empty(0, int)
    # Equal positions are taken out first: of a thousand there would be half a million pairs.
    places, row = np.unique(np.stack([np.mod(ra, 360.0), dec], axis=1), axis=0, return_inverse=True)
    tree = cKDTree(unit_vectors(places[:, 0], places[:, 1]))
    pairs = tree.query_pairs(chord(radius) * _SLACK, output_type="ndarray")
    links = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(places),) * 2)
    return _first(connected_components(links, directed=False)[1][row.ravel()])


def _first(label: np.ndarray) -> np.ndarray:
    """Return, for each row, the number of the first row of the same label."""
    first, back = np.unique(label, return_index=True, return_inverse=True)[1:]
    return np.asarray(first[back.ravel()])
