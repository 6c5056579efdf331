"""The page of evaluated synthetic galaxies, and its words and tables, which the command line prints as well."""

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
    """A table: what it is about, what it means, the heads of its columns, and rows of a name and a cell for each."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def write_evaluation_report(
    path: Path,
    verdict: Mapping[str, Any],
    each: pd.DataFrame,
    dreams: SyntheticSet,
    galaxies: Galaxies,
    plan: Plan,
    features: Mapping[str, pd.DataFrame],
) -> None:
    """Write the page of an evaluation to `path`.

    Parameters
    ----------
    verdict : mapping
        What `galscan.commands.evaluate.evaluate` keeps as ``evaluation.json``.
    each : DataFrame
        ``each`` of `galscan.synthesis.evaluation.evaluate`, one row for each synthetic galaxy; ``nearest`` are rows of
        `galaxies`.
    galaxies : Galaxies
        The real ones that `plan` names.
    features : mapping
        What was measured of the injected feature on ``synthetic`` and on ``real`` positives; empty where none was
        injected.
    """
    train = ~galaxies.table["split"].isin(["test"]).to_numpy()
    positive = (galaxies.table["target"] == 1).to_numpy()
    real, counts, rules = np.flatnonzero(train & positive), verdict["counts"], plan.rules
    conditions = (
        rules.inject.values if counts["origin"]["injected"] and rules.inject is not None else rules.synthetic.set
    )
    synthetic = dreams.images[dreams.synthetic & (dreams.target == 1)]
    figures = [
        plots_evaluation.features(features, verdict["feature"]) if verdict["feature"] else None,
        plots_evaluation.profiles(verdict["light"]["positive"]),
        plots_evaluation.histograms(synthetic, galaxies.images[real]),
        plots_evaluation.adherence(verdict["adherence"]["answers"]),
    ]
    page = render(
        "evaluation.html.j2",
        kind="evaluation",
        title=f"galscan: synthetic galaxies of {plan.recipe.name}",
        target=plan.recipe.title,
        sentence=_sentence(verdict),
        facts=[
            *(
                (f"{words}: positive, negative", f"{counts[which]['positive']:,}, {counts[which]['negative']:,}")
                for words, which in (("synthetic", "synthetic"), ("real, held out", "real"), ("training", "training"))
            ),
            ("training: in all", f"{counts['training']['all']:,}"),
            *([("hosts", f"{counts['hosts']['all']:,}")] if counts["hosts"]["all"] else []),
            ("labels", plan.schema.name),
            ("time", duration(verdict["seconds"])),
        ],
        groups=[group._asdict() for group in _groups(verdict)],
        quiz=plots_evaluation.quiz(dreams, galaxies.images, np.flatnonzero(positive)),
        pictures=plots_evaluation.pictures(dreams, each, galaxies.images, real, list(conditions)[:1]),
        figures=[figure for figure in figures if figure],
        provenance=[
            ("recipe", plan.recipe.hash),
            ("reference classifier", verdict["weights"]["reference"]),
            *((f"store {s.name}", s.content_hash) for s in plan.stores),
        ],
    )
    write_text(path, page)


def summary(verdict: Mapping[str, Any]) -> str:
    """Return an evaluation for people: a sentence and the tables."""
    groups = _groups(verdict)
    width = max(len(name) for group in groups for name, *_ in group.rows)
    lines = [_sentence(verdict)]
    for group in groups:
        lines += [f"{group.title:<{width + 2}}" + "".join(f"{column.lower():>28}" for column in group.columns)]
        lines += [f"  {name:<{width}}" + "".join(f"{cell:>28}" for cell in cells) for name, *cells in group.rows]
    return "\n".join(lines)


def _sentence(verdict: Mapping[str, Any]) -> str:
    accepted, copies = verdict["acceptance"], verdict["copies"]["pixels"]["synthetic"]["below_p1"]
    synthetic, real, hosts = (accepted[which]["at_zero"] for which in ("synthetic", "real", "hosts"))
    text = (
        f"The reference classifier accepts {_percent(synthetic['fraction'])} of {synthetic['n']:,} synthetic "
        f"positives, and {_percent(real['fraction'])} of {real['n']:,} real ones held out"
    )
    if hosts["n"]:
        text += f"; of the {hosts['n']:,} hosts as they are {_percent(hosts['fraction'])}"
    if copies["n"]:
        text += f"; {copies['count']:,} of {copies['n']:,} drawn whole are nearly copies of a training picture"
    return f"{text}."


def _groups(verdict: Mapping[str, Any]) -> list[Group]:
    """Return the figures in groups."""
    values = {
        "d": verdict["fidelity"]["dimensions"]["kid"], "axes": verdict["fidelity"]["dimensions"]["fid"],
        **verdict["counts"]["training"],
    }  # fmt: skip
    groups = [_acceptance(verdict)]
    if verdict["feature"]:
        groups.append(_feature(verdict["feature"]))
    drawn = verdict["counts"]["origin"]["drawn"]
    for title, note, figures in TABLES:
        if figures[0][1].startswith("copies/") and not drawn:
            continue
        rows: list[tuple[str, ...]] = []
        for name, path, shown in figures:
            for kind in ("positive", "negative") if "{kind}" in path else ("",):
                cells = (shown(_at(verdict, path.format(which=w, kind=kind))) for w in ("synthetic", "real"))
                rows.append((f"{kind}s, {name}" if kind else name, *cells))
        groups.append(Group(title, note.format(**values), ("Synthetic", "Real, held out"), rows))
    return groups


def _acceptance(verdict: Mapping[str, Any]) -> Group:
    accepted, hosts = verdict["acceptance"], verdict["counts"]["hosts"]
    sets = ["synthetic", "real"] + (["hosts"] if hosts["all"] else [])
    note = (
        "Fractions with 95 % intervals. The reference classifier was trained on real galaxies alone; at the median of "
        "the real positives' logits half of these are accepted, however it is calibrated."
    )
    if hosts["all"]:
        note += (
            f" Hosts must not be accepted. The classifier was trained on {hosts['trained_on']:,} of the "
            f"{hosts['all']:,} hosts as real galaxies, most of them negatives: it may reject what was injected into "
            "these too often."
        )
    rows = [
        (name, *(_fraction(accepted[which][key]) for which in sets))
        for name, key in (("positives, logit above 0", "at_zero"), ("positives, at the real ones' median", "at_median"))
    ]
    columns = ("Synthetic", "Real, held out", "Hosts as they are")[: len(sets)]
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
        "medians, and what two thirds lie within. The distance is that of Kolmogorov and Smirnov: 0 for equal "
        "distributions, 1 for distributions that do not overlap."
    )
    if galaxies["hosts"]["n"]:
        note += (
            f" Where there is nothing the measurement still finds a feature on "
            f"{galaxies['hosts']['feature_measured']:,} of {galaxies['hosts']['n']:,} hosts as they are."
        )
    columns = ("Synthetic", "Real, all labelled", "Distance")
    return Group("Are depth, shape and colour those of real ones?", note, columns, rows)


def _at(value: Any, path: str) -> Any:
    """Return what lies at `path`, or None where it ends early: there were too few galaxies."""
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


Figure = tuple[str, str, Callable[[Any], str]]  # name, place in the verdict, how it is written
TABLES: tuple[tuple[str, str, tuple[Figure, ...]], ...] = (
    (
        "Are they of the class?",
        "Fractions with 95 % intervals, by what the reference classifier predicts.",
        (
            ("in the class, by answers", "adherence/{which}_{kind}/in_class_by_answers", _fraction),
            ("in the class, by target score", "adherence/{which}_{kind}/in_class_by_target", _fraction),
            ("mean probability", "adherence/{which}_{kind}/probability", _figure),
        ),
    ),
    (
        "Are they similar to real ones, and as varied?",
        "Against {positive:,} positives and {negative:,} negatives that the reference classifier was trained on, in "
        "its {d} features. KID is the figure to read: 0 for equal sets, however many are compared. FID (on {axes} "
        "principal axes, only for more galaxies than that), density and coverage are computed of equally many. "
        "Synthetic negatives are hard ones on purpose, which no survey has in that proportion.",
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
        "Of those drawn whole. A copy is nearer to a training galaxy than 1 % of these are to another one, so about 1 "
        "% are by chance. The nearest of all is given in units of that distance.",
        (
            ("copies, by pixels", "copies/pixels/{which}/below_p1", _fraction),
            ("nearest of all, by pixels", "copies/pixels/{which}/min_ratio", _figure),
            ("copies, by features", "copies/features/{which}/below_p1", _fraction),
            ("nearest of all, by features", "copies/features/{which}/min_ratio", _figure),
        ),
    ),
    (
        "Is their light right?",
        "Profile: the largest difference of the mean radial profile from that of training galaxies, over the scatter "
        "among these. The others are means and their scatter from one galaxy to another, as measured on the picture.",
        (
            ("profile off by", "light/{kind}/{which}/max_deviation", _figure),
            *((name.removeprefix("image_"), f"light/{{kind}}/{{which}}/measured/{name}", _spread) for name in MEASURED),
        ),
    ),
    (
        "What would be dropped?",
        "Clear failures only, by the rules of the screening before training.",
        (
            ("galaxies", "screen/{which}/n", _figure),
            ("kept", "screen/{which}/kept", _figure),
            *(
                (reason, f"screen/{{which}}/dropped/{reason}", _figure)
                for reason in ("copy", "unlike any galaxy", "not the class", "looks positive")
            ),
        ),
    ),
)
