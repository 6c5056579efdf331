"""Cutouts by the million out of frames and bricks: SDSS frames, Legacy Surveys bricks, any FITS mosaics with a WCS.

Objects are put in the order of their frames, so that ingest opens each frame about once and cuts many from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import digest, file_digest
from galscan.surveys import tables
from galscan.surveys.base import NoCoverage, Outcome
from galscan.surveys.files.images import Rendering, choose_bands, measure
from galscan.surveys.files.local import CATALOGS
from galscan.surveys.mosaics import footprints
from galscan.surveys.mosaics.cutting import ROLES, FrameCutouts, check_framing, words_of
from galscan.surveys.mosaics.footprints import Folder, Frame
from galscan.surveys.sizes import DEFAULT_SIZE

SAMPLE = 16  # frames that set the stretch, with four objects each


class FramesSurvey(FrameCutouts):
    """Objects of a catalog, cut from frames.

    A cutout has `size` pixels of its frame as they are, unless `pixel_scale` or `frame` asks for another scale: then
    the nearest whole number of pixels is cut and resized, and the scale that comes out is kept with the object. North
    is up and east is left as far as mirroring and quarter turns go; the rest of the rotation is left as it is. Bands
    are put on each other by their own astrometry, to half a pixel.

    Parameters
    ----------
    path : path
        Folder of frames, one FITS file a band, searched recursively.
    catalog : path, optional
        CSV, FITS, VOTable or Parquet with id, ra and dec. Default: ``catalog.csv`` (``.fits ...``) in the folder.
    labels : sequence of str
        Label schemas to read from the catalog.
    size : int
        Pixels on a side of every cutout.
    columns : mapping, optional
        Which column plays a role (``id ra dec radius``) where the usual names do not say.
    name : str, optional
        Name of the survey, default the folder's.
    bands : str, optional
        ``"gri"``, or from blue to red the words that tell the band in file names: ``"f435w,f606w,f814w"``.
        Default: what at least half of the frames have.
    pixel_scale : float, optional
        Arcsec a pixel of the cutouts.
    frame : float, optional
        Instead: a cutout's side in units of the object's radius, a column in arcsec.

    Raises
    ------
    NotFoundError
        If folder or catalog does not exist.
    InputError
        If they cannot be used, or no object lies on a frame.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        catalog: str | os.PathLike[str] | None = None,
        labels: Sequence[str] = (),
        size: int = DEFAULT_SIZE,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
        *,
        bands: str | None = None,
        pixel_scale: float | None = None,
        frame: float | None = None,
    ):
        super().__init__()
        check_framing(size, columns or {}, ROLES, pixel_scale, frame)
        root = Path(path).expanduser().absolute()
        if not root.exists():
            raise NotFoundError(f"no folder of frames at {path}; name it with --path")
        if not root.is_dir():
            raise InputError(f"{path} is a file; give the folder that holds the frames")
        self.root, self.name, self.size = root, name or root.name, size
        self.pixel_scale, self.framing = pixel_scale, frame
        folder = Folder(root)
        self.source = folder

        self.catalog = _catalog(root, catalog)
        table = tables.read_table(self.catalog, columns or {})
        self._catalog_digest = file_digest(self.catalog)
        self._read_objects(table, columns or {}, labels)
        sizes = {f: n for f, n in folder.files().items() if root / f != self.catalog}
        if not sizes:
            raise InputError(f"no FITS file in {path} or below; name the folder that holds the frames with --path")
        words = footprints.parse_bands(bands)
        frames, apart = footprints.find_frames(list(sizes), words)
        common = footprints.common_bands(frames, words)
        red, green, blue = choose_bands(common)
        self.bands = [b for b in common if b in (red, green, blue)]  # from blue to red
        self._place(frames, sizes, apart)
        self.rendering = self._measure()

    # ------------------------------------------------------------------------------- objects and frames

    def _place(self, frames: list[Frame], sizes: Mapping[str, int], apart: Sequence[str]) -> None:
        """Find the frame of each object, and put the objects in the order of frames."""
        placing = footprints.place(frames, self.source, self.bands, self.ra, self.dec)
        if (placing.frame < 0).all():
            raise InputError(placing.nowhere(self.ra, self.dec, self.root))
        used = np.unique(placing.frame[placing.frame >= 0])
        self._check_scale({frames[k].name: placing.scales[k] for k in used})
        self.frames = [frames[k] for k in used]
        number = np.where(placing.frame < 0, len(used), np.searchsorted(used, placing.frame)).astype(np.int32)
        self.count = len(used)
        self._in_order(number)
        turns = [placing.turns[k] for k in used]
        files = [f for k in used for f in frames[k].files.values()]
        self._about = {
            "frames": len(used),
            "frames_sha256": digest([placing.digest, [[f, sizes[f]] for f in files]]),
            "on_no_frame": int((placing.frame < 0).sum()),
            "native_scale": [round(s(placing.scales[k] for k in used), 5) for s in (min, max)],
            "rotation_left": [round(s(turns), 1) + 0.0 for s in (min, max)],
        }
        self._bytes = [sum(sizes[f] for b, f in x.files.items() if b in self.bands) for x in self.frames]
        self.notes = []
        if apart:
            self.notes.append(f"{len(apart):,} file(s) of weights, masks or models left out, the first is {apart[0]}")
        if placing.unreadable:
            first, why = placing.unreadable[0]
            self.notes.append(f"{len(placing.unreadable):,} frame(s) cannot be read, the first is {first} ({why})")
        if self.bands == ["0"] and (twins := placing.twins()):
            one, other = (frames[k].name for k in twins)
            self.notes.append(
                f"frames {one} and {other} show the same sky, and names tell no band: an object is cut from one of "
                "them; if they are bands, name those: --bands f606w,f814w"
            )
        if missing := self._about["on_no_frame"]:
            self.notes.append(
                f"{missing:,} of {len(self.ids):,} objects lie on no frame, and are kept without an image"
            )

    def _measure(self) -> Rendering:
        """Set one stretch for the survey, on stamps around objects of frames spread over it."""
        whole = [k for k, frame in enumerate(self.frames) if set(self.bands) <= frame.files.keys()]
        if not whole:
            bands = ", ".join(self.bands)
            raise InputError(f"no frame with an object on it has all bands {bands}; name those it has with --bands")
        stamps: list[dict[str, np.ndarray]] = []
        why = ""
        for k in np.unique(np.linspace(0, len(whole) - 1, SAMPLE).round().astype(int)):
            first, last = np.searchsorted(self.number, [whole[k], whole[k] + 1])
            rows = np.unique(np.linspace(first, last - 1, 4).round().astype(int))
            try:
                stack = self._open(whole[k]).raw(self.ra[rows], self.dec[rows], int(np.clip(self.size, 64, 512)))
                stamps += [dict(zip(self.bands, stack[:, n], strict=True)) for n in range(len(rows))]
            except Exception as error:  # broken frames get their reason when their turn comes
                why = why or f"frame {self.frames[whole[k]].name}: {words_of(error, self.root)}"
        self._close()
        if not stamps:
            raise InputError(f"none of {min(SAMPLE, len(whole))} frames tried in {self.root} can be used ({why})")
        rendering = measure(stamps, self.bands)
        if rendering is None:
            raise InputError(f"the frames in {self.root} have no noise to set the stretch by: all pixels are alike")
        return rendering

    # ---------------------------------------------------------------------------------- what a survey is

    def plan(self) -> dict[str, Any]:
        """Return what cutting will take: frames, objects on none of them, bytes of files to read."""
        used, beyond = self._used(), int((self.number == self.count).sum())
        return {"frames": len(used), "on_no_frame": beyond, "bytes_to_read": sum(self._bytes[k] for k in used)}

    def describe(self) -> dict[str, Any]:
        """Return provenance: frames, catalog, and how pixels were made."""
        return {
            "survey": "frames",
            "name": self.name,
            "path": str(self.root),
            "catalog": str(self.catalog),
            "catalog_sha256": self._catalog_digest,
            "objects": len(self),
            **self._about,
            **self._how(),
            "overlap": "the frame in which the object is farthest from the edge",
        }

    def _frame(self, number: int) -> Frame:
        return self.frames[number]

    def _beyond(self, rows: slice) -> Iterator[Outcome]:
        known = np.isfinite(self.ra[rows] + self.dec[rows])
        yield from (NoCoverage("on no frame" if k else "no position in the catalog") for k in known)


def _catalog(root: Path, catalog: str | os.PathLike[str] | None) -> Path:
    if catalog is not None:
        return Path(catalog).expanduser().absolute()
    found = next((root / c for c in CATALOGS if (root / c).is_file()), None)
    if found is None:
        raise InputError(
            f"frames need a table of objects with id, ra and dec: --catalog FILE, or {CATALOGS[0]} in {root}"
        )
    return found
