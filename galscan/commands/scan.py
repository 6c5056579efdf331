"""``galscan scan``: score surveys with a model, rank the candidates and estimate their purity."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from galscan.core import home, progress
from galscan.core.errors import InputError
from galscan.core.version import __version__
from galscan.models.ensemble import check_encoders
from galscan.models.model import Model, open_model, open_models
from galscan.scanning import cluster as clusters
from galscan.scanning import engine, merge, prepare
from galscan.scanning.plan import ModelRef, Plan, make_plan
from galscan.scanning.run_info import FORMAT, INFO, RunInfo, claim
from galscan.scanning.selection import make_selection
from galscan.store.layout import open_store

if TYPE_CHECKING:
    from distributed import Client

    from galscan.candidates.run import Run

T = TypeVar("T")

# What ranking and report need, and the scan does not: imported while the workers are busy.
_OUTPUT = (
    "galscan.candidates.run", "galscan.candidates.outcome", "galscan.scanning.known_labels", "galscan.reports.scan",
    "pandas", "scipy.sparse.csgraph", "scipy.spatial", "scipy.special", "matplotlib.figure",
    "matplotlib.backends.backend_svg",
)  # fmt: skip


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
    device: str = "auto",
    dry_run: bool = False,
) -> Run:
    """Score every cutout of some stores and write ranked candidates of each target with purity estimates.

    The same call resumes an interrupted scan; a finished scan is returned at once.

    Parameters
    ----------
    survey : str or sequence of str
        Surveys in the data home, by name.
    store : path or sequence of paths
        Stores anywhere.
    target : str or sequence of str, optional
        Targets of the models to use from the data home; with `model`, the targets to select from it. Every cutout is
        read once for all targets, and layers shared by models that were trained together are computed once.
    model : path or sequence of paths, optional
        Model folders; the folder of several targets trained together selects all of them. Without `target` and
        `model`, the only model in the data home.
    out : path, optional
        The run folder; by default one in the data home, named after target, surveys and fingerprint.
    cluster : str
        ``local``, ``cuda``, ``slurm``, ``kubernetes:NAME``, the address of a Dask scheduler, or its scheduler file.
    workers : int, optional
        Processes (or GPUs) to use; all by default.
    top : int, optional
        Number of candidates to rank; default the recipe's.
    where : str, optional
        Scan only objects that satisfy this rule over ra, dec, pixel_scale, flags and the store's labels.
    cone : tuple of float, optional
        Scan only within a radius of a position: right ascension, declination, radius, in degrees.
    moc : path, optional
        Scan only within a multi-order coverage map.
    limit : int, optional
        Scan only this number of rows, from the first on.
    cascade : bool, optional
        Whether a prefilter, a small network, first rejects objects that cannot be candidates
        (`galscan.models.prefilter`); default for surveys of 100,000 objects or more.
    embeddings : bool
        Also write the network's features of every object, for `galscan.similar`. There is no prefilter then: objects
        it rejects would have no features.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    dry_run : bool
        Check everything and print the plan to stderr; write nothing.

    Returns
    -------
    Run
        The finished run (for a dry run: its plan, status ``planned``); with several targets, ``run.of(target)`` is
        the run of one.

    Raises
    ------
    InputError
        If stores and model do not fit together or an option is wrong; nothing was written.
    ConflictError
        If `out` holds something else.
    GalscanError
        If the scan could not be finished; finished partitions are kept.
    Interrupted
        On Ctrl-C; the same call resumes.
    """
    # A command line counts from the start of its process, imports included.
    timer = _PhaseTimer(progress.command_started.pop("scan", time.perf_counter()))
    clusters.check(cluster, workers)
    paths = _store_paths(survey, store)
    models = _open_models(target, model)
    check_encoders(models)
    plan = make_plan(
        [open_store(path) for path in paths], models, top=top, device=device, out=out,
        selection=make_selection(where, cone, moc), limit=limit, cascade=cascade, embeddings=embeddings,
    )  # fmt: skip
    cluster_text = clusters.describe(cluster, workers)
    processes = (workers or clusters.cores()) if cluster == "local" else None
    prepare.check_fit(plan, processes, clusters.memory(), merge.disk_free(plan.out) + merge.written(plan))
    if dry_run:
        from galscan.candidates.run import Run

        _say(prepare.describe(plan, cluster_text, prepare.measured_rate(plan) * processes if processes else None))
        return Run(plan.out, _plan_info(plan, "planned"))

    with (
        engine.interruptible() as stop,
        claim(plan) as previous,
        ThreadPoolExecutor(2, "galscan-scan") as background,
    ):
        # Embeddings may have been deleted to save space, or because one was damaged; then the scan resumes.
        if previous is not None and previous.status == "done" and not (plan.embedding and merge.pending(plan)):
            _say(f"{plan.out} holds this scan, finished; nothing to do")
            return _opened(plan)
        info = _plan_info(plan)
        info.write(plan.out)
        pending = merge.pending(plan)
        if len(pending) < len(plan.partitions):
            finished = len(plan.partitions) - len(pending)
            _say(f"resuming: {finished:,} of {len(plan.partitions):,} partitions are scored")
        timer.end("start")
        scanned, running = engine.Progress(), contextlib.ExitStack()
        client: Client | None = None
        if pending:
            _say(f"scanning {plan.objects:,} objects with {cluster_text}")
            shared: list[Path | str] = [
                plan.out / INFO, *(opened.path / "model.json" for opened in models), *(ref.path for ref in plan.stores)
            ]  # fmt: skip
            if not processes:
                prepare.convert_networks(plan, plan.out)
            with contextlib.ExitStack() as stack:
                client = stack.enter_context(clusters.connect(cluster, workers, paths=shared))
                imports = background.submit(_import_output)
                if processes:
                    prepare.convert_on_worker(plan, client)
                timer.end("prepare")
                if plan.cascade:
                    imports.result()  # this thread needs some of the same libraries
                    prefilters = _prefilters(plan, client)
                    timer.end("prefilter")
                else:
                    prefilters = []
                scanned = engine.run_scan(plan, client, pending, prefilters, stop)
                timer.end("scan")
                running = stack.pop_all()
        # Workers rank and draw for several targets side by side; for one they are closed at the same time.
        helpers = client if processes and len(models) > 1 else None
        closing = None if helpers else background.submit(running.close)
        try:
            if pending:
                imports.result()
            results = _ranked(plan, models, info, helpers)
            timer.end("rank")
            rates = {
                "images_per_s": round(scanned.scored / scanned.seconds, 1) if scanned.seconds else None,
                "busy": round(scanned.busy, 3) if scanned.seconds else None,
            }
            _write_reports(plan, results, timer, rates, helpers)
        finally:
            closing = closing or background.submit(running.close)
        closing.result()
        timer.end("close")
        _finish(plan, info, results, timer.measured() | rates)
        return _opened(plan)


def _opened(plan: Plan) -> Run:
    from galscan.candidates.run import open_run

    return open_run(plan.out)


def _import_output() -> None:
    """Import what the output needs; an error is raised again where the module is used."""
    for name in _OUTPUT:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _ranked(plan: Plan, models: Sequence[Model], info: RunInfo, helpers: Client | None) -> list[RunInfo]:
    """Merge the partitions, and write the candidates of each target."""
    from galscan.candidates.outcome import write_outcome
    from galscan.scanning.known_labels import find_known

    merged = merge.merge(plan, [find_known(plan, model) for model in models])
    tasks = [(plan, model, of_target, info) for model, of_target in zip(models, merged, strict=True)]
    return _each(write_outcome, tasks, helpers)


def _write_reports(
    plan: Plan, results: Sequence[RunInfo], timer: _PhaseTimer, rates: dict[str, Any], helpers: Client | None
) -> None:
    """Write the report of each target, which shows the times of the phases before it."""
    from galscan.reports.scan import write_scan_report

    folders = [plan.folder(model.target) for model in plan.models]
    for model, result, folder in zip(plan.models, results, folders, strict=True):
        result.updated(**timer.measured(), **rates, **_single_target_info(plan, model)).write(folder)
    _each(write_scan_report, [(folder,) for folder in folders], helpers)
    timer.end("report")


def _each(function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], helpers: Client | None) -> list[T]:
    """Return the results of a function that may be called again, computed by workers if there are any."""
    if helpers is not None:
        from distributed import KilledWorker

        with contextlib.suppress(KilledWorker):
            return list(helpers.gather([helpers.submit(function, *task, pure=False) for task in tasks]))
    return [function(*task) for task in tasks]


def _finish(plan: Plan, info: RunInfo, results: Sequence[RunInfo], measured: dict[str, Any]) -> None:
    """Set the status of each run to done, last that of the scan for several targets."""
    for model, result in zip(plan.models, results, strict=True):
        own = _single_target_info(plan, model)
        result.updated(**measured, **own, status="done").write(plan.folder(model.target))
    if len(results) > 1:
        counts = {key: getattr(results[0], key) for key in ("scanned", "quarantined", "quarantine_reasons")}
        info.updated(**measured, **counts, status="done").write(plan.out)


def _single_target_info(plan: Plan, model: ModelRef) -> dict[str, Any]:
    """Return the entries of ``run.json`` that are specific to one of several targets; empty for a single one."""
    if len(plan.models) == 1:
        return {}
    hashes = {"model": model.model_hash, "recipe": model.recipe_hash}
    return {
        "target": model.target, "model": model.path, "run": str(plan.folder(model.target)),
        "identity": plan.identity | hashes, "tables": "..",
    }  # fmt: skip


class _PhaseTimer:
    """Wall time of each phase of a run, in seconds."""

    def __init__(self, started: float):
        self.seconds: dict[str, float] = {}
        self._started = self._last = started

    def end(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self._last = round(now - self._last, 3), now

    def measured(self) -> dict[str, Any]:
        """Return the entries of ``run.json`` up to the last phase."""
        return {"wall_s": round(self._last - self._started, 3), "seconds": dict(self.seconds)}


def _prefilters(plan: Plan, client: Client) -> list[Path]:
    """Set the thresholds of the prefilters and return their paths; none where they would save no time."""
    from galscan.models.prefilter import load_prefilter

    try:
        paths = prepare.prefilters(plan, client)
    except InputError as error:  # too few objects, or too few of them selected
        _say(f"no prefilter: {error}; every object is scored in full")
        return []
    prefilter = load_prefilter(paths[0])
    if prefilter.pays:
        _say(f"prefilter: {100 * prefilter.passes:.1f} % of the survey pass it and are scored in full")
        return paths
    passed = f"{100 * prefilter.passes:.0f} %"
    _say(f"prefilter: {passed} of the survey would pass it, which saves no time; every object is scored in full")
    return []


def _store_paths(survey: str | Sequence[str], store: Path | str | Sequence[Path | str]) -> list[Path | str]:
    """Return the stores to scan, surveys of the data home first."""
    paths = home.find_stores(survey, store)
    if not paths:
        present = sorted(p.stem for p in (home.data_home() / "surveys").glob("*.zarr"))
        known = f" (in the data home: {', '.join(present)})" if present else ""
        raise InputError(f"nothing to scan: name a survey with --survey NAME{known}, or a store with --store PATH")
    return paths


def _open_models(target: str | Sequence[str] | None, model: Path | str | Sequence[Path | str] | None) -> list[Model]:
    """Return the requested models, one for each target; by default the only model in the data home."""
    targets = [target] if isinstance(target, str) else list(target or ())
    paths = [model] if isinstance(model, str | Path) else list(model or ())
    if paths:
        models = [opened for path in paths for opened in open_models(path)]
        if not targets:
            return models
        found = {opened.target: opened for opened in models}
        for name in targets:
            if name not in found:
                raise InputError(
                    f"{', '.join(str(path) for path in paths)} is a model for '{', '.join(found)}', not for '{name}'; "
                    "leave --target out, or name another --model"
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
        raise InputError(f"{len(present)} models in {folder}: choose one with --target: {names}; or with --model PATH")
    return [open_model(present[0])]


def _plan_info(plan: Plan, status: Literal["planned", "running"] = "running") -> RunInfo:
    """Return the content of ``run.json`` before the first object is scored."""
    info = RunInfo(
        format=FORMAT, status=status, target=plan.target, targets=list(plan.targets), run=str(plan.out),
        fingerprint=plan.fingerprint, identity=plan.identity,
        model=plan.models[0].path if len(plan.models) == 1 else [model.path for model in plan.models],
        stores=list(plan.stores), objects=plan.objects, parts=len(plan.partitions), size=plan.size,
        answers=list(plan.answers), top=plan.top, precision=plan.precision, device=plan.device, batch=plan.batch,
        cascade=plan.cascade,
        selection=plan.selection.text(), seed=plan.seed, versions={"galscan": __version__},
    )  # fmt: skip
    return info.updated(embedding=plan.embedding) if plan.embedding else info


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
