"""What the scores alone say of a finished scan, and how much of it to grade for a wanted interval."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from galscan.core.errors import InputError
from galscan.models.model import open_model
from galscan.scanning import known_labels
from galscan.scanning.run import CANDIDATES, Run, is_like
from galscan.stats import allocation, graded
from galscan.stats import purity as purities
from galscan.vetting import sampling


def by_scores(run: Run, confidence: float | None = None) -> tuple[purities.Purity, float]:
    """Return the estimate without grades, and the confidence of its intervals (what the model's recipe says).

    Raises
    ------
    InputError
        If the model of the scan has gone, or the scan is of a version that kept too little.
    """
    check(run)
    bundle = open_model(str(run.info["model"]))
    if bundle.model_hash != run.info["identity"]["model"]:
        raise InputError(f"{bundle.path} is another model than the one of this scan; its calibration is another too")
    settings = bundle.recipe.purity
    confidence = settings.confidence if confidence is None else confidence
    return purities.of_scan(
        bundle.calibration, run.info, scores(run), known_labels.read_labels(run.path / CANDIDATES),
        bootstrap=settings.bootstrap, confidence=confidence,
    ), confidence  # fmt: skip


def scores(run: Run) -> np.ndarray:
    """Return the scores of the candidates, best first; float64, shape (K,)."""
    return pq.read_table(run.path / CANDIDATES, columns=["score"])["score"].to_numpy().astype(np.float64)


def check(run: Run) -> None:
    """Refuse a run of which no scores tell the purity.

    Raises
    ------
    InputError
        With what to do instead.
    """
    if is_like(run.info):
        raise InputError(
            f"{run.path} is a list by similarity to examples, and no calibration tells what a similarity is worth: its "
            "purity is not estimated. A model's is: teach one with the grades, galscan train-rare --target NEW.toml "
            f"--grades {run.path}"
        )


def size_for(run: Run, width: float, rank: int, best: int = 0) -> int:
    """Return how many objects to grade, `best` of the best among them, for an interval of purity at `rank` so wide.

    It is a forecast by `galscan.stats.allocation.suggest`: half of all surveys need a little more.

    Raises
    ------
    InputError
        If rank or width is out of range, or the scan cannot be estimated.
    """
    purity, confidence = by_scores(run)
    top, found, known = scores(run), sampling.strata_of(run, best, rank), sampling.known_labels(run)
    prior = graded.prior_fractions(purity, top, found, known=known)
    entire = [sampling.BEST] if best else []
    size = allocation.suggest(
        purity, top, found, lambda n: allocation.allocate(found, prior, {}, n, rank, entire=entire), rank, width,
        known=known, confidence=confidence,
    )  # fmt: skip
    return max(size, best)
