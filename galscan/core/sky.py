"""The sky: names of positions, regions, and distances."""

from __future__ import annotations

import numpy as np

from galscan.core.errors import InputError

Cone = tuple[float, float, float]  # right ascension and declination of the middle, and the radius, in degrees

_GUARD = 1e-6  # ticks: 10 h is 3,599,999.9999999995 ticks in floating point and must stay 10 h


def designation(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Return IAU designations ``JHHMMSS.ss+DDMMSS.s``, truncated and never rounded.

    Parameters
    ----------
    ra, dec : array of float64, shape (n,)
        Degrees, ICRS. `ra` is taken modulo 360.

    Returns
    -------
    ndarray of str, shape (n,)
        Empty where a coordinate is not finite or `dec` is beyond a pole.

    Notes
    -----
    The IAU asks that a position be truncated, so that the name stays within the digits of the catalogue
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
    """Refuse a cone that is not on the sky.

    Raises
    ------
    InputError
        Saying what a cone is.
    """
    ra, dec, radius = cone
    if not (np.isfinite(cone).all() and 0 <= ra <= 360 and -90 <= dec <= 90 and 0 < radius <= 180):
        raise InputError(
            f"--cone {ra:g},{dec:g},{radius:g}: give right ascension 0 to 360, declination -90 to 90 and a radius "
            "above 0, in degrees"
        )


def in_cone(ra: np.ndarray, dec: np.ndarray, cone: Cone) -> np.ndarray:
    """Return which positions (degrees) lie in a cone; one that is not known lies in none."""
    from astropy.coordinates import angular_separation

    here, middle = np.radians([ra, dec]), np.radians(cone[:2])
    return np.asarray(angular_separation(*here, *middle) <= np.radians(cone[2]))


def unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Return positions in degrees as points of the unit sphere, shape (n, 3)."""
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def chord(arcsec: float) -> float:
    """Return the straight distance of two points of the unit sphere that are so far apart."""
    return float(2 * np.sin(np.radians(arcsec / 3600) / 2))


def arcseconds(chords: np.ndarray) -> np.ndarray:
    """Return the separation of points of the unit sphere from their straight distance."""
    return np.degrees(2 * np.arcsin(np.minimum(chords, 2) / 2)) * 3600
