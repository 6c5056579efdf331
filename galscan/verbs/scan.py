"""``galscan scan``: score surveys with a model, rank the candidates, and say how pure they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import galscan
from galscan import files, home, pictures
from galscan.candidates import export, rank, table
from galscan.candidates import purity as purities
from galscan.classify.bundle import Bundle, open_bundle
from galscan.errors import GalscanError, InputError
from galscan.scanning import cluster as clusters
from galscan.scanning import engine, merge, prepare
from galscan.scanning.plan import Plan, check_fit, describe, make_plan
from galscan.scanning.run import FORMAT, INFO, Run, claim, open_run
from galscan.scanning.selection import make_selection
from galscan.store.layout import open_store

if TYPE_CHECKING:
    from distributed import Client

    from galscan.scanning.merge import Merged

SHEET = 48  # pictures on the contact sheet
TRAINED_ON = (214, 138, 60)  # border of a candidate that the model was trained on: it proves nothing


def scan(
    *,
    survey: str | Sequence[str] = (),
    store: Path | str | Sequence[Path | str] = (),
    target: str | None = None,
    model: Path | str | None = None,
    out: Path | str | None = None,
    cluster: str = "local",
    workers: int | None = None,
    top: int | None = None,
    where: str | None = None,
    cone: tuple[float, float, float] | None = None,
    moc: Path | str | None = None,
    limit: int | None = None,
    cascade: bool | None = None,
    device: str = "auto",
    dry_run: bool = False,
) -> Run:
    """Score every cutout of some stores and leave a ranked catalogue of candidates with purity estimates.

    An interrupted scan goes on where it stopped when the same command is given again; a finished one is
    returned at once.

    Parameters
    ----------
    survey : str or sequence of str
        Surveys in the data home, by name.
    store : path or sequence of paths
        Stores anywhere.
    target : str, optional
        Which model of the data home to use; where a `model` is given too, what it must have been trained for.
    model : path, optional
        A model folder. Without `target` and `model`, the only model in the data home.
    out : path, optional
        The run folder; by default one in the data home, named after target, surveys and fingerprint.
    cluster : str
        ``local``, ``cuda``, ``slurm``, ``kubernetes:NAME``, the address of a Dask scheduler, or its scheduler file.
    workers : int, optional
        Processes (or GPUs) to use; all by default.
    top : int, optional
        Candidates to rank; what the recipe says by default.
    where : str, optional
        Scan only objects for which this holds: a rule over ra, dec, pixel_scale, flags and the store's labels.
    cone : tuple of float, optional
        Scan only within a radius of a point: right ascension, declination, radius, in degrees.
    moc : path, optional
        Scan only within a multi-order coverage map.
    limit : int, optional
        Scan only the first so many rows.
    cascade : bool, optional
        Whether a tiny network discards first what surely is no candidate (`galscan.classify.cascade`); by default
        where the survey has 100,000 objects or more.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    dry_run : bool
        Check everything, say what would be done on stderr, and do nothing.

    Returns
    -------
    Run
        The finished run (for a dry run: its plan, status ``planned``).

    Raises
    ------
    InputError
        If stores and model do not fit together or an option is wrong; nothing was written.
    ConflictError
        If `out` holds something else.
    GalscanError
        If the scan could not be finished; what was done is kept.
    Interrupted
        On Ctrl-C; the same command goes on.
    """
    started = time.perf_counter()
    clusters.check(cluster, workers)
    paths = _store_paths(survey, store)
    bundle = _open_model(target, model)
    plan = make_plan(
        [open_store(path) for path in paths], bundle, top=top, device=device, out=out,
        selection=make_selection(where, cone, moc), limit=limit, cascade=cascade,
    )  # fmt: skip
    who = clusters.describe(cluster, workers)
    here = (workers or clusters.cores()) if cluster == "local" else None
    check_fit(plan, here, clusters.memory(), merge.disk_free(plan.out) + merge.written(plan))
    if dry_run:
        _say(describe(plan, who, prepare.measured_rate(plan) * here if here else None))
        return Run(plan.out, _plan_info(plan) | {"status": "planned"})

    with engine.interruptible(), claim(plan) as before:
        if before is not None and before["status"] == "done":
            _say(f"{plan.out} holds this very scan, finished; nothing to do")
            return open_run(plan.out)
        info = _plan_info(plan)
        files.write_json(plan.out / INFO, info)
        parts = merge.pending(plan)
        if len(parts) < len(plan.parts):
            _say(f"going on: {len(plan.parts) - len(parts):,} of {len(plan.parts):,} parts are there")
        done, seconds = engine.Progress(), _Seconds(started)
        if parts:
            _say(f"scanning {plan.objects:,} objects with {who}")
            shared: list[Path | str] = [plan.out / INFO, bundle.path / "model.json", *(ref.path for ref in plan.stores)]
            prepare.convert_networks(plan, plan.out)
            with clusters.connect(cluster, workers, paths=shared) as client:
                seconds.end("prepare")
                look = _first_look(plan, client) if plan.cascade else None
                seconds.end("first look")
                done = engine.run_scan(plan, client, parts, look)
                seconds.end("scan")
        summary = _rank(plan, bundle, info)
        seconds.end("rank")
        info |= summary | {
            "wall_s": round(time.perf_counter() - started, 3),
            "seconds": seconds.told,
            "images_per_s": round(done.scored / done.seconds, 1) if done.seconds else None,
            "busy": round(done.busy, 3) if done.seconds else None,
        }
        _finish(plan.out, info)
        return open_run(plan.out)


class _Seconds:
    """What each phase of a run took."""

    def __init__(self, started: float):
        self.told: dict[str, float] = {}
        self._last = started

    def end(self, phase: str) -> None:
        now = time.perf_counter()
        self.told[phase], self._last = round(now - self._last, 3), now


def _first_look(plan: Plan, client: Client) -> Path | None:
    """Set the cut of the first look; None where it would not pay."""
    from galscan.classify.cascade import load_first_look

    try:
        path = prepare.first_look(plan, client)
    except InputError as error:  # too few objects, or too few of them chosen
        _say(f"no first look: {error}; every object is scored in full")
        return None
    look = load_first_look(path)
    if look.pays:
        _say(f"first look: {100 * look.passes:.1f} % of the survey will be seen by the full network")
        return path
    _say(f"first look: {100 * look.passes:.0f} % would pass it, which saves nothing; every object is scored in full")
    return None


def _store_paths(survey: str | Sequence[str], store: Path | str | Sequence[Path | str]) -> list[Path | str]:
    """Return the stores to scan, surveys of the data home first."""
    paths = home.find_stores(survey, store)
    if not paths:
        present = sorted(p.stem for p in (home.data_home() / "surveys").glob("*.zarr"))
        known = f" (there are: {', '.join(present)})" if present else ""
        raise InputError(f"nothing to scan: name a survey with --survey NAME{known}, or a store with --store PATH")
    return paths


def _open_model(target: str | None, model: Path | str | None) -> Bundle:
    """Return the model asked for, or the only one there is."""
    if model is not None:
        bundle = open_bundle(Path(model))
    elif target is not None:
        bundle = open_bundle(home.find_model(target))
    else:
        folder = home.data_home() / "models"
        present = sorted(p.parent for p in folder.glob("*/model.json") if not p.parent.name.endswith(".partial"))
        if not present:
            raise InputError(
                f"no model in {folder}: train one with galscan train-rare --target NAME, or name one with --model PATH"
            )
        if len(present) > 1:
            names = ", ".join(p.name for p in present)
            raise InputError(f"which model? choose with --target: {names}; or name one with --model PATH")
        bundle = open_bundle(present[0])
    if target is not None and bundle.target != target:
        raise InputError(
            f"{bundle.path} is a model of another target: it finds '{bundle.target}', not '{target}'; "
            "leave --target out, or name another --model"
        )
    return bundle


def _plan_info(plan: Plan) -> dict[str, Any]:
    """Return what ``run.json`` says before anything is scored."""
    return {
        "format": FORMAT,
        "status": "running",
        "target": plan.target,
        "run": str(plan.out),
        "fingerprint": plan.fingerprint,
        "identity": plan.identity,
        "model": plan.model,
        "stores": [asdict(store) for store in plan.stores],
        "objects": plan.objects,
        "parts": len(plan.parts),
        "size": plan.size,
        "answers": list(plan.answers),
        "top": plan.top,
        "precision": plan.precision,
        "device": plan.device,
        "batch": plan.batch,
        "cascade": plan.cascade,
        "selection": plan.selection.text(),
        "seed": plan.seed,
        "versions": {"galscan": galscan.__version__},
    }


def _rank(plan: Plan, bundle: Bundle, info: dict[str, Any]) -> dict[str, Any]:
    """Turn the scores into ranked candidates and their pictures; everything here follows from the scores alone."""
    merged = merge.merge(plan)
    if merged.top.empty:
        if plan.selection and not merged.reasons:
            raise InputError(f"none of the {plan.objects:,} objects is chosen by: {plan.selection.text()}")
        why = f"({_words(merged.reasons)}); look at {plan.out}/quarantine"
        raise GalscanError(f"none of the {plan.objects:,} objects could be scored {why}")
    settings = bundle.recipe.purity
    purity = purities.estimate(
        bundle.calibration, merged.histogram, merged.top["score"].to_numpy(dtype=np.float64),
        bootstrap=settings.bootstrap, confidence=settings.confidence, seed=plan.seed,
    )  # fmt: skip
    purity = replace(purity, notes=[*purity.notes, *_strangers(plan, bundle), *_looked(merged)])
    candidates = rank.rank(merged.top, purity, bundle.train_ids())
    with files.atomic_path(plan.out / "candidates.parquet") as temporary:
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
    table.write_fits(candidates, plan.out / "candidates.fits", export.provenance(info | summary), plan.answers)
    _contact_sheet(plan, candidates)
    return summary


def _strangers(plan: Plan, bundle: Bundle) -> list[str]:
    """Return a note where surveys are scanned of which the calibration knows nothing."""
    splits = bundle.splits()
    known = sorted(splits.loc[splits["split"] == "calibration", "store"].unique())  # grades may have taught of others
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


def _contact_sheet(plan: Plan, candidates: pd.DataFrame) -> None:
    """Draw the best candidates, in the order of their ranks."""
    best = candidates.head(SHEET)
    stores = {ref.name: open_store(ref.path) for ref in plan.stores}
    where = zip(best["store"], best["index"], strict=True)
    images = np.concatenate([stores[store].images(slice(row, row + 1)) for store, row in where])
    pictures.contact_sheet(
        images, plan.out / "contact.png", title=f"{plan.target}: the best {len(best)} of {plan.objects:,}",
        captions=[f"{rank}  p={p:.2f}" for rank, p in zip(best["rank"], best["p_target"], strict=True)],
        borders=[TRAINED_ON if known else None for known in best["in_train"]],
    )  # fmt: skip


def _finish(out: Path, info: dict[str, Any]) -> None:
    """Write the report, and last of all that the run is done."""
    files.write_json(out / INFO, info)
    from galscan.report_scan import write_scan_report  # Matplotlib is slow to import: not before it is needed

    write_scan_report(out)
    files.write_json(out / INFO, info | {"status": "done"})


def _words(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
