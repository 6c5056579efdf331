"""``galscan evaluate``: evaluate synthetic galaxies by a classifier trained on real ones alone, beside real ones."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.core.files import file_digest, write_json, write_text
from galscan.core.staging import deliver, finished, work_on
from galscan.models import roles
from galscan.models.model import Model, open_model
from galscan.store import identity, layout
from galscan.surveys.resampling import pixels_text
from galscan.training.plan import Plan, make_plan

if TYPE_CHECKING:
    from galscan.core.device import Device
    from galscan.synthesis.evaluation import ReferenceClassifier
    from galscan.synthesis.synthetic_set import SyntheticSet
    from galscan.training.dataset import Galaxies

LEFTOVERS = ("request.json", "reference.safetensors")  # what only a resumed evaluation needs


def evaluate(
    dreams: str | Path,
    *,
    target: str,
    store: str | Path | Sequence[str | Path] = (),
    survey: str | Sequence[str] = (),
    out: str | Path | None = None,
    model: str | Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train a reference classifier on real galaxies alone, and evaluate synthetic ones of `target` by it.

    Parameters
    ----------
    dreams : path
        A store of synthetic galaxies (``.zarr``), or a model's folder, which holds one.
    target : str
        A shipped recipe's name, or the path of a recipe (``.toml``).
    store, survey : str or path, or sequence of them
        The real galaxies: stores by path, surveys of the data home by name; by default all of these. Give those
        that hosts come from, or that the generator was trained on: only copies of these can be found.
    out : path, optional
        The folder for ``evaluation.json``, ``dreams.csv`` and ``report.html``; default ``NAME-evaluation`` beside
        `dreams`.
    model : path, optional
        The model they were made for: its test objects are held out here as well. Default the folder that they lie in,
        if it is a model; else objects are held out by `seed`.
    steps : int, optional
        Of the reference classifier's training; default the recipe's for a classifier.
    overwrite : bool
        Replace another evaluation in `out`.
    dry_run : bool
        Print the plan, write nothing and return the request.

    Returns
    -------
    dict
        What `galscan.synthesis.evaluation.evaluate` gives, but for ``each``, which is in ``dreams.csv``, and:

        - ``feature``: where one was injected, its ``name`` and what
          `galscan.synthesis.features.comparison.compare_features` gives of synthetic galaxies and of all labelled real
          positives; None where none was.
        - ``target``, ``seconds``, ``weights`` (SHA-256 of the reference classifier), ``request``, ``out`` and ``text``.

    Raises
    ------
    InputError
        If synthetic galaxies, recipe and stores do not fit together.
    ConflictError
        If `out` holds something else.
    Interrupted
        On Ctrl-C; the same call resumes with the reference classifier that is trained.
    """
    if steps is not None and steps < 1:
        raise InputError(f"--steps {steps}: give 1 or more")
    path = Path(dreams)
    path = path / "dreams.zarr" if (path / "model.json").is_file() else path
    dreamt = layout.open_store(path)
    out = Path(out) if out else path.absolute().with_name(f"{path.stem}-evaluation")
    model = model or (path.parent if (path.parent / "model.json").is_file() else None)
    bundle = open_model(model) if model else None
    plan = make_plan(target, survey, store, out, None, True, bundle.seed if bundle else seed)
    plan = _held_out_as(plan, bundle) if bundle else plan
    # There is one reference classifier; the first fold is what the synthetic galaxies of a cross-fitted model's folder
    # are not made of.
    plan = dataclasses.replace(plan, table=plan.table.assign(split=roles.as_fixed(plan.table["split"])))
    _check(plan, dreamt)
    steps = steps or plan.recipe.classifier.steps
    request = {
        "dreams": [dreamt.name, dreamt.content_hash, dreamt.count], "recipe": plan.recipe.hash,
        "model": bundle.model_hash if bundle else None, "stores": [[s.name, s.content_hash] for s in plan.stores],
        "split_seed": plan.seed, "steps": steps, "seed": seed,
    }  # fmt: skip
    print(_describe(plan, dreamt, bundle, steps), file=sys.stderr)
    if dry_run:
        return request
    from galscan.core import device as devices

    where = devices.pick(device)
    if (done := finished(out, "evaluation.json", request, "evaluation", overwrite=overwrite)) is not None:
        return _result(out, done)
    with work_on(out, request, "evaluation", overwrite=overwrite) as work:
        verdict = _evaluate(plan, dreamt, work, where, steps, seed) | {"request": request}
        write_json(work / "evaluation.json", verdict)
        for leftover in LEFTOVERS:
            (work / leftover).unlink(missing_ok=True)
        deliver(work, out)
    return _result(out, verdict)


def _held_out_as(plan: Plan, bundle: Model) -> Plan:
    """Hold out what the model held out, so that the generator never saw it either."""
    known = bundle.split_of(plan.table, identity.radius_of(plan.stores))
    others = np.where(plan.table["target"].notna(), "train", "")
    split = roles.as_fixed(pd.Series(np.where(known == "", others, known), plan.table.index))
    table = plan.table.assign(split=split)
    for value, name in ((1, "positives"), (0, "negatives")):
        if not ((table["split"] == "test") & (table["target"] == value)).any():
            raise InputError(
                f"the stores hold no {name} that the model {bundle.path} held out for its test; "
                "name the stores it was trained on with --store"
            )
    return dataclasses.replace(plan, table=table)


def _check(plan: Plan, dreamt: layout.Store) -> None:
    if "target" not in dreamt.attrs["truth"] or not dreamt.attrs["provenance"].get("dreamt"):
        raise InputError(f"{dreamt.path} holds no synthetic galaxies; name what galscan generate or train-rare wrote")
    if not (dreamt.column("truth/target") == 1).any():
        raise InputError(f"{dreamt.path} holds no synthetic positive; make some with: galscan generate")
    if plan.schema.name not in dreamt.schemas:
        raise InputError(
            f"{dreamt.path} was made under {', '.join(dreamt.schemas)} labels, the real galaxies have "
            f"'{plan.schema.name}'; name the stores that its hosts come from with --store"
        )
    if dreamt.size != plan.recipe.size:
        raise InputError(
            f"{dreamt.path} holds synthetic images of {dreamt.size} px, the recipe trains at {plan.recipe.size} px; "
            f"generate them with a model of {plan.recipe.size} px, or take a recipe with size = {dreamt.size}"
        )


def _describe(plan: Plan, dreamt: layout.Store, bundle: Model | None, steps: int) -> str:
    counts = plan.table.groupby("split")["target"].agg(lambda t: f"{(t == 1).sum():,} and {(t == 0).sum():,}")
    return "\n".join(
        [f"galaxies     {dreamt.count:,} synthetic ones and hosts of '{plan.recipe.name}' ({dreamt.path})"]
        + [
            f"store        {s.name}: {s.count:,} objects, {pixels_text(s.size, plan.recipe.size)} ({s.path})"
            for s in plan.stores
        ]
        + [
            f"held out     {counts['test']} positives and negatives, "
            + (f"as by the model {bundle.path}" if bundle else f"by seed {plan.seed}"),
            f"reference    one classifier, {steps:,} steps on all other labelled galaxies, real ones only",
            f"output       {plan.out}",
        ]
    )


def _evaluate(plan: Plan, dreamt: layout.Store, work: Path, device: Device, steps: int, seed: int) -> dict[str, Any]:
    from galscan.reports import evaluation
    from galscan.synthesis import evaluation as judges
    from galscan.synthesis.synthetic_set import read_synthetic_set
    from galscan.training.dataset import load_galaxies

    started = time.monotonic()
    # With the galaxies that have no labels: a generator is trained on these, too, and may have copied one.
    galaxies = load_galaxies(
        plan.stores, plan.table, plan.schema.names, plan.recipe.size, seed=plan.seed, unlabelled=True
    )
    tested = set(galaxies.table.loc[galaxies.table["split"] == "test", "object"])
    reference = np.flatnonzero(galaxies.table["object"].isin(tested))
    critic = _critic(plan, galaxies, reference, work, device, steps, seed)
    dreams = read_synthetic_set(dreamt.path, plan.schema.name)
    verdict = judges.evaluate(
        dreams, galaxies.images, galaxies.labels, galaxies.table["target"].to_numpy(), critic, plan.rules,
        plan.schema, reference=reference, seed=seed,
    )  # fmt: skip
    feature, values = _feature(plan, dreams, galaxies)
    verdict |= {"feature": feature, "target": plan.recipe.name, "seconds": round(time.monotonic() - started, 1)}
    verdict["weights"] = {"reference": file_digest(work / "reference.safetensors")}
    each = pd.DataFrame(verdict.pop("each"))
    nearest, rows = galaxies.table.iloc[each["nearest"]], each["row"].to_numpy()
    listed = each.assign(
        dream=dreamt.column("id")[rows], target=dreams.target[rows].astype(int), store=nearest["store"].to_numpy(),
        id=nearest["id"].to_numpy(),
    )  # fmt: skip
    write_text(
        work / "dreams.csv", listed[["dream", "target", "reason", "store", "id", "distance"]].to_csv(index=False)
    )
    evaluation.write_evaluation_report(work / "report.html", verdict, each, dreams, galaxies, plan, values)
    return verdict


def _feature(
    plan: Plan, dreams: SyntheticSet, galaxies: Galaxies
) -> tuple[dict[str, Any] | None, dict[str, pd.DataFrame]]:
    """Measure the injected feature on synthetic and on real positives; return the comparison, and the values."""
    from galscan.synthesis.features.base import find_feature
    from galscan.synthesis.features.comparison import compare_features, measure_features, same_pictures
    from galscan.synthesis.flux import stretch_of
    from galscan.synthesis.synthetic_set import HOST, INJECTED
    from galscan.training.synthetic import bands_of

    rule = plan.rules.inject
    positive = np.flatnonzero((dreams.origin == INJECTED) & (dreams.target == 1))
    if rule is None or not len(positive) or not find_feature(rule.feature).CONDITIONS:
        return None, {}
    stretches = [stretch_of(s.attrs.get("provenance", {}), str(s.path)) for s in plan.stores]
    bands, survey = [bands_of(s) for s in plan.stores], galaxies.table["survey"].to_numpy()
    # A synthetic galaxy has the stretch and the bands of its host's store; those of the first, where that is not named.
    host = np.flatnonzero(dreams.origin == HOST)
    known = np.full(len(dreams) + 1, -1)
    known[host] = same_pictures(dreams.images[host], galaxies.images)
    of_host = np.append(survey, 0)[known]
    real = np.flatnonzero(galaxies.table["target"] == 1)
    values = {
        which: measure_features(rule.feature, images, of, stretches, bands)
        for which, images, of in (
            ("synthetic", dreams.images[positive], of_host[dreams.host[positive]]),
            ("real", galaxies.images[real], survey[real]),
            ("hosts", dreams.images[host], of_host[host]),
        )
    }
    return {"name": rule.feature, **compare_features(**values)}, values


def _critic(
    plan: Plan, galaxies: Galaxies, reference: np.ndarray, work: Path, device: Device, steps: int, seed: int
) -> ReferenceClassifier:
    """Train the reference classifier on all labelled galaxies that are not held out, or load it where that is done."""
    from galscan.models.weights import load_network, save_network
    from galscan.synthesis.evaluation import ReferenceClassifier
    from galscan.training.train import Examples, train_classifier

    if not (work / "reference.safetensors").is_file():
        labelled = np.flatnonzero(galaxies.labels.notna().any(axis=1))
        rows = np.setdiff1d(labelled, reference)
        # The same classifier whatever a recipe tries on its own: the reference is not to change with what it evaluates.
        settings = plan.recipe.classifier
        settings = settings.model_copy(
            update={"sampling": "oversampled", "loss": "plain", "encoder": ""}
            | {"morphology_weight": settings.morphology_weight or 0.5}
        )
        examples = Examples.from_labels(
            galaxies.images[rows], galaxies.table["target"].to_numpy()[rows],
            galaxies.counted(plan.schema).iloc[rows], plan.answers, plan.schema,
        )  # fmt: skip
        network = train_classifier(
            examples,
            None,
            settings,
            steps=steps,
            seed=seed * 1000 + 777,
            device=device,
            label="train reference classifier",
        )
        save_network(network, work / "reference.safetensors")
    return ReferenceClassifier(load_network(work / "reference.safetensors"), plan.answers, plan.schema, device)


def _result(out: Path, verdict: Mapping[str, Any]) -> dict[str, Any]:
    from galscan.reports import evaluation

    return {"out": str(out), **verdict, "text": f"{evaluation.summary(verdict)}\nreport  {out / 'report.html'}"}
