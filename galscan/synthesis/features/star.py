"""Point sources: foreground stars and compact blue galaxies beside or in front of the host.

They are the objects that are most often confused with the images of a lensed source, and are injected to make hard
negatives, never targets. A map has up to three sources of the numbers of `COLUMNS`, in the frame of the host. Stars
have the colours of the stellar locus (Covey et al. 2007, AJ 134, 2398), compact galaxies those of lensed ones
(`galscan.synthesis.features.lens`), so that colour alone does not tell arcs from neighbours. Both have a Moffat profile
(1969, A&A 3, 455) with the full width at half maximum of the seeing, or, of a compact galaxy, a little more. Blue stars
are more frequent than in the sky.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from galscan.core.errors import InputError
from galscan.synthesis.features import lens
from galscan.synthesis.features.light import add_light, light_within
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts

CONDITIONS: Mapping[str, tuple[float, float]] = {}
LEAST_DEPTH = 0.15  # a little less than that of the faintest arcs
DONORS = False
SOURCES = 3  # at most, of one host; those of flux 0 are unused
COLUMNS = (
    "distance",  # from the centre of the host, in its half-light radii
    "angle",  # of the source from the host, to the host's major axis, radians
    "flux",  # relative to the host, in r
    "galaxy",  # 1 of a compact galaxy, 0 of a star
    "colour",  # of a star g - i, mag; of a galaxy the slope of its spectrum, as that of a lensed source
    "extent",  # of a galaxy before the seeing, in units of the seeing, both as full width at half maximum
    "wings",  # exponent of the Moffat profile: the lower, the more light is in its wings
)
DISTANCE, FLUX, EXTENT, WINGS = (0.3, 4.0), (0.01, 1.0), (0.1, 0.9), (2.5, 5.0)
BRIGHTEST = 2.0  # flux of deepened sources
BLUE, BLUE_STARS = 0.9, 0.6  # g - i below which stars are blue, and fraction of blue stars in addition to the others
GALAXIES = 0.4  # fraction of compact galaxies
MORE = (0.45, 0.4)  # probability of a second source, and of a third if there is a second
# Median colours of stars by g - i, mag: u - g, g - r, r - i, i - z. Covey et al. 2007, table 1. z - y, which is not in
# that table, is taken to be half of i - z.
LOCUS = np.array([
    [0.2, 1.06, 0.18, 0.03, -0.02], [0.4, 1.07, 0.30, 0.10, 0.01], [0.6, 1.25, 0.44, 0.16, 0.04],
    [0.8, 1.56, 0.58, 0.21, 0.08], [1.0, 1.90, 0.73, 0.27, 0.12], [1.4, 2.38, 1.02, 0.38, 0.20],
    [1.8, 2.61, 1.26, 0.54, 0.29], [2.2, 2.61, 1.41, 0.79, 0.43], [2.6, 2.58, 1.41, 1.18, 0.62],
    [2.8, 2.62, 1.43, 1.36, 0.72],
])  # fmt: skip


def prior(count: int, random: np.random.Generator) -> np.ndarray:
    """Sample groups of one to three sources, float32, shape (count, 1, SOURCES, len(COLUMNS)).

    Fluxes are uniform in their logarithm, distances and angles uniform; all sources of an image have the same wings.
    """
    shape = (count, SOURCES)
    more = random.random((2, count)) < np.array(MORE)[:, None]
    used = np.stack([np.ones(count, bool), more[0], more.all(0)], 1)
    flux = np.exp(random.uniform(np.log(FLUX[0]), np.log(FLUX[1]), shape)) * used
    galaxy = random.random(shape) < GALAXIES
    stars = np.where(
        random.random(shape) < BLUE_STARS,
        random.uniform(LOCUS[0, 0], BLUE, shape),
        random.uniform(LOCUS[0, 0], LOCUS[-1, 0], shape),
    )
    slope = random.normal(*lens.SLOPE[:2], shape).clip(*lens.SLOPE[2:])
    columns = [
        random.uniform(*DISTANCE, shape), random.uniform(0, 2 * np.pi, shape), flux, galaxy,
        np.where(galaxy, slope, stars), random.uniform(*EXTENT, shape) * galaxy,
        np.broadcast_to(random.uniform(*WINGS, (count, 1)), shape),
    ]  # fmt: skip
    return np.stack(columns, -1).astype(np.float32)[:, None]


def deepen(maps: np.ndarray, factor: float) -> np.ndarray:
    """Return sources that are `factor` times as bright, up to `BRIGHTEST`."""
    deeper = maps.copy()
    column = COLUMNS.index("flux")
    deeper[..., column] = np.minimum(maps[..., column] * factor, BRIGHTEST)
    return deeper


def describe(maps: np.ndarray) -> np.ndarray:
    """Return no conditions: there is no diffusion model of point sources."""
    return np.empty((len(maps), 0), np.float32)


def measure(images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg") -> tuple[np.ndarray, np.ndarray]:
    """Raise an `InputError`: point sources are only injected."""
    raise InputError("the feature 'star' cannot be measured on galaxies; remove 'measure' from the recipe's rule")


def colours(colour: float, bands: str) -> np.ndarray:
    """Return the flux of a star relative to that of an elliptical, 1 in r, in these bands; float32, shape (3,).

    `colour` is its g - i. The elliptical host calibrates the bands (`galscan.synthesis.features.lens.HOST_COLOURS`).
    """
    u_g, g_r, r_i, i_z = (np.interp(colour, LOCUS[:, 0], column) for column in LOCUS.T[1:])
    relative = {"u": u_g + g_r, "g": g_r, "r": 0.0, "i": -r_i, "z": -r_i - i_z, "y": -r_i - 1.5 * i_z}
    magnitudes = np.array([relative[band] - lens.HOST_COLOURS[band] for band in bands])
    return (10 ** (-0.4 * magnitudes)).astype(np.float32)


def inject(
    images: np.ndarray,
    hosts: Hosts,
    maps: np.ndarray,
    stretch: Stretch,
    random: np.random.Generator,
    *,
    bands: str = "irg",
    seeing: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Add point sources to each host, with their photon noise.

    There is one map per host, all of which must be measured. `bands` are those of red, green and blue; `seeing` is the
    standard deviation of the point spread function in pixels. Sources with their centre outside the image are left out.

    Returns
    -------
    injected : ndarray of uint8, shape (n, S, S, 3)
    depth : ndarray of float32, shape (n,)
        Contrast as displayed (`galscan.synthesis.features.light.visibility`); 0 where nothing was injected.
    """
    n, size = images.shape[:2]
    seeing = np.broadcast_to(np.asarray(seeing, float), (n,))
    injected, depth = images.copy(), np.zeros(n, np.float32)
    row, column = np.indices((size, size), np.float32)
    for k in range(n):
        host = light_within(images[k], hosts, k, stretch)
        light = np.zeros((size, size, 3), np.float32)
        for values in maps[k, 0]:
            source = dict(zip(COLUMNS, values.tolist(), strict=True))
            direction = source["angle"] + hosts.angle[k]
            x = hosts.x[k] + source["distance"] * hosts.radius[k] * np.cos(direction)
            y = hosts.y[k] + source["distance"] * hosts.radius[k] * np.sin(direction)
            if source["flux"] <= 0 or not (0 <= x <= size - 1 and 0 <= y <= size - 1):
                continue
            width = 2.3548 * seeing[k] * np.hypot(1, source["extent"])
            spectrum = (lens.colours if source["galaxy"] > 0.5 else colours)(source["colour"], bands)
            profile = moffat(np.hypot(column - x, row - y), width=width, wings=source["wings"])
            light += profile[..., None] * (source["flux"] * host * spectrum)
        injected[k], depth[k] = add_light(images[k], light, stretch, random)
    return injected, depth


def moffat(distance: np.ndarray, *, width: float, wings: float) -> np.ndarray:
    """Return a Moffat profile of total flux 1: `width` is its full width at half maximum, in the unit of `distance`."""
    core = width / (2 * np.sqrt(2 ** (1 / wings) - 1))
    return (wings - 1) / (np.pi * core**2) * (1 + (distance / core) ** 2) ** -wings
