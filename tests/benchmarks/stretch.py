"""The stretch of SDSS JPEGs, measured on real galaxies: what `galscan.synthesis.flux.JPEG_SOFTENING` rests on.

    python -m tests.benchmarks.stretch [--json]

1. The colour (blue over red pixel, sky taken off) of clean ellipticals of ``ngc-sdss`` (``GALSCAN_TEST_DATA``, default
   ``../shared/data``) in elliptical rings, beside the innermost: a stretch of each band by itself would change it.
2. In the lanes of dusty early types, how much more blue light is dimmed than red (ratio of optical depths), with each
   softening; beside it the extinction law (`galscan.synthesis.features.dust_lane.extinction_law`, R_V = 3.1).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy import ndimage

import galscan
from galscan.store.layout import open_store
from galscan.synthesis.features import dust_lane, light
from galscan.synthesis.flux import JPEG_SOFTENING, Stretch
from galscan.synthesis.hosts import measure_hosts
from tests.benchmarks._record import DATA, arguments, record

SIZE = 96
RINGS = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.25, 1.5, 1.8, 2.2)  # half-light radii
SOFTENINGS = (0.03, 0.012, 0.004, JPEG_SOFTENING, 0.00025)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    options = arguments("stretch", __doc__ or "").parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    path = galscan.ingest("local", path=DATA / "ngc-sdss", labels=["efigi"], size=SIZE, out=options.work / "ngc.zarr")
    store = open_store(path.path)
    labels, images = store.labels("efigi"), store.images()
    figures = _colours(images[((labels["t"] <= -2) & (labels["visible_dust"] == 0)).to_numpy()])
    figures |= _reddening(images[((labels["t"] <= 0) & (labels["visible_dust"] >= 0.5)).to_numpy()])
    law = dust_lane.extinction_law("irg", np.array([3.1]))[0]
    figures["reddening_law"] = float(law[2] / law[0])
    record("stretch", options, figures)
    return figures


def _colours(images: np.ndarray) -> dict[str, Any]:
    """Return the median colour by ring, over that of the innermost ring."""
    hosts, rows = measure_hosts(images), []
    for k in np.flatnonzero(hosts.measured):
        radius, pixels = _radius(hosts, k), images[k].astype(float)
        edge = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
        pixels = pixels - np.median(edge, axis=0)
        rings = [pixels[(radius >= a) & (radius < b)] for a, b in pairwise(RINGS)]
        rows.append([np.median(ring[:, 2]) / np.median(ring[:, 0]) if len(ring) > 4 else np.nan for ring in rings])
    colour = np.nanmedian(np.array(rows), axis=0)
    return {"ellipticals": len(rows), "colour_over_innermost": (colour / colour[0]).round(3).tolist()}


def _reddening(images: np.ndarray) -> dict[str, Any]:
    """Return the ratio of the summed optical depths of blue and red in the deepest parts of measured lanes."""
    hosts = measure_hosts(images)
    maps, usable = dust_lane.measure(images, hosts, Stretch())
    figures: dict[str, Any] = {"lanes": int(usable.sum())}
    for softening in SOFTENINGS:
        total = np.zeros(3)
        for k in np.flatnonzero(usable):
            total += _optical_depth(images[k], hosts, k, maps[k, 0], Stretch(softening))
        figures[f"reddening_{softening:g}"] = float(total[2] / total[0])
    return figures


def _optical_depth(image: np.ndarray, hosts: Any, k: int, attenuation: np.ndarray, stretch: Stretch) -> np.ndarray:
    """Return the mean optical depth by band where the measured map is deepest, against the smooth galaxy."""
    radius = _radius(hosts, k)
    flux = stretch.to_flux(ndimage.gaussian_filter(image.astype(np.float32), (0.6, 0.6, 0)))
    flux = (flux - light.sky_level(flux)).clip(0)
    model = dust_lane._smooth_model(flux, radius)
    floor = 0.02 * model.max((0, 1))
    optical = -np.log(((flux + floor) / (model + floor)).clip(0.02))
    scale = dust_lane.SIDE / (2 * dust_lane.REACH * hosts.radius[k])
    u, v = hosts.frame(k, SIZE)
    middle = (dust_lane.SIDE - 1) / 2
    there = ndimage.map_coordinates(attenuation, [v * scale + middle, u * scale + middle], order=1, cval=0)
    deep = (there > 0.5 * np.quantile(attenuation, 0.995)) & (radius < 1.5) & (radius > 0.15)
    return optical[deep].mean(0) if deep.sum() > 3 else np.zeros(3)


def _radius(hosts: Any, k: int) -> np.ndarray:
    """Return the elliptical radius of each pixel in half-light radii."""
    u, v = hosts.frame(k, SIZE)
    ratio = max(hosts.axis_ratio[k], 0.2)
    return np.hypot(u * np.sqrt(ratio), v / np.sqrt(ratio)) / hosts.radius[k]


if __name__ == "__main__":
    main()
