"""The page of judged dreams, and its words and tables, which the command line prints as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from galscan import plots_judge
from galscan.classify.plan import Plan
from galscan.files import write_text
from galscan.generate.galaxies import MEASURED
from galscan.report import duration, render

if TYPE_CHECKING:
    from galscan.classify.dataset import Galaxies
    from galscan.generate.dreams import Dreams

Row = tuple[str, str, str]  # name, dreamt, real


def write_judge_report(
    path: Path, verdict: Mapping[str, Any], each: pd.DataFrame, dreams: Dreams, galaxies: Galaxies, plan: Plan
) -> None:
    """Write the page of a judgement to `path`.

    Parameters
    ----------
    verdict : mapping
        What `galscan.generate.judge.judge` gives.
    each : DataFrame
        Its ``each``, one row a dream; ``nearest`` are rows of `galaxies`.
    galaxies : Galaxies
        The real ones that `plan` names.
    """
    train = ~galaxies.table["split"].isin(["test"]).to_numpy()
    real = np.flatnonzero(train & (galaxies.table["target"] == 1).to_numpy())
    pictures = plots_judge.pictures(dreams, each, galaxies.images, real, list(plan.rules.dream.set)[:1])
    figures = [
        plots_judge.profiles(verdict["light"]["positive"]),
        plots_judge.histograms(dreams.images[dreams.target == 1], galaxies.images[real]),
        plots_judge.adherence(verdict["adherence"]["answers"]),
    ]
    counts = verdict["counts"]
    page = render(
        "judge.html.j2",
        kind="judgement",
        title=f"galscan: dreams of {plan.recipe.name}",
        target=plan.recipe.title,
        sentence=_sentence(verdict),
        facts=[
            *(
                (f"{words}: positive, negative", f"{counts[which]['positive']:,}, {counts[which]['negative']:,}")
                for words, which in (("dreamt", "dreamt"), ("held out", "real"), ("training", "training"))
            ),
            ("training: in all", f"{counts['training']['all']:,}"),
            ("labels", plan.schema.name),
            ("time", duration(verdict["seconds"])),
        ],
        groups=[{"title": title, "note": note, "rows": rows} for title, note, rows in _groups(verdict)],
        pictures=pictures,
        figures=[figure for figure in figures if figure],
        provenance=[
            ("recipe", plan.recipe.hash),
            ("critic", verdict["weights"]["critic"]),
            *((f"store {s.name}", s.content_hash) for s in plan.stores),
        ],
    )
    write_text(path, page)


def summary(verdict: Mapping[str, Any]) -> str:
    """Return a judgement for people: a sentence and the tables."""
    groups = _groups(verdict)
    width = max(len(row[0]) for _, _, rows in groups for row in rows)
    lines = [_sentence(verdict), f"{'':<{width + 2}}{'dreamt':>26}{'real, held out':>26}"]
    lines += [f"  {name:<{width}}{dreamt:>26}{real:>26}" for _, _, rows in groups for name, dreamt, real in rows]
    return "\n".join(lines)


def _sentence(verdict: Mapping[str, Any]) -> str:
    told, copies = verdict["adherence"], verdict["copies"]["pixels"]["dreamt"]["below_p1"]
    dreamt, real = (told[f"{which}_positive"]["in_class_by_target"] for which in ("dreamt", "real"))
    head = (
        f"Of {dreamt['n']:,} dreamt positives the critic finds {_percent(dreamt['share'])} in the class, of "
        f"{real['n']:,} real ones {_percent(real['share'])}"
    )
    if not copies["n"]:
        return f"{head}; none was drawn, so that none was looked at as a copy."
    return f"{head}; {copies['count']:,} of {copies['n']:,} dreams are nearly copies of a training picture."


def _groups(verdict: Mapping[str, Any]) -> list[tuple[str, str, list[Row]]]:
    """Return the figures in groups: title, what they mean, and a row for each."""
    values = {
        "d": verdict["fidelity"]["dimensions"]["kid"], "axes": verdict["fidelity"]["dimensions"]["fid"],
        **verdict["counts"]["training"],
    }  # fmt: skip
    groups: list[tuple[str, str, list[Row]]] = []
    for title, note, figures in TABLES:
        rows: list[Row] = []
        for name, path, shown in figures:
            for kind in ("positive", "negative") if "{kind}" in path else ("",):
                dreamt, real = (shown(_at(verdict, path.format(which=w, kind=kind))) for w in ("dreamt", "real"))
                rows.append((f"{kind}s, {name}" if kind else name, dreamt, real))
        groups.append((title, note.format(**values), rows))
    return groups


def _at(value: Any, path: str) -> Any:
    """Return what lies at `path`, or None where it ends early: there were too few galaxies."""
    for key in path.split("/"):
        value = value and value[key]
    return value


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _share(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["share"] is None:
        return "–"
    return f"{entry['share']:.1%} ({entry['low']:.1%} to {entry['high']:.1%})"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _spread(entry: Mapping[str, float] | None) -> str:
    return "–" if entry is None else f"{entry['mean']:.3f} ± {entry['std']:.3f}"


Figure = tuple[str, str, Callable[[Any], str]]  # name, place in the verdict, how it is written
TABLES: tuple[tuple[str, str, tuple[Figure, ...]], ...] = (
    (
        "Are they what was asked for?",
        "Shares with 95 % intervals.",
        (
            ("in the class, by answers", "adherence/{which}_{kind}/in_class_by_answers", _share),
            ("in the class, by target score", "adherence/{which}_{kind}/in_class_by_target", _share),
            ("mean probability", "adherence/{which}_{kind}/probability", _figure),
        ),
    ),
    (
        "Are they like real ones, and as varied?",
        "Against {positive:,} positives and {negative:,} negatives that the critic trained on, in its {d} features. "
        "KID is the figure to look at: 0 is alike, however many are compared. FID (on {axes} principal axes, only for "
        "more galaxies than that), density and coverage are taken of equally many. Half of the dreamt negatives may "
        "be hard ones on purpose, which no survey has in that proportion.",
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
        "A copy is nearer to a training galaxy than 1 % of these are to another one, so about 1 % are by chance. The "
        "nearest of all is given in units of that distance.",
        (
            ("copies, by pixels", "copies/pixels/{which}/below_p1", _share),
            ("nearest of all, by pixels", "copies/pixels/{which}/min_ratio", _figure),
            ("copies, by features", "copies/features/{which}/below_p1", _share),
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
            ("looked at", "screen/{which}/n", _figure),
            ("kept", "screen/{which}/kept", _figure),
            *(
                (reason, f"screen/{{which}}/dropped/{reason}", _figure)
                for reason in ("copy", "unlike any galaxy", "not the class", "looks positive")
            ),
        ),
    ),
)
