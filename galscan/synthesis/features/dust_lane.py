"""Dust lanes: physical prior, measurement on galaxies, and injection as extinction.

A map holds the attenuation of red light, ``a = -ln(transmission)``, in the frame of a host galaxy
(`galscan.synthesis.hosts`): one channel of `SIDE` x `SIDE` pixels over plus and minus `REACH` half-light radii, rows
along v and columns along u. Other bands follow from the extinction law.

The prior
---------
Dust in early types settles in thin disks and rings (Lauer et al. 2005, AJ 129, 2138; Tran et al. 2001, AJ 121, 2928)
and appears as a lane where these are inclined: mostly along the major axis, in the plane of a disk (on SDSS images 90 %
of the measured lanes are within 27 degrees of it), or along the minor axis, or in between (Hawarden et al. 1981, MNRAS
196, 747). Only the stars behind it are dimmed, so the transmission of a lane of optical depth tau is
``1 - f (1 - exp(-tau))``, with f the fraction of the light from behind. Lanes of early types reach A_V
of some tenths to two magnitudes and follow the Galactic law with R_V of 2 to 4 (Goudfrooij et al. 1994, A&AS 104, 179;
Patil et al. 2007, A&A 461, 103).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage
from scipy.special import expit

from galscan.synthesis.features.light import border_noise, sky_level
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts

SIDE, REACH = 64, 2.0  # pixels of a map on a side, and half-light radii that half a side spans
LEAST_DEPTH = 0.05  # below this a lane is invisible and is dropped
DONORS = False
R_V = (2.0, 4.0)  # ratio of total to selective extinction: the range found in early types
DEEPEST = 0.003  # fraction of the bright pixels, whose mean dimming is the depth
SHALLOWEST = 0.08  # least attenuation at the deepest point of a measured map
NOISE = 0.05  # attenuation below which measured maps show noise and deviations from elliptical isophotes
CONNECTED = 0.4  # least fraction of the measured attenuation in the largest connected region; the rest is noise
ROUNDEST = 0.6  # largest ratio of the attenuation's scatter across and along a lane
REDDENING = 1.3  # least ratio of the blue to the red band's optical depth in a lane; in grey seams it is 1.1 to 1.25
CLEAN, RINGS = 0.8, np.linspace(0, 2.4, 25)  # quantile of the light in an elliptical annulus; edges of the annuli
WAVELENGTHS = {"u": 0.3551, "g": 0.4686, "r": 0.6166, "i": 0.7480, "z": 0.8932, "y": 0.9627}  # effective, micron
# Properties of a map, the conditions of the diffusion model, with their ranges.
CONDITIONS: Mapping[str, tuple[float, float]] = {
    "cos_twice_angle": (-1.0, 1.0),  # of the lane to the host's major axis
    "sin_twice_angle": (-1.0, 1.0),
    "log_length": (-1.6, 0.4),  # natural logarithm of the attenuation's scatter along the lane, in half-light radii
    "axis_ratio": (0.0, 1.0),  # of the attenuation's scatter across and along: how inclined the dust is
    "log_depth": (-3.0, 0.5),  # natural logarithm of the attenuation that the deepest 0.5 % of the map exceed
}


def extinction_law(bands: str, r_v: np.ndarray) -> np.ndarray:
    """Return the extinction in `bands` relative to r.

    Cardelli, Clayton & Mathis 1989 (ApJ 345, 245; infrared from 0.91 micron on) with the optical coefficients of
    O'Donnell 1994 (ApJ 422, 158). Bands are keys of `WAVELENGTHS`, e.g. "irg"; the result has a row for each `r_v`.
    """
    a = (1.0, 0.104, -0.609, 0.701, 1.137, -1.718, -0.827, 1.647, -0.505)
    b = (0.0, 1.952, 2.908, -3.989, -7.985, 11.102, 5.491, -10.805, 3.347)
    x = 1 / np.array([WAVELENGTHS[band] for band in bands + "r"])
    constant = np.where(x < 1.1, 0.574 * x**1.61, np.polynomial.polynomial.polyval(x - 1.82, a))
    slope = np.where(x < 1.1, -0.527 * x**1.61, np.polynomial.polynomial.polyval(x - 1.82, b))
    law = constant + slope / np.asarray(r_v)[:, None]
    return (law[:, :-1] / law[:, -1:]).astype(np.float32)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    line = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1) * REACH
    v, u = np.meshgrid(line, line, indexing="ij")
    return u, v


def prior(count: int, random: np.random.Generator) -> np.ndarray:
    """Sample maps of inclined dust disks and rings, float32, shape (count, 1, SIDE, SIDE)."""
    return np.array([_sample_map(random) for _ in range(count)], np.float32).reshape(count, 1, SIDE, SIDE)


def deepen(maps: np.ndarray, factor: float) -> np.ndarray:
    """Return maps of `factor` times the attenuation."""
    return maps * np.float32(factor)


def _sample_map(random: np.random.Generator) -> np.ndarray:
    u, v = _grid()
    kind = random.random()
    angle = (
        random.normal(0, 0.12) if kind < 0.7 else random.normal(np.pi / 2, 0.12) if kind < 0.85
        else random.uniform(0, np.pi)
    )  # fmt: skip
    length = float(np.exp(random.normal(0, 0.5)).clip(0.25, 2.2))
    cos_i = random.uniform(0.02, 0.75)
    u, v = u - random.normal(0, 0.04), v - random.normal(0, 0.04)
    along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    across = across - random.normal(0, 0.08) * along**2 / length  # warp
    disk = np.hypot(along, across / cos_i)
    outer = expit((length - disk) / (0.06 * length))
    if random.random() < 0.5:  # a ring
        inner = random.uniform(0.4, 0.85) * length
        column = outer * expit((disk - inner) / (0.08 * length))
    else:
        column = outer * np.exp(-disk / (random.uniform(0.4, 1.2) * length))
    # The near half of the disk is in front of most of the stars, the far half behind them.
    front = np.where(across > 0, 1.0, random.uniform(0.05, 0.4))
    soft = ndimage.gaussian_filter(front, 0.04 * SIDE / (2 * REACH))
    # An edge-on disk shows its thickness.
    thickness = random.uniform(0.03, 0.10)
    slab = np.exp(-0.5 * (across / thickness) ** 2) * expit((length - np.abs(along)) / (0.08 * length))
    tau = np.maximum(column * soft, np.exp(-((cos_i / 0.15) ** 2)) * slab * column.max())
    noise = ndimage.gaussian_filter(random.standard_normal((SIDE, SIDE)), 0.35 * SIDE / (2 * REACH) / 2, mode="wrap")
    tau = tau * np.exp(0.45 * noise / noise.std())
    tau *= np.exp(random.uniform(np.log(0.25), np.log(2.2))) / max(float(np.quantile(tau, 0.997)), 1e-6)
    behind = random.uniform(0.55, 0.95)
    return -np.log1p(-behind * -np.expm1(-tau.clip(0, 6)))


def describe(maps: np.ndarray) -> np.ndarray:
    """Measure `CONDITIONS` on maps (n, 1, SIDE, SIDE); float32, shape (n, 5), clipped to their ranges."""
    u, v = _grid()
    weight = maps.reshape(len(maps), SIDE * SIDE).astype(np.float64)
    total = weight.sum(1).clip(1e-9)
    u, v = u.ravel(), v.ravel()
    mean_u, mean_v = weight @ u / total, weight @ v / total
    uu, vv, uv = (weight @ m / total for m in (u * u, v * v, u * v))
    uu, vv, uv = uu - mean_u**2, vv - mean_v**2, uv - mean_u * mean_v
    root = np.hypot(uu - vv, 2 * uv) + 1e-9
    major, minor = np.sqrt((uu + vv + root) / 2).clip(1e-3), np.sqrt(((uu + vv - root) / 2).clip(0))
    depth = np.quantile(weight, 0.995, axis=1).clip(1e-3)
    columns = [(uu - vv) / root, 2 * uv / root, np.log(major), minor / major, np.log(depth)]
    low, high = np.array(list(CONDITIONS.values())).T
    return np.stack(columns, 1).clip(low, high).astype(np.float32)


def measure(images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg") -> tuple[np.ndarray, np.ndarray]:
    """Measure maps of lanes on galaxies, by dividing each galaxy by a smooth model.

    The model is an upper quantile of the light in elliptical annuli of the galaxy's shape, which dust hardly affects,
    made monotonic with radius. The attenuation is the geometric mean of the dimming relative to the model (a
    least-squares fit of the extinction law with R_V = 3.1 to the three bands) and of the reddening relative to the
    median of the annulus.

    Returns
    -------
    maps : ndarray of float32, shape (n, 1, SIDE, SIDE)
    usable : ndarray of bool, shape (n,)
        Where the galaxy is measured, and the attenuation is deep enough, connected, elongated, red, and near the
        nucleus, unlike gaps between arms and seams between frames.
    """
    n, size = images.shape[:2]
    maps, usable = np.zeros((n, 1, SIDE, SIDE), np.float32), np.zeros(n, bool)
    law = extinction_law(bands, np.array([3.1]))[0]
    line = ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1) * REACH
    for k in np.flatnonzero(hosts.measured).tolist():
        flux = stretch.to_flux(ndimage.gaussian_filter(images[k].astype(np.float32), (0.6, 0.6, 0)))
        flux = (flux - sky_level(flux)).clip(0)
        u, v = hosts.frame(k, size)
        ratio = max(hosts.axis_ratio[k], 0.2)
        radius = np.hypot(u * np.sqrt(ratio), v / np.sqrt(ratio)) / hosts.radius[k]
        model = _smooth_model(flux, radius)
        floor = 0.02 * model.max((0, 1))
        optical = -np.log(((flux + floor) / (model + floor)).clip(0.05))
        dimmed = ((optical @ law) / float(law @ law)).clip(0)
        # Dust dims and reddens; deviations from elliptical isophotes only dim, and a red nucleus only reddens.
        reddened = ndimage.gaussian_filter(optical[..., 2] - optical[..., 0], 0.7) / (law[2] - law[0])
        reddened = (reddened - _annulus_median(reddened, radius)).clip(0)
        attenuation = np.sqrt(dimmed * reddened)
        # Weight by the reliability, which falls with the light of the galaxy.
        reliability = ((1.6 - radius) / 0.4).clip(0, 1) * (model.mean(2) > 4 * floor.mean())
        attenuation = (attenuation - NOISE).clip(0) * reliability
        lane, total = _largest_region(attenuation), float(attenuation.sum())
        attenuation = attenuation * lane
        scale = hosts.radius[k]
        cos, sin = np.cos(hosts.angle[k]), np.sin(hosts.angle[k])
        uu, vv = np.meshgrid(line * scale, line * scale)
        where = [hosts.y[k] + uu * sin + vv * cos, hosts.x[k] + uu * cos - vv * sin]
        maps[k, 0] = ndimage.gaussian_filter(ndimage.map_coordinates(attenuation, where, order=1, cval=0.0), 0.7)
        if lane.any():
            connected, roundness = attenuation.sum() / total, describe(maps[k : k + 1])[0, 3]
            depth, nearest = np.quantile(maps[k], 0.995), radius[lane].min()
            red, blue = ((optical[..., band] * attenuation).sum() for band in (0, 2))
            usable[k] = SHALLOWEST < depth < 2 and connected > CONNECTED and roundness < ROUNDEST and nearest < 0.6
            usable[k] &= blue > REDDENING * red
    return maps, usable


def _largest_region(attenuation: np.ndarray) -> np.ndarray:
    """Return a mask of the connected region with the most attenuation (S, S), dilated by two pixels."""
    deep = attenuation > 0.4 * np.quantile(attenuation, 0.995)
    labels, count = ndimage.label(deep & (attenuation > 0), np.ones((3, 3)))
    if not count:
        return np.zeros_like(deep)
    sums = ndimage.sum_labels(attenuation, labels, np.arange(1, count + 1))
    return ndimage.binary_dilation(labels == 1 + int(np.argmax(sums)), iterations=2)


def _annulus_median(values: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the median of values (S, S) in elliptical annuli."""
    ring = np.digitize(radius, RINGS)
    medians = ndimage.median(values, ring, np.arange(len(RINGS) + 1))
    return np.nan_to_num(medians)[ring]


def _smooth_model(flux: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return a dust-free model (S, S, 3): an upper quantile in elliptical annuli, falling outwards."""
    ring = np.digitize(radius, RINGS)
    middles, levels = [], []
    for number in range(1, len(RINGS) + 1):
        inside = ring == number
        if inside.sum() >= 3:
            middles.append(radius[inside].mean())
            levels.append(np.quantile(flux[inside], CLEAN, axis=0))
    falling = np.log(np.minimum.accumulate(np.array(levels)).clip(1e-6))
    return np.exp(np.stack([np.interp(radius, middles, falling[:, band]) for band in range(3)], axis=2))


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
    """Dim galaxies by dust: multiply flux by the transmission, blurred by the seeing; restore the noise.

    There is one map per host, all of which must be measured. `bands` are those of red, green and blue; `seeing` is the
    standard deviation of the point spread function in pixels, by which only the dust is blurred.

    Returns
    -------
    injected : ndarray of uint8, shape (n, S, S, 3)
    depth : ndarray of float32, shape (n,)
        Mean dimming, 0..1, of the `DEEPEST` fraction of the galaxy's bright pixels as displayed, minus the median
        dimming; below `LEAST_DEPTH` it is invisible.
    """
    n, size = images.shape[:2]
    law = extinction_law(bands, random.uniform(*R_V, (n,)))
    seeing = np.broadcast_to(np.asarray(seeing, float), (n,))
    injected, depth = np.empty_like(images), np.empty(n, np.float32)
    for k in range(n):
        scale = SIDE / (2 * REACH * hosts.radius[k])
        u, v = hosts.frame(k, size)
        where = [v * scale + (SIDE - 1) / 2, u * scale + (SIDE - 1) / 2]
        # A map finer than the image is smoothed to the pixel scale before it is sampled.
        fine = ndimage.gaussian_filter(maps[k, 0], 0.35 * scale) if scale > 1 else maps[k, 0]
        attenuation = ndimage.map_coordinates(fine, where, order=1, cval=0.0)
        transmission = np.exp(-attenuation[..., None] * law[k])
        transmission = ndimage.gaussian_filter(transmission, (seeing[k], seeing[k], 0))
        before = stretch.to_flux(images[k])
        sky = sky_level(before)
        # Noise is not dimmed by dust, so the lost noise is added again, in flux.
        noise = border_noise(images[k], stretch)
        lost = np.sqrt((1 - transmission**2).clip(0)) * noise * random.standard_normal(before.shape)
        after = stretch.to_pixels(sky + (before - sky) * transmission + lost)
        changed = transmission < 0.995
        injected[k] = np.where(changed, np.rint(after), images[k]).astype(np.uint8)
        # Visibility depends on displayed pixels: the stretch compresses contrast in a bright nucleus.
        displayed, dimmed = (ndimage.uniform_filter(x.mean(2, dtype=np.float32), 3) for x in (images[k], after))
        bright = displayed > max(20.0, float(np.percentile(displayed, 25)) + 8)
        loss = np.sort(1 - dimmed[bright] / displayed[bright])
        # Relative to the median, as uniform dimming is no lane.
        deepest = loss[-max(1, round(DEEPEST * size * size)) :]
        depth[k] = deepest.mean() - np.median(loss) if len(loss) else 0
    return injected, depth
