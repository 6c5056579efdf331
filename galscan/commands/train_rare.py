"""``galscan train-rare``: train and calibrate a classifier of a rare class on labelled galaxies.

The stages (`galscan.training.pipeline`) write to ``MODEL.partial``, and the same command resumes an interrupted
training. The folder is renamed to ``MODEL`` at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from galscan.core.files import write_json
from galscan.core.staging import finished, publish, staging_folder
from galscan.training.plan import make_plans
from galscan.vetting.labels import read_all

if TYPE_CHECKING:
    from galscan.models.model import Model


def train_rare(
    target: str | Sequence[str],
    *,
    survey: str | Sequence[str] = (),
    store: str | Path | Sequence[str | Path] = (),
    grades: str | Path | Sequence[str | Path] = (),
    out: str | Path | None = None,
    budget: float | None = None,
    synthetic: bool = True,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Model | list[Model] | None:
    """Train a classifier for `target` on real and synthetic galaxies; calibrate and evaluate it on real ones.

    By default by cross-fitting: every labelled galaxy trains all networks but one, and the score of that one calibrates
    and tests (`galscan.stats.crossfit`). A recipe may set a fixed split into training, calibration and test instead.
    With several targets the same networks are trained on all of them, with one score each: one scan for all targets
    takes hardly longer than a scan for one. Each target has its own model folder in `out`.

    Parameters
    ----------
    target : str or sequence of str
        Name of a shipped recipe, or path of a recipe (``.toml``); or several.
    survey, store : str or path, or sequence of them
        Surveys in the data home by name, stores by path; default all surveys in the data home.
    grades : path or sequence of paths
        Finished scans for this target with graded objects (`galscan.vet`). Graded objects are added to the training
        set, never to calibration or test (`galscan.training.graded_labels`).
    out : path, optional
        The model's folder; default ``models/TARGET`` in the data home.
    budget : float, optional
        Minutes that training may take; the number of steps is reduced to fit. Default: the recipe's number of steps.
    synthetic : bool
        False trains on real galaxies only.
    device : {"auto", "cpu", "cuda"}
    seed : int
        Seed of the split, the networks and the synthetic galaxies.
    overwrite : bool
        Replace a different model in `out`.
    dry_run : bool
        Print the plan, train nothing and return None.

    Returns
    -------
    Model, or list of Model
        The model, as returned by `galscan.open`; one per target where there are several.

    Raises
    ------
    InputError
        If recipe, labels, stores and options do not fit together, or there are too few examples.
    ConflictError
        If `out` holds a different model.
    Interrupted
        On Ctrl-C; the same call resumes.
    """
    from galscan.models.model import MODELS_INDEX, open_models

    names = [target] if isinstance(target, str) else list(target)
    plans = make_plans(names, survey, store, out, budget, synthetic, seed, read_all(grades) if grades else ())
    print("\n\n".join(plan.describe() for plan in plans), file=sys.stderr)
    for plan in plans if synthetic else ():
        if not dry_run or plan.recipe.generator.kind != "stable-diffusion":  # its weights may need a download
            from galscan.training import pipeline

            pipeline.check(plan)
    if dry_run:
        return None
    from galscan.core import device as devices
    from galscan.reports.model import write_model_report
    from galscan.training import pipeline

    torch_device, several = devices.pick(device), len(plans) > 1
    folder, marker = (plans[0].out.parent, MODELS_INDEX) if several else (plans[0].out, "model.json")
    request = {plan.recipe.name: plan.request for plan in plans} if several else plans[0].request
    if finished(folder, marker, request, "model", overwrite=overwrite) is None:
        with (
            staging_folder(folder, request, "training", overwrite=overwrite) as work,
            devices.recorded_training_dtype(work, torch_device),
        ):
            for model in pipeline.run(plans, work, torch_device):
                write_model_report(model.path)
            if several:
                write_json(work / MODELS_INDEX, {"targets": [plan.recipe.name for plan in plans], "request": request})
            publish(work, folder)
        # Last: an interruption before this point needs these files to resume.
        pipeline.remove_leftovers(folder, None if several else model.metrics["chosen"])
    models = open_models(folder)
    return models if several else models[0]
