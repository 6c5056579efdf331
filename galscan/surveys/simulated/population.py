"""Population of the simulated survey: random parameters of galaxies, their dust, and other objects in their stamps.

Dust lanes must not be predictable from shape: if only edge-on galaxies had lanes, the axis ratio alone would predict
the label, and scores would be meaningless. Therefore the stars of a galaxy are drawn before, and independently of, its
dust; dust disks are aligned, tilted or polar; and edge-on galaxies without lanes, dusty spirals and black seams are
common.

Lengths are fractions of the frame; the other units are those of `galscan.surveys.simulated.starlight`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from galscan.surveys.simulated import rendering as render
from galscan.surveys.simulated.starlight import subset

BLOCK = 256  # objects per random generator
PIXELS = 32 * 64 * 64  # pixels rendered at once: limits memory, and fits in the processor's cache
_TRIES = 12  # dust disks drawn for a galaxy that must have a visible lane


def _stars(rng: np.random.Generator, rare_fraction: float) -> dict[str, np.ndarray]:
    """Draw the galaxies of a block without dust: types, shapes, colours, fluxes, camera parameters."""
    n = BLOCK

    def between(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, n)

    def chance(p: float) -> np.ndarray:
        return rng.random(n) < p

    def normal(mean: float, sigma: float, low: float, high: float) -> np.ndarray:
        return np.clip(rng.normal(mean, sigma, n), low, high)

    target = chance(rare_fraction)
    merger = chance(0.03) & ~target
    ring = chance(0.03) & ~target & ~merger
    early = chance(0.42) & ~(merger & chance(0.6)) | target
    lenticular = early & (chance(0.55) | ring)
    irregular = ~early & ~ring & chance(0.08)
    late = ~early & ~irregular
    disk = ~early | lenticular

    # Random orientation on the sphere; rings are not too edge-on to be visible.
    cosine = np.where(ring, between(0.4, 1), between(0, 1))
    thickness = np.where(early, between(0.2, 0.32), between(0.1, 0.22))
    disk_q = np.sqrt(thickness**2 + (1 - thickness**2) * cosine**2)
    round_q = np.clip(1 - np.abs(rng.normal(0.0, 0.26, n)), 0.45, 1)  # ellipticals
    bulge_q = np.where(disk, np.sqrt(0.6**2 + (1 - 0.6**2) * cosine**2), round_q)
    bulge_to_total = np.select(
        [~disk, early, irregular], [1.0, between(0.25, 0.7), between(0, 0.04)], np.square(between(0.1, 0.65))
    )
    axis_ratio = np.where(disk, disk_q, round_q)

    radius90 = np.exp(rng.normal(np.log(24), 0.45, n)).clip(8, 80)  # arcsec
    # Frame over R90; Galaxy Zoo 2 images have 8.5, of which classifiers use the inner half.
    frames = np.exp(between(np.log(2.3), np.log(4.4)))
    re = 1 / (frames * np.where(disk & ~early, 2.3, np.where(disk, 2.6, 2.9)))
    # Mean magnitude within R_e, per square arcsec in r; a transparent disk brightens when inclined.
    magnitude = np.where(early, rng.normal(21.1, 0.4, n), rng.normal(21.65, 0.45, n))
    flux = 2 * np.pi * re**2 * axis_ratio**0.7 * _nanomaggies(magnitude) * render.SDSS_PIXEL**2

    bulge_colour = np.where(early, normal(0.79, 0.07, 0.6, 1.0), rng.normal(0.74, 0.07, n))
    disk_colour = np.where(early, bulge_colour - np.abs(rng.normal(0.05, 0.03, n)), normal(0.56, 0.1, 0.3, 0.8))
    disk_colour = np.where(irregular, normal(0.35, 0.08, 0.2, 0.5), disk_colour)
    young_colour = np.where(early, disk_colour - 0.15, normal(0.2, 0.1, -0.05, 0.4))
    spiral = np.where(late, between(0.3, 1), 0.0)
    barred = disk & chance(0.3) & ~irregular
    sky = {
        "target": target, "early_type": early, "merger": merger, "irregular": irregular, "disk": disk,
        "ring": np.where(ring, between(0.5, 1), 0.0),
        "cosine": cosine, "axis_ratio": axis_ratio, "re": re, "frame": frames * radius90,
        "seeing": normal(1.3, 0.15, 0.9, 1.9),
        "x": normal(0, 0.006, -0.02, 0.02),
        "y": normal(0, 0.006, -0.02, 0.02),
        "angle": between(0, 2 * np.pi),
        "flux": flux, "bulge_to_total": bulge_to_total,
        "bulge_n": np.where(early, normal(3.4, 0.9, 1.6, 5), between(1, 3)),
        "bulge_re": np.where(disk, re * np.where(early, between(0.3, 0.6), between(0.12, 0.35)), re),
        "bulge_q": bulge_q, "bulge_colour": bulge_colour,
        "disk_h": re / 1.68, "disk_q": disk_q, "disk_colour": disk_colour, "young_colour": young_colour,
        "young": np.where(late, between(0.05, 0.5), np.where(irregular, 0.8, 0.0)),
        "arms": spiral,
        "arm_count": rng.choice([2.0, 2.0, 2.0, 3.0, 4.0], n),
        "arm_sharpness": between(0.8, 3.0),
        "winding": rng.choice([-1, 1], n) / np.tan(np.radians(between(11, 32))),
        "clumps": np.where(late, between(0.2, 0.8), np.where(irregular | merger, between(0.6, 1.2), 0.0)),
        "ring_radius": between(1.6, 3.2), "ring_width": between(0.18, 0.4), "ring_light": between(0.25, 0.6),
        "tails": np.where(merger, between(0.5, 1), 0.0),
        "tail_count": rng.choice([2.0, 4.0], n),
        "bend": np.where(merger, rng.choice([-1, 1], n) * between(0.4, 2), 0.0),
        "texture": rng.integers(0, 4096, n),
        "bar": np.where(barred, between(0.3, 1), 0.0),
        "bar_angle": between(0, np.pi), "bar_length": between(0.7, 1.6),
        "ra": between(0, 360), "dec": np.degrees(np.arcsin(between(-1, 1) * np.sin(np.radians(60)))),
        "label_draw": rng.random(n),
    }  # fmt: skip
    return sky | _field(rng, sky)


def _nanomaggies(magnitude: np.ndarray) -> np.ndarray:
    return 10 ** (-0.4 * (magnitude - 22.5))


def _field(rng: np.random.Generator, sky: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draw other objects and artefacts in the stamps: companions, field galaxies, stars, seams, trails, glare."""
    n = BLOCK
    shape = (n, 3)
    # Column 0 is the companion of a merger, the others are field galaxies.
    present = rng.random(shape) < np.array([0.0, 0.35, 0.15])
    distance, direction = rng.uniform(0.9, 2.2, n) * sky["re"], rng.uniform(0, 2 * np.pi, n)
    near_x, near_y = rng.uniform(-0.5, 0.5, shape), rng.uniform(-0.5, 0.5, shape)
    near_re = np.exp(rng.uniform(np.log(0.008), np.log(0.035), shape))
    near_q, near_n = rng.uniform(0.3, 1, shape), rng.choice([1.0, 2.5], shape)
    brightness = _nanomaggies(rng.normal(21.8, 0.6, shape)) * render.SDSS_PIXEL**2
    near_flux = 2 * np.pi * near_re**2 * near_q * brightness * present
    near_x[:, 0], near_y[:, 0] = distance * np.cos(direction), distance * np.sin(direction)
    near_re[:, 0] = sky["re"] * rng.uniform(0.25, 0.7, n)
    near_flux[:, 0] = sky["flux"] * rng.uniform(0.25, 0.9, n) * sky["merger"]

    area = np.square(sky["frame"] / 60)
    stars = np.arange(7) < np.minimum(rng.poisson(1.2 * area.clip(0.2, 3)), 7)[:, None]
    star_magnitude = 21.5 - rng.exponential(1.4, (n, 7)).clip(0, 5.5)
    fault = rng.random(n)
    upright = rng.choice([0.0, np.pi / 2], n)
    return {
        "near_x": near_x, "near_y": near_y, "near_re": near_re, "near_q": near_q, "near_n": near_n,
        "near_angle": rng.uniform(0, np.pi, shape),
        "near_flux": near_flux, "near_colour": rng.normal(0.65, 0.25, shape),
        "star_x": rng.uniform(-0.5, 0.4999, (n, 7)), "star_y": rng.uniform(-0.5, 0.4999, (n, 7)),
        "star_flux": _nanomaggies(star_magnitude) * stars,
        "star_colour": rng.uniform(0.1, 1.4, (n, 7)),
        "saturated": np.where(rng.random(n) < 0.012, rng.uniform(0.2, 1, n), 0.0),
        "glare_x": rng.choice([-1, 1], n) * rng.uniform(0.28, 0.5, n),
        "glare_y": rng.uniform(-0.5, 0.5, n),
        "seam": np.where(fault < 0.02, rng.uniform(0.02, 1, n), 0.0), "seam_width": rng.uniform(0.4, 1.0, n),
        "trail": np.where(fault > 0.996, rng.uniform(0.01, 1, n), 0.0),
        "fault_angle": upright + rng.normal(0, 0.12, n),
        "fault_x": rng.normal(0, 0.08, n), "fault_y": rng.normal(0, 0.08, n),
    }  # fmt: skip


def _dust(rng: np.random.Generator, sky: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draw a dust disk for every galaxy of a block; `draw` selects the galaxies that have one."""
    n = BLOCK
    early, re = sky["early_type"] | sky["crossed"], sky["re"]

    # Early types, and spirals with a lane like theirs: settled in the plane of the disk, along the minor axis (polar),
    # or at a random angle. Late types: in the disk.
    def log_uniform(low: float, high: float) -> np.ndarray:
        return np.exp(rng.uniform(np.log(low), np.log(high), n))

    draw = rng.random(n)
    settled = ~early | (sky["disk"] & (draw < 0.45))
    aligned = settled | (draw < 0.7)
    polar = ~aligned & (draw < 0.82)
    angles = [rng.normal(0, 0.06, n), np.pi / 2 + rng.normal(0, 0.1, n)]
    tilt = np.select([aligned, polar], angles, rng.uniform(0, np.pi, n))
    cosine = np.where(settled, sky["cosine"], rng.random(n))
    radius = re * np.where(early, log_uniform(0.5, 1.8), rng.uniform(1.1, 2.0, n))
    return {
        "dust_angle": np.where(early, tilt, 0.0),
        "dust_cos": cosine,
        "dust_side": rng.choice([-1.0, 1.0], n),
        "dust_radius": radius,
        "dust_tau": np.where(early, log_uniform(0.8, 5), log_uniform(0.2, 2.5)),
        "dust_thickness": np.where(early, rng.uniform(0.05, 0.18, n), rng.uniform(0.05, 0.11, n)),
        "dust_ring": np.where(early & (rng.random(n) < 0.6), 1.0, 0.0),
        "dust_clumps": rng.uniform(0.1, 0.7, n),
        "dust_core": np.where(early, 0.15 * re, 0.4 * re),
        "dust_arms": np.where(early, 0.0, rng.uniform(0.4, 1, n)) * (sky["arms"] > 0),
        "dust_warp": np.where(rng.random(n) < 0.3, rng.normal(0, 0.12, n), 0.0) / radius,
    }


@lru_cache(maxsize=32)
def draw(seed: int, block: int, rare_fraction: float, lane_fraction: float = 0.0) -> dict[str, np.ndarray]:
    """Draw block number `block` with its dust, and measure the visible strength of each lane (`lane`).

    `lane_fraction` of the late types have a dust disk like that of early types instead of their own.
    For these and for targets, dust disks are drawn until the lane is visible; for other early types, the dust is
    reduced until no lane is visible. The stars are not drawn again, so that lanes are independent of their shape.
    """
    rng = np.random.default_rng([seed, block, 0])
    sky = _stars(rng, rare_fraction)
    target, early = sky["target"], sky["early_type"]
    lane_rng = np.random.default_rng([seed, block, 3])  # separate, so that the other parameters do not change
    sky["crossed"] = ~early & ~sky["merger"] & ~sky["irregular"] & (lane_rng.random(BLOCK) < lane_fraction)
    must_show = target | sky["crossed"]
    dusty = must_show | (rng.random(BLOCK) < np.where(early, 0.12, np.where(sky["irregular"], 0.1, 0.5)))
    sky |= _dust(rng, sky)
    sky["dust_tau"] = np.where(early & ~target, 0.15 * sky["dust_tau"], sky["dust_tau"]) * dusty
    sky["lane"] = np.zeros(BLOCK, np.float32)
    todo = dusty
    for attempt in range(_TRIES):
        _measure(sky, todo)
        too_faint = must_show & (sky["lane"] < 0.45)
        too_strong = early & ~target & (sky["lane"] >= 0.375)
        if not (too_faint | too_strong).any():
            break
        new_dust = _dust(np.random.default_rng([seed, block, 2, attempt]), sky)
        new_dust["dust_tau"] = new_dust["dust_tau"] * (1 + attempt / 3)
        for name, values in new_dust.items():
            sky[name] = np.where(too_faint, values, sky[name])
        sky["dust_tau"] = np.where(too_strong, 0.5 * sky["dust_tau"], sky["dust_tau"])
        todo = too_faint | too_strong
    _measure(sky, todo & (too_faint | too_strong))
    sky["dust_inclination"] = np.where(sky["dust_tau"] > 0, np.degrees(np.arccos(sky["dust_cos"])), np.nan)
    for values in sky.values():
        values.flags.writeable = False
    return sky


def _measure(sky: dict[str, np.ndarray], chosen: np.ndarray) -> None:
    """Measure the lanes of the chosen objects in batches."""
    rows = np.flatnonzero(chosen)
    step = PIXELS // render.LANE_SIZE**2
    for first in range(0, len(rows), step):
        batch = rows[first : first + step]
        sky["lane"][batch] = render.lane_strength(subset(sky, batch))
