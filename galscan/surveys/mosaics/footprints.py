"""Which frame an object is cut from: frames are grouped from files, and objects are laid on their footprints.

Every header is read once and thrown away again; what stays is a number an object. A tree over the objects finds those
near a frame, and the frame's own astrometry says on which pixel they are.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from galscan.core import progress
from galscan.core.errors import InputError, nearest
from galscan.core.sky import unit_vectors
from galscan.surveys.files.images import BANDS, is_fits, split_band, stem
from galscan.surveys.files.local import find_images
from galscan.surveys.mosaics.header import Astrometry, Header, NoAstrometry, read_header, rotation, scale

# Companions of an image, which cover the same sky and are no picture of it.
COMPANIONS = {
    "invvar", "ivar", "wht", "weight", "weights", "rms", "var", "variance", "mask", "maskbits", "flag", "flags", "dq",
    "model", "blobmodel", "resid", "chi2", "depth", "galdepth", "nexp", "psfsize", "psf", "bkg", "segm", "segmentation",
}  # fmt: skip
COMPLETE = 1e6  # arcsec: a frame in all bands is preferred to one that lacks some, however large
TWINS = 10  # pixels between the middles of frames that may be one
BATCH = 1024  # headers in flight


class Source(Protocol):
    """Where the files of frames are. One that fetches them may do so in `locate`, and drop them in `release`."""

    def expect(self, files: Sequence[str]) -> None:
        """Take note that `files` will be needed soon, in this order."""
        ...

    def locate(self, file: str) -> Path:
        """Return where `file` can be opened."""
        ...

    def release(self, files: Sequence[str]) -> None:
        """Take note that `files` are not needed any more, for now."""
        ...

    def reject(self, files: Sequence[str]) -> None:
        """Take note that `files` cannot be used."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on this machine, searched recursively; its files stay where they are."""

    root: Path

    def files(self) -> dict[str, int]:
        """Return name -> bytes of every file."""
        return {file: size for file, size in find_images(self.root, None).items() if is_fits(file)}

    def expect(self, files: Sequence[str]) -> None: ...

    def locate(self, file: str) -> Path:
        return self.root / file

    def release(self, files: Sequence[str]) -> None: ...

    def reject(self, files: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class Frame:
    """One piece of the sky: a file a band. Band ``"0"`` is that of files whose names tell none."""

    name: str
    files: Mapping[str, str]


def find_frames(files: Sequence[str], bands: Sequence[str] = ()) -> tuple[list[Frame], list[str]]:
    """Group files into frames by their names; companions such as weights and masks are returned apart.

    Parameters
    ----------
    files : sequence of str
        Relative POSIX paths.
    bands : sequence of str
        Words in the names that are bands, where they are not the usual letters (ugrizy).

    Raises
    ------
    InputError
        If two files are the same band of one frame.
    """
    images = [f for f in files if not COMPANIONS & set(re.split(r"[-_.]", stem(f).lower()))]
    images = images or list(files)  # a folder of nothing else is meant as it is
    groups: dict[str, dict[str, list[str]]] = {}
    for file in images:
        name, band = _split(file, bands)
        groups.setdefault(name, {}).setdefault(band, []).append(file)
    frames = []
    for name, have in groups.items():
        if all(len(same) == 1 for same in have.values()):
            frames.append(Frame(name, {band: same[0] for band, same in have.items()}))
            continue
        apart: dict[str, dict[str, str]] = {}  # names that come again in other folders are other frames
        for band, same in have.items():
            for file in same:
                here = apart.setdefault(file.rpartition("/")[0], {})
                if band in here:
                    raise InputError(
                        f"{here[band]} and {file} are both band '{band}' of frame '{name}'; remove one of them"
                    )
                here[band] = file
        frames += [Frame(f"{folder}/{name}".lstrip("/"), bands_here) for folder, bands_here in apart.items()]
    kept = set(images)
    return sorted(frames, key=lambda f: f.name), [f for f in files if f not in kept]


def _split(file: str, bands: Sequence[str]) -> tuple[str, str]:
    """Split a file's name into that of its frame and its band; a folder may be called by the band, too."""
    letters = all(b in BANDS for b in bands)
    name, band = split_band(file) if letters else _split_word(stem(file), bands)
    folder = file.split("/")[-2] if "/" in file else ""
    return name, band or (folder if folder in (tuple(BANDS) if letters else bands) else "0")


def _split_word(name: str, bands: Sequence[str]) -> tuple[str, str]:
    words = "|".join(re.escape(b) for b in sorted(bands, key=len, reverse=True))
    match = re.search(rf"(?:^|[-_.])({words})(?=[-_.]|$)", name, re.IGNORECASE)
    if match is None:
        return name, ""
    band = next(b for b in bands if b.lower() == match[1].lower())
    return (name[: match.start()] + name[match.end() :]).strip("-_."), band


def parse_bands(text: str | None) -> list[str]:
    """Return the bands of an option from blue to red: letters, or words between commas."""
    if not text:
        return []
    words = [w.strip() for w in text.split(",") if w.strip()] if "," in text or set(text) - set(BANDS) else list(text)
    repeated = next((w for w in words if words.count(w) > 1), None)
    if repeated or not words:
        raise InputError(
            f"--bands {text}: '{repeated or text}' is given twice or is no band; write gri, or f606w,f814w"
        )
    return sorted(words, key=BANDS.index) if set(words) <= set(BANDS) else words


def common_bands(frames: Sequence[Frame], wanted: Sequence[str]) -> list[str]:
    """Return the bands to use, from blue to red: those wanted, or those that at least half of the frames have.

    Raises
    ------
    InputError
        If a wanted band is in no frame.
    """
    count: dict[str, int] = {}
    for frame in frames:
        for band in frame.files:
            count[band] = count.get(band, 0) + 1
    for band in wanted:
        if band not in count:
            raise InputError(f"no frame is of band '{band}'{nearest(band, count)}; name others with --bands")
    if wanted:
        return list(wanted)
    most = [b for b in (*BANDS, "0") if 2 * count.get(b, 0) >= len(frames)]
    return most or sorted(count, key=lambda b: (-count[b], b))[:1]


@dataclass
class Placing:
    """Where the objects are: on which frame, and what was found out about the frames on the way.

    Attributes
    ----------
    frame : ndarray of int32
        Number of the frame an object is cut from, -1 for none.
    scales, turns, centres : dict
        Pixel scale (arcsec), rotation (deg, north from the nearest side) and position (deg) in the middle of a frame.
    unreadable : list of (str, str)
        Frames of which no header could be read, and why.
    digest : str
        Hash of all headers.
    """

    frame: np.ndarray
    scales: dict[int, float] = field(default_factory=dict)
    turns: dict[int, float] = field(default_factory=dict)
    centres: dict[int, tuple[float, float]] = field(default_factory=dict)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    digest: str = ""

    def twins(self) -> tuple[int, int] | None:
        """Return two frames whose middles are nowhere else: perhaps bands of one, whose names do not say so."""
        from scipy.spatial import cKDTree

        numbers = list(self.centres)
        near = np.radians(np.median(list(self.scales.values())) * TWINS / 3600)
        pairs = cKDTree(unit_vectors(*np.array(list(self.centres.values())).T)).query_pairs(near)
        return next(((numbers[a], numbers[b]) for a, b in sorted(pairs)), None)

    def nowhere(self, ra: np.ndarray, dec: np.ndarray, root: Path) -> str:
        """Say why no object lies on a frame, as far as can be seen."""
        if self.unreadable and not self.centres:
            name, why = self.unreadable[0]
            return f"no frame in {root} can be read, the first is {name} ({why})"
        known = np.isfinite(ra) & np.isfinite(dec)
        if not known.any():
            return "no object of the catalog has a position; ra and dec are in degrees"
        frames = np.array(list(self.centres.values())).T
        return (
            f"no object lies on a frame: objects are at {_range(ra[known], dec[known])}, frames at {_range(*frames)}; "
            "give objects and frames of one part of the sky (degrees)"
        )


def _range(ra: np.ndarray, dec: np.ndarray) -> str:
    """Return the ranges of positions in words; right ascension may run over 0."""
    around = np.unique(ra % 360)
    gap = int(np.argmax(np.diff(around, append=around[0] + 360)))  # the widest piece with nothing in it
    west, east = around[(gap + 1) % len(around)], around[gap]
    return f"ra {west:.4g} to {east:.4g}, dec {dec.min():.4g} to {dec.max():.4g}"


def place(frames: Sequence[Frame], source: Source, bands: Sequence[str], ra: np.ndarray, dec: np.ndarray) -> Placing:
    """Find the frame of every object: of those it lies on the one where it is farthest from the edge.

    A frame that has all of `bands` is preferred to one that does not; the first band's astrometry counts.

    Raises
    ------
    InputError
        If a frame has no astrometry.
    """
    from scipy.spatial import cKDTree

    placing = Placing(np.full(len(ra), -1, dtype=np.int32))
    known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    tree = cKDTree(unit_vectors(ra[known], dec[known]), compact_nodes=False, balanced_tree=False)
    best = np.full(len(ra), -1.0)
    digest = hashlib.sha256()
    with progress.track("frames", len(frames), "frames") as advance:
        for number, (header, why) in enumerate(_headers(frames, source, bands)):
            frame = frames[number]
            advance()
            if header is None:
                placing.unreadable.append((frame.name, why))
                continue
            digest.update(header.cards)
            try:
                astrometry = Astrometry(header)
            except NoAstrometry as error:
                file = next(iter(frame.files.values()))
                raise InputError(
                    f"frame {file}: {error}; solve it (astrometry.net), or take it out of the folder"
                ) from error
            centre, radius, placing.scales[number], placing.turns[number] = _footprint(astrometry)
            placing.centres[number] = centre
            near = tree.query_ball_point(unit_vectors(*map(np.array, centre)), radius, return_sorted=True)
            if not near:
                continue
            rows = known[np.asarray(near)]
            x, y = astrometry.pixels(ra[rows], dec[rows])
            height, width = astrometry.shape
            inside = np.minimum.reduce([x + 0.5, width - 0.5 - x, y + 0.5, height - 0.5 - y])
            # Whole milliarcseconds: the last digits, which differ between machines, must not choose.
            worth = np.round(inside * placing.scales[number], 3)
            worth += COMPLETE if set(bands) <= frame.files.keys() else 0
            better = (inside >= 0) & (worth > best[rows])  # NaN is neither
            placing.frame[rows[better]], best[rows[better]] = number, worth[better]
    placing.digest = digest.hexdigest()
    return placing


def _headers(frames: Sequence[Frame], source: Source, bands: Sequence[str]) -> Iterator[tuple[Header | None, str]]:
    """Yield the header of each frame, in order, or the reason for none: unpacking and waiting is done by threads."""

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


def _footprint(astrometry: Astrometry) -> tuple[tuple[float, float], float, float, float]:
    """Return centre (deg), radius (chord on the unit sphere), pixel scale (arcsec) and rotation (deg) of a frame."""
    height, width = astrometry.shape
    xs, ys = np.array([-0.5, (width - 1) / 2, width - 0.5]), np.array([-0.5, (height - 1) / 2, height - 0.5])
    x, y = (a.ravel() for a in np.meshgrid(xs, ys))
    ra, dec = astrometry.sky(x, y)
    points = unit_vectors(ra, dec)
    reach = np.linalg.norm(points - points[4], axis=1).max()
    centre = astrometry.local(x[4:5], y[4:5])
    # Where corners are beyond the projection the frame may be anywhere; sides bend outwards a little.
    radius = 2.0 if not np.isfinite(reach) else min(2.0, 1.05 * float(reach) + 1e-6)
    return (float(ra[4]), float(dec[4])), radius, float(scale(centre)[0]), float(rotation(centre)[0])
