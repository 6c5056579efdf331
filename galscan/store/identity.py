"""Object identity: which rows of stores and tables are the same object of the sky, for the whole package.

Objects are identified by position: two rows are one object if and only if they are within a radius of each other,
whatever their ids. Only a row without a position is identified by its id, and an id is unique within one naming scheme
only: row 17 of one catalogue is not row 17 of another. The naming scheme is the *lineage* of a store (`lineage_of`). An
id of ten digits or more (SDSS, Gaia, Legacy Surveys, IAU designations) is unique over all catalogues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from galscan.core.sky import arcseconds, chord, unit_vectors

if TYPE_CHECKING:
    import pandas as pd
    from scipy.spatial import cKDTree

    from galscan.store.layout import Store

RADIUS = 1.5  # arcsec; positions of one object in two current surveys agree within it
LARGEST = 60.0  # arcsec, largest astrometric uncertainty that a survey description may have
UNIQUE_DIGITS = 10  # an id with at least so many digits is unique over all catalogues
FRAME_TOLERANCE = 0.05  # relative tolerance for frame sizes of the same imaging
_PIXELS = ("bands", "rendering", "stretch", "sky_noise")
_SLACK = 1 + 1e-9  # the tree excludes points exactly at its bound


class HasAttributes(Protocol):
    """A store, or an object with its attributes as written by ingest."""

    @property
    def attrs(self) -> dict[str, Any]: ...
    @property
    def name(self) -> str: ...


def lineage_of(store: HasAttributes) -> str:
    """Return the naming scheme of a store's ids: the source that ingest read them from.

    It is the survey with the folder of its files or else its catalogue, so that two ingests of one source have one
    lineage at any image size. A store without provenance has its own name as lineage.
    """
    provenance = store.attrs.get("provenance") or {}
    survey = provenance.get("survey")
    if not isinstance(survey, str):
        return store.name
    source = provenance.get("path") or provenance.get("catalog")
    return f"{survey} {source}" if source else survey


def imaging_of(store: Store) -> dict[str, Any]:
    """Return the imaging parameters that must agree for scores of two stores to be comparable; JSON-able.

    These are the survey (for a user's own files the name of the store), the frame (arcsec on a side, None where pixels
    have no known scale), and the conversion from flux to pixels, as far as ingest wrote it.
    """
    provenance = store.attrs.get("provenance") or {}
    own_files = "path" in provenance or not isinstance(provenance.get("survey"), str)
    scale = store.column("pixel_scale")
    scale = scale[np.isfinite(scale)]
    return {
        "survey": store.name if own_files else provenance["survey"],
        "frame": round(float(np.median(scale)) * store.size, 3) if len(scale) else None,
        "pixels": {key: provenance[key] for key in _PIXELS if provenance.get(key) is not None},
    }


def same_imaging(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two results of `imaging_of` agree; frames may differ by `FRAME_TOLERANCE`."""
    frames = first["frame"], second["frame"]
    frames_agree = None in frames or abs(frames[0] - frames[1]) <= FRAME_TOLERANCE * max(frames)
    return frames_agree and first["survey"] == second["survey"] and first["pixels"] == second["pixels"]


def astrometry_of(store: HasAttributes) -> float:
    """Return the astrometric uncertainty (arcsec) of the survey of a store; 0 if unknown."""
    value = (store.attrs.get("provenance") or {}).get("astrometry")
    return min(float(value), LARGEST) if isinstance(value, int | float) and value > 0 else 0.0


def radius_of(stores: Sequence[HasAttributes]) -> float:
    """Return the matching radius (arcsec): `RADIUS`, or the largest astrometric uncertainty of the stores."""
    return max([RADIUS, *(astrometry_of(store) for store in stores)])


def separation(ra: ArrayLike, dec: ArrayLike, ra2: ArrayLike, dec2: ArrayLike) -> np.ndarray:
    """Return the distance (arcsec) of pairs of positions (deg), NaN where one is unknown."""
    first, second = ([np.asarray(values, np.float64) for values in pair] for pair in ((ra, dec), (ra2, dec2)))
    distance = arcseconds(np.linalg.norm(unit_vectors(*first) - unit_vectors(*second), axis=-1))
    return np.where(_has_position(*first) & _has_position(*second), distance, np.nan)


def groups(ra: ArrayLike, dec: ArrayLike, lineage: ArrayLike, id: ArrayLike, *, radius: float = RADIUS) -> np.ndarray:
    """Group rows that are the same object.

    Rows with positions are grouped by position, also through a third one between them (friends of friends). A row
    without a position belongs to the object of the same id and lineage; if there are several of these at different
    positions, it is ambiguous and becomes a separate object.

    Parameters
    ----------
    ra, dec : array of float, shape (n,)
        Degrees, ICRS. NaN where unknown; 0, 0, which some catalogues write instead, is also unknown.
    lineage : str or array of str, shape (n,)
        `lineage_of` the store of each row.
    id : array of int or str, shape (n,)
    radius : float
        Arcsec.

    Returns
    -------
    ndarray of int, shape (n,)
        Index of the first row of the same object.
    """
    import pandas as pd

    ra, dec, text, schemes = _columns(ra, dec, lineage, id)
    group = np.arange(len(text))
    with_position = np.flatnonzero(_has_position(ra, dec))
    group[with_position] = with_position[_group_positions(ra[with_position], dec[with_position], radius)]
    without_position = np.flatnonzero(~_has_position(ra, dec))
    if not len(without_position):
        return group
    key_code = pd.factorize(_keys(schemes, text))[0]
    unique_group = _only_group(key_code[with_position], group[with_position])
    first_unplaced = pd.Series(without_position).groupby(key_code[without_position]).transform("min").to_numpy()
    # A row that joined a group may come before the group's first row.
    group[without_position] = (
        pd.Series(key_code[without_position]).map(unique_group).fillna(pd.Series(first_unplaced)).to_numpy(int)
    )
    return _first_rows(group)


def names(group: np.ndarray, ra: ArrayLike, dec: ArrayLike, lineage: ArrayLike, id: ArrayLike) -> np.ndarray:
    """Return one name per object, for each of its rows: text, shape (n,).

    It is the first of its ids (in text order) that no other object has. If there is none, the lineage is prepended, and
    if that is not unique either, the position is appended. The order of rows does not matter.
    """
    import pandas as pd

    ra, dec, text, schemes = _columns(ra, dec, lineage, id)
    rows = pd.DataFrame({"group": group, "name": text})
    if not rows["name"].duplicated().any() and not rows["group"].duplicated().any():
        return text
    object_names = pd.Series(index=pd.Index(np.unique(group)), dtype=object)
    with_lineage = rows["name"].where(schemes == "", pd.Series(schemes, dtype=object) + "/" + rows["name"])
    for name in (
        rows["name"],
        with_lineage,
        with_lineage + [f" at {a:.6f} {d:+.6f}" for a, d in zip(ra, dec, strict=True)],
    ):
        unique = rows["group"].groupby(name).transform("nunique") == 1
        object_names = object_names.fillna(name[unique].groupby(rows.loc[unique, "group"]).min())
        if not object_names.isna().any():
            break
    return object_names.loc[group].to_numpy(object)


def names_of(table: pd.DataFrame, *, radius: float = RADIUS) -> np.ndarray:
    """Return `names` for a table with the columns ra, dec, lineage and id."""
    columns = tuple(table[name] for name in ("ra", "dec", "lineage", "id"))
    return names(groups(*columns, radius=radius), *columns)


class Objects:
    """A set of known objects, for matching rows of other tables.

    Parameters
    ----------
    ra, dec, lineage, id
        As of `groups`. If only ids are known, as in models of early versions, the others are None: then any row of the
        same id matches.
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
        import pandas as pd

        self.radius, self.by_id = radius, ra is None or dec is None or lineage is None
        if self.by_id:
            self.id = _as_text(id)
            self._group = pd.Series(np.arange(len(self.id))).groupby(self.id).transform("min").to_numpy(int)
            return
        assert ra is not None and dec is not None and lineage is not None
        self.ra, self.dec, self.id, self.lineage = _columns(ra, dec, lineage, id)
        self._group = groups(self.ra, self.dec, self.lineage, self.id, radius=radius)
        self._positioned = _has_position(self.ra, self.dec)

    @classmethod
    def of(cls, table: pd.DataFrame, *, radius: float = RADIUS) -> Objects:
        """Build from a table with the columns ra, dec, lineage and id, or with id alone."""
        if not {"ra", "dec", "lineage"} <= set(table.columns):
            return cls(None, None, None, table["id"], radius=radius)
        return cls(*(table[name] for name in ("ra", "dec", "lineage", "id")), radius=radius)

    def __len__(self) -> int:
        return len(self.id)

    def find(self, ra: ArrayLike, dec: ArrayLike, lineage: ArrayLike, id: ArrayLike) -> np.ndarray:
        """Match each row to a known object; -1 for no match.

        Rows are matched independently: the result does not depend on how they are divided into calls.

        Parameters
        ----------
        ra, dec : array of float, shape (n,)
            Degrees, NaN where unknown.
        lineage : str or array of str, shape (n,)
        id : array of int or str, shape (n,)

        Returns
        -------
        ndarray of int, shape (n,)
            Index of the first row of the known object.
        """
        if self.by_id:
            return self._lookup(self._group, self.id, _as_text(id))
        values = np.asarray(id)
        ra, dec, schemes = _broadcast(ra, dec, lineage, len(values))
        found = np.full(len(values), -1)
        if not len(self.id):
            return found
        with_position = _has_position(ra, dec)
        if self._tree is not None and with_position.any():
            max_chord = chord(self.radius) * _SLACK
            distance, nearest = self._tree.query(
                unit_vectors(ra[with_position], dec[with_position]), distance_upper_bound=max_chord
            )
            matched = np.isfinite(distance)
            found[np.flatnonzero(with_position)[matched]] = self._group[
                np.flatnonzero(self._positioned)[nearest[matched]]
            ]
        if len(rest := np.flatnonzero(~with_position)):
            found[rest] = self._lookup(*self._by_name, _keys(schemes[rest], _as_text(values[rest])))
        if len(rest := np.flatnonzero(with_position & (found < 0))) and len(self._by_name_without_position[0]):
            found[rest] = self._lookup(*self._by_name_without_position, _keys(schemes[rest], _as_text(values[rest])))
        return found

    def find_in(self, table: pd.DataFrame) -> np.ndarray:
        """Match the rows of a table with the columns ra, dec, lineage and id, as `find`."""
        return self.find(*(table[name] for name in ("ra", "dec", "lineage", "id")))

    @staticmethod
    def _lookup(group: np.ndarray, keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
        import pandas as pd

        first_group = pd.Series(group).groupby(keys).min()
        index = first_group.index.get_indexer(pd.Index(queries))
        return np.where(index < 0, -1, first_group.to_numpy(int)[index] if len(first_group) else -1)

    @cached_property
    def _tree(self) -> cKDTree | None:
        from scipy.spatial import cKDTree

        with_position = self._positioned
        return cKDTree(unit_vectors(self.ra[with_position], self.dec[with_position])) if with_position.any() else None

    @cached_property
    def _keys(self) -> np.ndarray:
        return _keys(self.lineage, self.id)

    @cached_property
    def _by_name(self) -> tuple[np.ndarray, np.ndarray]:
        """Objects with an unambiguous name, and that name: the candidates for a row without a position."""
        import pandas as pd

        unambiguous = _only_group(self._keys[self._positioned], self._group[self._positioned])
        without_position = pd.Series(self._group[~self._positioned]).groupby(self._keys[~self._positioned]).min()
        combined = unambiguous.combine_first(without_position)
        return combined.to_numpy(int), combined.index.to_numpy(object)

    @cached_property
    def _by_name_without_position(self) -> tuple[np.ndarray, np.ndarray]:
        """Objects without any position, and their names: the candidates for a positioned row without a match."""
        import pandas as pd

        table = pd.DataFrame({"key": self._keys, "group": self._group})
        rest = table[~table["key"].isin(table.loc[self._positioned, "key"])]
        return rest["group"].to_numpy(int), rest["key"].to_numpy(object)


def _only_group(keys: np.ndarray, group: np.ndarray) -> pd.Series:
    """Return the group of each key that has only one."""
    import pandas as pd

    by_key = pd.Series(group).groupby(keys)
    return by_key.min()[by_key.nunique() == 1]


def _columns(
    ra: ArrayLike, dec: ArrayLike, lineage: ArrayLike, id: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return right ascension, declination, id as text and lineage as arrays of one length."""
    text = _as_text(id)
    ra, dec, lineage = _broadcast(ra, dec, lineage, len(text))
    return ra, dec, text, lineage


def _broadcast(
    ra: ArrayLike, dec: ArrayLike, lineage: ArrayLike, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    coordinates = (np.broadcast_to(np.asarray(values, np.float64), count) for values in (ra, dec))
    return *coordinates, np.broadcast_to(np.asarray(lineage, object), count)  # type: ignore[return-value]


def _as_text(id: ArrayLike) -> np.ndarray:
    values = np.asarray(id)
    if values.dtype.kind == "O":
        return np.array([str(value) for value in values], object)
    return values.astype(str).astype(object)


def _has_position(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90) & ((ra != 0) | (dec != 0)))


def _keys(lineage: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Return the matching key of rows without a position: lineage and id; a globally unique id alone."""
    import pandas as pd

    ids = pd.Series(text, dtype=object)
    if not len(ids):
        return np.empty(0, object)
    unique = ids.str.count(r"\d") >= UNIQUE_DIGITS
    return np.asarray(ids.where(unique, pd.Series(lineage, dtype=object) + "\n" + ids), object)


def _group_positions(ra: np.ndarray, dec: np.ndarray, radius: float) -> np.ndarray:
    """Return the index of the first position of each friends-of-friends group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    if not len(ra):
        return np.empty(0, int)
    # Duplicates are removed first: a thousand equal positions would give half a million pairs.
    unique_positions, index = np.unique(np.stack([np.mod(ra, 360.0), dec], axis=1), axis=0, return_inverse=True)
    tree = cKDTree(unit_vectors(unique_positions[:, 0], unique_positions[:, 1]))
    pairs = tree.query_pairs(chord(radius) * _SLACK, output_type="ndarray")
    links = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(unique_positions),) * 2)
    return _first_rows(connected_components(links, directed=False)[1][index.ravel()])


def _first_rows(label: np.ndarray) -> np.ndarray:
    """Return, for each row, the index of the first row with the same label."""
    first, inverse = np.unique(label, return_index=True, return_inverse=True)[1:]
    return np.asarray(first[inverse.ravel()])
