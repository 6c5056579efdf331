"""The same networks in integers of 8 bits look before the full ones do, where that is measured to pay.

They take less than half the time, and say nearly the same. Nearly is not enough for a score: purity is calibrated with
what the full networks say, and other processors round otherwise. So none of their scores is delivered. They are one
more first look: what they put surely below the last candidate is discarded (stage ``int8``), all else is scored in
full. Where surely ends is found as it is for the first look (`galscan.models.prefilter.find_threshold`), by their
errors on a sample of this survey, scored on the workers that will scan it: 99.5 % of the candidates pass, with 95 %
confidence. Of what is discarded, one in a hundred is scored in full all the same, counted with what the first look
discards.

Quantised networks that are far off are thus not wrong but slow: the larger their errors, the more must pass. That is
the gate (`decide`): they are used where they and what passes them take four fifths of the full networks' time at most.

What is lost is knowledge of the scores below the cut, for which one in a hundred stands: that a survey is unlike the
calibration (`galscan.stats.purity`) is noticed less often. So they look only where that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from galscan.core import files

NETWORK8, DECISION = "int8.xml", "int8.json"
PICTURES = 300  # by which networks are quantised; other ones than those of the sample
LIMIT = 0.8  # of the full networks' time; who saves less would pay a candidate in two hundred for nothing


def decide(own: np.ndarray, full: np.ndarray, reached: np.ndarray, share: float, cost: float) -> dict[str, Any]:
    """Return whether networks in 8 bits are used, where they cut, and by which figures; JSON-able.

    Parameters
    ----------
    own, full : ndarray, shape (n, targets)
        Their scores, and those of the full networks, of a random sample with which they were not quantised.
    reached : ndarray of bool, shape (n,)
        What comes as far as to them: what the first look lets pass.
    share : float
        Share of the survey that will be candidates.
    cost : float
        Their time, in that of the full networks.

    Raises
    ------
    InputError
        If the sample is too small for a bound.
    """
    from galscan.models.prefilter import find_threshold  # torch is large: whoever reads a finished run does without it

    found = [find_threshold(own[:, k], full[:, k].astype(np.float64), share) for k in range(full.shape[1])]
    passed = (own[reached] >= [one["cut"] for one in found]).any(1)
    passes = float(passed.mean()) if len(passed) else 1.0
    return {
        "used": cost + passes <= LIMIT, "time": cost + passes, "limit": LIMIT, "cost": cost, "passes": passes,
        "cuts": found,
    }  # fmt: skip


def keep(out: Path, decision: Mapping[str, Any]) -> None:
    """Write down what was decided for a run; it stays, whoever goes on with it."""
    files.write_json(out / DECISION, dict(decision))


def refuse(out: Path, why: str) -> None:
    """Write down that networks in 8 bits cannot be used in a run at all."""
    keep(out, {"used": False, "why": why})


def decided(out: Path) -> dict[str, Any] | None:
    """Return what was decided for a run, None where nothing was yet."""
    return files.read_json(out / DECISION) if (out / DECISION).is_file() else None


def cuts(out: Path) -> tuple[float, ...]:
    """Return below which of their scores, target by target, an object is discarded; nothing where they are not used."""
    decision = decided(out)
    return tuple(one["cut"] for one in decision["cuts"]) if decision and decision["used"] else ()


def sentence(decision: Mapping[str, Any]) -> str:
    """Say what was decided, and by which figures."""
    if "why" in decision:
        return f"not used: {decision['why']}"
    time, limit, cost, passes = (f"{100 * decision[key]:.0f} %" for key in ("time", "limit", "cost", "passes"))
    return (
        f"{'used' if decision['used'] else 'not used'}: with them the networks take {time} of their time (limit "
        f"{limit}): {cost} in 8 bits, and {passes} of what reaches them passes"
    )
