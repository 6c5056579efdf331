"""What comes of a scan for one target: candidates, their purity, a FITS file and a sheet of pictures.

Everything here follows from the scores alone, so that a resumed scan leaves the same bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from galscan.candidates import columns, ranking
from galscan.candidates.export import formats
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

SHEET = 48  # pictures on the contact sheet
TRAINED_ON = (214, 138, 60)  # border of a candidate that the model was trained on: it proves nothing


def write_outcome(plan: Plan, bundle: Model, merged: Merged, info: dict[str, Any]) -> dict[str, Any]:
    """Rank the candidates of a target and leave ``candidates.parquet``, ``candidates.fits`` and ``contact.png``.

    Parameters
    ----------
    merged : Merged
        The scores of the target that `bundle` looks for.
    info : dict
        What ``run.json`` says of the scan.

    Returns
    -------
    dict
        What ``run.json`` will say of the outcome, JSON-able.

    Raises
    ------
    GalscanError
        If nothing could be scored.
    InputError
        If nothing was chosen.
    """
    folder = plan.folder(bundle.target)
    if merged.top.empty:
        if plan.selection and not merged.reasons:
            raise InputError(f"none of the {plan.objects:,} objects is chosen by: {plan.selection.text()}")
        why = f"({', '.join(f'{n:,} {reason}' for reason, n in merged.reasons.items())}); look at {plan.out}/quarantine"
        raise GalscanError(f"none of the {plan.objects:,} objects could be scored {why}")
    settings = bundle.recipe.purity
    known = known_labels.numbers(merged.top["known"].to_numpy())
    purity = purities.estimate(
        bundle.calibration, merged.histogram, merged.top["score"].to_numpy(dtype=np.float64), beyond=merged.beyond,
        known=known, known_beyond=merged.known_beyond, unknown=_carried(plan, bundle), bootstrap=settings.bootstrap,
        confidence=settings.confidence, seed=plan.seed,
    )  # fmt: skip
    lineages = {ref.name: ref.lineage or ref.name for ref in plan.stores}
    top = merged.top.assign(lineage=merged.top["store"].map(lineages))
    radius = max(ref.astrometry for ref in plan.stores)
    notes = [*_other_stores(plan, bundle), *_known(merged, known), *_looked(merged), *_repeated(top, radius)]
    purity = replace(purity, notes=[*purity.notes, *notes])
    candidates = ranking.rank(top, purity, bundle.in_train(top, radius), radius)
    with files.atomic_path(folder / "candidates.parquet") as temporary:
        candidates.to_parquet(temporary, index=False)
    summary = {
        "scanned": merged.scored,
        "quarantined": merged.quarantined,
        "quarantine_reasons": merged.reasons,
        "candidates": len(candidates),
        "purity": purities.summary(purity, settings.confidence),
        "histogram": merged.histogram.to_list(),
        "histogram_discarded": merged.beyond.to_list(),
        "known_beyond": list(merged.known_beyond),
        "first_look": _kept(merged) if merged.discarded else None,
    }
    # What the header tells follows from the fingerprint: a resumed run gives the same bytes.
    columns.write_fits(candidates, folder / "candidates.fits", formats.provenance(info | summary), plan.answers)
    _contact_sheet(plan, bundle.target, candidates)
    return summary


def _carried(plan: Plan, bundle: Model) -> str:
    """Return why the model's calibration tells nothing of what was scanned; '' where it may, or where nobody knows."""
    calibrated = bundle.info.get("imaging")
    if not calibrated:
        return ""
    every = {ref.name: identity.imaging_of(open_store(ref.path)) for ref in plan.stores}
    other = [
        name for name, imaging in every.items() if not any(identity.same_imaging(imaging, one) for one in calibrated)
    ]
    if not other:
        return ""
    surveys = ", ".join(dict.fromkeys(one["survey"] for one in calibrated))
    return (
        f"the model was calibrated with images of {surveys}, and {', '.join(other)} is of another survey, another size "
        "on the sky or another rendering"
    )


def _other_stores(plan: Plan, bundle: Model) -> list[str]:
    """Return a note where stores are scanned of which no object calibrated the model."""
    splits = bundle.splits()
    # Graded objects, which may be of other stores, calibrate nothing.
    known = sorted(splits.loc[roles.calibrates(splits["split"]), "store"].unique())
    other = [ref.name for ref in plan.stores if ref.name not in known]
    if not other or _carried(plan, bundle):
        return []
    return [
        f"No object of {', '.join(other)} was among the calibration's, which are all of {', '.join(known)}. Other "
        "framing, depth or selection makes prevalence and purity wrong by more than their intervals: grade a sample."
    ]


def _known(merged: Merged, known: np.ndarray) -> list[str]:
    """Return a note on objects whose label the model knows."""
    ranked, (beyond, targets) = known[np.isfinite(known)], merged.known_beyond
    if not (len(ranked) + beyond):
        return []
    return [
        f"{len(ranked) + beyond:,} of the objects trained, calibrated or tested the model: {len(ranked):,} candidates "
        f"('known'), {int((ranked == 1).sum()):,} of them targets, and {beyond:,} others, {targets:,} of them targets. "
        "They count as what they are; estimates are of the rest."
    ]


def _kept(merged: Merged) -> dict[str, Any]:
    """Return what the first look discarded, and what share of the candidates survived it, by the audit."""
    from galscan.models.prefilter import kept_bounds

    kept, least = kept_bounds(merged.lost, merged.audited, merged.discarded, len(merged.top) - merged.lost)
    told = {"discarded": merged.discarded, "audited": merged.audited, "lost": merged.lost}
    return {**told, "kept": kept, "kept_lo": least}


def _looked(merged: Merged) -> list[str]:
    """Return a note on what was not scored in full."""
    if not merged.discarded:
        return []
    kept = _kept(merged)
    return [
        f"A first look discarded {merged.discarded:,} of {merged.scored:,} objects; {merged.audited:,} of them, drawn "
        f"at random, were scored in full all the same, and {merged.lost:,} of these are candidates: "
        f"{100 * kept['kept']:.1f} % of the candidates survived it, with 95 % confidence at least "
        f"{100 * kept['kept_lo']:.0f} %. Prevalence and completeness count the discarded by the audited."
    ]


def _repeated(top: pd.DataFrame, radius: float) -> list[str]:
    """Return a note where objects are among the candidates more than once."""
    if not (count := int(ranking.duplicates(top, radius).sum())):
        return []
    return [
        f"{count:,} of the {len(top):,} candidates are an object that has a better rank already, from another store or "
        "under another id ('duplicate'). Prevalence, purity and completeness count rows, these as well."
    ]


def _contact_sheet(plan: Plan, target: str, candidates: pd.DataFrame) -> None:
    """Draw the best candidates, in the order of their ranks."""
    best = candidates.head(SHEET)
    stores = {ref.name: open_store(ref.path) for ref in plan.stores}
    where = zip(best["store"], best["index"], strict=True)
    images = [stores[store].images(slice(row, row + 1))[0] for store, row in where]
    thumbnails.contact_sheet(
        images, plan.folder(target) / "contact.png", title=f"{target}: the best {len(best)} of {plan.objects:,}",
        captions=[ranking.caption(row) for row in best.to_dict("records")],
        borders=[TRAINED_ON if known else None for known in best["in_train"]],
    )  # fmt: skip
