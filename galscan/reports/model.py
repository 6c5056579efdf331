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

MAP_SOURCES = {
    "prior": "from the prior", "diffusion": "from the diffusion model",
    "both": "from the prior and the diffusion model", "measured": "like the measured ones",
}  # fmt: skip


def write_model_report(model: str | Path) -> Path:
    """Write ``report.html`` into a model folder."""
    opened = open_model(model)
    info, metrics = opened.info, opened.metrics
    path, test, crossfitted = opened.path, metrics.get("test") or {}, metrics.get("crossfit")
    sheet, gain = existing(path / "synthetic.png"), metrics.get("gain")
    names = {"real_only": "real galaxies only", "real_plus_synthetic": "real and synthetic galaxies"}
    rows = [
        {
            "name": name, "value": number(entry.get("ap_mean")), "chosen": metrics.get("chosen") == key,
            "interval": f"{number(entry.get('ap_lo'))} to {number(entry.get('ap_hi'))}",
            "each": "  ".join(number(ap) for ap in entry.get("ap", [])),
        }
        for key, name in names.items() if (entry := metrics.get(key))
    ]  # fmt: skip
    if gain:
        mean, low, high = (number(gain.get(key), sign=True) for key in ("mean", "lo", "hi"))
        gain_row = {"name": "gain by synthetic galaxies", "value": mean, "interval": f"{low} to {high}"}
        rows.append(gain_row | {"chosen": False, "each": ""})
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


# Text


def _model_sentence(metrics: Mapping[str, Any], gain: Mapping[str, float] | None) -> str:
    chosen = metrics.get(metrics.get("chosen") or "") or {}
    sample = "out-of-fold, on real galaxies" if metrics.get("crossfit") else "on held-out real galaxies"
    head = f"Average precision {number(chosen.get('ap_mean'))} {sample}" if chosen else "No test metrics were recorded"
    if not gain or gain.get("mean") is None:
        return head + ("; trained on real galaxies only." if chosen else ".")
    low, high = gain.get("lo", -math.inf), gain.get("hi", math.inf)
    effect = "the effect of synthetic galaxies is not significant"
    if low > 0 or high < 0:
        effect = f"synthetic galaxies {'improve' if low > 0 else 'reduce'} it"
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
            f"without labels), maps {MAP_SOURCES[counts['maps']]} ({counts['measured_maps']:,} measured on "
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
    questions = [entry.get("questions", [{"answers": entry.get("answers")}]) for entry in results.values()]
    votes = "id" in questions[0][0]
    measures = {"completeness": "completeness", "purity": "purity"} if votes else {"error": "mean error"}
    by_name = [{a["name"]: a for question in entry for a in question["answers"]} for entry in questions]

    def cells(name: str) -> list[str]:
        return [number(answers[name][measure]) for answers in by_name for measure in measures]

    return {
        "heads": [f"{title}, {names[key]}" for key in results for title in measures.values()],
        "groups": [
            (
                _question(question) if votes else "",
                [(a["title"], count(a["n"]), cells(a["name"])) for a in question["answers"]],
            )
            for question in questions[0]
        ],
        "votes": votes,
    }


def _question(entry: Mapping[str, Any]) -> str:
    """Return the title of a question with its sample size, accuracy and interval coverage."""
    if not entry["n"]:
        return f"{entry['title']} (no galaxies)"
    coverage = entry["coverage"]
    votes = "" if coverage is None else f"; {coverage:.0%} of the votes within their 90 % intervals"
    return f"{entry['title']} ({entry['n']:,} galaxies, accuracy {entry['accuracy']:.0%}{votes})"
