"""Comparison of injected with real features: depth, shape and colour, measured in the same way on both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.stats import ks_2samp

from galscan.synthesis.features.base import find_feature
from galscan.synthesis.features.dust_lane import REACH
from galscan.synthesis.flux import Stretch
from galscan.synthesis.hosts import Hosts, measure_hosts

ANGLE = "angle"  # in the names of conditions that are orientations, which are random on real galaxies
SHALLOW = 0.05  # optical depth in the blue band below which ratios of optical depths are too noisy
LEAST = 5  # galaxies in each sample, below which distributions are not compared
RADII = np.linspace(0, 1.8, 19)  # edges of the elliptical annuli in which light is compared, half-light radii


def measure_features(
    name: str, images: np.ndarray, survey: np.ndarray, stretches: Sequence[Stretch], bands: Sequence[str]
) -> pd.DataFrame:
    """Measure a feature on images, real or injected.

    `survey` (n,) has the index of each image into `stretches` and `bands`.

    Returns
    -------
    DataFrame, n rows
        ``host``, whether the galaxy's geometry could be measured, and ``usable``, whether the feature could (bool). NaN
        where it could not: the feature's conditions except angles; ``colour_excess``, the difference of the optical
        depths in blue and red; ``reddening``, that difference over the optical depth in blue: 0 for grey extinction,
        0.4 for the Galactic law between g and i.
    """
    feature, survey = find_feature(name), np.asarray(survey)
    hosts = measure_hosts(images)
    usable = np.zeros(len(images), bool)
    values = np.full((len(images), len(feature.CONDITIONS)), np.nan)
    depth = np.full((len(images), 3), np.nan)
    for number, (stretch, of_bands) in enumerate(zip(stretches, bands, strict=True)):
        rows = np.flatnonzero(survey == number)
        if not len(rows):
            continue
        maps, usable[rows] = feature.measure(images[rows], hosts.select(rows), stretch, bands=of_bands)
        kept = rows[usable[rows]]
        usable_maps = maps[usable[rows]]
        values[kept] = feature.describe(usable_maps)
        depth[kept] = optical_depths(images[kept], hosts.select(kept), usable_maps, stretch)
    table = pd.DataFrame(values, columns=list(feature.CONDITIONS))
    table = table[[column for column in table if ANGLE not in column]]
    blue = np.where(depth[:, 2] > SHALLOW, depth[:, 2], np.nan)
    table = table.assign(colour_excess=depth[:, 2] - depth[:, 0], reddening=1 - depth[:, 0] / blue)
    table.insert(0, "host", hosts.measured)
    table.insert(1, "usable", usable)
    return table


def optical_depths(images: np.ndarray, hosts: Hosts, maps: np.ndarray, stretch: Stretch) -> np.ndarray:
    """Return the mean optical depth in each band where a map is deep.

    The light without extinction is the mean logarithm at the same elliptical radius where the map is not deep. So
    depths are relative to the rest of the galaxy, and may be negative. All hosts must be measured; maps (n, 1, side,
    side) are in their frames, over plus and minus `galscan.synthesis.features.dust_lane.REACH` half-light radii. Depths
    (n, 3) are of red, green and blue; NaN where the map is empty, or no light at the same radius is free of extinction.
    """
    side = maps.shape[-1]
    line = ((np.arange(side) + 0.5) / side * 2 - 1) * REACH
    v, u = np.meshgrid(line, line, indexing="ij")
    out = np.full((len(images), 3), np.nan)
    for k, image in enumerate(images):
        flux = stretch.to_flux(ndimage.gaussian_filter(image.astype(np.float32), (0.6, 0.6, 0)))
        flux = flux - np.median(np.concatenate([flux[:2].reshape(-1, 3), flux[-2:].reshape(-1, 3)]), axis=0)
        cos, sin, scale = np.cos(hosts.angle[k]), np.sin(hosts.angle[k]), hosts.radius[k]
        where = [hosts.y[k] + scale * (u * sin + v * cos), hosts.x[k] + scale * (u * cos - v * sin)]
        light = np.stack([ndimage.map_coordinates(flux[..., band], where, order=1) for band in range(3)], -1)
        root = np.sqrt(max(hosts.axis_ratio[k], 0.2))
        radius = np.hypot(u * root, v / root)
        deep = maps[k, 0] > max(0.5 * np.quantile(maps[k, 0], 0.995), 1e-3)
        log = np.log(light.clip(1e-4))
        ring = np.digitize(radius, RADII)
        clear = [~deep & (ring == number) for number in range(1, len(RADII))]
        clear = [mask for mask in clear if mask.sum() >= 5]
        middles = [radius[mask].mean() for mask in clear]
        inside = deep & (radius > min(middles, default=np.inf)) & (radius < max(middles, default=0))
        if not inside.any():
            continue
        for band in range(3):
            unextincted = np.interp(radius[inside], middles, [log[mask][:, band].mean() for mask in clear])
            out[k, band] = (unextincted - log[inside][:, band]).mean()
    return out


def compare_features(synthetic: pd.DataFrame, real: pd.DataFrame, hosts: pd.DataFrame) -> dict[str, Any]:
    """Compare measurements of `measure_features` on synthetic and on real positives.

    Returns
    -------
    dict
        ``galaxies``: for synthetic, real and hosts ``n``, ``host_measured`` and ``feature_measured`` (for the
        unmodified hosts: false positives of the measurement). ``quantities``: by name ``ks``, the
        Kolmogorov-Smirnov distance, and its ``p`` (None for fewer than 5 galaxies), and for synthetic and real ``n``,
        ``median``, ``low`` and ``high`` (16th and 84th percentile).
    """
    tables = {"synthetic": synthetic, "real": real, "hosts": hosts}
    quantities: dict[str, Any] = {}
    for name in (column for column in real if column not in ("host", "usable")):
        values = {group: tables[group][name].dropna().to_numpy() for group in ("synthetic", "real")}
        comparable = min(map(len, values.values())) >= LEAST
        test = ks_2samp(values["synthetic"], values["real"]) if comparable else None
        quantities[name] = {
            "ks": None if test is None else float(test.statistic), "p": None if test is None else float(test.pvalue),
            **{group: _percentiles(sample) for group, sample in values.items()},
        }  # fmt: skip
    return {
        "galaxies": {
            group: {
                "n": len(table), "host_measured": int(table["host"].sum()),
                "feature_measured": int(table["usable"].sum()),
            } for group, table in tables.items()
        },
        "quantities": quantities,
    }  # fmt: skip


def _percentiles(values: np.ndarray) -> Mapping[str, Any]:
    if not len(values):
        return {"n": 0, "median": None, "low": None, "high": None}
    low, median, high = (float(v) for v in np.percentile(values, [16, 50, 84]))
    return {"n": len(values), "median": median, "low": low, "high": high}


def identical_images(images: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return for each image the row of the image in `among` with identical pixels, or -1."""

    def key(image: np.ndarray) -> bytes:
        return hashlib.sha256(image.tobytes()).digest()

    rows = {key(image): k for k, image in enumerate(among)}
    return np.array([rows.get(key(image), -1) for image in images], int)
