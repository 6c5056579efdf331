"""Tidal features: tails, plumes and shells of faint light around a galaxy, and warps of a galaxy, by an encounter.

A map has up to three components of ten numbers (`COLUMNS`), in the frame of the host and in units of its half-light
radius. Tails are bands of light along logarithmic spirals, which open more than spiral arms do and grow wider outwards;
most encounters make two, on opposite sides, of which one may be a bridge (Toomre & Toomre 1972, ApJ 178, 623). Shells
are arcs with a sharp outer edge, where stars of a companion turn round (Quinn 1984, ApJ 279, 596). Plumes are broad
fans. In images of SDSS fainter ones than those of `STRENGTH` are lost in the noise: surveys that found such features in
one galaxy of five are 3 mag deeper (Atkinson et al. 2013, ApJ 765, 28). The light has the host's colour at its
half-light radius or is bluer, as tails are made of the outer disk. Warps displace the outer parts of the host itself:
bent and lopsided disks are a frequent trace of an encounter (Zaritsky & Rix 1997, ApJ 477, 118).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage
from scipy.special import expit

from galscan.core.errors import InputError
from galscan.synthesis.features.light import FADING, add_light, border_noise, galaxy_light, sky_level
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts

CONDITIONS: Mapping[str, tuple[float, float]] = {}
LEAST_DEPTH = 0.16
DONORS = False
COMPONENTS = 3  # at most, of one galaxy; those of strength 0 are unused
COLUMNS = (
    "strength",  # surface brightness over that of the host at its half-light radius; of a warp its displacement
    "kind",  # TAIL, SHELL, PLUME or WARP
    "angle",  # of the beginning of a tail, the middle of a shell or plume, the direction of a warp, to the host's major
    # axis, radians
    "pitch",  # of the spiral, radians; negative where it turns the other way, and where a warp is symmetric
    "start",  # radius of the beginning of a tail, of the circle with the area of the isophote
    "length",  # of a tail along its spiral
    "width",  # standard deviation across a tail in its middle; of shells and plumes the extent in radius
    "blue",  # fraction by which the light is bluer than the host's, in blue over red
    "ratio",  # axis ratio of the plane of the tail on the sky
    "lean",  # angle of the major axis of that plane to the host's, radians
)
TAIL, SHELL, PLUME, WARP = range(4)
# The half-light radius is that of the image as displayed, 1.3 to 2.2 times that of the flux, where galaxies are 2 to 6
# times fainter; so these are 1 to 15 % of the surface brightness at the half-light radius of the flux.
STRENGTH = (0.06, 0.7)
STRONGEST = 1.2  # of deepened features
DISPLACEMENT = (0.12, 0.45)  # of the prior, in half-light radii at two of these
WARPED = 0.5  # of warps, beyond which the image would be folded
POINTS = 64  # along a tail, at which its distance from a pixel is computed


def prior(count: int, random: np.random.Generator) -> np.ndarray:
    """Sample tidal features, float32, shape (count, 1, COMPONENTS, len(COLUMNS)).

    Two in three galaxies have tails, mostly two on opposite sides that turn the same way; the others a shell or a
    plume, with or without a tail. Half are warped.
    """
    shape = (count, COMPONENTS)
    strength = np.exp(random.uniform(np.log(STRENGTH[0]), np.log(STRENGTH[1]), shape))
    kind = np.full(shape, TAIL)
    kind[:, 2] = random.choice([TAIL, SHELL, PLUME, WARP], count, p=[0.07, 0.05, 0.05, 0.83])
    strength[kind == WARP] = random.uniform(*DISPLACEMENT, (kind == WARP).sum())
    used = np.stack([np.ones(count), random.random(count) < 0.65, random.random(count) < 0.6], 1)
    strength *= used
    other = random.random(count) < 1 / 3
    kind[other, 0] = random.choice([SHELL, PLUME], other.sum())
    angle = random.uniform(0, 2 * np.pi, shape)
    pitch = np.radians(random.uniform(20, 65, shape))
    turn = random.choice([-1, 1], count)[:, None]
    ratio, lean = random.uniform(0.45, 1, shape), random.uniform(0, np.pi, shape)
    # The second tail is opposite to the first, in the same plane.
    angle[:, 1] = angle[:, 0] + np.pi + random.normal(0, 0.35, count)
    ratio[:, 1], lean[:, 1] = ratio[:, 0], lean[:, 0]
    columns = [
        strength, kind, angle, pitch * turn, random.uniform(0.7, 1.3, shape), random.uniform(1.5, 4, shape),
        random.uniform(0.1, 0.28, shape), random.uniform(0, 0.4, shape), ratio, lean,
    ]  # fmt: skip
    return np.stack(columns, -1).astype(np.float32)[:, None]


def deepen(maps: np.ndarray, factor: float) -> np.ndarray:
    """Return features of `factor` times the brightness, at most `STRONGEST`."""
    deeper = maps.copy()
    deeper[..., 0] = np.minimum(maps[..., 0] * factor, STRONGEST)
    return deeper


def describe(maps: np.ndarray) -> np.ndarray:
    """Return no conditions: there is no diffusion model of tidal features."""
    return np.empty((len(maps), 0), np.float32)


def measure(images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg") -> tuple[np.ndarray, np.ndarray]:
    """Raise an `InputError`: tidal features are only injected."""
    raise InputError("the feature 'tidal' cannot be measured on galaxies; remove 'measure' from the recipe's rule")


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
    """Add tails, plumes and shells to galaxies, blurred by the seeing, with their photon noise.

    There is one map per host, all of which must be measured; `seeing` is the standard deviation of the point spread
    function in pixels.

    Returns
    -------
    injected : ndarray of uint8, shape (n, S, S, 3)
    depth : ndarray of float32, shape (n,)
        Contrast as displayed (`galscan.synthesis.features.light.visibility`).
    """
    n = len(images)
    seeing = np.broadcast_to(np.asarray(seeing, float), (n,))
    injected, depth = np.empty_like(images), np.empty(n, np.float32)
    for k in range(n):
        light = tidal_light(images[k], hosts, k, maps[k], stretch, random, seeing=float(seeing[k]))
        injected[k], depth[k] = add_light(images[k], light, stretch, random)
    return injected, depth


def tidal_light(
    image: np.ndarray,
    hosts: Hosts,
    k: int,
    components: np.ndarray,
    stretch: Stretch,
    random: np.random.Generator,
    *,
    seeing: float,
) -> np.ndarray:
    """Return the light of the components (..., len(COLUMNS)) of host `k` in flux, float32, shape (S, S, 3)."""
    size, radius = len(image), hosts.radius[k]
    u, v = (axis / np.float32(radius) for axis in hosts.frame(k, size))
    flux = stretch.to_flux(image)
    flux = flux - sky_level(flux)
    ratio = max(hosts.axis_ratio[k], 0.2)
    ellipse = np.hypot(u * np.sqrt(ratio), v / np.sqrt(ratio))
    level = np.median(flux[np.abs(ellipse - 1) < max(0.1, 0.7 / radius)], axis=0).clip(0)  # at the half-light radius
    light = np.zeros_like(flux)
    for component in components.reshape(-1, len(COLUMNS)):
        named = dict(zip(COLUMNS, component.tolist(), strict=True))
        if named["strength"] <= 0 or named["kind"] == WARP:
            continue
        # A tail begins at the isophote, not far above an edge-on disk: the radius of the ellipse in its direction.
        along, across = np.cos(named["angle"]) * np.sqrt(ratio), np.sin(named["angle"]) / np.sqrt(ratio)
        named["start"] /= float(np.hypot(along, across)) if named["kind"] == TAIL else 1
        clumps = ndimage.gaussian_filter(random.standard_normal((size, size)), 0.25 * radius)
        profile = _profile(named, u, v) * np.exp(0.35 * clumps / clumps.std())
        tilt = np.array([1 - named["blue"] / 2, 1, 1 + named["blue"] / 2], np.float32)
        light += named["strength"] * profile[..., None].astype(np.float32) * level * tilt
    light = ndimage.gaussian_filter(light, (seeing, seeing, 0))
    for component in components.reshape(-1, len(COLUMNS)):
        named = dict(zip(COLUMNS, component.tolist(), strict=True))
        if named["strength"] > 0 and named["kind"] == WARP:
            light += _displaced(image, named, hosts, k, stretch, random)
    return light


def _displaced(
    image: np.ndarray, named: dict[str, float], hosts: Hosts, k: int, stretch: Stretch, random: np.random.Generator
) -> np.ndarray:
    """Return the flux of a warped host minus that of the host: 0 if it reaches the border of its image.

    The displacement in a fixed direction is ``strength`` at two half-light radii, and grows with the square of the
    radius at first. It has the same sign on both sides (lopsided or U-shaped) or, for an S-shape, opposite ones.
    """
    cut = galaxy_light(image, stretch)
    rim = np.ones(image.shape[:2], bool)
    rim[(margin := round(FADING * len(image))) : -margin, margin:-margin] = False
    if cut is None or (cut[1][rim] > 0.1).any():
        return np.zeros(image.shape, np.float32)
    u, v = (axis / np.float32(hosts.radius[k]) for axis in hosts.frame(k, len(image)))
    squared = u * u + v * v
    amount = min(named["strength"], WARPED) * (squared / 4) * (1 + 4 / 9) / (1 + squared / 9) * hosts.radius[k]
    # An S-shape displaces the two ends of the major axis in opposite directions, across it.
    amount = amount * (1 if named["pitch"] < 0 else u / np.sqrt(squared + 0.01))
    angle = hosts.angle[k] + (named["angle"] if named["pitch"] < 0 else np.pi / 2)
    row, column = np.indices(u.shape, np.float32)
    where = [row - amount * np.sin(angle), column - amount * np.cos(angle)]
    planes = [*np.moveaxis(cut[0], -1, 0), cut[1]]
    *moved, covered = (ndimage.map_coordinates(plane, where, order=1, cval=0.0) for plane in planes)
    # Where the galaxy was and is no longer, the noise of the sky is missing.
    bare = np.sqrt((cut[1] - covered).clip(0))[..., None] * border_noise(image, stretch)
    return np.stack(moved, -1) - cut[0] + (bare * random.standard_normal(image.shape)).astype(np.float32)


def _profile(named: dict[str, float], u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the brightness of a component, about 1 at its brightest, at these coordinates."""
    if named["kind"] == TAIL:
        return _tail(named, u, v)
    cos, sin = np.cos(named["angle"]), np.sin(named["angle"])
    along, across = u * cos + v * sin, v * cos - u * sin
    radius, off = np.hypot(along, across), np.abs(np.arctan2(across, along))
    if named["kind"] == SHELL:
        edge = named["start"] + 0.5 * named["length"]
        inside = np.exp((radius - edge).clip(max=0) / (2.5 * named["width"]))
        outside = np.exp(-(((radius - edge).clip(0) / (0.3 * named["width"])) ** 2))
        return inside * outside * np.exp(-((off / (0.35 + abs(named["pitch"]) / 2)) ** 4))
    middle = named["start"] + 0.25 * named["length"]
    extent = 0.5 * (radius - middle) / (2.5 * named["width"])
    return np.exp(-2 * extent**2 - 0.5 * (off / (0.2 + abs(named["pitch"]) / 2)) ** 2)


def _tail(named: dict[str, float], u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the brightness of a band along a logarithmic spiral.

    At the distance s along a spiral of pitch p from the radius r0, the radius is ``r0 + s sin(p)`` and the angle has
    turned by ``ln(r / r0) / tan(p)``.
    """
    step = np.linspace(0, 1, POINTS)
    pitch = abs(named["pitch"])
    radius = named["start"] + step * named["length"] * np.sin(pitch)
    turned = np.sign(named["pitch"]) * np.log(radius / named["start"]) / np.tan(pitch)
    cos, sin = np.cos(named["lean"]), np.sin(named["lean"])
    angle = named["angle"] - named["lean"] + turned
    along, across = radius * np.cos(angle), named["ratio"] * radius * np.sin(angle)
    path = np.stack([along * cos - across * sin, along * sin + across * cos], 1).astype(np.float32)
    pixels = np.stack([u.ravel(), v.ravel()], 1)
    squared = (pixels**2).sum(1)[:, None] - 2 * pixels @ path.T + (path**2).sum(1)
    nearest = squared.argmin(1)
    distance = squared[np.arange(len(pixels)), nearest].clip(0)
    at = step[nearest]
    width = named["width"] * (0.5 + at)  # grows outwards
    fading = np.minimum(at / 0.1, 1) * (1 - 0.5 * at) * expit((0.85 - at) / 0.06)
    return (fading * np.exp(-0.5 * distance / width**2)).reshape(u.shape)
