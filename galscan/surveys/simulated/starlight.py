"""Light of simulated galaxies: stars, and extinction by dust.

Functions take a *sky*: a mapping of arrays of shape (n, ...), one row per object, as drawn by
`galscan.surveys.simulated.population`. Lengths are fractions of the frame, angles radians, surface brightness
nanomaggies per SDSS pixel (0.396 arcsec), bands in the order g, r, i.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
from scipy.special import gamma

Sky = Mapping[str, np.ndarray]

# A_g : A_r : A_i over A_V (Cardelli, Clayton & Mathis 1989, R_V = 3.1)
EXTINCTION = np.array([1.2, 0.85, 0.65], np.float32)
_LAYERS = 4  # layers of a dust disk along the line of sight


def _images(values: np.ndarray) -> np.ndarray:
    """Return values of shape (n,) as float32, to be combined with images."""
    return values.astype(np.float32)[:, None, None]


def column(sky: Sky, name: str) -> np.ndarray:
    return _images(sky[name])


def subset(sky: Sky, chosen: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[chosen] for name, values in sky.items()}


def weights(colour: np.ndarray) -> np.ndarray:
    """Return fluxes in g, r, i (r = 1), shape (n, 3, 1, 1), for the colour g-r; r-i follows the locus of galaxies."""
    ones = np.ones_like(colour)
    bands = np.stack([10 ** (-0.4 * colour), ones, 10 ** (0.4 * (0.5 * colour + 0.02))], axis=1)
    return bands.astype(np.float32)[:, :, None, None]


@cache
def _textures() -> np.ndarray:
    """Return 16 periodic noise fields (256, 256) of unit variance, power ~ k^-2.6: clumps of all sizes."""
    rng = np.random.default_rng(20040203)
    k = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None]) * 256
    amplitude = np.where(k > 1.5, np.maximum(k, 1) ** -1.3, 0) * np.exp(-((k / 50) ** 2))
    fields = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((16, 256, 256))) * amplitude)
    return (fields / fields.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def _texture(sky: Sky, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample the noise field of each object at `x`, `y`, coordinates in the plane of the disk."""
    texture = sky["texture"].astype(np.int32)[:, None, None]
    row = ((y * 160 + 256 * 64).astype(np.int32) + texture * 37) & 255
    col = ((x * 160 + 256 * 64).astype(np.int32) + texture * 91) & 255
    return _textures()[texture % 16, row, col]


def pixel_axis(size: int) -> np.ndarray:
    """Return the coordinates of the centres of pixels, -0.5 to 0.5."""
    return ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5).astype(np.float32)


def frame(sky: Sky, size: int, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates along and across the position angle, from the galaxy's centre, shape (n, size, size)."""
    axis = pixel_axis(size)
    x, y = axis[None, None, :] - column(sky, "x"), axis[None, :, None] - column(sky, "y")
    c, s = _images(np.cos(angle)), _images(np.sin(angle))
    return x * c + y * s, y * c - x * s


def sersic(radius2: np.ndarray, scale: np.ndarray, n: np.ndarray, q: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Return a Sersic profile of total `flux` at squared elliptical radius `radius2`.

    b_n is that of Ciotti & Bertin (1999), to the second term.
    """
    b = 2 * n - 1 / 3 + 4 / (405 * n)
    total = 2 * np.pi * n * b ** (-2 * n) * gamma(2 * n) * scale**2 * q
    exponent = np.exp(np.log(radius2 / _images(scale**2)) * _images(0.5 / n))
    return np.exp(-_images(b) * exponent) * _images(flux / total)


def starlight(sky: Sky, size: int) -> np.ndarray:
    """Return the galaxies' dust-free starlight, before the PSF, shape (n, 3, size, size).

    A Sersic (1968) bulge, softened by under half a pixel; an exponential disk (Freeman 1970) of intrinsic
    thickness q0, whose projected axis ratio is sqrt(q0^2 + (1 - q0^2) cos^2 i) (Hubble 1926); logarithmic
    spiral arms, a bar, a ring and tidal tails in the plane of the disk.
    """
    u, v = frame(sky, size, sky["angle"])
    v = v + column(sky, "bend") * u * u
    soft = np.float32((0.4 / size) ** 2)
    radius2 = u * u + np.square(v / column(sky, "bulge_q")) + soft
    flux = sky["flux"] * sky["bulge_to_total"]
    bulge = sersic(radius2, sky["bulge_re"], sky["bulge_n"], sky["bulge_q"], flux)
    bands = bulge[:, None] * weights(sky["bulge_colour"])
    chosen = sky["bulge_to_total"] < 1
    if chosen.any():
        bands[chosen] += _disk(subset(sky, chosen), u[chosen], v[chosen])
    return bands


def _disk(sky: Sky, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return disk, arms, bar, ring and tails, shape (n, 3, size, size); `u`, `v` as in `starlight`."""
    h, q = column(sky, "disk_h"), column(sky, "disk_q")
    w = v / q
    radius = np.sqrt(u * u + w * w) / h
    centre = column(sky, "flux") * (1 - column(sky, "bulge_to_total")) / (2 * np.pi * h * h * q)
    old = np.exp(-radius) * centre
    # Beyond about four scale lengths disks are truncated (van der Kruit 1979).
    old *= 1 / (1 + np.exp(np.minimum((radius - 4.5) * 2, 30)))
    young = np.zeros_like(old)

    busy = (sky["arms"] > 0) | (sky["clumps"] > 0) | (sky["ring"] > 0) | (sky["tails"] > 0)  # with structure
    if busy.any():
        b, r, o = subset(sky, busy), radius[busy], old[busy]
        clump = _texture(b, u[busy], v[busy] / np.maximum(q[busy], 0.3))
        angle = np.arctan2(w[busy], u[busy])
        lumps = np.exp(column(b, "clumps") * clump)
        logarithm = np.log(r + 0.05)
        winding = column(b, "winding") * logarithm
        phase = column(b, "arm_count") * (angle - winding) + 0.7 * clump
        # Edge-on, arms at different depths overlap, and no pattern is visible.
        pattern = column(b, "arms") * np.clip((column(b, "disk_q") - 0.12) * 4, 0, 1)
        arm = np.exp(column(b, "arm_sharpness") * (np.cos(phase) - 1)) * (1 - np.exp(-np.square(r / 0.8)))
        young_fraction = column(b, "young") * np.clip(column(b, "disk_q") + 0.35, 0.5, 1)  # less when edge-on
        disk = o * ((1 - 0.45 * pattern) * (1 + (lumps - 1) * 0.3))
        arms = young_fraction * (1 - pattern) + pattern * arm * (0.6 + 1.6 * young_fraction)
        young_light = o * np.exp(0.25 * np.minimum(r, 4)) * lumps * arms
        ring = np.exp(-0.5 * np.square((r - column(b, "ring_radius")) / column(b, "ring_width")))
        young_light += column(b, "ring") * centre[busy] * column(b, "ring_light") * ring * (0.5 + 0.5 * lumps)
        tail = np.exp(4.5 * (np.cos(column(b, "tail_count") * 0.5 * (angle - 1.1 * logarithm - 0.4)) - 1))
        tail *= np.exp(-r / 4.5) * np.clip(r - 1.2, 0, 1) * centre[busy] * 0.5 * column(b, "tails") * lumps
        young_light += 0.5 * tail
        old[busy], young[busy] = disk + 0.5 * tail, young_light
    if (barred := sky["bar"] > 0).any():
        b = subset(sky, barred)
        c, s = np.cos(column(b, "bar_angle")), np.sin(column(b, "bar_angle"))
        length = column(b, "bar_length") * h[barred]
        along = np.abs(u[barred] * c + w[barred] * s) / length
        across = np.abs(w[barred] * c - u[barred] * s) / (length * 0.3)
        old[barred] += column(b, "bar") * centre[barred] * 0.9 * np.exp(-(along**3) - across**2)
    return old[:, None] * weights(sky["disk_colour"]) + young[:, None] * weights(sky["young_colour"])


def transmission(sky: Sky, size: int, extinction: np.ndarray = EXTINCTION) -> np.ndarray:
    """Return the fraction of starlight transmitted by the dust in each band, shape (n, len(extinction), size, size).

    The dust is an oblate spheroid (thickness over radius = ``dust_thickness``), inclined by i in a star
    distribution of density ~ (rho^2 + z^2 + rc^2)^(-3/2) (the modified Hubble profile; Binney & Tremaine 2008,
    eq. 2.53). A line of sight meets it at depth z = y tan i (thin limit), where the fraction

        F(z) = (1 + z / sqrt(z^2 + rho^2 + rc^2)) / 2

    of its starlight is in front and escapes: I = I0 (F + (1 - F) exp(-tau)), so the near side is dark and the far
    side hardly dimmed. The spheroid's chord is divided into layers, so that an edge-on disk hides all stars
    except those in front of its rim. tau goes as 1 / (projected axis ratio), the 1/cos i of a slab.
    """
    u, v = frame(sky, size, sky["angle"] + sky["dust_angle"])
    rho2 = u * u + v * v + np.square(column(sky, "dust_core"))
    v = v - column(sky, "dust_warp") * u * np.abs(u)
    rim, thick = column(sky, "dust_radius"), column(sky, "dust_thickness")
    cosine, sine = column(sky, "dust_cos"), np.sqrt(1 - np.square(column(sky, "dust_cos")))
    q = np.sqrt(cosine**2 + (thick * sine) ** 2)
    radius = np.sqrt(u * u + np.square(v / q)) / rim
    depth = v * column(sky, "dust_side") * sine * cosine * (1 - thick**2) / (q * q)
    chord = rim * thick / q * np.sqrt(np.clip(1 - radius * radius, 0, None))

    disk = np.exp(-radius) * 1.6
    # Edge-on, the line of sight crosses the ring twice, and its hole is not visible.
    hole = column(sky, "dust_ring") * (1 - np.exp(-np.square(q / 0.2)))
    ring = np.exp(-0.5 * np.square((radius - 0.72) / 0.17))
    tau = (disk + hole * (1.2 * ring - disk)) / (1 + np.exp(np.minimum((radius - 1) / 0.07, 30)))
    clump = _texture(sky, v / np.maximum(q, 0.3) + 0.3, u)
    tau *= column(sky, "dust_tau") / q * np.exp(column(sky, "dust_clumps") * clump)
    if (spiral := sky["dust_arms"] > 0).any():
        s = subset(sky, spiral)
        winding = column(s, "winding") * np.log(radius[spiral] * rim[spiral] / column(s, "disk_h") + 0.05)
        angle = np.arctan2(v[spiral] / q[spiral], u[spiral])
        phase = column(s, "arm_count") * (angle - winding) + 0.8  # inner edge of the arms
        lane = np.exp(4 * (np.cos(phase + 0.7 * clump[spiral]) - 1))
        tau[spiral] *= 1 + column(s, "dust_arms") * (2.5 * lane - 0.8)

    steps = [np.exp(-k * (tau / _LAYERS)) for k in extinction]
    transmitted = [np.ones_like(tau) for _ in steps]
    out = [np.zeros_like(tau) for _ in steps]
    front = np.zeros_like(depth)
    for j in range(_LAYERS + 1):
        z = depth + chord * ((2 * j + 1) / _LAYERS - 1)
        in_front = 0.5 * (1 + z / np.sqrt(z * z + rho2)) if j < _LAYERS else 1.0  # the rest is behind the dust
        for band, step in enumerate(steps):
            out[band] += (in_front - front) * transmitted[band]
            transmitted[band] *= step
        front = in_front
    return np.stack(out, axis=1)
