"""Report page of a model: training set, metrics and calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from galscan.core import thumbnails
from galscan.core.files import write_text
from galscan.core.old_names import existing
from galscan.models.model import open_model
from galscan.reports import plots
from galscan.reports.page import count, duration, number, render
from galscan.stats import crossfit


def write_model_report(model: str | Path) -> Path:
    """Write ``report.html`` into a model folder.

    Raises
    ------
    NotFoundError
        If `model` does not exist.
    InputError
        If it cannot be read.
    """
    opened = open_model(model)
    info, metrics = opened.info, opened.metrics
    path, test, crossfitted = opened.path, metrics.get("test") or {}, metrics.get("crossfit")
    sheet = existing(path / "synthetic.png")
    rows, names = [], {"real_only": "real galaxies only", "real_plus_synthetic": "real and synthetic galaxies"}
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
    test_text = ""
    if test:
        test_text = (
            f"Measured on {test.get('positives', 0):,} targets, {test.get('negatives', 0):,} negatives and "
            f"{test.get('ambiguous', 0):,} ambiguous objects, which count as negatives: real objects, "
            + ("by their out-of-fold scores" if crossfitted else "in neither training nor calibration set")
            + f". The fraction of targets is {test.get('prevalence', math.nan):.1%}, the average precision of a random "
            "ranking."
        )
    figures = [p for p in (plots.precision_recall(metrics, names), plots.calibration(opened)) if p]
    counts = info.get("splits") or {}
    page = render(
        "model.html.j2",
        kind="model",
        title=f"galscan: model for {opened.target}",
        target=opened.recipe.title or opened.target,
        sentence=_model_sentence(metrics, gain),
        science=opened.recipe.science,
        facts=[
            ("labels", opened.schema.name),
            ("networks", opened.members),
            ("cutouts", f"{opened.size} px"),
            ("seed", opened.seed),
            ("calibration", f"{int(opened.calibration.targets.sum()):,} of {len(opened.calibration.targets):,}"),
            ("time", duration(metrics.get("seconds"))),
        ],
        rows=rows,
        test=test_text,
        figures=figures,
        sheet=thumbnails.data_uri(sheet.read_bytes()) if sheet.is_file() else "",
        synthetic=_synthetic(metrics.get("synthetic"), opened.folds),
        delivered=metrics.get("delivery_rule", ""),
        held_out="by the network that was not trained on the galaxy" if crossfitted else "on held-out galaxies",
        morphology=_morphology(metrics.get("morphology"), names),
        crossfit=crossfit.describe(crossfitted),
        splits=[(name, count(c.get("positive")), count(c.get("negative"))) for name, c in counts.items()],
        graded=[
            f"{Path(g['run']).name}: {g['positive']:,} targets and {g['negative']:,} negatives, of {g['graded']:,} "
            f"graded; {g['agreed']:,} agree with the labels, {g['contradicted']:,} contradict them"
            for g in info.get("grades", [])
        ],
        provenance=[
            ("model", opened.model_hash),
            ("recipe", opened.recipe.hash),
            *([("encoder", encoder)] if (encoder := opened.recipe.classifier.network) else []),
            *((f"grades of {Path(g['run']).name}", g["sha256"]) for g in info.get("grades", [])),
            *((f"weights {n}", h) for n, h in info.get("weights", {}).items()),
            *((name, version) for name, version in (info.get("versions") or {}).items()),
            ("morphology", ", ".join(opened.answers)),
        ],
        recipe=opened.recipe.text,
    )
    write_text(path / "report.html", page)
    return path / "report.html"


MAP_SOURCES = {"prior": "prior", "diffusion": "diffusion model", "both": "prior and the diffusion model"}
# Text


def _model_sentence(metrics: Mapping[str, Any], gain: Mapping[str, float] | None) -> str:
    chosen = metrics.get(metrics.get("chosen") or "") or {}
    sample = "out-of-fold, on real galaxies" if metrics.get("crossfit") else "on held-out real galaxies"
    head = f"Average precision {number(chosen.get('ap_mean'))} {sample}" if chosen else "No test metrics were recorded"
    if not gain or gain.get("mean") is None:
        return head + ("; trained on real galaxies only." if chosen else ".")
    low, high = gain.get("lo", -math.inf), gain.get("hi", math.inf)
    effect = (
        "synthetic galaxies improve it"
        if low > 0
        else "synthetic galaxies reduce it"
        if high < 0
        else "the effect of synthetic galaxies is not significant"
    )
    mean, low_text, high_text = (number(value, sign=True) for value in (gain["mean"], low, high))
    return f"{head}; {effect} ({mean}, {low_text} to {high_text})."


def _synthetic(counts: Mapping[str, Any] | None, folds: int) -> str:
    """Describe the synthetic training set and the galaxies dropped from it."""
    if not counts or "dropped" not in counts:
        return ""
    reasons = ", ".join(f"{dropped:,} {reason}" for reason, dropped in counts["dropped"].items())
    text = f"{counts['kept']:,} synthetic galaxies were used, {counts['kept_positive']:,} of them targets"
    if folds:
        text += ", for the first network; each network has its own set, made without galaxies of its fold"
    if "hosts" in counts:
        text += (
            f". Features were injected into {counts['hosts']:,} real galaxies ({counts['hosts_unlabelled']:,} of them "
            f"without labels), maps from the {MAP_SOURCES[counts['maps']]} ({counts['measured_maps']:,} measured on "
            f"training galaxies); {counts['too_faint']:,} were too faint for a target and are negatives, "
            f"{counts['invisible']:,} had no visible feature and were left out, "
            f"{counts['hosts_not_measured']:,} hosts could not be measured"
        )
    return f"{text}; dropped: {reasons}." if reasons else f"{text}."


def _morphology(metrics: Mapping[str, Any] | None, names: Mapping[str, str]) -> dict[str, Any] | None:
    """Return heads and rows of a table of the metrics of each answer, by training set."""
    results = {key: entry for key in names if (entry := (metrics or {}).get(key))}
    if not results:
        return None
    first = next(iter(results.values()))
    if "questions" not in first:
        measures, groups = {"error": "mean error"}, [("", first["answers"])]
        answers = {key: entry["answers"] for key, entry in results.items()}
    else:
        measures = {"completeness": "completeness", "purity": "purity"}
        groups = [(_question(q), q["answers"]) for q in first["questions"]]
        answers = {key: [a for q in entry["questions"] for a in q["answers"]] for key, entry in results.items()}
    by_name = {key: {a["name"]: a for a in each} for key, each in answers.items()}
    return {
        "heads": [f"{title}, {names[key]}" for key in results for title in measures.values()],
        "groups": [
            (
                title,
                [
                    (a["title"], count(a["n"]), [number(by_name[k][a["name"]][m]) for k in results for m in measures])
                    for a in group
                ],
            )
            for title, group in groups
        ],
        "votes": "questions" in first,
    }


def _question(entry: Mapping[str, Any]) -> str:
    """Return the title of a question with its sample size, accuracy and interval coverage."""
    if not entry["n"]:
        return f"{entry['title']} (no galaxies)"
    coverage = entry["coverage"]
    votes = "" if coverage is None else f"; {coverage:.0%} of the votes within their 90 % intervals"
    return f"{entry['title']} ({entry['n']:,} galaxies, accuracy {entry['accuracy']:.0%}{votes})"
