"""``galscan scan``: score surveys with a model, rank the candidates, and say how pure they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galscan.candidates import outcome
from galscan.core import files, home
from galscan.core.errors import InputError
from galscan.core.version import __version__
from galscan.models.ensemble import check_encoders
from galscan.models.model import Model, open_model, open_models
from galscan.scanning import cluster as clusters
from galscan.scanning import engine, merge, prepare, quantised
from galscan.scanning.cost import check_fit, describe
from galscan.scanning.known_labels import find_known
from galscan.scanning.plan import ModelRef, Plan, make_plan
from galscan.scanning.run import FORMAT, INFO, Run, claim, open_run
from galscan.scanning.selection import make_selection
from galscan.store.layout import open_store

if TYPE_CHECKING:
    from distributed import Client


def scan(
    *,
    survey: str | Sequence[str] = (),
    store: Path | str | Sequence[Path | str] = (),
    target: str | Sequence[str] | None = None,
    model: Path | str | Sequence[Path | str] | None = None,
    out: Path | str | None = None,
    cluster: str = "local",
    workers: int | None = None,
    top: int | None = None,
    where: str | None = None,
    cone: tuple[float, float, float] | None = None,
    moc: Path | str | None = None,
    limit: int | None = None,
    cascade: bool | None = None,
    embeddings: bool = False,
    int8: bool = False,
    device: str = "auto",
    dry_run: bool = False,
) -> Run:
    """Score every cutout of some stores and leave ranked candidates of each target with purity estimates.

    An interrupted scan goes on where it stopped when the same command is given again; a finished one is
    returned at once.

    Parameters
    ----------
    survey : str or sequence of str
        Surveys in the data home, by name.
    store : path or sequence of paths
        Stores anywhere.
    target : str or sequence of str, optional
        Which models of the data home to use; where a `model` is given too, what it must have been trained for. Every
        cutout is read once for all of them, and what models that were trained together share is computed once.
    model : path or sequence of paths, optional
        Model folders; that of several targets trained together stands for all of them. Without `target` and `model`,
        the only model in the data home.
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
        Whether a tiny network discards first what surely is no candidate (`galscan.models.prefilter`); by default
        where the survey has 100,000 objects or more.
    embeddings : bool
        Write what the network sees in every object as well, for `galscan.similar`. There is no first look then, which
        would discard what nobody has searched for yet.
    int8 : bool
        On CPUs: let the networks look in integers of 8 bits first, where that is measured to pay, and score in full
        what they do not put surely below the candidates (`galscan.scanning.quantised`).
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    dry_run : bool
        Check everything, say what would be done on stderr, and do nothing.

    Returns
    -------
    Run
        The finished run (for a dry run: its plan, status ``planned``); of several targets, ``run.of(target)`` is the
        one of each.

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
    bundles = _open_models(target, model)
    check_encoders(bundles)
    plan = make_plan(
        [open_store(path) for path in paths], bundles, top=top, device=device, out=out,
        selection=make_selection(where, cone, moc), limit=limit, cascade=cascade, embeddings=embeddings,
        int8=int8,
    )  # fmt: skip
    who = clusters.describe(cluster, workers)
    here = (workers or clusters.cores()) if cluster == "local" else None
    check_fit(plan, here, clusters.memory(), merge.disk_free(plan.out) + merge.written(plan))
    if dry_run:
        _say(describe(plan, who, prepare.measured_rate(plan) * here if here else None))
        return Run(plan.out, _plan_info(plan) | {"status": "planned"})

    with engine.interruptible() as stop, claim(plan) as before:
        # Embeddings may have been removed for their size, or one that was damaged.
        if before is not None and before["status"] == "done" and not (plan.embedding and merge.pending(plan)):
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
            shared: list[Path | str] = [
                plan.out / INFO, *(bundle.path / "model.json" for bundle in bundles), *(ref.path for ref in plan.stores)
            ]  # fmt: skip
            prepare.convert_networks(plan, plan.out)
            if plan.int8:
                prepare.quantise_networks(plan, plan.out)
            with clusters.connect(cluster, workers, paths=shared) as client:
                seconds.end("prepare")
                looks = _prefilters(plan, client) if plan.cascade or plan.int8 else []
                seconds.end("first look")
                done = engine.run_scan(plan, client, parts, looks, stop)
                seconds.end("scan")
        known = [find_known(plan, bundle) for bundle in bundles]
        results = [
            outcome.write_outcome(plan, bundle, merged, info)
            for bundle, merged in zip(bundles, merge.merge(plan, known), strict=True)
        ]
        seconds.end("rank")
        info |= {
            **({"int8": quantised.decided(plan.out)} if plan.int8 else {}),
            "wall_s": round(time.perf_counter() - started, 3),
            "seconds": seconds.told,
            "images_per_s": round(done.scored / done.seconds, 1) if done.seconds else None,
            "busy": round(done.busy, 3) if done.seconds else None,
        }
        for ref, result in zip(plan.models, results, strict=True):
            _finish(plan.folder(ref.target), info | result | (_alone(plan, ref) if len(results) > 1 else {}))
        if len(results) > 1:
            counts = {key: results[0][key] for key in ("scanned", "quarantined", "quarantine_reasons")}
            files.write_json(plan.out / INFO, info | counts | {"status": "done"})
        return open_run(plan.out)


def _alone(plan: Plan, model: ModelRef) -> dict[str, Any]:
    """Return what ``run.json`` of one of several targets says otherwise: it is as if the scan were for it alone."""
    own = {"model": model.model_hash, "recipe": model.recipe_hash}
    return {
        "target": model.target, "model": model.path, "run": str(plan.folder(model.target)),
        "identity": plan.identity | own, "tables": "..",
    }  # fmt: skip


class _Seconds:
    """What each phase of a run took."""

    def __init__(self, started: float):
        self.told: dict[str, float] = {}
        self._last = started

    def end(self, phase: str) -> None:
        now = time.perf_counter()
        self.told[phase], self._last = round(now - self._last, 3), now


def _prefilters(plan: Plan, client: Client) -> list[Path]:
    """Set the cuts of what looks first; none where they would not pay."""
    from galscan.models.prefilter import load_prefilter

    try:
        paths = prepare.prefilters(plan, client)
    except InputError as error:  # too few objects, or too few of them chosen
        if plan.int8 and quantised.decided(plan.out) is None:
            quantised.refuse(plan.out, str(error))
        _say(f"no first look: {error}; every object is scored in full")
        return []
    if (decision := quantised.decided(plan.out)) is not None:
        _say(f"int8: {quantised.sentence(decision)}")
    if not paths:
        return []
    look = load_prefilter(paths[0])
    if look.pays:
        _say(f"first look: {100 * look.passes:.1f} % of the survey will be seen by the full network")
        return paths
    _say(f"first look: {100 * look.passes:.0f} % would pass it, which saves nothing; every object is scored in full")
    return []


def _store_paths(survey: str | Sequence[str], store: Path | str | Sequence[Path | str]) -> list[Path | str]:
    """Return the stores to scan, surveys of the data home first."""
    paths = home.find_stores(survey, store)
    if not paths:
        present = sorted(p.stem for p in (home.data_home() / "surveys").glob("*.zarr"))
        known = f" (there are: {', '.join(present)})" if present else ""
        raise InputError(f"nothing to scan: name a survey with --survey NAME{known}, or a store with --store PATH")
    return paths


def _open_models(target: str | Sequence[str] | None, model: Path | str | Sequence[Path | str] | None) -> list[Model]:
    """Return the models asked for, one for each target, or the only one there is."""
    targets = [target] if isinstance(target, str) else list(target or ())
    paths = [model] if isinstance(model, str | Path) else list(model or ())
    if paths:
        bundles = [bundle for path in paths for bundle in open_models(path)]
        if not targets:
            return bundles
        found = {bundle.target: bundle for bundle in bundles}
        for name in targets:
            if name not in found:
                raise InputError(
                    f"{', '.join(str(path) for path in paths)} is a model of another target: it finds "
                    f"'{', '.join(found)}', not '{name}'; leave --target out, or name another --model"
                )
        return [found[name] for name in targets]
    if targets:
        return [open_model(path) for path in home.find_models(targets)]
    folder = home.data_home() / "models"
    present = sorted(p.parent for p in folder.glob("*/model.json") if not p.parent.name.endswith(".partial"))
    if not present:
        raise InputError(
            f"no model in {folder}: train one with galscan train-rare --target NAME, or name one with --model PATH"
        )
    if len(present) > 1:
        names = ", ".join(p.name for p in present)
        raise InputError(f"which model? choose with --target: {names}; or name one with --model PATH")
    return [open_model(present[0])]


def _plan_info(plan: Plan) -> dict[str, Any]:
    """Return what ``run.json`` says before anything is scored."""
    return {
        "format": FORMAT,
        "status": "running",
        "target": plan.target,
        "targets": list(plan.targets),
        "run": str(plan.out),
        "fingerprint": plan.fingerprint,
        "identity": plan.identity,
        "model": plan.models[0].path if len(plan.models) == 1 else [model.path for model in plan.models],
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
        **({"embedding": plan.embedding} if plan.embedding else {}),
        "selection": plan.selection.text(),
        "seed": plan.seed,
        "versions": {"galscan": __version__},
    }


def _finish(out: Path, info: dict[str, Any]) -> None:
    """Write the report, and last of all that the run is done."""
    files.write_json(out / INFO, info)
    from galscan.reports.scan import write_scan_report  # Matplotlib is slow to import: not before it is needed

    write_scan_report(out)
    files.write_json(out / INFO, info | {"status": "done"})


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
