"""``galscan ablate``: gain by synthetic galaxies over the usual methods for a rare class, on a user's own survey.

Every stage writes its result to ``OUT.partial`` and is skipped when it is there:

    common.safetensors               generator of whole images, trained on galaxies that are in no test set
    repeat-XX/generator.safetensors  the same, further trained on the repeat's training galaxies (generator_ids.txt)
    repeat-XX/feature_maps.safetensors diffusion model of feature maps, fine-tuned on those of the training galaxies
    repeat-XX/KIND.zarr              the synthetic training set of a kind (KIND.json: its counts)
    repeat-XX/ARM-K.safetensors      network K of an arm      repeat-XX/ARM.parquet   id, target, score of the test set
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galscan.core import home
from galscan.core.errors import InputError, nearest
from galscan.core.files import atomic_path, digest, write_json
from galscan.core.staging import finished, publish, staging_folder
from galscan.stats.metrics import WorkingPoint
from galscan.training.ablation import arms as ablations
from galscan.training.ablation.arms import ARMS, BOTH, MAPS, PRIOR, REAL_ONLY, REFERENCE, VARIANTS, Repeat
from galscan.training.plan import Plan, make_plan

if TYPE_CHECKING:
    from galscan.core.device import Device
    from galscan.training.ablation.experiment import Repetition
    from galscan.training.dataset import Galaxies

MIN_COMMON = 200  # unlabelled galaxies; with fewer the generator has no common stage


@dataclass(frozen=True)
class Ablation:
    """The plan of an ablation, made before any training."""

    plan: Plan
    repeats: list[Repeat]
    arms: tuple[str, ...]
    method: str
    point: WorkingPoint
    survey_size: int
    members: int
    common: int  # galaxies without labels, or 0 where they are too few for a common stage
    out: Path
    request: dict[str, Any]
    workers: int  # processes in parallel; 0: as many as cores

    @property
    def synthetic(self) -> bool:
        return any(ARMS[name].synthetic for name in self.arms)

    @property
    def generated(self) -> bool:
        """Whether a generator of whole images is needed."""
        return any(ARMS[name].generated for name in self.arms)

    @property
    def generator_steps(self) -> tuple[int, int]:
        """Training steps of the common stage and of each repeat; none if the recipe uses the weights as they are."""
        steps = ablations.generator_settings(self.plan.recipe).steps
        if not steps:
            return 0, 0
        return (max(1, steps * 3 // 4) if self.common else 0), max(1, steps // 4)

    def describe(self) -> str:
        r, (common_steps, repeat_steps) = self.plan.recipe, self.generator_steps
        rows = self.plan.inputs()
        for repeat in self.repeats:
            counts = [
                f"{side} {c['positives']:,} positive, {c['negatives']:,} negative" for side, c in repeat.counts.items()
            ]
            rows += [f"repeat {repeat.number:<5} seed {repeat.seed}, fold {repeat.fold}: {'; '.join(counts)}"]
        rows += [f"arms         {', '.join(self.arms)} (method: {self.method})"]
        rows += [
            f"networks     {len(self.repeats) * len(self.arms) * self.members:,}, {r.classifier.steps:,} steps of "
            f"{r.classifier.batch} each" + (f", on {r.classifier.network}" if r.classifier.encoder else "")
        ]
        if self.generated:
            first = f"{common_steps:,} steps on {self.common:,} galaxies without labels, once; then "
            rest = f" from the start weights: fewer than {MIN_COMMON} galaxies without labels, so no common stage"
            steps = f"{repeat_steps:,} steps per repeat"
            trained = first + steps if common_steps else steps + rest
            rows += [f"generator    {trained if repeat_steps else 'the start weights as they are'}"]
        if self.synthetic:
            images = ablations.image_settings(r).summary(self.plan.rules, whole=self.generated)
            rows += [f"synthetic    {images} per repeat"]
        rows += [f"survey       {self.survey_size:,} objects, prevalence {self.point.prevalence:.3g}"]
        return "\n".join([*rows, f"output       {self.out}"])


def ablate(
    target: str,
    *,
    store: str | Path | Sequence[str | Path] = (),
    survey: str | Sequence[str] = (),
    out: str | Path | None = None,
    seeds: int = 3,
    folds: int = 1,
    positives: int | None = None,
    negatives: int | None = None,
    reserved: int = 0,
    max_test: int | None = None,
    prevalence: float | None = None,
    purity: float = 0.8,
    completeness: float = 0.5,
    arms: Sequence[str] = (),
    method: str | None = None,
    survey_size: int = 100_000,
    members: int = 1,
    workers: int | None = None,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train with and without synthetic galaxies, several times, and compare on held-out real galaxies.

    Parameters
    ----------
    target : str
        Name of a shipped recipe, or path of a recipe (``.toml``).
    store, survey : str or path, or sequence of them
        As for `galscan.train_rare`.
    out : path, optional
        Folder of the results; default ``runs/ablation-TARGET`` in the data home.
    seeds, folds : int
        There is one repeat for each pair of seed and fold. With one fold, a random part of the objects trains and the
        rest is the test set; with more, stratified cross-validation.
    positives, negatives : int, optional
        Number of training positives (default half, or all but the fold) and training negatives (default in the
        proportion of the labelled objects). With 0 positives only injected galaxies are positive in training.
    reserved : int
        With one fold, this many positives are kept out of the test set, even if fewer train: calls with 20, 8 and 0
        training positives then have the same test set.
    max_test : int, optional
        Maximum number of test negatives, chosen at random; metrics are weighted to a prevalence.
    prevalence : float, optional
        Fraction of targets in the survey that the metrics are for; default the fraction among labelled objects.
    purity, completeness : float
        Working points: completeness is reported at this purity, and purity at this completeness.
    arms : sequence of str
        Names in `galscan.training.ablation.arms.ARMS`; default all but the variants of ``maps``. The method and the
        arm whose networks choose hosts and filter images are always included.
    method : str, optional
        The arm whose gain is reported; default ``both`` where the recipe injects a feature (``prior``, if the feature
        has no diffusion model), else ``images``.
    survey_size : int
        Number of objects in the survey for which detections are counted.
    members : int
        Number of networks per arm and repeat; their mean score is used.
    workers : int, optional
        Processes with one thread each, which run repeats, and the networks of a repeat where there are fewer repeats;
        results do not depend on `workers`. Default, or 0: the number of cores; one on CUDA.
    seed : int
        Seed of everything random; the seeds of the repeats are counted from it.
    overwrite : bool
        Replace different results in `out`.
    dry_run : bool
        Print the plan and train nothing.

    Returns
    -------
    dict
        ``arms``, ``best_baseline``, ``gains``, ``repeats``, ``notes`` and the request; ``text`` is the table. With
        `dry_run`, the request.

    Raises
    ------
    InputError
        If options, labels and stores do not fit together, or there are too few examples.
    ConflictError
        If `out` holds something else.
    Interrupted
        On Ctrl-C; the same call resumes.
    """
    _check(seeds=seeds, folds=folds, survey_size=survey_size, members=members)
    _check(workers=workers, reserved=reserved, least=0)
    _check(negatives=negatives, max_test=max_test, least=2)
    for name, fraction in (("prevalence", prevalence), ("purity", purity), ("completeness", completeness)):
        if fraction is not None and not 0 < fraction < 1:
            raise InputError(f"--{name} {fraction:g}: give a fraction above 0 and below 1")
    plan = make_plan(target, survey, store, out, None, True, seed)
    chosen, method = _arms(arms, method, plan)
    objects = ablations.labelled_objects(plan.table, plan.schema.names)
    division: dict[str, Any] = {
        "seeds": seeds, "folds": folds, "positives": positives, "negatives": negatives, "max_test": max_test,
        "seed": seed, "reserved": reserved,
    }  # fmt: skip
    repeats = ablations.make_repeats(objects, **division)
    unlabelled = int((~plan.table["object"].isin(objects.index)).sum())
    point = WorkingPoint(
        prevalence if prevalence is not None else float((objects == 1).sum() / objects.notna().sum()),
        purity, completeness,
    )  # fmt: skip
    request = division | {
        "recipe": plan.recipe.hash, "stores": [[s.name, s.content_hash] for s in plan.stores],
        "point": point._asdict(), "arms": list(chosen), "method": method, "survey_size": survey_size,
        "members": members,
    }  # fmt: skip
    ablation = Ablation(
        plan, repeats, chosen, method, point, survey_size, members, unlabelled if unlabelled >= MIN_COMMON else 0,
        Path(out) if out else home.run_path(f"ablation-{plan.recipe.name}"), request, workers or 0,
    )  # fmt: skip
    print(ablation.describe(), file=sys.stderr)
    if dry_run:
        return request
    if (done := finished(ablation.out, "ablation.json", request, "ablation", overwrite=overwrite)) is not None:
        return _summary(done)
    from galscan.core import device as devices

    torch_device = devices.pick(device)  # may fail: before anything is written
    with (
        staging_folder(ablation.out, request, "ablation", overwrite=overwrite) as work,
        devices.recorded_training_dtype(work, torch_device),
    ):
        result = _run(ablation, work, torch_device)
        publish(work, ablation.out)
    return _summary(result)


def _check(least: int = 1, **counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < least:
            raise InputError(f"--{name.replace('_', '-')} {count}: give at least {least}")


def _arms(arms: Sequence[str], method: str | None, plan: Plan) -> tuple[tuple[str, ...], str]:
    """Return the names of the arms, in the order of `ARMS`, and the method."""
    from galscan.synthesis.features.base import has_model

    rule = plan.rules.inject
    injects, samples = rule is not None, rule is not None and has_model(rule.feature)
    method = method or ("both" if samples else PRIOR if injects else "images")
    for name in (*arms, method):
        if name not in ARMS:
            raise InputError(f"unknown arm '{name}'{nearest(name, ARMS)}")
        if ARMS[name].injected and not injects:
            raise InputError(f"arm '{name}': the recipe has no 'inject' rule for {plan.schema.name} labels; add one")
        if rule is not None and not samples and ARMS[name].kind in (MAPS, BOTH):
            raise InputError(f"arm '{name}': the feature '{rule.feature}' has only a prior; use the arm '{PRIOR}'")
    if method in REAL_ONLY:
        possible = ", ".join(name for name in ARMS if name not in REAL_ONLY)
        raise InputError(f"--method {method} is real-only; choose one of {possible}")
    kinds = {arm.kind for arm in ARMS.values() if samples or not arm.injected} | ({PRIOR} if injects else set())
    default = [name for name, arm in ARMS.items() if name not in VARIANTS and arm.kind in kinds]
    # The method needs synthetic galaxies, and these a reference classifier.
    wanted = {*(arms or default), method, REFERENCE}
    return tuple(name for name in ARMS if name in wanted), method


def _run(ablation: Ablation, work: Path, device: Device) -> dict[str, Any]:
    """Run the stages of the ablation in order."""
    from galscan.core import device as devices
    from galscan.core.concurrency import default_workers, run_in_processes
    from galscan.reports import ablation as report_ablation
    from galscan.training.ablation import experiment

    plan = ablation.plan
    common_steps, _ = ablation.generator_steps
    galaxies = experiment.load(plan, ablation.repeats, unlabelled=ablation.synthetic)
    if ablation.generated and common_steps:
        experiment.common_generator(plan, galaxies, common_steps, work, device)
    repetitions = [_repetition(ablation, repeat, galaxies, work, device) for repeat in ablation.repeats]
    unfinished = [repetition.repeat for repetition in repetitions if not repetition.finished]
    processes = ablation.workers or (default_workers() if device.type == "cpu" else 1)
    workers = min(processes, len(unfinished))
    each = processes // max(workers, 1)  # networks of one repeat at a time
    if workers > 1:
        pending = [(ablation, repeat, work, device, each) for repeat in unfinished]
        run_in_processes(_run_repeat, pending, workers, remedy=f"--workers {workers // 2}")
    with devices.one_thread():  # as in the worker processes
        scored = [replace(repetition, workers=each).scored() for repetition in repetitions]
    counts = [repetition.counts() for repetition in repetitions]
    result = ablations.evaluate(
        scored, ablation.point, survey_size=ablation.survey_size, method=ablation.method, seed=plan.seed
    ) | {
        "target": plan.recipe.name, "title": plan.recipe.title, "schema": plan.schema.name, "size": plan.recipe.size,
        "recipe_hash": plan.recipe.hash, "point": ablation.point._asdict(), "survey_size": ablation.survey_size,
        "members": ablation.members, "steps": plan.recipe.classifier.steps, "repeats": counts,
        "notes": _notes(ablation, counts), "seconds": experiment.seconds(work),
        "request": ablation.request, "request_hash": digest(ablation.request),
    }  # fmt: skip
    with atomic_path(work / "ablation.csv") as temporary:
        ablations.as_table(result).to_csv(temporary, index=False)
    write_json(work / "ablation.json", result)
    report_ablation.write_ablation_report(work)
    return result


def _repetition(
    ablation: Ablation, repeat: Repeat, galaxies: Galaxies, work: Path, device: Device, workers: int = 1
) -> Repetition:
    from galscan.training.ablation.experiment import Repetition

    _, steps = ablation.generator_steps
    return Repetition(ablation.plan, repeat, galaxies, ablation.arms, ablation.members, steps, work, device, workers)


def _run_repeat(ablation: Ablation, repeat: Repeat, work: Path, device: Device, workers: int) -> None:
    """Train and score one repeat, in a worker process."""
    from galscan.core import device as devices
    from galscan.training.ablation import experiment

    with devices.recorded_training_dtype(work, device):
        galaxies = experiment.load(ablation.plan, [repeat], unlabelled=ablation.synthetic)
        _repetition(ablation, repeat, galaxies, work, device, workers).scored()


def _notes(ablation: Ablation, counts: Sequence[dict[str, Any]]) -> list[str]:
    """Return the assumptions behind the metrics, for the report."""
    point, n = ablation.point, len(counts)
    fewest = min(c["test"]["negatives"] for c in counts)
    each = (1 - point.prevalence) * ablation.survey_size / fewest
    notes = [
        f"Means over {n} repeat{'s' if n > 1 else ''}; 95 % intervals by resampling repeats and test objects, paired "
        "between arms."
        + " One repeat alone does not show the scatter from split to split and from training to training."
        * (n == 1),
        f"All metrics are for a survey in which {point.prevalence:.3g} of the objects are targets. A test set holds at "
        f"least {fewest:,} negatives; each stands for {each:,.0f} of the {ablation.survey_size:,} objects.",
        "All arms are trained on the same real galaxies, with the same number of batches, the same seeds and the same "
        "classical augmentation (any rotation, flips, scale, shift, noise, brightness).",
        "The best baseline is chosen for each metric by its mean on these same test sets, which favours the baseline; "
        "the choice is not repeated in the resampling.",
        "BatchNorm statistics are computed on real training images in every arm.",
    ]
    if any(ARMS[name].injected for name in ablation.arms):
        notes.append(
            "Features are injected into real training galaxies, and into galaxies without labels that the real-only "
            "network with morphology heads predicts to be hosts; each host is also a negative. Maps are measured on "
            "training galaxies only."
        )
    if ablation.generated:
        notes.append(
            "The generator of whole images was not trained on the test objects of its repeat (generator_ids.txt); "
            "images that the real-only network with morphology heads rejects were dropped."
        )
    empty = {(c["repeat"], kind) for c in counts for kind, kept in c["synthetic"].items() if not kept["kept_positive"]}
    for repeat, kind in sorted(empty):
        notes.append(
            f"In repeat {repeat} no synthetic target of kind '{kind}' was left: its arms were trained on real galaxies."
        )
    return notes


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    """Return the results without the curves, and as ``text``."""
    return {k: v for k, v in result.items() if k != "curves"} | {"text": ablations.as_text(result)}
