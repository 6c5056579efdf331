"""What comes of a scan for one target: candidates, their purity, a FITS file and a sheet of pictures.

Everything here follows from the scores alone, so that a resumed scan leaves the same bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from galscan import files, pictures
from galscan.candidates import export, rank, table
from galscan.candidates import purity as purities
from galscan.classify import crossfit
from galscan.errors import GalscanError, InputError
from galscan.scanning.plan import Plan
from galscan.store.layout import open_store

if TYPE_CHECKING:
    import pandas as pd

    from galscan.classify.bundle import Bundle
    from galscan.scanning.merge import Merged

SHEET = 48  # pictures on the contact sheet
TRAINED_ON = (214, 138, 60)  # border of a candidate that the model was trained on: it proves nothing


def write_outcome(plan: Plan, bundle: Bundle, merged: Merged, info: dict[str, Any]) -> dict[str, Any]:
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
    purity = purities.estimate(
        bundle.calibration, merged.histogram, merged.top["score"].to_numpy(dtype=np.float64),
        beyond=merged.beyond, bootstrap=settings.bootstrap, confidence=settings.confidence, seed=plan.seed,
    )  # fmt: skip
    purity = replace(purity, notes=[*purity.notes, *_strangers(plan, bundle), *_looked(merged)])
    candidates = rank.rank(merged.top, purity, bundle.train_ids())
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
        "first_look": _kept(merged) if merged.discarded else None,
    }
    # What the header tells follows from the fingerprint: a resumed run gives the same bytes.
    table.write_fits(candidates, folder / "candidates.fits", export.provenance(info | summary), plan.answers)
    _contact_sheet(plan, bundle.target, candidates)
    return summary


def _strangers(plan: Plan, bundle: Bundle) -> list[str]:
    """Return a note where surveys are scanned of which the calibration knows nothing."""
    splits = bundle.splits()
    known = sorted(
        splits.loc[crossfit.calibrates(splits["split"]), "store"].unique()
    )  # graded objects may be of others
    strange = [ref.name for ref in plan.stores if ref.name not in known]
    if not strange:
        return []
    return [
        f"No object of {', '.join(strange)} was among the calibration's, which are all of {', '.join(known)}. Other "
        "framing, depth or selection makes prevalence and purity wrong by more than their intervals: grade a sample."
    ]


def _kept(merged: Merged) -> dict[str, Any]:
    """Return what the first look discarded, and what share of the candidates survived it, by the audit."""
    from galscan.classify.cascade import kept_bounds

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


def _contact_sheet(plan: Plan, target: str, candidates: pd.DataFrame) -> None:
    """Draw the best candidates, in the order of their ranks."""
    best = candidates.head(SHEET)
    stores = {ref.name: open_store(ref.path) for ref in plan.stores}
    where = zip(best["store"], best["index"], strict=True)
    images = [stores[store].images(slice(row, row + 1))[0] for store, row in where]
    pictures.contact_sheet(
        images, plan.folder(target) / "contact.png", title=f"{target}: the best {len(best)} of {plan.objects:,}",
        captions=[rank.caption(row) for row in best.to_dict("records")],
        borders=[TRAINED_ON if known else None for known in best["in_train"]],
    )  # fmt: skip
