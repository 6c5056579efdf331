"""The page of a model: what it learnt, and how well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from galscan.core import thumbnails
from galscan.core.files import write_text
from galscan.models.model import open_model
from galscan.reports import plots
from galscan.reports.page import count, duration, number, render
from galscan.stats import crossfit


def write_model_report(model: str | Path) -> Path:
    """Write ``report.html`` into a model folder (also one that is still being written).

    Raises
    ------
    NotFoundError
        If there is no model.
    InputError
        If it cannot be read.
    """
    bundle = open_model(model)
    info, metrics = bundle.info, bundle.metrics
    path, test, crossfitted = bundle.path, metrics.get("test") or {}, metrics.get("crossfit")
    rows, names = [], {"real_only": "real galaxies only", "real_plus_dreamt": "real and synthetic galaxies"}
    for key, name in names.items():
        if entry := metrics.get(key):
            rows.append(
                {
                    "name": name,
                    "value": number(entry.get("ap_mean")),
                    "chosen": metrics.get("chosen") == key,
                    "interval": f"{number(entry.get('ap_lo'))} to {number(entry.get('ap_hi'))}",
                    "each": "  ".join(number(ap) for ap in entry.get("ap", [])),
                }
            )
    gain = metrics.get("gain")
    if gain:
        rows.append(
            {
                "name": "gain by synthetic galaxies",
                "value": number(gain.get("mean"), sign=True),
                "chosen": False,
                "each": "",
                "interval": f"{number(gain.get('lo'), sign=True)} to {number(gain.get('hi'), sign=True)}",
            }
        )
    told = ""
    if test:
        told = (
            f"Measured on {test.get('positives', 0):,} targets, {test.get('negatives', 0):,} negatives and "
            f"{test.get('ambiguous', 0):,} ambiguous ones, which count as no targets: real objects "
            + ("and their out-of-fold scores" if crossfitted else "that neither trained nor calibrated")
            + f"; targets are {test.get('prevalence', math.nan):.1%} of them, "
            "which is what a ranking at random would score."
        )
    figures = [p for p in (plots.precision_recall(metrics, names), plots.calibration(bundle)) if p]
    counts = info.get("splits") or {}
    page = render(
        "model.html.j2",
        kind="model",
        title=f"galscan: model for {bundle.target}",
        target=bundle.recipe.title or bundle.target,
        sentence=_model_sentence(metrics, gain),
        science=bundle.recipe.science,
        facts=[
            ("labels", bundle.schema),
            ("networks", bundle.members),
            ("cutouts", f"{bundle.size} px"),
            ("seed", bundle.seed),
            ("calibration", f"{int(bundle.calibration.targets.sum()):,} of {len(bundle.calibration.targets):,}"),
            ("time", duration(metrics.get("seconds"))),
        ],
        rows=rows,
        test=told,
        figures=figures,
        dreams=thumbnails.data_uri((path / "dreams.png").read_bytes()) if (path / "dreams.png").is_file() else "",
        screened=_screened(metrics.get("dreams"), bundle.folds),
        delivered=metrics.get("delivery_rule", ""),
        unseen="by the network that was not trained on the galaxy"
        if crossfitted
        else "of galaxies that trained nothing",
        morphology=_morphology(metrics.get("morphology"), names),
        crossfit=crossfit.describe(crossfitted),
        splits=[(name, count(c.get("positive")), count(c.get("negative"))) for name, c in counts.items()],
        graded=[
            f"{Path(g['run']).name}: {g['positive']:,} targets and {g['negative']:,} others, of {g['graded']:,} graded;"
            f" {g['agreed']:,} agree with the labels, {g['contradicted']:,} contradict them"
            for g in info.get("grades", [])
        ],
        provenance=[
            ("model", bundle.model_hash),
            ("recipe", bundle.recipe.hash),
            *([("encoder", encoder)] if (encoder := bundle.recipe.classifier.network) else []),
            *((f"grades of {Path(g['run']).name}", g["sha256"]) for g in info.get("grades", [])),
            *((f"weights {n}", h) for n, h in info.get("weights", {}).items()),
            *((name, version) for name, version in (info.get("versions") or {}).items()),
            ("morphology", ", ".join(bundle.answers)),
        ],
        recipe=bundle.recipe.text,
    )
    write_text(path / "report.html", page)
    return path / "report.html"


MAP_SOURCES = {"prior": "prior", "diffusion": "diffusion model", "both": "prior and the diffusion model"}
# What is said in words


def _model_sentence(metrics: Mapping[str, Any], gain: Mapping[str, float] | None) -> str:
    chosen = metrics.get(metrics.get("chosen") or "") or {}
    where = "out-of-fold, on real galaxies" if metrics.get("crossfit") else "on held-out real galaxies"
    head = f"Average precision {number(chosen.get('ap_mean'))} {where}" if chosen else "No test figures were recorded"
    if not gain or gain.get("mean") is None:
        return head + ("; trained on real galaxies alone." if chosen else ".")
    low, high = gain.get("lo", -math.inf), gain.get("hi", math.inf)
    effect = (
        "synthetic galaxies helped"
        if low > 0
        else "synthetic galaxies did harm"
        if high < 0
        else "whether synthetic galaxies helped is not certain"
    )
    mean, low_text, high_text = (number(value, sign=True) for value in (gain["mean"], low, high))
    return f"{head}; {effect} ({mean}, {low_text} to {high_text})."


def _screened(dreams: Mapping[str, Any] | None, folds: int) -> str:
    """Say of what the synthetic training set was made, and what was left out of it."""
    if not dreams or "dropped" not in dreams:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dreams["dropped"].items())
    text = f"{dreams['kept']:,} synthetic galaxies were used, {dreams['kept_positive']:,} of them targets"
    if folds:
        text += ", for the first network; each other one had a set of its own, as none is made of galaxies of its fold"
    if "hosts" in dreams:
        text += (
            f". Features were injected into {dreams['hosts']:,} real galaxies ({dreams['hosts_unlabelled']:,} of them "
            f"without labels), maps from the {MAP_SOURCES[dreams['maps']]} ({dreams['measured_maps']:,} measured on "
            f"training galaxies); {dreams['too_faint']:,} were too faint for a target and are negatives, "
            f"{dreams['invisible']:,} could not be seen and were left out, "
            f"{dreams['hosts_not_measured']:,} hosts could not be measured"
        )
    return f"{text}; dropped: {reasons}." if reasons else f"{text}."


def _morphology(told: Mapping[str, Any] | None, names: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the heads and rows of a table: how well each answer is known, by each way to train."""
    ways = {key: entry for key in names if (entry := (told or {}).get(key))}
    if not ways:
        return None
    first = next(iter(ways.values()))
    if "questions" not in first:
        measures, groups = {"error": "mean error"}, [("", first["answers"])]
        answers = {key: entry["answers"] for key, entry in ways.items()}
    else:
        measures = {"completeness": "completeness", "purity": "purity"}
        groups = [(_question(q), q["answers"]) for q in first["questions"]]
        answers = {key: [a for q in entry["questions"] for a in q["answers"]] for key, entry in ways.items()}
    by_name = {key: {a["name"]: a for a in each} for key, each in answers.items()}
    return {
        "heads": [f"{words}, {names[key]}" for key in ways for words in measures.values()],
        "groups": [
            (
                title,
                [
                    (a["title"], count(a["n"]), [number(by_name[k][a["name"]][m]) for k in ways for m in measures])
                    for a in group
                ],
            )
            for title, group in groups
        ],
        "votes": "questions" in first,
    }


def _question(told: Mapping[str, Any]) -> str:
    """Return a question with what is known of it as a whole."""
    if not told["n"]:
        return f"{told['title']} (asked of none)"
    held = "" if told["coverage"] is None else f"; {told['coverage']:.0%} of the votes within their 90 % intervals"
    return f"{told['title']} ({told['n']:,} galaxies, {told['accuracy']:.0%} right{held})"
