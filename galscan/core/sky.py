"""Positions on the sky: IAU designations, cones, separations."""

from __future__ import annotations

import numpy as np

from galscan.core.errors import InputError

Cone = tuple[float, float, float]  # right ascension and declination of the centre, and the radius, in degrees

_GUARD = 1e-6  # ticks, against rounding: 10 h is 3,599,999.9999999995 ticks in floating point


def designation(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Return IAU designations ``JHHMMSS.ss+DDMMSS.s``, truncated and never rounded.

    Parameters
    ----------
    ra, dec : array of float64, shape (n,)
        Degrees, ICRS. `ra` is taken modulo 360.

    Returns
    -------
    ndarray of str, shape (n,)
        Empty if a coordinate is not finite or `dec` is outside -90 to 90.

    Notes
    -----
    The IAU requires truncation of the position
    (https://cds.unistra.fr/Dic/iau-spec.html). One tick is 0.01 s of right ascension or 0.1 arcsec of declination.
    """
    ra, dec = np.broadcast_arrays(np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64))
    good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
    names = np.full(ra.shape, "", dtype="<U19")
    if not good.any():
        return names
    # Modulo of a tiny negative number can be 360 itself.
    across = np.floor(np.mod(ra[good], 360.0) * 24000.0 + _GUARD).astype(np.int64) % 8_640_000
    up = np.floor(np.abs(dec[good]) * 36000.0 + _GUARD).astype(np.int64)
    names[good] = [
        f"J{a // 360_000:02d}{a // 6000 % 60:02d}{a % 6000 // 100:02d}.{a % 100:02d}"
        f"{'-' if south else '+'}{d // 36_000:02d}{d // 600 % 60:02d}{d % 600 // 10:02d}.{d % 10}"
        for a, d, south in zip(across.tolist(), up.tolist(), (dec[good] < 0).tolist(), strict=True)
    ]
    return names


def check_cone(cone: Cone) -> None:
    """Check the centre and the radius of a cone. Raises `InputError` if one is outside its range."""
    ra, dec, radius = cone
    if not (np.isfinite(cone).all() and 0 <= ra <= 360 and -90 <= dec <= 90 and 0 < radius <= 180):
        raise InputError(
            f"--cone {ra:g},{dec:g},{radius:g}: give right ascension 0 to 360, declination -90 to 90 and a radius "
            "above 0, in degrees"
        )


def in_cone(ra: np.ndarray, dec: np.ndarray, cone: Cone) -> np.ndarray:
    """Return which positions (degrees) are in a cone; False for NaN."""
    from astropy.coordinates import angular_separation

    positions, centre = np.radians([ra, dec]), np.radians(cone[:2])
    return np.asarray(angular_separation(*positions, *centre) <= np.radians(cone[2]))


def unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Return positions in degrees as points of the unit sphere, shape (n, 3)."""
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def chord(arcsec: float) -> float:
    """Return the chord length on the unit sphere of an angular separation in arcsec."""
    return float(2 * np.sin(np.radians(arcsec / 3600) / 2))


def arcseconds(chords: np.ndarray) -> np.ndarray:
    """Return the angular separations in arcsec of chord lengths on the unit sphere."""
    return np.degrees(2 * np.arcsin(np.minimum(chords, 2) / 2)) * 3600
