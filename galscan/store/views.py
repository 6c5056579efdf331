"""What a store shows of its objects: cutouts with metadata, pictures, and HTML for notebooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from galscan.core.display import figures, html
from galscan.core.errors import InputError
from galscan.store import cutouts
from galscan.surveys.base import UNUSABLE

if TYPE_CHECKING:
    from astropy.nddata import NDData

SEARCHED = 256  # rows from the start in which usable images are searched for: one chunk
MOST = 100  # images in a figure


class Views(ABC):
    """Methods of `galscan.store.layout.Store` that return single objects or show some of them."""

    path: Path | str
    attrs: dict[str, Any]
    count: int
    size: int
    _ids: np.ndarray | None = None

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def location(self) -> str: ...

    @property
    @abstractmethod
    def schemas(self) -> dict[str, list[str]]: ...

    @abstractmethod
    def column(self, name: str, rows: slice = slice(None)) -> np.ndarray: ...

    def __len__(self) -> int:
        return int(self.count)

    def __getitem__(self, row: int) -> NDData:
        return self._cutout(cutouts.checked_row(row, self.count, str(self.path)))

    def cutout(self, id: int | str, *, north_up: bool = False) -> NDData:
        """Return the cutout of an object as `astropy.nddata.NDData`; ``store[row]`` does so by row.

        Parameters
        ----------
        id : int or str
            Id in the survey's catalog; an integer may be given as text.
        north_up : bool
            Make a WCS also where the store does not record the orientation, for images that are known to have north
            up and east left.

        Returns
        -------
        NDData
            ``data`` is uint8 of shape (size, size, 3): red, green, blue, stretched for display; row 0 is the top.
            ``meta`` has ``id survey store row ra dec frame pixel_scale orientation framing bands stretch flags``;
            position in deg (ICRS), scale in arcsec per pixel, both NaN where unknown. ``wcs`` is celestial, for the
            first two axes of the data, and accurate to about a pixel; None where position, scale or orientation is
            unknown.

        Raises
        ------
        UnknownObjectError
            If the store has no such id; the message names the nearest ones.
        InputError
            If several objects have this id.
        """
        if self._ids is None:
            self._ids = self.column("id")
        return self._cutout(cutouts.row_of(self._ids, id, str(self.path)), north_up)

    def _cutout(self, row: int, north_up: bool = False) -> NDData:
        from astropy.nddata import NDData

        names = ("id", "ra", "dec", "pixel_scale", "flags")
        values = {name: self.column(name, slice(row, row + 1))[0] for name in names}
        meta = cutouts.metadata(self.name, self.location, row, self.attrs.get("provenance", {}), values)
        wcs = None
        if north_up or meta["orientation"] == cutouts.NORTH_UP:
            wcs = cutouts.celestial_wcs(meta["ra"], meta["dec"], meta["pixel_scale"], self.size)
        return NDData(self.column("images", slice(row, row + 1))[0], wcs=wcs, meta=meta)

    def plot(self, rows: Sequence[int] | np.ndarray | None = None, *, columns: int = 6) -> np.ndarray:
        """Draw cutouts with their ids, in a new figure of Matplotlib.

        Parameters
        ----------
        rows : sequence of int, optional
            Rows of the store, at most 100; by default the first dozen with usable images.
        columns : int
            Images in a row of the figure.

        Returns
        -------
        ndarray of Axes, shape (n,)

        Raises
        ------
        InputError
            If there are no rows or too many, or the store does not have one.
        """
        chosen = self._usable() if rows is None else [cutouts.checked_row(r, self.count, str(self.path)) for r in rows]
        if not 0 < len(chosen) <= MOST:
            raise InputError(f"{len(chosen):,} rows to plot; give 1 to {MOST}")
        if columns < 1:
            raise InputError(f"columns={columns}: give at least 1")
        pictures = self._pictures(chosen)
        return figures.show_images([p.image for p in pictures], [p.caption for p in pictures], columns)

    def _usable(self) -> list[int]:
        """Return the first dozen rows with usable images, of the first chunk."""
        flags = self.column("flags", slice(0, SEARCHED))
        return [int(row) for row in np.flatnonzero((flags & UNUSABLE) == 0)[: html.PICTURES]]

    def _pictures(self, rows: Sequence[int]) -> list[html.Picture]:
        first, last = min(rows, default=0), max(rows, default=-1)
        if last - first < SEARCHED:  # read at once
            images, ids = (self.column(name, slice(first, last + 1)) for name in ("images", "id"))
            return [html.Picture(images[row - first], str(ids[row - first])) for row in rows]
        found = []
        for row in rows:
            one = slice(row, row + 1)
            found.append(html.Picture(self.column("images", one)[0], str(self.column("id", one)[0])))
        return found

    def __repr__(self) -> str:
        return f"<Store {self.name}: {self.count:,} cutouts of {self.size} px, in {self.location}>"

    def _repr_html_(self) -> str:
        meta = cutouts.metadata(
            self.name, self.location, 0, self.attrs.get("provenance", {}),
            {name: self.column(name, slice(0, 1))[0] for name in ("id", "ra", "dec", "pixel_scale", "flags")},
        )  # fmt: skip
        labels = [f"{schema} ({len(answers)})" for schema, answers in self.schemas.items()]
        scale = meta["pixel_scale"]
        facts = [
            ("objects", f"{self.count:,}"),
            ("cutouts", f"{self.size} x {self.size} px"),
            ("bands", " ".join(meta["bands"])),
            ("scale of the first", f"{scale:.3g} arcsec/px" if np.isfinite(scale) else ""),
            ("orientation", "" if meta["orientation"] == "unknown" else meta["orientation"]),
            ("labels (answers)", ", ".join(labels)),
        ]
        return html.card(f"Store {self.name}", self.location, facts, pictures=self._pictures(self._usable()))
