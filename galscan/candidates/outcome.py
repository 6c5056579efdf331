"""Output of a scan for one target: ranked candidates, purity estimates, FITS catalog, contact sheet.

All of it follows from the scores, so that a resumed scan gives the same bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from galscan.candidates import columns, ranking
from galscan.candidates.run import provenance
from galscan.core import files, thumbnails
from galscan.core.errors import GalscanError, InputError
from galscan.models import roles
from galscan.scanning import known_labels
from galscan.scanning.plan import Plan
from galscan.stats import purity as purities
from galscan.store import identity
from galscan.store.layout import open_store

if TYPE_CHECKING:
    import pandas as pd

    from galscan.models.model import Model
    from galscan.scanning.merge import Merged
    from galscan.scanning.run_info import RunInfo

SHEET = 48  # images on the contact sheet
TRAINED_ON = (214, 138, 60)  # border colour of candidates in the model's training set, whose scores are biased


def write_outcome(plan: Plan, model: Model, merged: Merged, info: RunInfo) -> RunInfo:
    """Rank the candidates of a target and write ``candidates.parquet``, ``candidates.fits`` and ``contact.png``.

    Parameters
    ----------
    merged : Merged
        Merged scores of the model's target.
    info : RunInfo
        About the scan.

    Returns
    -------
    RunInfo
        About scan and output.

    Raises
    ------
    GalscanError
        If no object could be scored.
    InputError
        If no object was selected.
    """
    folder = plan.folder(model.target)
    if merged.top.empty:
        if plan.selection and not merged.reasons:
            raise InputError(f"none of the {plan.objects:,} objects is selected by: {plan.selection.text()}")
        why = f"({', '.join(f'{n:,} {reason}' for reason, n in merged.reasons.items())}); see {plan.out}/quarantine"
        raise GalscanError(f"none of the {plan.objects:,} objects could be scored {why}")
    settings = model.recipe.purity
    known = known_labels.numbers(merged.top["known"].to_numpy())
    purity = purities.estimate(
        model.calibration, merged.histogram, merged.top["score"].to_numpy(dtype=np.float64),
        beyond=merged.discarded_histogram, known=known, known_beyond=merged.known_beyond,
        unknown=_invalid_calibration(plan, model), bootstrap=settings.bootstrap,
        confidence=settings.confidence, seed=plan.seed,
    )  # fmt: skip
    lineages = {ref.name: ref.lineage or ref.name for ref in plan.stores}
    top = merged.top.assign(lineage=merged.top["store"].map(lineages))
    radius = max(ref.astrometry for ref in plan.stores)
    notes = [*_other_stores_note(plan, model), *_known_note(merged, known), *_prefilter_note(merged)]
    notes += _duplicates_note(top, radius)
    purity = replace(purity, notes=[*purity.notes, *notes])
    candidates = ranking.rank(top, purity, model.in_train(top, radius), radius)
    with files.atomic_path(folder / "candidates.parquet") as temporary:
        candidates.to_parquet(temporary, index=False)
    info = info.updated(
        scanned=merged.scored, quarantined=merged.quarantined, quarantine_reasons=merged.reasons,
        candidates=len(candidates), purity=purities.summary(purity, settings.confidence),
        completeness_limits=purities.completeness_limits(purity),
        histogram=merged.histogram.to_list(), histogram_discarded=merged.discarded_histogram.to_list(),
        known_beyond=merged.known_beyond, first_look=_prefilter_summary(merged) if merged.discarded else None,
    )  # fmt: skip
    # The header follows from the fingerprint, so that a resumed run gives the same bytes.
    columns.write_fits(candidates, folder / "candidates.fits", provenance(info), plan.answers)
    _contact_sheet(plan, model.target, candidates)
    return info


def _invalid_calibration(plan: Plan, model: Model) -> str:
    """Return why the model's calibration is not valid for the scanned surveys; '' if it is, or if that is unknown."""
    calibrated = model.info.get("imaging")
    if not calibrated:
        return ""
    scanned = {ref.name: identity.imaging_of(open_store(ref.path)) for ref in plan.stores}
    other = [
        name
        for name, imaging in scanned.items()
        if not any(identity.same_imaging(imaging, known) for known in calibrated)
    ]
    if not other:
        return ""
    surveys = ", ".join(dict.fromkeys(known["survey"] for known in calibrated))
    return (
        f"the model was calibrated with images of {surveys}, but {', '.join(other)} is of another survey, angular size "
        "or rendering"
    )


def _other_stores_note(plan: Plan, model: Model) -> list[str]:
    """Return a note on scanned stores without objects in the model's calibration set."""
    splits = model.splits()
    # Graded objects, which may be of other stores, are not in the calibration set.
    known = sorted(splits.loc[roles.calibrates(splits["split"]), "store"].unique())
    other = [ref.name for ref in plan.stores if ref.name not in known]
    if not other or _invalid_calibration(plan, model):
        return []
    return [
        f"The calibration set has no object of {', '.join(other)}; all are of {', '.join(known)}. Differences in "
        "framing, depth or selection make prevalence and purity wrong by more than their intervals: grade a sample."
    ]


def _known_note(merged: Merged, known: np.ndarray) -> list[str]:
    """Return a note on objects of known label."""
    ranked, (beyond, targets) = known[np.isfinite(known)], merged.known_beyond
    if not (len(ranked) + beyond):
        return []
    return [
        f"{len(ranked) + beyond:,} objects are in the model's training, calibration or test sets: {len(ranked):,} "
        f"candidates ('known'), {int((ranked == 1).sum()):,} of them targets, and {beyond:,} others, {targets:,} of "
        "them targets. They count by their labels; estimates are of all other objects."
    ]


def _prefilter_summary(merged: Merged) -> dict[str, Any]:
    """Return how many objects the prefilter discarded, and the fraction of candidates kept, from the rescored ones."""
    from galscan.models.prefilter import survival_bounds

    kept, lower = survival_bounds(merged.lost, merged.rescored, merged.discarded, len(merged.top) - merged.lost)
    counts = {"discarded": merged.discarded, "audited": merged.rescored, "lost": merged.lost}
    return {**counts, "kept": kept, "kept_lo": lower}


def _prefilter_note(merged: Merged) -> list[str]:
    """Return a note on the objects that the prefilter discarded."""
    if not merged.discarded:
        return []
    kept = _prefilter_summary(merged)
    return [
        f"A prefilter discarded {merged.discarded:,} of {merged.scored:,} objects. A random {merged.rescored:,} of "
        f"them were scored in full, and {merged.lost:,} of these are candidates: it kept "
        f"{100 * kept['kept']:.1f} % of the candidates, and at least {100 * kept['kept_lo']:.0f} % with 95 % "
        "confidence. Prevalence and completeness include the discarded objects, estimated from the rescored ones."
    ]


def _duplicates_note(top: pd.DataFrame, radius: float) -> list[str]:
    """Return a note on objects that are more than once among the candidates."""
    if not (count := int(ranking.duplicates(top, radius).sum())):
        return []
    return [
        f"{count:,} of the {len(top):,} candidates repeat an object of better rank, from another store or under "
        "another id ('duplicate'). Prevalence, purity and completeness count all rows, including these."
    ]


def _contact_sheet(plan: Plan, target: str, candidates: pd.DataFrame) -> None:
    """Draw the best candidates in rank order."""
    best = candidates.head(SHEET)
    stores = {ref.name: open_store(ref.path) for ref in plan.stores}
    rows = zip(best["store"], best["index"], strict=True)
    images = [stores[store].images(slice(row, row + 1))[0] for store, row in rows]
    thumbnails.contact_sheet(
        images, plan.folder(target) / "contact.png", title=f"{target}: top {len(best)} of {plan.objects:,}",
        captions=[ranking.caption(row) for row in best.to_dict("records")],
        borders=[TRAINED_ON if in_train else None for in_train in best["in_train"]],
    )  # fmt: skip
