"""Sample-size planning: purity estimated from scores alone, and number of grades for a given interval width."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from galscan.core.errors import InputError
from galscan.scanning import known_labels
from galscan.scanning.run import Run
from galscan.scanning.run_info import CANDIDATES
from galscan.stats import allocation, graded
from galscan.stats import purity as purities
from galscan.vetting import sampling


def estimate_by_scores(run: Run, confidence: float | None = None) -> tuple[purities.Purity, float]:
    """Return the purity estimate without grades, and the confidence of its intervals (by default from the recipe)."""
    check(run)
    model = run.model()
    settings = model.recipe.purity
    confidence = settings.confidence if confidence is None else confidence
    return purities.estimate(
        model.calibration, run.histogram, scores(run), beyond=run.histogram_discarded,
        known=known_labels.read_labels(run.path / CANDIDATES), known_beyond=run.info.known_beyond,
        unknown=run.info.purity.get("unknown") or "", bootstrap=settings.bootstrap, confidence=confidence,
        seed=run.info.seed,
    ), confidence  # fmt: skip


def scores(run: Run) -> np.ndarray:
    """Return the scores of the candidates, best first; float64, shape (K,)."""
    return pq.read_table(run.path / CANDIDATES, columns=["score"])["score"].to_numpy().astype(np.float64)


def check(run: Run) -> None:
    """Raise `InputError` for a similarity list, whose purity cannot be estimated from scores."""
    if run.info.is_similarity_list:
        raise InputError(
            f"{run.path} ranks objects by similarity to examples, which is not calibrated, so its purity cannot be "
            f"estimated. Train a model on the grades: galscan train-rare --target NEW.toml --grades {run.path}"
        )


def size_for(run: Run, width: float, rank: int, best: int = 0) -> int:
    """Return the number of objects to grade, including the top `best`, for an interval of purity at `rank` of `width`.

    Predicted by `galscan.stats.allocation.suggest`; half of all surveys need slightly more.
    """
    purity, confidence = estimate_by_scores(run)
    top, found, known = scores(run), sampling.strata_of(run, best, rank), sampling.known_labels(run)
    prior = graded.prior_fractions(purity, top, found, known=known)
    entire = [sampling.BEST] if best else []
    size = allocation.suggest(
        purity, top, found, lambda n: allocation.allocate(found, prior, {}, n, rank, entire=entire), rank, width,
        known=known, confidence=confidence,
    )  # fmt: skip
    return max(size, best)
