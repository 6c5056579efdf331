"""Survey of cutouts from local frames: SDSS frames, Legacy Surveys bricks, any FITS mosaics with a WCS.

Objects are sorted by frame, so that ingest opens each frame about once; this scales to millions of cutouts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import digest
from galscan.surveys.base import NoCoverage, Outcome
from galscan.surveys.file_names import FITS, parse_bands
from galscan.surveys.files.base import CATALOGS, find_catalog
from galscan.surveys.files.images import Rendering, choose_bands, measure
from galscan.surveys.files.path_matching import find_files
from galscan.surveys.flux_scale import check_zero_points
from galscan.surveys.header import split_extension
from galscan.surveys.mosaics import footprints
from galscan.surveys.mosaics.cutting import ROLES, FrameCutouts, error_text
from galscan.surveys.mosaics.footprints import Folder, Frame
from galscan.surveys.sizes import DEFAULT_SIZE
from galscan.surveys.tables import Catalog

SAMPLE = 16  # frames that the stretch is measured on, at four objects each


class FramesSurvey(FrameCutouts):
    """Cutouts of the objects of a catalog from local frames.

    A cutout has `size` pixels of its frame, not resampled, unless `pixel_scale` or `frame` sets another scale: then
    the nearest whole number of pixels is cut and resized, and the resulting scale is stored with the object. Cutouts
    are mirrored and rotated by multiples of 90 degrees so that north is nearest to up and east to left; the remaining
    rotation is not removed. Bands are aligned by their own WCS, to half a pixel.

    Parameters
    ----------
    path : path
        Folder of frames, one FITS file per band, searched recursively.
    catalog : path or `galscan.surveys.tables.Catalog`, optional
        A table with id, ra and dec. Default: ``catalog.csv`` (``.fits ...``) in the folder.
    labels, size, name
        As for `galscan.surveys.files.base.FileSurvey`.
    columns : mapping, optional
        Column for each role (``id ra dec radius``) that does not have a usual name.
    bands : str, optional
        ``"gri"``, or the names of the bands in file names, from blue to red: ``"f435w,f606w,f814w"``.
        Default: the bands that at least half of the frames have.
    pixel_scale : float, optional
        Arcsec per pixel of the cutouts.
    frame : float, optional
        Instead: side of a cutout in units of the object's radius, a column in arcsec.

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
        catalog: Catalog | str | os.PathLike[str] | None = None,
        labels: Sequence[str] = (),
        size: int = DEFAULT_SIZE,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
        *,
        bands: str | None = None,
        pixel_scale: float | None = None,
        frame: float | None = None,
    ):
        self.root = Path(path).expanduser().absolute()
        if not self.root.exists():
            raise NotFoundError(f"no folder of frames at {path}; name it with --path")
        if not self.root.is_dir():
            raise InputError(f"{path} is a file; give the folder that holds the frames")
        self.name = name or self.root.name
        self.source = Folder(self.root)
        given = Catalog.of(catalog)
        found = given.path or find_catalog(self.root)
        if found is None:
            raise InputError(
                f"frames need a table of objects with id, ra and dec: --catalog FILE, or {CATALOGS[0]} in {path}"
            )
        self._read_catalog(given.at(Path(found)), labels, size, columns or {}, ROLES, pixel_scale, frame)
        sizes = find_files(self.root, FITS)
        sizes.pop(os.path.relpath(self.catalog, self.root), None)
        if not sizes:
            raise InputError(f"no FITS file in {path} or below; name the folder that holds the frames with --path")
        words = parse_bands(bands)
        frames, companions = footprints.find_frames(list(sizes), words)
        frames = footprints.expand_frames(frames, self.source)
        common = footprints.common_bands(frames, words)
        red, green, blue = choose_bands(common)
        self.bands = [b for b in common if b in (red, green, blue)]  # from blue to red
        self._assign(frames, sizes, companions)
        self.rendering = self._measure()

    # ------------------------------------------------------------------------------- objects and frames

    def _assign(self, frames: list[Frame], sizes: Mapping[str, int], companions: Sequence[str]) -> None:
        """Assign the objects to frames and sort them by frame."""
        assignment = footprints.assign_frames(frames, self.source, self.bands, self.ra, self.dec)
        if (assignment.frame < 0).all():
            raise InputError(assignment.no_match_reason(self.ra, self.dec, self.root))
        used = np.unique(assignment.frame[assignment.frame >= 0])
        scales, rotations = np.array([assignment.footprints[k][2:] for k in used]).T
        self._check_scale({frames[k].name: scale for k, scale in zip(used, scales, strict=True)})
        self.frames = [frames[k] for k in used]
        number = np.where(assignment.frame < 0, len(used), np.searchsorted(used, assignment.frame)).astype(np.int32)
        self.count = len(used)
        self._sort_by_frame(number)
        files = [f for k in used for f in frames[k].files.values()]
        whole = {f: split_extension(Path(f))[0].as_posix() for f in files}
        images = Counter(whole.values())  # of each file
        sizes = {f: sizes[whole[f]] // images[whole[f]] for f in files}
        self._frame_metadata = {
            "frames": len(used),
            "frames_sha256": digest([assignment.digest, [[f, sizes[f]] for f in files]]),
            "on_no_frame": int((assignment.frame < 0).sum()),
            "native_scale": [round(float(s), 5) for s in (scales.min(), scales.max())],
            "rotation_left": [round(float(r), 1) + 0.0 for r in (rotations.min(), rotations.max())],
        }
        if assignment.ignored_sip:
            self._frame_metadata["ignored_sip"] = len(assignment.ignored_sip)
        self._bytes = [sum(sizes[f] for b, f in x.files.items() if b in self.bands) for x in self.frames]
        self.notes = []
        if companions:
            kinds = "file(s) of weights, masks or models"
            self.notes.append(f"{len(companions):,} {kinds} are ignored, the first is {companions[0]}")
        if assignment.ignored_sip:
            self.notes.append(
                f"SIP terms of {len(assignment.ignored_sip):,} frame(s) are not used, because CTYPE does not end with "
                f"-SIP, the first is {assignment.ignored_sip[0]}"
            )
        if assignment.unreadable:
            first, why = assignment.unreadable[0]
            self.notes.append(f"{len(assignment.unreadable):,} frame(s) cannot be read, the first is {first} ({why})")
        if self.bands == ["0"] and (coincident := assignment.coincident()):
            first, second = (frames[k].name for k in coincident)
            self.notes.append(
                f"frames {first} and {second} cover the same sky, and their names contain no band: an object is cut "
                "from one of them; if they are bands, give their names: --bands f606w,f814w"
            )
        if missing := self._frame_metadata["on_no_frame"]:
            self.notes.append(
                f"{missing:,} of {len(self.ids):,} objects lie on no frame, and are kept without an image"
            )

    def _measure(self) -> Rendering:
        """Measure one stretch for the survey, on cutouts from frames spread over it."""
        complete = [k for k, frame in enumerate(self.frames) if set(self.bands) <= frame.files.keys()]
        if not complete:
            bands = ", ".join(self.bands)
            raise InputError(f"no frame with objects has all bands {bands}; give the bands it has with --bands")
        stamps: list[dict[str, np.ndarray]] = []
        headers: list[tuple[str, str, Mapping[str, str]]] = []
        why = ""
        for k in np.unique(np.linspace(0, len(complete) - 1, SAMPLE).round().astype(int)):
            first, last = np.searchsorted(self.number, [complete[k], complete[k] + 1])
            rows = np.unique(np.linspace(first, last - 1, 4).round().astype(int))
            try:
                opened = self._open(complete[k])
                headers += [(band, opened.name, plane.header.values) for band, plane in opened.planes.items()]
                stack = opened.raw(self.ra[rows], self.dec[rows], int(np.clip(self.size, 64, 512)))
                stamps += [dict(zip(self.bands, stack[:, n], strict=True)) for n in range(len(rows))]
            except Exception as error:  # broken frames fail later, with a reason for each object
                why = why or f"frame {self.frames[complete[k]].name}: {error_text(error, self.root)}"
        self._close()
        if not stamps:
            raise InputError(f"none of {min(SAMPLE, len(complete))} frames tried in {self.root} can be used ({why})")
        check_zero_points(headers)
        rendering = measure(stamps, self.bands)
        if rendering is None:
            raise InputError(f"the stretch cannot be measured: in the frames of {self.root} all pixels are equal")
        return rendering

    # ---------------------------------------------------------------------------------- Survey protocol

    def plan(self) -> dict[str, Any]:
        """Return the cost of all cutouts: frames, objects on no frame, bytes to read."""
        used, beyond = self._used_frames(), int((self.number == self.count).sum())
        return {"frames": len(used), "on_no_frame": beyond, "bytes_to_read": sum(self._bytes[k] for k in used)}

    def describe(self) -> dict[str, Any]:
        """Return provenance: frames, catalog, cutting and rendering."""
        return {
            "survey": "frames",
            "name": self.name,
            "path": str(self.root),
            **self._metadata(),
            "overlap": "the frame in which the object is farthest from the edge",
        }

    def _frame(self, number: int) -> Frame:
        return self.frames[number]

    def _beyond(self, rows: slice) -> Iterator[Outcome]:
        known = np.isfinite(self.ra[rows] + self.dec[rows])
        yield from (NoCoverage("on no frame" if k else "no position in the catalog") for k in known)
