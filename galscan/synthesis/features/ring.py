"""Rings: bright ellipses in the plane of a disk, with a dimmer gap inside.

Gas gathers at resonances of a bar and forms stars there, in inner rings around the bar and in outer rings about twice
as large; many are bluer than the disk and clumpy (Buta & Combes 1996, Fund. Cosmic Phys. 17, 95). In the plane of the
disk they are slightly elliptical, parallel to the bar or not (Comeron et al. 2014, A&A 562, A121). A map has ten
parameters (`COLUMNS`); lengths are along the major axis of the host, in its half-light radii.

Injected rings have the contrast of real ones, measured in the same way (`measure`, at 96 px): on 35 EFIGI galaxies with
a plain ring (attribute of 0.75 or more, inclination of 0.5 or less) the excess of light is 0.12 in the median, and 0.02
to 0.46 between the 16th and 84th percentiles; with rings injected as by the recipe ``ring`` it is 0.15 (0.02 to 0.37),
and on the hosts without rings 0.00 (-0.01 to 0.04).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from galscan.synthesis.features.light import SKY_OVER_NOISE, UNCHANGED, VEIL, border_noise, sky_level
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts

CONDITIONS: Mapping[str, tuple[float, float]] = {}
LEAST_DEPTH = 0.025  # of a ring that can just be seen
DONORS = False
COLUMNS = (
    "radius",
    "width",  # standard deviation across the ring over the radius
    "brightness",  # added light over the light of the host at the same radius
    "ratio",  # axis ratio in the plane of the disk
    "lean",  # angle of the longer axis in that plane to the host's major axis, radians
    "gap",  # fraction of the host's light that is missing inside
    "blue",  # how much bluer than the host the added light is, in magnitudes between the outer bands
    "uneven",  # amplitude of the brightness along the ring, with maxima at the ends of the longer axis
    "clumps",  # standard deviation of the logarithm of the brightness along the ring
    "seed",  # of the clumps
)
RADIUS, WIDTH, BRIGHTNESS = (COLUMNS.index(name) for name in ("radius", "width", "brightness"))
FAINTEST, BRIGHTEST = 0.06, 1.2  # of the prior, and of deepened rings
GAP, GAP_WIDTH = 0.62, 0.16  # centre and standard deviation of the gap, over the radius of the ring
ORDERS = np.arange(1, 13)  # of the clumps along the ring, whose amplitudes fall as the inverse square root
FLATTEST = 0.3  # axis ratio of a host: in a flatter one the two sides of a ring merge
INSIDE = 0.85  # least fraction of the ring within the image
# Grid of the measurement: semi-major axes in half-light radii, azimuths, sectors; half-widths of rings in steps
STEP, AZIMUTHS, SECTORS, HALF_WIDTHS = 0.05, 72, 12, (2, 3, 4, 6)
RADII = np.arange(0.3, 3.0, STEP)
SEARCHED = (0.5, 2.4)  # half-light radii
CLOSED = 0.25  # quantile of the sectors whose excess decides: a ring goes round, arms and bars do not
LEAST_EXCESS = 0.03  # of a measured ring in that quantile


def prior(count: int, random: np.random.Generator) -> np.ndarray:
    """Sample rings, float32, shape (count, 1, 1, 10)."""
    columns = [
        np.exp(random.normal(np.log(1.3), 0.33, count)).clip(0.7, 2.4),
        np.exp(random.uniform(np.log(0.07), np.log(0.2), count)),
        np.exp(random.uniform(np.log(FAINTEST), np.log(0.5), count)),
        random.uniform(0.75, 1, count),
        random.uniform(0, np.pi, count),
        random.uniform(0, 0.3, count),
        random.uniform(0, 0.6, count),
        random.uniform(0, 0.5, count),
        random.uniform(0.05, 0.4, count),
        random.integers(2**16, size=count),
    ]
    return np.stack(columns, 1).astype(np.float32)[:, None, None]


def deepen(maps: np.ndarray, factor: float) -> np.ndarray:
    """Return rings that are `factor` times as bright, up to `BRIGHTEST`."""
    deeper = maps.copy()
    deeper[..., BRIGHTNESS] = (maps[..., BRIGHTNESS] * factor).clip(max=BRIGHTEST)
    return deeper


def describe(maps: np.ndarray) -> np.ndarray:
    """Return no conditions: a few parameters need no diffusion model."""
    return np.empty((len(maps), 0), np.float32)


def _log_profiles(image: np.ndarray, hosts: Hosts, k: int, stretch: Stretch) -> np.ndarray:
    """Return the logarithm of the light of host `k` by semi-major axis and sector, shape (len(RADII), SECTORS)."""
    flux = stretch.to_flux(ndimage.gaussian_filter(image.astype(np.float32), (0.6, 0.6, 0)))
    light = (flux - sky_level(flux)).mean(-1)
    azimuth, along = np.arange(AZIMUTHS) * 2 * np.pi / AZIMUTHS, RADII[:, None] * hosts.radius[k]
    u, v = along * np.cos(azimuth), along * np.sin(azimuth) * max(hosts.axis_ratio[k], FLATTEST)
    cos, sin = np.cos(hosts.angle[k]), np.sin(hosts.angle[k])
    where = [hosts.y[k] + u * sin + v * cos, hosts.x[k] + u * cos - v * sin]
    polar = ndimage.map_coordinates(light, where, order=1, mode="nearest")
    sectors = np.median(polar.reshape(len(RADII), SECTORS, -1), axis=-1)
    return np.log(sectors.clip(0) + max(0.02 * float(np.median(sectors[0])), 1e-6))


def measure(images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg") -> tuple[np.ndarray, np.ndarray]:
    """Measure rings: excess of the light at one radius over that inside and outside, all around the galaxy.

    Returns
    -------
    maps : ndarray of float32, shape (n, 1, 1, 10)
        ``radius``, ``width`` and ``brightness`` of the most complete ring of each measured galaxy, other parameters are
        0. The brightness is the median excess over the geometric mean of the light at twice the width inside and
        outside, and less than that of the ring as injected.
    usable : ndarray of bool, shape (n,)
        Where there is an excess in three quarters of the sectors.
    """
    maps, usable = np.zeros((len(images), 1, 1, len(COLUMNS)), np.float32), np.zeros(len(images), bool)
    for k in np.flatnonzero(hosts.measured).tolist():
        profiles, best = _log_profiles(images[k], hosts, k, stretch), -np.inf
        for half in HALF_WIDTHS:
            smooth, apart = ndimage.uniform_filter1d(profiles, half, axis=0), 2 * half
            excess = smooth[apart:-apart] - 0.5 * (smooth[: -2 * apart] + smooth[2 * apart :])
            radii = RADII[apart:-apart]
            closed = np.where((radii > SEARCHED[0]) & (radii < SEARCHED[1]), np.quantile(excess, CLOSED, axis=1), -9)
            if closed.max() > best:
                best, row = float(closed.max()), int(closed.argmax())
                found = radii[row], half * STEP / radii[row], np.expm1(np.median(excess[row]))
        maps[k, 0, 0, [RADIUS, WIDTH, BRIGHTNESS]] = found
        usable[k] = best > LEAST_EXCESS
    return maps, usable


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
    """Add a ring to each host, in flux, blurred by the seeing, with the noise of its light; dim the gap inside.

    Returns
    -------
    injected : ndarray of uint8, shape (n, S, S, 3)
    depth : ndarray of float32, shape (n,)
        Median along the ring of the added brightness as displayed, over the sum of the brightness and a veil
        (`galscan.synthesis.features.light.VEIL`). It is 0, and the image unchanged, where the host is flatter than
        `FLATTEST` or less than `INSIDE` of the ring is in the image.
    """
    seeing = np.broadcast_to(np.asarray(seeing, float), (len(images),))
    injected, depth = images.copy(), np.zeros(len(images), np.float32)
    for k, parameters in enumerate(maps.reshape(len(maps), len(COLUMNS)).astype(float)):
        if hosts.axis_ratio[k] < FLATTEST or _fraction_inside(hosts, k, parameters[RADIUS], images.shape[1]) < INSIDE:
            continue
        before = stretch.to_flux(images[k])
        sky = sky_level(before)
        light, transmission, ridge = _ring(before - sky, hosts, k, parameters, float(seeing[k]))
        noise = border_noise(images[k], stretch)
        after = sky + (before - sky) * transmission + light
        # Photons of the ring add noise; where the gap dims the noise of the image it is restored.
        variance = light * noise / SKY_OVER_NOISE + (1 - transmission**2) * noise**2
        grain = np.sqrt(variance.clip(0)) * random.standard_normal(before.shape)
        changed = (light > UNCHANGED * noise).any(-1, keepdims=True) | (transmission < 0.995)
        injected[k] = np.where(changed, np.rint(stretch.to_pixels(after + grain)), images[k])
        shown, bright = (
            ndimage.uniform_filter(x.mean(2, dtype=np.float32), 3) for x in (images[k], stretch.to_pixels(after))
        )
        if ridge.any():
            depth[k] = np.median(((bright - shown) / (bright + VEIL))[ridge]).clip(0)
    return injected, depth


def _fraction_inside(hosts: Hosts, k: int, radius: float, size: int) -> float:
    """Return the fraction of a round ring of that radius in the plane of host `k` that is in the image."""
    azimuth = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    u, v = radius * hosts.radius[k] * np.stack([np.cos(azimuth), hosts.axis_ratio[k] * np.sin(azimuth)])
    cos, sin = np.cos(hosts.angle[k]), np.sin(hosts.angle[k])
    x, y = hosts.x[k] + u * cos - v * sin, hosts.y[k] + u * sin + v * cos
    return float(((x >= 0) & (x < size) & (y >= 0) & (y < size)).mean())


def _ring(
    flux: np.ndarray, hosts: Hosts, k: int, parameters: np.ndarray, seeing: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the added light (S, S, 3), the transmission of the gap (S, S, 1), and a mask of the ring's ridge (S, S).

    `flux` is that of the host above the sky.
    """
    radius, width, brightness, ratio, lean, gap, blue, uneven, clumps, seed = parameters
    u, v = hosts.frame(k, len(flux))
    x, y = u / hosts.radius[k], v / (hosts.radius[k] * hosts.axis_ratio[k])
    along, across = x * np.cos(lean) + y * np.sin(lean), y * np.cos(lean) - x * np.sin(lean)
    distance = np.hypot(along * np.sqrt(ratio), across / np.sqrt(ratio)) / radius
    azimuth = np.arctan2(across, along)
    profile = np.exp(-0.5 * ((distance - 1) / width) ** 2)
    ridge = np.abs(distance - 1) < 0.5 * width
    pattern = np.random.default_rng(int(seed))
    phase = pattern.uniform(0, 2 * np.pi, len(ORDERS))
    amplitudes = pattern.standard_normal(len(ORDERS)) / np.sqrt(ORDERS)
    amplitudes *= clumps / np.sqrt((amplitudes**2).sum() / 2)
    waves = amplitudes @ np.cos(ORDERS[:, None] * azimuth.ravel() + phase[:, None])
    lumps = np.exp(waves.reshape(azimuth.shape))
    profile = profile * lumps * (1 + uneven * np.cos(2 * azimuth))
    # The host's light at the ring is a median, so that its bar and its neighbours do not show in the ring.
    local = np.median(flux[np.abs(distance - 1) < max(width, 0.1)].reshape(-1, 3), axis=0).clip(0)
    colour = 10 ** (0.2 * blue * np.array([-1.0, 0.0, 1.0]))
    light = brightness * profile[..., None] * (local * colour)
    dimmed = gap * np.exp(-0.5 * ((distance - GAP) / GAP_WIDTH) ** 2)[..., None]
    light, dimmed = (ndimage.gaussian_filter(part, (seeing, seeing, 0)) for part in (light, dimmed))
    return light.astype(np.float32), (1 - dimmed).astype(np.float32), ridge
