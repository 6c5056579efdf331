"""Stamps from frames: pixels are read on demand, bands are aligned, checked and combined to RGB images.

Plain files are memory-mapped, ``.gz`` and ``.bz2`` are decompressed once, and of tile-compressed files (``.fz``) a few
tiles or all are decompressed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from galscan.surveys.base import Cutout, Failed, Flag, NoCoverage, Outcome
from galscan.surveys.files.images import Rendering, blank_pixels, fit, sky_and_noise
from galscan.surveys.header import TYPES, Astrometry, open_decompressed, quarters, read_header, scale, split_extension

FEWEST, MOST = 8, 4096  # limits of a cutout's side in pixels of the frame
PIXELS = 64 * 64 * 32  # pixels per band that are rendered at once: they fit in the cache of a core
SKY_ROWS = 32  # rows of a plane on which its sky level is measured


class Plane:
    """The pixels of one image, opened for cutting. Broken files raise any error, here or in `stamp`."""

    def __init__(self, path: Path):
        self.header = read_header(path)
        self.astrometry = Astrometry(self.header)
        self._sky: float | None = None
        self._hdus: Any = None
        if self.header.tiles:
            from astropy.io import fits

            self._hdus = fits.open(split_extension(path)[0])
            self._pixels: Any = self._hdus[self.header.hdu].section
            if len(self._hdus[self.header.hdu].shape) > 2:  # with axes of length 1
                self.expect(2 * self.header.shape[0])
        else:
            self._pixels = self._map(split_extension(path)[0])

    def _map(self, path: Path) -> np.ndarray:
        shape, offset, kind = self.header.shape, self.header.offset, np.dtype(TYPES[self.header.bitpix])
        count = shape[0] * shape[1]
        with open_decompressed(path) as file:
            if isinstance(file, io.BufferedReader):
                size = file.seek(0, io.SEEK_END)
                if size < offset + count * kind.itemsize:
                    raise ValueError(f"truncated: {size:,} bytes of {offset + count * kind.itemsize:,}")
                # A plain array of the same memory: slicing the subclass costs as much as the copy.
                return np.asarray(np.memmap(file, dtype=kind, mode="r", offset=offset, shape=shape))
            file.seek(offset)
            data = file.read(count * kind.itemsize)
        if len(data) < count * kind.itemsize:
            raise ValueError(f"truncated: {len(data):,} bytes of pixels of {count * kind.itemsize:,}")
        return np.frombuffer(data, dtype=kind).reshape(shape)

    def expect(self, rows: int) -> None:
        """Announce the total number of rows of all stamps; for many, all tiles are decompressed at once."""
        if self._hdus is not None and rows > self.header.shape[0] / 2:
            self._pixels = self._hdus[self.header.hdu].data.reshape(self.header.shape)
            self.close()

    def close(self) -> None:
        if self._hdus is not None:
            self._hdus.close()
            self._hdus = None

    def stamp(self, x: int, y: int, size: int) -> np.ndarray:
        """Return the pixels from column `x` and row `y` on as float32, shape (size, size), NaN outside the image."""
        height, width = self.header.shape
        left, right, low, high = max(x, 0), min(x + size, width), max(y, 0), min(y + size, height)
        stamp = np.full((size, size), np.nan, dtype=np.float32)
        if left < right and low < high:
            inside = self._physical(self._pixels[low:high, left:right])
            stamp[low - y : high - y, left - x : right - x] = inside
        return stamp

    def sky(self) -> float:
        """Return the sky level, measured on rows spread over the plane, independent of the stamps."""
        if self._sky is None:
            rows = np.unique(np.linspace(0, self.header.shape[0] - 1, SKY_ROWS).round().astype(int))
            values = np.concatenate([self._physical(self._pixels[r : r + 1, :]).ravel() for r in rows])
            self._sky = sky_and_noise(values[np.isfinite(values)])[0]
        return self._sky

    def _physical(self, raw: np.ndarray) -> np.ndarray:
        """Return values proportional to flux as float32, scaled in the same precision as astropy does."""
        return self.header.flux.linear(self._scaled(raw)).astype(np.float32, copy=False)

    def _scaled(self, raw: np.ndarray) -> np.ndarray:
        h = self.header
        if h.tiles or (h.bitpix < 0 and h.bscale == 1 and h.bzero == 0):
            return raw.astype(np.float32)  # astropy scaled the tiles
        values: np.ndarray = raw.astype(np.float32 if h.bitpix in (8, 16, -32) else np.float64)
        if h.bscale != 1:
            values *= h.bscale
        if h.bzero != 0:
            values += h.bzero
        if h.blank is not None:
            values[raw == h.blank] = np.nan
        return values.astype(np.float32, copy=False)


class OpenFrame:
    """The bands of one frame, opened for cutting. The first one defines scale and orientation.

    Raises `ValueError` if the bands differ in pixel scale or orientation, and any error if a file is broken.
    """

    def __init__(self, name: str, paths: Mapping[str, Path]):
        self.name = name
        self.planes = {band: Plane(path) for band, path in paths.items()}
        self._first = next(iter(self.planes.values()))
        height, width = self._first.header.shape
        ra, dec = self._first.astrometry.sky(np.array([(width - 1) / 2]), np.array([(height - 1) / 2]))
        jacobians = {b: p.astrometry.local(*p.astrometry.pixels(ra, dec))[0] for b, p in self.planes.items()}
        (first, reference), *rest = jacobians.items()
        for band, jacobian in rest:
            if not np.abs(jacobian - reference).max() < 0.02 * np.abs(reference).max():  # also if NaN
                scales = " and ".join(f"{scale(j[None])[0]:.3g}" for j in (reference, jacobian))
                raise ValueError(
                    f"bands {first} and {band} differ in pixel scale ({scales} arcsec) or orientation; resample one"
                )

    def expect(self, rows: int) -> None:
        for plane in self.planes.values():
            plane.expect(rows)

    def close(self) -> None:
        for plane in self.planes.values():
            plane.close()

    def raw(self, ra: np.ndarray, dec: np.ndarray, side: int) -> np.ndarray:
        """Cut stamps of `side` pixels, not rotated or scaled: float32, shape (bands, n, side, side), NaN outside."""
        stack = np.empty((len(self.planes), len(ra), side, side), dtype=np.float32)
        for plane, stamps in zip(self.planes.values(), stack, strict=True):
            # The corner is that of astropy's Cutout2D.
            corners = np.ceil(np.stack(plane.astrometry.pixels(ra, dec), axis=1) - side / 2)
            for k, (x, y) in enumerate(np.nan_to_num(corners, nan=-side).astype(int).tolist()):
                stamps[k] = plane.stamp(x, y, side)
        return stack

    def cut(
        self, ra: np.ndarray, dec: np.ndarray, extent: np.ndarray | None, size: int, rendering: Rendering
    ) -> list[Outcome]:
        """Cut and render one stamp per position; `extent` is its side in arcsec, by default `size` pixels."""
        x, y = self._first.astrometry.pixels(ra, dec)
        local = self._first.astrometry.local(x, y)
        local = np.where(np.isfinite(local), local, np.eye(2))  # outside the projection no orientation is defined
        scales = scale(local)
        sides = np.full(len(ra), float(size)) if extent is None else np.rint(extent / scales)
        outcomes: list[Outcome] = [
            Failed(
                f"the cutout would be {side:,.0f} pixels of frame {self.name}; it must be {FEWEST} to {MOST}",
                Flag.WRONG_SHAPE,
            )
            if np.isfinite(side)
            else Failed("no radius in the catalog", Flag.MISSING)
            for side in sides
        ]
        for side in np.unique(sides[(sides >= FEWEST) & (sides <= MOST)]).astype(int).tolist():
            rows = np.flatnonzero(sides == side)
            for batch in np.split(rows, range(step := max(1, PIXELS // side**2), len(rows), step)):
                stack = self.raw(ra[batch], dec[batch], side)
                rendered = self._render(stack, x[batch], y[batch], rendering)
                for n, mirror, rotations, result in zip(batch, *quarters(local[batch]), rendered, strict=True):
                    outcomes[n] = result
                    if isinstance(result, Cutout):
                        image = result.image[:, ::-1] if mirror else result.image
                        image = np.ascontiguousarray(np.rot90(image, rotations)[::-1])  # FITS rows run from the bottom
                        outcomes[n] = Cutout(image, float(scales[n]), result.flags)
                        if side != size:
                            picture = Image.fromarray(image)
                            outcomes[n] = fit(picture, size, float(scales[n]), source=side, flags=result.flags)
        return outcomes

    def _render(self, stack: np.ndarray, x: np.ndarray, y: np.ndarray, rendering: Rendering) -> list[Outcome]:
        """Render stamps of one size, row 0 at the bottom, or return why they cannot be used."""
        blank: Any = np.zeros(stack.shape[1:], dtype=bool)
        unusable: dict[int, Outcome] = {}
        for k in _suspects(stack):
            blank[k] = np.any([blank_pixels(plane) for plane in stack[:, k]], axis=0)
            if outcome := self._unusable(stack[:, k], blank[k], float(x[k]), float(y[k])):
                unusable[k] = outcome
        flux = {}
        for (band, plane), values in zip(self.planes.items(), stack, strict=True):
            if rendering.subtract[band]:
                values -= np.float32(plane.sky())
            values /= np.float32(rendering.unit[band])
            if blank.any():
                values[blank] = 0  # blank in one band is blanked in all, to avoid coloured edges
            flux[band] = values
        images, filled = rendering.colours(flux), blank.any(axis=(1, 2))
        flags = [Flag.EDGE if edge else Flag.OK for edge in filled]
        return [unusable.get(k) or Cutout(image, flags=flags[k]) for k, image in enumerate(images)]

    def _unusable(self, planes: np.ndarray, blank: np.ndarray, x: float, y: float) -> Outcome | None:
        """Return why a stamp is unusable; None if it can be used."""
        side = len(blank)
        height, width = self._first.header.shape
        spans = [min(c + side / 2, n) - max(c - side / 2, 0) for c, n in ((x + 0.5, width), (y + 0.5, height))]
        if (fraction := np.nan_to_num(max(spans[0], 0) * max(spans[1], 0) / side**2)) < 0.5:
            return NoCoverage(f"only {fraction:.0%} of the stamp is on frame {self.name}")
        for band, plane in zip(self.planes, planes, strict=True):
            if not np.isfinite(plane).any():
                return Failed(f"no finite pixel in band {band} of frame {self.name}", Flag.NONFINITE)
            if np.nanmin(plane) == np.nanmax(plane):
                return Failed(f"all pixels in band {band} of frame {self.name} are equal", Flag.BLANK)
        if (fraction := blank.mean()) > 0.5:
            return Failed(f"{fraction:.0%} of the stamp's pixels are blank in frame {self.name}", Flag.BLANK)
        return None


def _suspects(stack: np.ndarray) -> list[int]:
    """Return the stamps that may have non-finite pixels, empty borders, or a constant value (a fast first check)."""
    odd = ~np.isfinite(stack).all(axis=(0, 2, 3))
    for border in (stack[:, :, 0], stack[:, :, -1], stack[:, :, :, 0], stack[:, :, :, -1]):
        odd |= (border == 0).all(axis=2).any(axis=0)
    few = stack[:, :, ::5, ::5]
    odd |= (few == few[:, :, :1, :1]).all(axis=(2, 3)).any(axis=0)
    return np.flatnonzero(odd).tolist()
