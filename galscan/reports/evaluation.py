"""Report page of an evaluation of synthetic galaxies, and its tables as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from galscan.core.files import write_text
from galscan.reports import plots_evaluation
from galscan.reports.page import duration, render
from galscan.synthesis.galaxies import MEASURED
from galscan.training.plan import Plan

if TYPE_CHECKING:
    from galscan.synthesis.synthetic_set import SyntheticSet
    from galscan.training.dataset import Galaxies


class Group(NamedTuple):
    """A table with a title, a note, column heads, and rows of a name and one cell per column."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def write_evaluation_report(
    path: Path,
    result: Mapping[str, Any],
    each: pd.DataFrame,
    synthetic_set: SyntheticSet,
    galaxies: Galaxies,
    plan: Plan,
    features: Mapping[str, pd.DataFrame],
) -> None:
    """Write the page of an evaluation to `path`.

    `result` is the content of ``evaluation.json``, and `each` the table of `galscan.synthesis.evaluation.evaluate`; its
    ``nearest`` are rows of the real `galaxies` of `plan`. `features` has the measurements of the injected feature on
    ``synthetic`` and on ``real`` positives; it is empty where none was injected.
    """
    train = ~galaxies.table["split"].isin(["test"]).to_numpy()
    positive = (galaxies.table["target"] == 1).to_numpy()
    real, counts, rules = np.flatnonzero(train & positive), result["counts"], plan.rules
    conditions = (
        rules.inject.values if counts["origin"]["injected"] and rules.inject is not None else rules.synthetic.set
    )
    synthetic = synthetic_set.images[synthetic_set.synthetic & (synthetic_set.target == 1)]
    figures = [
        plots_evaluation.features(features, result["feature"]) if result["feature"] else None,
        plots_evaluation.profiles(result["light"]["positive"]),
        plots_evaluation.histograms(synthetic, galaxies.images[real]),
        plots_evaluation.adherence(result["adherence"]["answers"]),
    ]
    page = render(
        "evaluation.html.j2",
        kind="evaluation",
        title=f"galscan: synthetic galaxies of {plan.recipe.name}",
        target=plan.recipe.title,
        sentence=_sentence(result),
        facts=[
            *(
                (f"{text}: positive, negative", f"{counts[which]['positive']:,}, {counts[which]['negative']:,}")
                for text, which in (("synthetic", "synthetic"), ("real, held out", "real"), ("training", "training"))
            ),
            ("training: total", f"{counts['training']['all']:,}"),
            *([("hosts", f"{counts['hosts']['all']:,}")] if counts["hosts"]["all"] else []),
            ("labels", plan.schema.name),
            ("time", duration(result["seconds"])),
        ],
        groups=[group._asdict() for group in _groups(result)],
        quiz=plots_evaluation.quiz(synthetic_set, galaxies.images, np.flatnonzero(positive)),
        pictures=plots_evaluation.pictures(synthetic_set, each, galaxies.images, real, list(conditions)[:1]),
        figures=[figure for figure in figures if figure],
        provenance=[
            ("recipe", plan.recipe.hash),
            ("reference classifier", result["weights"]["reference"]),
            *((f"store {s.name}", s.content_hash) for s in plan.stores),
        ],
    )
    write_text(path, page)


def summary(result: Mapping[str, Any]) -> str:
    """Return the headline and the tables as text."""
    groups = _groups(result)
    width = max(len(name) for group in groups for name, *_ in group.rows)
    lines = [_sentence(result)]
    for group in groups:
        lines += [f"{group.title:<{width + 2}}" + "".join(f"{column.lower():>28}" for column in group.columns)]
        lines += [f"  {name:<{width}}" + "".join(f"{cell:>28}" for cell in cells) for name, *cells in group.rows]
    return "\n".join(lines)


def _sentence(result: Mapping[str, Any]) -> str:
    accepted, copies = result["acceptance"], result["copies"]["pixels"]["synthetic"]["below_p1"]
    synthetic, real, hosts = (accepted[which]["at_zero"] for which in ("synthetic", "real", "hosts"))
    text = (
        f"The reference classifier accepts {_percent(synthetic['fraction'])} of {synthetic['n']:,} synthetic "
        f"positives and {_percent(real['fraction'])} of {real['n']:,} held-out real positives"
    )
    if hosts["n"]:
        text += f"; it accepts {_percent(hosts['fraction'])} of the {hosts['n']:,} unchanged hosts"
    if copies["n"]:
        text += f"; {copies['count']:,} of {copies['n']:,} whole images are near copies of a training image"
    return f"{text}."


def _groups(result: Mapping[str, Any]) -> list[Group]:
    """Return the metrics as tables."""
    values = {
        "d": result["fidelity"]["dimensions"]["kid"], "axes": result["fidelity"]["dimensions"]["fid"],
        **result["counts"]["training"],
    }  # fmt: skip
    groups = [_acceptance(result)]
    if result["feature"]:
        groups.append(_feature(result["feature"]))
    whole_images = result["counts"]["origin"]["generated"]
    for title, note, figures in TABLES:
        if figures[0][1].startswith("copies/") and not whole_images:
            continue
        rows: list[tuple[str, ...]] = []
        for name, path, shown in figures:
            for kind in ("positive", "negative") if "{kind}" in path else ("",):
                cells = (shown(_at(result, path.format(which=w, kind=kind))) for w in ("synthetic", "real"))
                rows.append((f"{kind}s, {name}" if kind else name, *cells))
        groups.append(Group(title, note.format(**values), ("Synthetic", "Real, held out"), rows))
    return groups


def _acceptance(result: Mapping[str, Any]) -> Group:
    accepted, hosts = result["acceptance"], result["counts"]["hosts"]
    sets = ["synthetic", "real"] + (["hosts"] if hosts["all"] else [])
    note = (
        "Fractions with 95 % intervals. The reference classifier was trained on real galaxies only. At the median "
        "logit of the real positives half of these are accepted, whatever its calibration."
    )
    if hosts["all"]:
        note += (
            f" Hosts should be rejected. The classifier was trained on {hosts['trained_on']:,} of the {hosts['all']:,} "
            "hosts as real galaxies, most of them negatives: it may reject galaxies injected into these too often."
        )
    rows = [
        (name, *(_fraction(accepted[which][key]) for which in sets))
        for name, key in (("positives, logit above 0", "at_zero"), ("positives, at the real ones' median", "at_median"))
    ]
    columns = ("Synthetic", "Real, held out", "Unchanged hosts")[: len(sets)]
    return Group("Does the reference classifier accept them?", note, columns, rows)


def _feature(feature: Mapping[str, Any]) -> Group:
    galaxies = feature["galaxies"]
    rows = [
        (
            "feature measured, of galaxies",
            *(f"{galaxies[w]['feature_measured']:,} of {galaxies[w]['n']:,}" for w in ("synthetic", "real")),
            "",
        )
    ]
    for name, entry in feature["quantities"].items():
        ks = "–" if entry["ks"] is None else f"{entry['ks']:.2f} (p = {entry['p']:.2g})"
        cells = (_range(entry[which]) for which in ("synthetic", "real"))
        rows.append((plots_evaluation.QUANTITIES.get(name, name), *cells, ks))
    note = (
        f"The feature '{feature['name']}', measured in the same way on synthetic and on all labelled real positives: "
        "medians, and the ranges that hold two thirds. The distance is the Kolmogorov-Smirnov statistic: 0 for equal "
        "distributions, 1 for distributions that do not overlap."
    )
    if galaxies["hosts"]["n"]:
        note += (
            f" False detections: a feature is measured on {galaxies['hosts']['feature_measured']:,} of "
            f"{galaxies['hosts']['n']:,} unchanged hosts."
        )
    columns = ("Synthetic", "Real, all labelled", "Distance")
    return Group("Are depth, shape and colour those of real ones?", note, columns, rows)


def _at(value: Any, path: str) -> Any:
    """Return the value at `path`, or None where a level is None because there were too few galaxies."""
    for key in path.split("/"):
        value = value and value[key]
    return value


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{fraction:.0%}"


def _fraction(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["fraction"] is None:
        return "–"
    return f"{entry['fraction']:.1%} ({entry['low']:.1%} to {entry['high']:.1%})"


def _range(entry: Mapping[str, Any]) -> str:
    if entry["median"] is None:
        return "–"
    return f"{entry['median']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})".replace("-", "−")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _spread(entry: Mapping[str, float] | None) -> str:
    return "–" if entry is None else f"{entry['mean']:.3f} ± {entry['std']:.3f}"


Figure = tuple[str, str, Callable[[Any], str]]  # name, path in the result, format
TABLES: tuple[tuple[str, str, tuple[Figure, ...]], ...] = (
    (
        "Are they of the class?",
        "Fractions with 95 % intervals, by the predictions of the reference classifier.",
        (
            ("in the class, by answers", "adherence/{which}_{kind}/in_class_by_answers", _fraction),
            ("in the class, by target score", "adherence/{which}_{kind}/in_class_by_target", _fraction),
            ("mean probability", "adherence/{which}_{kind}/probability", _figure),
        ),
    ),
    (
        "Are they similar to real ones, and as varied?",
        "Compared with {positive:,} positives and {negative:,} negatives of the training set of the reference "
        "classifier, in its {d} features. KID is the main metric: 0 for equal sets, whatever the sample size. FID (on "
        "{axes} principal axes, only for more galaxies than that), density and coverage are computed on samples of "
        "equal size. Synthetic negatives are hard ones by design, more frequent than in any survey.",
        (
            ("KID", "fidelity/{kind}/{which}/kid", _figure),
            ("KID, scatter over subsets", "fidelity/{kind}/{which}/kid_std", _figure),
            ("FID", "fidelity/{kind}/{which}/fid", _figure),
            ("density", "diversity/{kind}/{which}/density", _figure),
            ("coverage", "diversity/{kind}/{which}/coverage", _figure),
            ("compared", "diversity/{kind}/{which}/n", _figure),
        ),
    ),
    (
        "Are they copies?",
        "Whole images only. A copy is an image nearer to a training galaxy than the 1st percentile of the distances "
        "between training galaxies, so about 1 % are copies by chance. The smallest distance is in units of that "
        "percentile.",
        (
            ("copies, by pixels", "copies/pixels/{which}/below_p1", _fraction),
            ("smallest distance, by pixels", "copies/pixels/{which}/min_ratio", _figure),
            ("copies, by features", "copies/features/{which}/below_p1", _fraction),
            ("smallest distance, by features", "copies/features/{which}/min_ratio", _figure),
        ),
    ),
    (
        "Do brightness and profile match?",
        "Profile: the largest difference of the mean radial profile from that of training galaxies, in units of their "
        "scatter. The other values are means and standard deviations of measurements on the images.",
        (
            ("profile difference", "light/{kind}/{which}/max_deviation", _figure),
            *((name.removeprefix("image_"), f"light/{{kind}}/{{which}}/measured/{name}", _spread) for name in MEASURED),
        ),
    ),
    (
        "How many would be dropped?",
        "Clear failures only, by the filter applied before training.",
        (
            ("galaxies", "filter/{which}/n", _figure),
            ("kept", "filter/{which}/kept", _figure),
            *(
                (reason, f"filter/{{which}}/dropped/{reason}", _figure)
                for reason in ("copy", "unlike any galaxy", "not the class", "looks positive")
            ),
        ),
    ),
)
