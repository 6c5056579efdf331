"""``galscan evaluate``: compare synthetic with held-out real galaxies by a classifier trained on real ones only."""

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
from galscan.core.old_names import existing, renamed
from galscan.core.staging import finished, publish, staging_folder
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

LEFTOVERS = ("request.json", "reference.safetensors")  # files that only a resumed evaluation needs


def evaluate(
    synthetic: str | Path,
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
    """Train a reference classifier on real galaxies only, and evaluate synthetic galaxies of `target` with it.

    Parameters
    ----------
    synthetic : path
        A store of synthetic galaxies (``.zarr``), or a model folder, which contains one.
    target : str
        Name of a shipped recipe, or path of a recipe (``.toml``).
    store, survey : str or path, or sequence of them
        The real galaxies: stores by path, surveys in the data home by name; default all surveys in the data home.
        Give the stores of the hosts and of the generator's training set: copies are searched for only in these.
    out : path, optional
        Folder of ``evaluation.json``, ``synthetic.csv`` and ``report.html``; default ``NAME-evaluation`` beside
        `synthetic`.
    model : path, optional
        The model the synthetic galaxies were made for: its test objects are held out here as well. Default the parent
        folder, if it is a model; else `seed` chooses the held-out objects.
    steps : int, optional
        Training steps of the reference classifier; default the recipe's for a classifier.
    overwrite : bool
        Replace a different evaluation in `out`.
    dry_run : bool
        Print the plan, write nothing and return the request.

    Returns
    -------
    dict
        The result of `galscan.synthesis.evaluation.evaluate` without ``each``, which is in ``synthetic.csv``, and:

        - ``feature``: the ``name`` of the injected feature and the result of
          `galscan.synthesis.features.comparison.compare_features` for synthetic galaxies and all labelled real
          positives; None without an injected feature.
        - ``target``, ``seconds``, ``weights`` (SHA-256 of the reference classifier), ``request``, ``out`` and ``text``.

    Raises
    ------
    InputError
        If synthetic galaxies, recipe and stores do not fit together.
    ConflictError
        If `out` holds something else.
    Interrupted
        On Ctrl-C; the same call resumes; a trained reference classifier is reused.
    """
    if steps is not None and steps < 1:
        raise InputError(f"--steps {steps}: give 1 or more")
    path = Path(synthetic)
    path = existing(path / "synthetic.zarr") if (path / "model.json").is_file() else path
    synthetic_store = layout.open_store(path)
    out = Path(out) if out else path.absolute().with_name(f"{path.stem}-evaluation")
    model = model or (path.parent if (path.parent / "model.json").is_file() else None)
    trained_model = open_model(model) if model else None
    plan = make_plan(target, survey, store, out, None, True, trained_model.seed if trained_model else seed)
    plan = _held_out_as(plan, trained_model) if trained_model else plan
    # One reference classifier needs a fixed split. Its test set is the first fold: the synthetic galaxies in the
    # folder of a cross-fitted model are made without it.
    plan = dataclasses.replace(plan, table=plan.table.assign(split=roles.with_fixed_split(plan.table["split"])))
    _check(plan, synthetic_store)
    steps = steps or plan.recipe.classifier.steps
    request = {
        "synthetic": [synthetic_store.name, synthetic_store.content_hash, synthetic_store.count],
        "recipe": plan.recipe.hash, "model": trained_model.model_hash if trained_model else None,
        "stores": [[s.name, s.content_hash] for s in plan.stores],
        "split_seed": plan.seed, "steps": steps, "seed": seed,
    }  # fmt: skip
    print(_describe(plan, synthetic_store, trained_model, steps), file=sys.stderr)
    if dry_run:
        return request
    from galscan.core import device as devices

    torch_device = devices.pick(device)
    if (done := finished(out, "evaluation.json", request, "evaluation", overwrite=overwrite)) is not None:
        return _result(out, done)
    with staging_folder(out, request, "evaluation", overwrite=overwrite) as work:
        result = _evaluate(plan, synthetic_store, work, torch_device, steps, seed) | {"request": request}
        write_json(work / "evaluation.json", result)
        for leftover in LEFTOVERS:
            (work / leftover).unlink(missing_ok=True)
        publish(work, out)
    return _result(out, result)


def _held_out_as(plan: Plan, model: Model) -> Plan:
    """Hold out the test objects of the model, which its generator was not trained on either."""
    known = model.split_of(plan.table, identity.radius_of(plan.stores))
    default = np.where(plan.table["target"].notna(), "train", "")
    split = roles.with_fixed_split(pd.Series(np.where(known == "", default, known), plan.table.index))
    table = plan.table.assign(split=split)
    for value, name in ((1, "positives"), (0, "negatives")):
        if not ((table["split"] == "test") & (table["target"] == value)).any():
            raise InputError(
                f"the stores hold no {name} of the test set of the model {model.path}; "
                "name the stores it was trained on with --store"
            )
    return dataclasses.replace(plan, table=table)


def _check(plan: Plan, store: layout.Store) -> None:
    if "target" not in store.attrs["truth"] or not renamed(store.attrs["provenance"]).get("synthetic"):
        raise InputError(
            f"{store.path} holds no synthetic galaxies; name a store that galscan generate or train-rare wrote"
        )
    if not (store.column("truth/target") == 1).any():
        raise InputError(f"{store.path} holds no synthetic positives; make some with: galscan generate")
    if plan.schema.name not in store.schemas:
        raise InputError(
            f"{store.path} has {', '.join(store.schemas)} labels, the real galaxies have '{plan.schema.name}' labels; "
            "name the stores that its hosts come from with --store"
        )
    if store.size != plan.recipe.size:
        raise InputError(
            f"{store.path} holds synthetic images of {store.size} px, the recipe trains at {plan.recipe.size} px; "
            f"generate them with a model of {plan.recipe.size} px, or use a recipe with size = {store.size}"
        )


def _describe(plan: Plan, store: layout.Store, model: Model | None, steps: int) -> str:
    counts = plan.table.groupby("split")["target"].agg(lambda t: f"{(t == 1).sum():,} and {(t == 0).sum():,}")
    lines = [f"galaxies     {store.count:,} of '{plan.recipe.name}', synthetic ones and hosts ({store.path})"]
    lines += [
        f"store        {s.name}: {s.count:,} objects, {pixels_text(s.size, plan.recipe.size)} ({s.path})"
        for s in plan.stores
    ]
    split = f"as in the model {model.path}" if model else f"by seed {plan.seed}"
    lines += [
        f"held out     {counts['test']} positives and negatives, {split}",
        f"reference    one classifier, {steps:,} steps on all other labelled galaxies, real ones only",
        f"output       {plan.out}",
    ]
    return "\n".join(lines)


def _evaluate(plan: Plan, store: layout.Store, work: Path, device: Device, steps: int, seed: int) -> dict[str, Any]:
    from galscan.reports import evaluation
    from galscan.synthesis import evaluation as synthetic_evaluation
    from galscan.synthesis.synthetic_set import read_synthetic_set
    from galscan.training.dataset import load_galaxies

    started = time.monotonic()
    # With unlabelled galaxies: a generator is trained on these, too, and may have copied one.
    galaxies = load_galaxies(
        plan.stores, plan.table, plan.schema.names, plan.recipe.size, seed=plan.seed, unlabelled=True
    )
    tested = set(galaxies.table.loc[galaxies.table["split"] == "test", "object"])
    reference = np.flatnonzero(galaxies.table["object"].isin(tested))
    classifier = _reference_classifier(plan, galaxies, reference, work, device, steps, seed)
    synthetic_set = read_synthetic_set(store.path, plan.schema.name)
    labels = synthetic_set.labels.reindex(columns=plan.schema.names)  # the schema may have gained some since
    synthetic_set = dataclasses.replace(synthetic_set, labels=labels)
    result = synthetic_evaluation.evaluate(
        synthetic_set, galaxies.images, galaxies.labels, galaxies.table["target"].to_numpy(), classifier, plan.rules,
        plan.schema, reference=reference, seed=seed,
    )  # fmt: skip
    feature, values = _feature(plan, synthetic_set, galaxies)
    result |= {"feature": feature, "target": plan.recipe.name, "seconds": round(time.monotonic() - started, 1)}
    result["weights"] = {"reference": file_digest(work / "reference.safetensors")}
    each = pd.DataFrame(result.pop("each"))
    nearest, rows = galaxies.table.iloc[each["nearest"]], each["row"].to_numpy()
    table = each.assign(
        synthetic=store.column("id")[rows], target=synthetic_set.target[rows].astype(int),
        store=nearest["store"].to_numpy(), id=nearest["id"].to_numpy(),
    )  # fmt: skip
    write_text(
        work / "synthetic.csv", table[["synthetic", "target", "reason", "store", "id", "distance"]].to_csv(index=False)
    )
    evaluation.write_evaluation_report(work / "report.html", result, each, synthetic_set, galaxies, plan, values)
    return result


def _feature(
    plan: Plan, synthetic_set: SyntheticSet, galaxies: Galaxies
) -> tuple[dict[str, Any] | None, dict[str, pd.DataFrame]]:
    """Measure the injected feature on synthetic and real positives; return the comparison and the values."""
    from galscan.synthesis.features.base import find_feature
    from galscan.synthesis.features.comparison import compare_features, identical_images, measure_features
    from galscan.synthesis.flux import stretch_of
    from galscan.synthesis.synthetic_set import HOST, INJECTED
    from galscan.training.synthetic import bands_of

    rule = plan.rules.inject
    positive = np.flatnonzero((synthetic_set.origin == INJECTED) & (synthetic_set.target == 1))
    if rule is None or not len(positive) or not find_feature(rule.feature).CONDITIONS:
        return None, {}
    stretches = [stretch_of(s.attrs.get("provenance", {}), str(s.path)) for s in plan.stores]
    bands, survey = [bands_of(s) for s in plan.stores], galaxies.table["survey"].to_numpy()
    # A synthetic galaxy has the stretch and the bands of its host's store; if that is not named, of the first store.
    host = np.flatnonzero(synthetic_set.origin == HOST)
    known = np.full(len(synthetic_set) + 1, -1)
    known[host] = identical_images(synthetic_set.images[host], galaxies.images)
    of_host = np.append(survey, 0)[known]
    real = np.flatnonzero(galaxies.table["target"] == 1)
    values = {
        which: measure_features(rule.feature, images, of, stretches, bands)
        for which, images, of in (
            ("synthetic", synthetic_set.images[positive], of_host[synthetic_set.host[positive]]),
            ("real", galaxies.images[real], survey[real]),
            ("hosts", synthetic_set.images[host], of_host[host]),
        )
    }
    return {"name": rule.feature, **compare_features(**values)}, values


def _reference_classifier(
    plan: Plan, galaxies: Galaxies, reference: np.ndarray, work: Path, device: Device, steps: int, seed: int
) -> ReferenceClassifier:
    """Train the reference classifier on all labelled galaxies that are not held out, or load it if it is trained."""
    from galscan.models.weights import load_network, save_network
    from galscan.synthesis.evaluation import ReferenceClassifier
    from galscan.training.train import Examples, train_classifier

    if not (work / "reference.safetensors").is_file():
        labelled = np.flatnonzero(galaxies.labels.notna().any(axis=1))
        rows = np.setdiff1d(labelled, reference)
        # The reference does not depend on the recipe's sampling, loss and encoder, so that evaluations are comparable.
        settings = plan.recipe.classifier
        settings = settings.model_copy(
            update={"sampling": "oversampled", "loss": "plain", "encoder": ""}
            | {"morphology_weight": settings.morphology_weight or 0.5}
        )
        examples = Examples.from_labels(
            galaxies.images[rows], galaxies.table["target"].to_numpy()[rows],
            galaxies.labels_and_votes(plan.schema).iloc[rows], plan.answers, plan.schema,
        )  # fmt: skip
        label = "train reference classifier"
        network = train_classifier(
            examples, None, settings, steps=steps, seed=seed * 1000 + 777, device=device, label=label
        )
        save_network(network, work / "reference.safetensors")
    return ReferenceClassifier(load_network(work / "reference.safetensors"), plan.answers, plan.schema, device)


def _result(out: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    from galscan.reports import evaluation

    return {"out": str(out), **result, "text": f"{evaluation.summary(result)}\nreport  {out / 'report.html'}"}
