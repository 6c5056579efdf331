"""Gravitational lenses: arcs and rings of a blue galaxy behind the host, whose mass bends the light.

The lens is a singular isothermal ellipsoid with external shear, in closed form (Kormann, Schneider & Bartelmann 1994,
A&A 284, 285). Lensing early types have this profile within the uncertainties, and mass that follows their light with a
scatter of 0.11 in axis ratio and 10 degrees in position angle (Koopmans et al. 2006, ApJ 649, 599). The source is a
galaxy with a Sersic profile, inside the curve that separates one image from several. Its light is ray-traced on pixels
finer than those of the image, blurred by the seeing, and added in flux.

A map has the numbers of `COLUMNS`. Lengths are relative to the half-light radius of the host: the sizes of host, arcs
and source on the sky are sampled in arcsec, and the host is taken to be as far away as its size requires. So the size
of the pixels need not be known. Hosts whose arcs could not be recognised as such (`recognised`), or would be outside
the image, are left out (depth 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from scipy import ndimage
from scipy.special import gamma

from galscan.core.errors import InputError
from galscan.synthesis.features.dust_lane import WAVELENGTHS
from galscan.synthesis.features.light import add_light, light_within
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts

CONDITIONS: Mapping[str, tuple[float, float]] = {}
LEAST_DEPTH = 0.2  # below this an injected arc is hardly noticed beside its host
DONORS = False
COLUMNS = (
    "einstein",  # Einstein radius, in half-light radii of the host
    "flatness",  # axis ratio of the mass minus that of the light
    "turn",  # position angle of the mass, from the host's major axis; like all angles in radians
    "shear",  # external shear
    "shear_angle",  # direction in which it stretches
    "offset",  # of the source from the lens, as a fraction of the way to the cut (`deflection`)
    "direction",  # of the source
    "source_radius",  # half-light radius of the source, in Einstein radii
    "source_index",  # its Sersic index
    "source_ratio",  # its axis ratio
    "source_angle",  # position angle of its major axis
    "slope",  # beta of its spectrum, flux per wavelength as wavelength to the power beta
    "flux",  # of all images of the source together, relative to the host, in r
)
EINSTEIN, SOURCE, INDEX = (0.7, 3.0), (0.1, 0.5), (0.5, 2.0)  # arcsec, arcsec, Sersic index
HOST = (2.0, 0.3, 1.0, 4.0)  # half-light radius in arcsec: median, scatter of its logarithm, least, largest
RELATIVE = (
    0.4,
    2.0,
)  # Einstein radius in half-light radii: others are hidden by the host, or are of groups of galaxies
SHEAR = 0.08  # largest
FLUX = (0.05, 0.4)  # brighter where it is deepened
BRIGHTEST = 1.0
# Slopes of star-forming galaxies at redshifts of 1 to 3: mean and scatter, and their range (Bouwens et al. 2009, ApJ
# 705, 936). g - r is 0.15 for -1.5; arcs found in SDSS are as blue (Stark et al. 2013, MNRAS 436, 1040).
SLOPE = (-1.4, 0.5, -2.4, 0.0)
# Colours of ellipticals relative to r, mag (AB; Fukugita et al. 1995, PASP 107, 945): the host calibrates the bands.
HOST_COLOURS = {"u": 2.5, "g": 0.77, "r": 0.0, "i": -0.39, "z": -0.62, "y": -0.72}
FINER = 3  # pixels of the ray tracing, on a side of one of the image
EXTENT = 3.0  # Einstein radii: half side of the square that is traced
MAGNIFIED = 3.0  # least total magnification of arcs
ROOM = 1.4  # Einstein radii from the centre of the host to the edge of the image, at least


def prior(count: int, random: np.random.Generator) -> np.ndarray:
    """Sample lenses, float32, shape (count, 1, 1, len(COLUMNS)).

    Einstein radii (0.7 to 3 arcsec) and radii of sources (0.1 to 0.5 arcsec) are uniform in their logarithms,
    half-light radii of hosts log-normal about 2 arcsec. Source positions are uniform over the inner part of the region
    with several images, up to 0.65 of the way to its edge: farther out, arcs are hardly curved.
    """
    median, scatter, least, largest = HOST
    host = np.exp(random.normal(np.log(median), scatter, count)).clip(least, largest)
    einstein = _log_uniform(EINSTEIN, count, random)
    source = _log_uniform(SOURCE, count, random)
    columns = [
        (einstein / host).clip(*RELATIVE), random.normal(0, 0.11, count), random.normal(0, np.radians(10), count),
        random.uniform(0, SHEAR, count), random.uniform(0, np.pi, count),
        0.65 * np.sqrt(random.random(count)), random.uniform(0, 2 * np.pi, count),
        source / einstein, random.uniform(*INDEX, count), random.uniform(0.3, 1, count),
        random.uniform(0, np.pi, count), random.normal(*SLOPE[:2], count).clip(*SLOPE[2:]),
        _log_uniform(FLUX, count, random),
    ]  # fmt: skip
    return np.stack(columns, 1).astype(np.float32)[:, None, None]


def _log_uniform(limits: tuple[float, float], count: int, random: np.random.Generator) -> np.ndarray:
    return np.exp(random.uniform(np.log(limits[0]), np.log(limits[1]), count))


def deepen(maps: np.ndarray, factor: float) -> np.ndarray:
    """Return lenses whose arcs are `factor` times as bright, at most as bright as the host."""
    deeper = maps.copy()
    deeper[..., -1] = np.minimum(maps[..., -1] * factor, BRIGHTEST)
    return deeper


def describe(maps: np.ndarray) -> np.ndarray:
    """Return no conditions: there is no diffusion model of lenses."""
    return np.empty((len(maps), 0), np.float32)


def measure(images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg") -> tuple[np.ndarray, np.ndarray]:
    """Raise an `InputError`: lenses are only injected."""
    raise InputError("the feature 'lens' cannot be measured on galaxies; remove 'measure' from the recipe's rule")


def deflection(
    x: np.ndarray,
    y: np.ndarray,
    *,
    einstein: float,
    axis_ratio: float,
    angle: float = 0.0,
    shear: float = 0.0,
    shear_angle: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the deflection of light by a singular isothermal ellipsoid with external shear.

    Kormann, Schneider & Bartelmann 1994 (A&A 284, 285). The surface density in critical units is ``einstein / (2
    sqrt(q x'^2 + y'^2 / q))``, with q the `axis_ratio` and x' along the major axis, so the critical curve has the area
    of a circle of radius `einstein`. Without shear the deflection depends on the direction only, and the deflections of
    all directions are the *cut*: sources inside it have two images or more.

    Parameters
    ----------
    x, y : ndarray
        Position in the image plane, relative to the lens, in the unit of `einstein`.
    angle, shear_angle : float
        Directions of the major axis of the mass, and in which shear stretches images, radians from x towards y.

    Returns
    -------
    x, y : ndarray
        The position of the source is that of the image minus the deflection.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    along, across = x * cos + y * sin, y * cos - x * sin
    flat = np.sqrt(max(1 - axis_ratio**2, 1e-10))
    distance = np.maximum(np.hypot(axis_ratio * along, across), 1e-12)
    scale = einstein * np.sqrt(axis_ratio) / flat
    along, across = scale * np.arctan(flat * along / distance), scale * np.arctanh(flat * across / distance)
    plus, cross = shear * np.cos(2 * shear_angle), shear * np.sin(2 * shear_angle)
    return along * cos - across * sin + plus * x + cross * y, along * sin + across * cos + cross * x - plus * y


def sersic(x: np.ndarray, y: np.ndarray, *, radius: float, index: float, axis_ratio: float, angle: float) -> np.ndarray:
    """Return the brightness of a Sersic profile, 1 at its half-light radius.

    The half-light ellipse has the area of a circle of this `radius`.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    along, across = (x * cos + y * sin) * np.sqrt(axis_ratio), (y * cos - x * sin) / np.sqrt(axis_ratio)
    return np.exp(-_constant(index) * ((np.hypot(along, across) / radius) ** (1 / index) - 1))


def _constant(index: float) -> float:
    """Return b of the Sersic profile ``exp(-b (r^(1/n) - 1))``: Ciotti & Bertin 1999 (A&A 352, 447, equation 18)."""
    return 2 * index - 1 / 3 + 4 / (405 * index) + 46 / (25515 * index**2)


def trace(x: np.ndarray, y: np.ndarray, lens: Mapping[str, float], *, axis_ratio: float) -> np.ndarray:
    """Return the brightness of a lensed source at positions in the frame of the host, in its half-light radii.

    `lens` has the values of `COLUMNS`, `axis_ratio` is that of the host's light.
    """
    ratio = float(np.clip(axis_ratio + lens["flatness"], 0.4, 0.98))
    bend = partial(deflection, einstein=lens["einstein"], axis_ratio=ratio, angle=lens["turn"])
    towards = np.array([np.cos(lens["direction"])]), np.array([np.sin(lens["direction"])])
    source_x, source_y = (lens["offset"] * float(part[0]) for part in bend(*towards))
    bent_x, bent_y = bend(x, y, shear=lens["shear"], shear_angle=lens["shear_angle"])
    return sersic(
        x - bent_x - source_x, y - bent_y - source_y, radius=lens["source_radius"] * lens["einstein"],
        index=lens["source_index"], axis_ratio=lens["source_ratio"], angle=lens["source_angle"],
    )  # fmt: skip


def recognised(lens: Mapping[str, float], magnification: float, seeing: float) -> bool:
    """Return whether arcs are resolved and curved: the criteria of Collett 2015 (ApJ 811, 20) for ground-based surveys.

    `seeing` is the full width at half maximum in half-light radii of the host. The images on both sides of the host are
    separate, and the source is magnified to more than the seeing, and at least `MAGNIFIED` times.
    """
    source = lens["source_radius"] * lens["einstein"]
    separate = lens["einstein"] ** 2 > source**2 + (seeing / 2) ** 2
    return separate and magnification * source > seeing and magnification > MAGNIFIED


def colours(slope: float, bands: str) -> np.ndarray:
    """Return the flux of a source relative to that of an elliptical, 1 in r, in these bands; float32, shape (3,).

    In AB magnitudes, a spectrum of flux per wavelength as wavelength to the power `slope` has the colours
    ``m - m_r = -2.5 (slope + 2) log10(wavelength / wavelength_r)``.
    """
    relative = np.array([WAVELENGTHS[band] / WAVELENGTHS["r"] for band in bands])
    host = np.array([HOST_COLOURS[band] for band in bands])
    return (relative ** (slope + 2) * 10 ** (0.4 * host)).astype(np.float32)


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
    """Add the images of a lensed source to each host, blurred by the seeing, with their photon noise.

    There is one map per host, all of which must be measured. `bands` are those of red, green and blue; `seeing` is the
    standard deviation of the point spread function in pixels.

    Returns
    -------
    injected : ndarray of uint8, shape (n, S, S, 3)
        Unchanged where the host is too small for its arcs to be `recognised`, or so large that they would be outside
        the image.
    depth : ndarray of float32, shape (n,)
        Contrast as displayed (`galscan.synthesis.features.light.visibility`); 0 where nothing was injected.
    """
    n, size = images.shape[:2]
    seeing = np.broadcast_to(np.asarray(seeing, float), (n,))
    injected, depth = images.copy(), np.zeros(n, np.float32)
    for k in range(n):
        lens = dict(zip(COLUMNS, maps[k].ravel().tolist(), strict=True))
        edge = min(hosts.x[k], hosts.y[k], size - 1 - hosts.x[k], size - 1 - hosts.y[k])
        if ROOM * lens["einstein"] * hosts.radius[k] > edge:
            continue
        arcs = _arcs(lens, hosts, k, size)
        magnification = float(arcs.sum()) / (_source_flux(lens) * hosts.radius[k] ** 2)
        if not recognised(lens, magnification, 2.3548 * seeing[k] / hosts.radius[k]):
            continue
        arcs = ndimage.gaussian_filter(arcs, seeing[k])
        host = light_within(images[k], hosts, k, stretch)
        total = lens["flux"] * host * colours(lens["slope"], bands)
        light = arcs[..., None] / max(float(arcs.sum()), 1e-9) * total
        injected[k], depth[k] = add_light(images[k], light.astype(np.float32), stretch, random)
    return injected, depth


def _source_flux(lens: Mapping[str, float]) -> float:
    """Return the flux of the source without the lens, in units of its brightness at its half-light radius."""
    index, constant = lens["source_index"], _constant(lens["source_index"])
    area = 2 * np.pi * index * constant ** (-2 * index) * np.exp(constant) * gamma(2 * index)
    return float(area * (lens["source_radius"] * lens["einstein"]) ** 2)


def _arcs(lens: Mapping[str, float], hosts: Hosts, k: int, size: int) -> np.ndarray:
    """Return the brightness of the images of the source around host `k` in each pixel, float32, shape (S, S)."""
    half = EXTENT * lens["einstein"] * hosts.radius[k]
    edges = [(max(int(c - half), 0), min(int(c + half) + 2, size)) for c in (hosts.y[k], hosts.x[k])]
    lines = [(np.arange(FINER * (last - first)) + 0.5) / FINER - 0.5 + first for first, last in edges]
    dy, dx = (lines[0] - hosts.y[k])[:, None] / hosts.radius[k], (lines[1] - hosts.x[k])[None] / hosts.radius[k]
    cos, sin = np.cos(hosts.angle[k]), np.sin(hosts.angle[k])
    fine = trace(dx * cos + dy * sin, dy * cos - dx * sin, lens, axis_ratio=float(hosts.axis_ratio[k]))
    (top, bottom), (left, right) = edges
    arcs = np.zeros((size, size), np.float32)
    arcs[top:bottom, left:right] = fine.reshape(bottom - top, FINER, right - left, FINER).mean((1, 3))
    return arcs
