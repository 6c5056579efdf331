"""Match of objects to frames: files are grouped to frames, and objects are assigned by footprint.

Every header is read once; only a frame number per object is stored. A k-d tree of the objects finds those near a frame,
and the WCS of the frame gives their pixel positions.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from galscan.core import progress
from galscan.core.errors import InputError, nearest
from galscan.core.sky import unit_vectors
from galscan.surveys.file_names import is_companion, split_names, stem, wavelength
from galscan.surveys.header import (
    Astrometry,
    Header,
    NoAstrometry,
    bands_of,
    read_header,
    read_headers,
    rotation,
    scale,
)

COMPLETE = 1e6  # arcsec: bonus of a frame with all bands over any frame that lacks some
COINCIDENT = 10  # pixels: centres of frames closer than this may be bands of one frame
BATCH = 1024  # headers read at a time


class Folder:
    """Files of frames in a folder. A subclass may download them in `locate` and delete them in `release`."""

    def __init__(self, root: Path):
        self.root = root

    def locate(self, file: str) -> Path:
        """Return the local path of `file`."""
        return self.root / file

    def expect(self, files: Sequence[str]) -> None:
        """Announce that `files` will be needed soon, in this order."""

    def release(self, files: Sequence[str]) -> None:
        """Announce that `files` are not needed any more, for now."""

    def reject(self, files: Sequence[str]) -> None:
        """Announce that `files` cannot be used."""


@dataclass(frozen=True)
class Frame:
    """An image of one part of the sky, one file per band; band ``"0"`` if file names contain no band."""

    name: str
    files: Mapping[str, str]


def find_frames(files: Sequence[str], bands: Sequence[str] = ()) -> tuple[list[Frame], list[str]]:
    """Group files into frames by their names; companions such as weights and masks are returned separately.

    Parameters
    ----------
    files : sequence of str
        Relative POSIX paths.
    bands : sequence of str
        Names of the bands in file names, if they are not the usual letters (ugrizy).

    Raises `InputError` if two files are the same band of one frame.
    """
    images = [f for f in files if not is_companion(stem(f))]
    images = images or list(files)  # a folder of companions only: they are what the user wants
    groups: dict[str, list[tuple[str, str]]] = {}
    for file, (name, band) in split_names(images, bands).items():
        groups.setdefault(name, []).append((band or "0", file))
    frames = []
    for name, group in groups.items():
        if len(dict(group)) == len(group):
            frames.append(Frame(name, dict(group)))
            continue
        by_folder: dict[str, dict[str, str]] = {}  # the same name in another folder is another frame
        for band, file in group:
            folder = file.rpartition("/")[0]
            if (first := by_folder.setdefault(folder, {}).setdefault(band, file)) != file:
                raise InputError(f"{first} and {file} are both band '{band}' of frame '{name}'; remove one of them")
        frames += [Frame(f"{folder}/{name}".lstrip("/"), in_folder) for folder, in_folder in by_folder.items()]
    kept = set(images)
    return sorted(frames, key=lambda f: f.name), [f for f in files if f not in kept]


def expand_frames(frames: Sequence[Frame], source: Folder) -> list[Frame]:
    """Return the frames with those replaced whose files hold several images: chips of a camera, or bands.

    Every image with a WCS is a frame, named by its extension, or a band if the names of extensions or the keywords of
    filters say so and the images are equal in shape. Errors, masks and weights are left out.
    """

    def read(frame: Frame) -> list[Frame]:
        images: dict[str, list[Header]] = {}
        for band, file in frame.files.items():
            try:
                images[band] = read_headers(source.locate(file))
            except (ValueError, OSError, EOFError):  # the frame is reported as unreadable later
                images[band] = []
        if all(len(found) < 2 for found in images.values()):
            return [frame]
        parts: dict[str, dict[str, str]] = {}
        for band, file in frame.files.items():
            for key, image_band, hdu in _parts(images[band]):
                parts.setdefault(key, {})[image_band or band] = f"{file}[{hdu}]" if hdu >= 0 else file
        return [Frame(f"{frame.name}[{key}]" if key else frame.name, files) for key, files in parts.items()]

    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        return [part for found in pool.map(read, frames) for part in found]


def _parts(images: Sequence[Header]) -> list[tuple[str, str, int]]:
    """Return the key of the frame, the band and the HDU of each image of a file; "" and -1 for the file's own."""
    if len(images) < 2:
        return [("", "", -1)]
    bands = bands_of([image.values for image in images]) if len({image.shape for image in images}) == 1 else []
    if bands:
        return [("", band, image.hdu) for band, image in zip(bands, images, strict=True)]
    names = [image.name for image in images]
    unique = all(names) and len(set(names)) == len(names)
    return [(image.name if unique else str(image.hdu), "", image.hdu) for image in images]


def common_bands(frames: Sequence[Frame], wanted: Sequence[str]) -> list[str]:
    """Return the bands to use, from blue to red: `wanted`, or those that at least half of the frames have.

    Raises `InputError` if a wanted band is in no frame.
    """
    count = Counter(band for frame in frames for band in frame.files)
    for band in wanted:
        if band not in count:
            raise InputError(f"no frame has band '{band}'{nearest(band, count)}; choose others with --bands")
    if wanted:
        return list(wanted)
    most = sorted((b for b in count if b != "0" and 2 * count[b] >= len(frames)), key=wavelength)
    most += ["0"] if 2 * count["0"] >= len(frames) else []
    return most or sorted(count, key=lambda b: (-count[b], b))[:1]


class Footprint(NamedTuple):
    """Centre (deg), radius (chord on the unit sphere), pixel scale (arcsec) and rotation (deg) of a frame.

    The rotation is that of north from the nearest pixel axis. Scale and rotation are those at the centre.
    """

    centre: tuple[float, float]
    radius: float
    scale: float
    rotation: float


@dataclass
class FrameAssignment:
    """The frame of each object, and the footprints of the frames by frame number.

    Attributes
    ----------
    frame : ndarray of int32
        Number of the frame an object is cut from, -1 for none.
    unreadable : list of (str, str)
        Frames of which no header could be read, and why.
    digest : str
        Hash of all headers.
    ignored_sip : list of str
        Frames with SIP terms that do not count, because CTYPE does not end with -SIP.
    """

    frame: np.ndarray
    footprints: dict[int, Footprint] = field(default_factory=dict)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    digest: str = ""
    ignored_sip: list[str] = field(default_factory=list)

    def _centres(self) -> np.ndarray:
        return np.array([f.centre for f in self.footprints.values()]).T

    def coincident(self) -> tuple[int, int] | None:
        """Return two frames with the same centre, which may be two bands of one frame; None if there are none."""
        from scipy.spatial import cKDTree

        numbers = list(self.footprints)
        near = np.radians(np.median([f.scale for f in self.footprints.values()]) * COINCIDENT / 3600)
        pairs = cKDTree(unit_vectors(*self._centres())).query_pairs(near)
        return next(((numbers[a], numbers[b]) for a, b in sorted(pairs)), None)

    def no_match_reason(self, ra: np.ndarray, dec: np.ndarray, root: Path) -> str:
        """Return the likely reason why no object lies on a frame."""
        if self.unreadable and not self.footprints:
            name, why = self.unreadable[0]
            return f"no frame in {root} can be read, the first is {name} ({why})"
        known = np.isfinite(ra) & np.isfinite(dec)
        if not known.any():
            return "no object of the catalog has a position; ra and dec are in degrees"
        return (
            f"no object lies on a frame: objects are at {_range(ra[known], dec[known])}, "
            f"frames at {_range(*self._centres())}; give objects and frames of one part of the sky (degrees)"
        )


def _range(ra: np.ndarray, dec: np.ndarray) -> str:
    """Return the ranges of positions as text; right ascension may wrap around 0."""
    sorted_ra = np.unique(ra % 360)
    gap = int(np.argmax(np.diff(sorted_ra, append=sorted_ra[0] + 360)))  # the widest gap without objects
    west, east = sorted_ra[(gap + 1) % len(sorted_ra)], sorted_ra[gap]
    return f"ra {west:.4g} to {east:.4g}, dec {dec.min():.4g} to {dec.max():.4g}"


def assign_frames(
    frames: Sequence[Frame], source: Folder, bands: Sequence[str], ra: np.ndarray, dec: np.ndarray
) -> FrameAssignment:
    """Assign every object to a frame: where frames overlap, to that in which it is farthest from the edge.

    A frame with all of `bands` is preferred to one that lacks some. The WCS of the first band is used.

    Raises `InputError` if a frame has no astrometry.
    """
    from scipy.spatial import cKDTree

    assignment = FrameAssignment(np.full(len(ra), -1, dtype=np.int32))
    known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    tree = cKDTree(unit_vectors(ra[known], dec[known]), compact_nodes=False, balanced_tree=False)
    best = np.full(len(ra), -1.0)
    digest = hashlib.sha256()
    with progress.track("frames", len(frames), "frames") as advance:
        for number, (header, why) in enumerate(_headers(frames, source, bands)):
            frame = frames[number]
            advance()
            if header is None:
                assignment.unreadable.append((frame.name, why))
                continue
            digest.update(header.cards)
            try:
                astrometry = Astrometry(header)
            except NoAstrometry as error:
                file = next(iter(frame.files.values()))
                raise InputError(
                    f"frame {file}: {error}; solve it (astrometry.net), or remove it from the folder"
                ) from error
            if astrometry.ignored_sip:
                assignment.ignored_sip.append(frame.name)
            footprint = assignment.footprints[number] = _footprint(astrometry)
            centre = unit_vectors(*map(np.array, footprint.centre))
            near = tree.query_ball_point(centre, footprint.radius, return_sorted=True)
            if not near:
                continue
            rows = known[np.asarray(near)]
            x, y = astrometry.pixels(ra[rows], dec[rows])
            height, width = astrometry.shape
            inside = np.minimum.reduce([x + 0.5, width - 0.5 - x, y + 0.5, height - 0.5 - y])
            # Rounded to milliarcseconds, because the last digits differ between machines.
            margin = np.round(inside * footprint.scale, 3)
            margin += COMPLETE if set(bands) <= frame.files.keys() else 0
            better = (inside >= 0) & (margin > best[rows])  # False for NaN
            assignment.frame[rows[better]], best[rows[better]] = number, margin[better]
    assignment.digest = digest.hexdigest()
    return assignment


def _headers(frames: Sequence[Frame], source: Folder, bands: Sequence[str]) -> Iterator[tuple[Header | None, str]]:
    """Yield the header of each frame in order, or the reason for none; files are read by threads."""

    def read(frame: Frame) -> tuple[Header | None, str]:
        why = ""
        for band in (*(b for b in bands if b in frame.files), *(b for b in frame.files if b not in bands)):
            try:
                return read_header(source.locate(frame.files[band])), ""
            except (ValueError, OSError, EOFError) as error:
                why = why or str(error)
        return None, why

    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        for start in range(0, len(frames), BATCH):
            yield from pool.map(read, frames[start : start + BATCH])


def _footprint(astrometry: Astrometry) -> Footprint:
    height, width = astrometry.shape
    xs, ys = np.array([-0.5, (width - 1) / 2, width - 0.5]), np.array([-0.5, (height - 1) / 2, height - 0.5])
    x, y = (a.ravel() for a in np.meshgrid(xs, ys))
    ra, dec = astrometry.sky(x, y)
    points = unit_vectors(ra, dec)
    reach = np.linalg.norm(points - points[4], axis=1).max()
    centre = astrometry.local(x[4:5], y[4:5])
    # With corners outside the projection the extent is unknown; 5 % more, because curved sides bulge outwards.
    radius = 2.0 if not np.isfinite(reach) else min(2.0, 1.05 * float(reach) + 1e-6)
    return Footprint((float(ra[4]), float(dec[4])), radius, float(scale(centre)[0]), float(rotation(centre)[0]))
