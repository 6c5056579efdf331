"""Networks quantised to 8-bit integers as a second prefilter, used where they are measured to save time.

They take less than half the time of the full networks, with nearly equal scores. These are not used as results: purity
is calibrated with the full networks, and rounding differs between processors. Objects whose 8-bit score is surely
below that of the last candidate are discarded (stage ``int8``); all others are scored in full. The threshold is set as
for the prefilter (`galscan.models.prefilter.find_threshold`), from the errors on a sample of this survey scored on the
scan's workers: 99.5 % of the candidates pass, with 95 % confidence. A random 1 % of the discarded objects are scored
in full, and counted with those discarded by the prefilter.

Large quantisation errors therefore cost time but not candidates: the larger the errors, the more objects must pass.
8-bit networks are used (`decide`) if they and the full scoring of what passes take at most 80 % of the time of full
scoring alone.

Scores below the threshold are known only for the random 1 %, so a survey that differs from the calibration
(`galscan.stats.purity`) is detected less often. 8-bit networks are therefore off by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from galscan.core import files

NETWORK8, DECISION = "int8.xml", "int8.json"
IMAGES = 300  # images used for quantisation; none of them is in the sample
LIMIT = 0.8  # of the full networks' time; a smaller gain is not worth losing 0.5 % of the candidates


def decide(scores8: np.ndarray, full: np.ndarray, reached: np.ndarray, fraction: float, cost: float) -> dict[str, Any]:
    """Return whether 8-bit networks are used, with thresholds and measured figures; JSON-able.

    Parameters
    ----------
    scores8, full : ndarray, shape (n, targets)
        Scores of the 8-bit and of the full networks, for a random sample that was not used for quantisation.
    reached : ndarray of bool, shape (n,)
        Which objects pass the prefilter, and so reach the 8-bit networks.
    fraction : float
        Fraction of the survey that will be candidates.
    cost : float
        Time of the 8-bit networks, as a fraction of that of the full ones.

    Raises
    ------
    InputError
        If the sample is too small for a bound.
    """
    from galscan.models.prefilter import find_threshold  # imported here as torch is not needed to read a finished run

    found = [find_threshold(scores8[:, k], full[:, k].astype(np.float64), fraction) for k in range(full.shape[1])]
    passed = (scores8[reached] >= [threshold["cut"] for threshold in found]).any(1)
    pass_fraction = float(passed.mean()) if len(passed) else 1.0
    time = cost + pass_fraction
    return {
        "used": time <= LIMIT, "time": time, "limit": LIMIT, "cost": cost, "passes": pass_fraction, "cuts": found,
    }  # fmt: skip


def write_decision(out: Path, decision: Mapping[str, Any]) -> None:
    """Write the decision into a run folder, where a resumed scan finds it."""
    files.write_json(out / DECISION, dict(decision))


def write_refusal(out: Path, why: str) -> None:
    """Write into a run folder that 8-bit networks cannot be used, and why."""
    write_decision(out, {"used": False, "why": why})


def read_decision(out: Path) -> dict[str, Any] | None:
    """Return the decision of a run, None if there is none yet."""
    return files.read_json(out / DECISION) if (out / DECISION).is_file() else None


def thresholds(out: Path) -> tuple[float, ...]:
    """Return the 8-bit score below which an object is discarded, by target; empty where 8-bit networks are not used."""
    decision = read_decision(out)
    return tuple(threshold["cut"] for threshold in decision["cuts"]) if decision and decision["used"] else ()


def describe(decision: Mapping[str, Any]) -> str:
    """Return a line with the decision and its figures."""
    if "why" in decision:
        return f"not used: {decision['why']}"
    time, limit, cost, pass_fraction = (f"{100 * decision[key]:.0f} %" for key in ("time", "limit", "cost", "passes"))
    return (
        f"{'used' if decision['used'] else 'not used'}: scoring takes {time} of the full networks' time (limit "
        f"{limit}): {cost} in 8 bits, and {pass_fraction} of the objects that reach them pass"
    )
