"""Residuals: a feature that is not known in advance, measured on labelled galaxies that show it.

A map is the light that a galaxy has more or less than a smooth and symmetric model of itself, as the logarithm of
their ratio in each band (red, green and blue), in the plane of its disk: `SIDE` x `SIDE` pixels over plus and minus
`REACH` half-light radii, the minor axis stretched by the axis ratio. Light and model are softened by a part of the
brightness at the half-light radius (`SOFTENING`), so that a map is the fraction of added or missing light where the
galaxy is bright, and is in units of that brightness where it is dark. Injected into a host it changes the light of the
host in the same proportions; the profile, size and colour of the host remain.

There is no physical prior and no diffusion model: the base weights of `galscan.synthesis.features.dust_lane` are for
maps of one band without negative values, and a few dozen maps are too few to train others. So the maps are those
measured, turned, mirrored, and scaled in size and strength (`variants`). They show what the labelled galaxies have in
common, and also what they do not: other structure of theirs, and neighbours. The more galaxies are labelled, the less
this matters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from galscan.core.errors import InputError
from galscan.synthesis.features.light import VEIL, add_light, border_noise, sky_level
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts

CONDITIONS: Mapping[str, tuple[float, float]] = {}
LEAST_DEPTH = 0.08
DONORS = False
SIDE, REACH = 64, 2.5
SOFTENING = 0.3  # of the brightness at the half-light radius
FLATTEST = 0.35  # axis ratio, below which a galaxy is not stretched further: it is seen edge-on
LARGEST = 1.2  # absolute value of a map: more is a star or another galaxy
DARKEST = 0.8  # fraction of the light of a host that is taken away at most
NOISY = 1.5  # times the noise, by which maps are drawn towards 0
FADED = 2.0  # half-light radii, from which a map fades out to `REACH`
SEEN = 0.02  # fraction of the pixels, with the largest change, whose mean is the depth
CORE = 0.15  # half-light radii, within which the profile of the smooth model is flat
BROAD, GRADIENT = 0.6, 0.4  # half-light radii; residual at that resolution, above which it is the light of a neighbour
COMPACT, BRIGHT = 0.03, 0.95  # largest fraction of the pixels, and least residual, of a star
SHALLOWEST = 0.06  # mean absolute value of that fraction of a map, below which the galaxy has no residual
TURN, SIZE, STRENGTH = 0.2, 0.12, (0.75, 1.3)  # scatter of angle (radians) and of the logarithm of size; factor


def prior(count: int, random: np.random.Generator) -> np.ndarray:
    """Raise an `InputError`, as there is no prior; return no maps, shape (0, 3, SIDE, SIDE), if `count` is 0."""
    if count:
        raise InputError(
            "the feature 'residual' has no prior: its maps are measured on labelled galaxies that show the feature; "
            "select them with 'inject.measure' in the recipe"
        )
    return np.empty((0, 3, SIDE, SIDE), np.float32)


def deepen(maps: np.ndarray, factor: float) -> np.ndarray:
    """Return maps of `factor` times the residual, up to `LARGEST`."""
    return (maps * np.float32(factor)).clip(-LARGEST, LARGEST)


def describe(maps: np.ndarray) -> np.ndarray:
    """Return no conditions: there is no diffusion model of residuals."""
    return np.empty((len(maps), 0), np.float32)


def variants(maps: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Return `count` maps like the given ones: each is turned, mirrored, and scaled in size and in strength.

    Parameters
    ----------
    maps : ndarray of float32, shape (n, 3, SIDE, SIDE)
        Measured maps, at least one; all are used equally often.

    Returns
    -------
    maps : ndarray of float32, shape (count, 3, SIDE, SIDE)
    """
    chosen = random.permutation(np.arange(count) % len(maps))
    turn, size = random.normal(0, TURN, count), np.exp(random.normal(0, SIZE, count))
    mirror, strength = random.choice([-1, 1], (count, 2)), random.uniform(*STRENGTH, count)
    middle = (SIDE - 1) / 2
    v, u = np.indices((SIDE, SIDE), np.float32) - middle
    found = np.empty((count, *maps.shape[1:]), np.float32)
    for k, row in enumerate(chosen):
        cos, sin = np.cos(turn[k]) / size[k], np.sin(turn[k]) / size[k]
        where = [
            mirror[k, 0] * (v * cos - u * sin) + middle,
            mirror[k, 1] * (u * cos + v * sin) + middle,
        ]
        for band in range(maps.shape[1]):
            found[k, band] = ndimage.map_coordinates(maps[row, band], where, order=1, cval=0.0)
        found[k] *= strength[k]
    return found.clip(-LARGEST, LARGEST)


def measure(images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg") -> tuple[np.ndarray, np.ndarray]:
    """Measure residuals on galaxies, relative to a smooth model.

    The model has elliptical isophotes of the galaxy's shape. Its profile is a fit to the medians of the annuli, of the
    form ``ln(flux) = a + b r + c sqrt(r)`` in each band, which follows a bulge and a disk but no ring.

    Returns
    -------
    maps : ndarray of float32, shape (n, 3, SIDE, SIDE)
    usable : ndarray of bool, shape (n,)
        Where the galaxy is measured, has a residual above the noise, and is not distorted by a bright neighbour.
    """
    n, size = images.shape[:2]
    maps, usable = np.zeros((n, 3, SIDE, SIDE), np.float32), np.zeros(n, bool)
    line = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1) * REACH
    uu, vv = np.meshgrid(line, line)
    fading = ((REACH - np.hypot(uu, vv)) / (REACH - FADED)).clip(0, 1)
    for k in np.flatnonzero(hosts.measured).tolist():
        flux = stretch.to_flux(ndimage.gaussian_filter(images[k].astype(np.float32), (0.6, 0.6, 0)))
        flux = flux - sky_level(flux)
        u, v = _plane(hosts, k, size)
        radius = np.hypot(u, v)
        floor = SOFTENING * _brightness(flux, radius)
        light = np.log(np.maximum(flux + floor, 0.2 * floor))
        residual = light - _smooth_model(light, radius)
        noise = border_noise(images[k], stretch) / floor / 2  # smoothing halves it
        residual = np.sign(residual) * (np.abs(residual) - NOISY * noise).clip(0, LARGEST)
        cos, sin, scale = np.cos(hosts.angle[k]), np.sin(hosts.angle[k]), hosts.radius[k]
        ratio = max(hosts.axis_ratio[k], FLATTEST)
        across = vv * ratio
        where = [hosts.y[k] + scale * (uu * sin + across * cos), hosts.x[k] + scale * (uu * cos - across * sin)]
        for band in range(3):
            maps[k, band] = ndimage.map_coordinates(residual[..., band], where, order=1, cval=0.0) * fading
        _remove_stars(maps[k], np.hypot(uu, vv))
        broad = ndimage.gaussian_filter(maps[k].mean(0), BROAD * SIDE / (2 * REACH))
        largest = np.sort(np.abs(maps[k]).mean(0), axis=None)[-round(SEEN * SIDE * SIDE) :]
        usable[k] = largest.mean() > SHALLOWEST and np.abs(broad).max() < GRADIENT
    return maps, usable


def _remove_stars(residual: np.ndarray, radius: np.ndarray) -> None:
    """Replace compact bright regions outside the nucleus by their surroundings, in a map (3, SIDE, SIDE), in place."""
    labels, count = ndimage.label((residual.max(0) > BRIGHT) & (radius > 0.5))
    areas = ndimage.sum_labels(np.ones_like(labels), labels, np.arange(1, count + 1))
    compact = np.isin(labels, 1 + np.flatnonzero(areas < COMPACT * SIDE * SIDE))
    if compact.any():
        star = ndimage.binary_dilation(compact, iterations=3)
        soft = ndimage.gaussian_filter(star.astype(np.float32), 0.7)
        for band in residual:
            # The mean of the other pixels nearby, weighted by their distance.
            near = ndimage.gaussian_filter(np.where(star, 0, band), 3) / ndimage.gaussian_filter(1.0 - star, 3).clip(
                0.05
            )
            band += soft * (np.minimum(near, band) - band)


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
    """Change the light of each host in the proportions of its map, blurred by the seeing, with the noise of the light.

    There is one map per host, all of which must be measured. `seeing` is the standard deviation of the point spread
    function in pixels.

    Returns
    -------
    injected : ndarray of uint8, shape (n, S, S, 3)
    depth : ndarray of float32, shape (n,)
        Mean change of the displayed brightness, as a fraction of the brightness before or after, whichever is larger,
        and a veil (`galscan.synthesis.features.light.VEIL`), over the `SEEN` fraction of the pixels that change most.
    """
    n, size = images.shape[:2]
    seeing = np.broadcast_to(np.asarray(seeing, float), (n,))
    injected, depth = np.empty_like(images), np.zeros(n, np.float32)
    for k in range(n):
        u, v = _plane(hosts, k, size)
        scale = SIDE / (2 * REACH)
        where = [v * scale + (SIDE - 1) / 2, u * scale + (SIDE - 1) / 2]
        finer = scale / hosts.radius[k]  # pixels of the map in one of the image
        residual = np.empty((size, size, 3), np.float32)
        for band in range(3):
            fine = ndimage.gaussian_filter(maps[k, band], 0.35 * finer) if finer > 1 else maps[k, band]
            residual[..., band] = ndimage.map_coordinates(fine, where, order=1, cval=0.0)
        flux = stretch.to_flux(images[k])
        above = ndimage.gaussian_filter(flux - sky_level(flux), (1.0, 1.0, 0))  # noise is neither added nor dimmed
        floor = SOFTENING * _brightness(above, np.hypot(u, v))
        light = np.maximum(above + floor, 0) * np.expm1(ndimage.gaussian_filter(residual, (seeing[k], seeing[k], 0)))
        light = np.maximum(light, -DARKEST * above.clip(0)).astype(np.float32)
        injected[k], _ = add_light(images[k], light, stretch, random)
        shown, changed = (
            ndimage.uniform_filter(x.mean(2, dtype=np.float32), 3) for x in (images[k], stretch.to_pixels(flux + light))
        )
        contrast = np.sort((np.abs(changed - shown) / (np.maximum(changed, shown) + VEIL)).ravel())
        depth[k] = contrast[-max(1, round(SEEN * contrast.size)) :].mean().clip(0, 1)
    return injected, depth


def _plane(hosts: Hosts, k: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's coordinates in the plane of the disk of host `k`, in half-light radii, (size, size)."""
    u, v = hosts.frame(k, size)
    return u / hosts.radius[k], v / (hosts.radius[k] * max(hosts.axis_ratio[k], FLATTEST))


def _brightness(flux: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the median of the flux (S, S, 3) at the half-light radius in each band, shape (3,)."""
    ring = flux[np.abs(radius - 1) < 0.15]
    return np.maximum(np.median(ring, axis=0), 0.01 * float(np.median(ring)) + 1e-6)


def _smooth_model(light: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the smooth model of the logarithm of the light (S, S, 3); constant beyond `REACH`."""
    edges = np.linspace(0, REACH, 26)
    ring = np.digitize(radius, edges)
    inside = [ring == number for number in range(1, len(edges))]
    inside = [mask for mask in inside if mask.sum() >= 3]
    middles = np.array([radius[mask].mean() for mask in inside])
    levels = np.array([np.median(light[mask], axis=0) for mask in inside])
    weight = np.sqrt(np.array([mask.sum() for mask in inside]).clip(max=100))[:, None]

    def basis(r: np.ndarray) -> np.ndarray:
        soft = np.hypot(r, CORE)
        return np.stack([np.ones_like(r), soft, np.sqrt(soft)], -1)

    found = np.linalg.lstsq(basis(middles) * weight, levels * weight, rcond=None)[0]
    return (basis(radius.clip(max=REACH)) @ found).astype(np.float32)
