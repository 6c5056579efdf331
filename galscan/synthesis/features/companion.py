"""Companions: a second real galaxy beside or over the host, as in a merger, mostly with tidal tails.

The light of a donor is cut out of its image with a soft edge, turned, scaled and added to the host in flux; its colours
are kept. A map has the six numbers of `COLUMNS` in its first row, and tidal features of the host in the others
(`galscan.synthesis.features.tidal`): the first is on the side of the companion, as a bridge, the second on the other
side (Toomre & Toomre 1972, ApJ 178, 623). Brightness ratios are down to 1:10, the limit of minor mergers, which images
show less often the fainter the companion (Lotz et al. 2011, ApJ 742, 103). A fainter companion is smaller: half-light
radii grow with luminosity to the power 0.3 to 0.6 (Shen et al. 2003, MNRAS 343, 978).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from galscan.core.errors import InputError
from galscan.synthesis.features import tidal
from galscan.synthesis.features.light import add_light, galaxy_light, light_within
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Donors, Hosts

CONDITIONS: Mapping[str, tuple[float, float]] = {}
LEAST_DEPTH = 0.2
DONORS = True
COLUMNS = (
    "distance",  # of the centres, in units of the sum of the half-light radii
    "angle",  # of the companion from the host, to the host's major axis, radians
    "log_ratio",  # natural logarithm of the brightness of the companion over that of the host
    "scale",  # of its size, relative to that of a galaxy of its brightness
    "turn",  # angle by which the donor is rotated, radians
    "mirror",  # 1 where the donor is mirrored
)
DISTANCE, RATIO, SCALE = (0.3, 2.5), (0.1, 1.0), (0.7, 1.3)
GROWTH = 0.4  # exponent of luminosity in the half-light radius
ZOOM = (0.4, 1.4)  # range of the factor by which a donor is scaled: more would show its pixels
TAILS = 0.6  # fraction of the pairs with tidal features
INSIDE = 0.9  # of the half side of the image: the centre of a companion is not farther out
BRIGHTENED = 3.0  # largest factor by which the light of a donor, and so its noise, is multiplied


def prior(count: int, random: np.random.Generator) -> np.ndarray:
    """Sample pairs, float32, shape (count, 1, 4, 10).

    Distances and brightness ratios are uniform in their logarithms, orientations random.
    """
    angle = random.uniform(0, 2 * np.pi, count)
    distance, ratio = (random.uniform(np.log(low), np.log(high), count) for low, high in (DISTANCE, RATIO))
    columns = [
        np.exp(distance), angle, ratio, random.uniform(*SCALE, count), random.uniform(0, 2 * np.pi, count),
        random.integers(2, size=count),
    ]  # fmt: skip
    maps = np.zeros((count, 1, 1 + tidal.COMPONENTS, len(tidal.COLUMNS)), np.float32)
    maps[:, 0, 0, : len(COLUMNS)] = np.stack(columns, 1)
    features = tidal.prior(count, random)[:, 0]
    where = tidal.COLUMNS.index("angle")
    features[:, 0, where] = angle + random.normal(0, 0.5, count)
    features[:, 1, where] = angle + np.pi + random.normal(0, 0.5, count)
    features[random.random(count) > TAILS, :, tidal.COLUMNS.index("strength")] = 0
    maps[:, 0, 1:] = features
    return maps


def deepen(maps: np.ndarray, factor: float) -> np.ndarray:
    """Return pairs whose companions and tidal features are `factor` times as bright; companions up to the host."""
    deeper = maps.copy()
    column = COLUMNS.index("log_ratio")
    deeper[..., 0, column] = np.minimum(maps[..., 0, column] + np.log(factor), np.log(RATIO[1]))
    deeper[..., 1:, :] = tidal.deepen(maps[..., 1:, :], factor)
    return deeper


def describe(maps: np.ndarray) -> np.ndarray:
    """Return no conditions: there is no diffusion model of companions."""
    return np.empty((len(maps), 0), np.float32)


def measure(images: np.ndarray, hosts: Hosts, stretch: Stretch, *, bands: str = "irg") -> tuple[np.ndarray, np.ndarray]:
    """Raise an `InputError`: companions are only injected."""
    raise InputError("the feature 'companion' cannot be measured on galaxies; remove 'measure' from the recipe's rule")


def inject(
    images: np.ndarray,
    hosts: Hosts,
    maps: np.ndarray,
    stretch: Stretch,
    random: np.random.Generator,
    *,
    bands: str = "irg",
    seeing: np.ndarray | float = 1.0,
    donors: Donors | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Add to each host the light of its donor, and tidal features.

    Raises `InputError` without `donors`.

    Parameters
    ----------
    maps : ndarray of float32, shape (n, 1, 4, 10)
    seeing : ndarray, shape (n,), or float
        Standard deviation of the point spread function in pixels. A donor that is scaled down is blurred, as its seeing
        was scaled with it.
    donors : Donors
        One galaxy for each host, with the same bands and stretch.

    Returns
    -------
    injected : ndarray of uint8, shape (n, S, S, 3)
    depth : ndarray of float32, shape (n,)
        Contrast as displayed (`galscan.synthesis.features.light.visibility`); 0 where the donor
        is too faint or cut off by the border of its image.
    """
    if donors is None:
        raise InputError("the feature 'companion' is the light of other galaxies: give 'donors', one for each host")
    n = len(images)
    seeing = np.broadcast_to(np.asarray(seeing, float), (n,))
    injected, depth = images.copy(), np.zeros(n, np.float32)
    for k in range(n):
        cut = galaxy_light(donors.images[k], stretch)
        if cut is None:
            continue
        named = dict(zip(COLUMNS, maps[k, 0, 0].tolist(), strict=False))
        light = _placed(cut[0], donors.geometry.select(np.array([k])), hosts, k, named, float(seeing[k]))
        wanted = np.exp(named["log_ratio"]) * float(light_within(images[k], hosts, k, stretch).mean())
        factor = min(wanted / max(float(light.mean(2).sum()), 1e-9), BRIGHTENED)
        light *= factor
        light += tidal.tidal_light(images[k], hosts, k, maps[k, 0, 1:], stretch, random, seeing=float(seeing[k]))
        injected[k], depth[k] = add_light(images[k], light, stretch, random, noisy=min(factor, 1.0))
    return injected, depth


def _placed(cut: np.ndarray, donor: Hosts, hosts: Hosts, k: int, named: dict[str, float], seeing: float) -> np.ndarray:
    """Return the light `cut` out of the image of a `donor`, scaled, turned and moved to its place beside host `k`."""
    size = len(cut)
    wanted = hosts.radius[k] * np.exp(GROWTH * named["log_ratio"]) * named["scale"]
    zoom = float(np.clip(wanted / donor.radius[0], *ZOOM))
    distance = named["distance"] * (hosts.radius[k] + zoom * donor.radius[0])
    angle = named["angle"] + hosts.angle[k]
    half = (size - 1) / 2
    x, y = (
        float(np.clip(centre + distance * way, half * (1 - INSIDE), half * (1 + INSIDE)))
        for centre, way in ((hosts.x[k], np.cos(angle)), (hosts.y[k], np.sin(angle)))
    )
    dy, dx = np.indices((size, size), np.float32) - np.array([y, x], np.float32)[:, None, None]
    cos, sin = np.cos(named["turn"]) / zoom, np.sin(named["turn"]) / zoom
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    where = [donor.y[0] + across, donor.x[0] + along * (-1 if named["mirror"] > 0.5 else 1)]
    # Smoothed to the pixels that it gets, before it is sampled; then blurred by the seeing that scaling removed.
    fine = ndimage.gaussian_filter(cut, (0.35 / zoom, 0.35 / zoom, 0)) if zoom < 1 else cut
    light = np.stack([ndimage.map_coordinates(fine[..., band], where, order=1, cval=0.0) for band in range(3)], 2)
    lost = seeing * np.sqrt(max(1 - zoom**2, 0.0))
    return ndimage.gaussian_filter(light, (lost, lost, 0))
