"""Report page of a scan: candidates, purity and completeness, known targets, coverage, quarantine, provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from galscan.core import thumbnails
from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import write_text
from galscan.models.model import Model
from galscan.reports import plots, plots_sky, scan_facts
from galscan.reports.memory import release
from galscan.reports.page import count, interval, render
from galscan.scanning.run import GRADED, Run
from galscan.scanning.run_info import CANDIDATES, RunInfo, read_info
from galscan.stats import purity as purities
from galscan.stats.histogram import ScoreHistogram
from galscan.store.layout import Store
from galscan.vetting.aladin import panel_script, sky_frame
from galscan.vetting.gradebook import summary_lines

T = TypeVar("T")
PICTURES = 48  # images of top candidates
LAST = 6  # images of the lowest accepted ranks
MISSED = 24  # images of missed known targets
# Columns needed of the list ranked by scores, and of the displayed list, which has the grades where there are any.
COUNTED = ("store", "index", "rank", "score", "purity", "purity_lo", "purity_hi")
SHOWN = ("rank", "ra", "dec", "p_target", "purity", "purity_lo", "purity_hi", "known", "in_train")


def write_scan_report(run: str | Path) -> Path:
    """Write ``report.html`` into a run folder; with the grades, if `galscan.purity` has used them.

    Sections whose store or model is missing are left out or marked as absent.

    Raises
    ------
    NotFoundError
        If the folder has no run.json or no candidates.parquet.
    """
    path = Path(run)
    info = read_info(path)
    if info is None or not (path / CANDIDATES).is_file():
        raise NotFoundError(f"{path} is not a run with candidates; make one with: galscan scan")
    opened = Run(path, info)
    before = scan_facts.read_columns(path / CANDIDATES, ("rank", "score", "completeness"))
    graded = scan_facts.read_graded(path, before)
    model, stores = opened.model_if_unchanged(), opened.stores_if_unchanged()
    histogram = ScoreHistogram.from_list(info.histogram)
    footprint = _if_readable(lambda: scan_facts.footprint(opened.tables))
    # Without purity its figures would be empty.
    has_purity = graded is not None or not (info.purity.get("unknown") or info.is_similarity_list)
    limits = pd.DataFrame(info.completeness_limits, dtype=float) if info.completeness_limits else None
    # This plot takes most memory, so it is drawn before other tables are read: the list may hold a million.
    completeness = plots.completeness(
        before,
        opened,
        model,
        None if graded is None else (graded.completeness, graded.limits),
        limits if graded is None else graded.limits_by_scores,
    ) if has_purity else None  # fmt: skip
    n_candidates = len(before)
    del before
    release(n_candidates)
    before = scan_facts.read_columns(path / CANDIDATES, COUNTED)
    table = path / (CANDIDATES if graded is None else f"{GRADED}.parquet")
    frame = scan_facts.read_columns(table, SHOWN)
    accepted, sentence = _sentence(frame, info, graded)
    prevalence = (info.purity if graded is None else graded.summary["after"]).get("prevalence") or {}
    figures = [
        *([plots.purity(frame, accepted, None if graded is None else before), completeness] if has_purity else []),
        plots.scores(before, opened, model, histogram),
    ]
    warning, ranked = _warning(frame, accepted), len(frame)
    before = before[["store", "index", "rank", "score"]]
    with_position = frame.loc[np.isfinite(frame["ra"]) & np.isfinite(frame["dec"]), ["ra", "dec", "purity"]]
    last = scan_facts.read_rows(table, accepted - LAST, accepted) if accepted > PICTURES else []
    top = scan_facts.read_rows(table, 0, PICTURES)
    del frame
    release(n_candidates)
    page = render(
        "scan.html.j2",
        kind="scan",
        title=f"galscan: scan for {info.target or 'targets'}",
        target=info.target or "targets",
        sentence=sentence,
        warning=warning,
        accepted=f"{accepted:,}",
        facts=[
            ("scored", count(info.scanned)),
            ("quarantined", count(info.quarantined)),
            ("ranked", count(ranked)),
            ("graded", count(0 if graded is None else graded.summary["graded"])),
            ("prevalence", interval(prevalence, percent=True)),
            ("rate", f"{info.images_per_s:,.0f} images/s" if info.images_per_s else "not measured"),
        ],
        ranks=_ranks(info.purity, graded) if has_purity else [],
        notes=_notes(info.purity),
        graded_notes=_notes(graded.summary["after"]) if graded else [],
        graders=summary_lines(graded.summary["graders"], graded.summary.get("agreement", [])) if graded else [],
        figures=figures,
        top=[_card(row, stores) for row in top],
        frame=sky_frame() if any(_position(row)["ra"] is not None for row in top) else "",
        panel=panel_script(),
        last=[_card(row, stores) for row in last],
        known=_if_readable(lambda: _known(opened, before, model, stores, histogram)) if model else None,
        stores=info.stores,
        selection=info.selection,
        coverage=_coverage(footprint),
        sky=plots_sky.sky(with_position, footprint) if len(with_position) else None,
        prefilter=_prefilter(info),
        reasons=_quarantined(opened, stores),
        timing=scan_facts.timing(opened),
        provenance=_provenance(info, model),
    )
    write_text(path / "report.html", page)
    return path / "report.html"


# Text


def _notes(purity: Mapping[str, Any]) -> list[str]:
    """Return the notes without that on the prefilter, which has a section of its own."""
    return [note for note in purity.get("notes", []) if not note.startswith(("A first look", "A prefilter"))]


def _sentence(frame: pd.DataFrame, info: RunInfo, graded: scan_facts.Graded | None) -> tuple[int, str]:
    """Return the number of accepted candidates and the headline."""
    scanned = f"{info.scanned:,} galaxies"
    if graded is not None:
        scanned += f", {graded.summary['graded']:,} of them graded"
    if frame.empty:
        return 0, f"No candidates among {scanned}."
    if frame["purity"].isna().all():
        reason = info.purity.get("unknown")
        end = f": {reason}" if reason else ""
        return 0, f"{len(frame):,} candidates among {scanned}; their purity is unknown{end}."
    purity = frame["purity"].to_numpy()
    for limit in (0.8, 0.5):
        if accepted := int((purity >= limit).sum()):
            row = frame.iloc[accepted - 1]
            noun = "candidate" if accepted == 1 else "candidates"
            # The list may end before purity falls below the limit.
            end = " (all that are ranked)" if accepted == len(frame) else ""
            limits = f"{row['purity_lo']:.2f} to {row['purity_hi']:.2f}"
            return (
                accepted,
                f"{accepted:,} {noun} at an expected purity of {row['purity']:.2f} ({limits}) among {scanned}{end}.",
            )
    top = min(10, len(frame))
    row = frame.iloc[top - 1]
    return 0, (
        f"No list among {scanned} reaches a purity of 0.5: of the top {top:,}, {row['purity']:.0%} "
        f"are expected to be targets "
        f"({row['purity_lo']:.0%} to {row['purity_hi']:.0%})."
    )


def _warning(frame: pd.DataFrame, accepted: int) -> str:
    trained = int(frame.head(accepted or len(frame))["in_train"].sum())
    warning = "All values are estimates; inspect the images before using the list."
    if trained:
        which = "these" if accepted else "the"
        warning += f" {trained:,} of {which} candidates were in the model's training set; purity includes them."
    return warning


def _ranks(purity: Mapping[str, Any], graded: scan_facts.Graded | None) -> list[tuple[str, str, str, str]]:
    """Return purity at a few ranks, by the scores alone and with the grades, and the fraction of ambiguous objects."""
    latest = graded.summary["after"] if graded else purity
    after, ambiguous = (graded.summary["after"]["at"] if graded else {}), latest.get("ambiguous_at", {})
    return [
        (f"{int(rank):,}", interval(at), interval(after.get(rank, {})), interval(ambiguous.get(rank, {})))
        for rank, at in purity.get("at", {}).items()
    ]


def _coverage(footprint: scan_facts.Footprint | None) -> list[tuple[str, str]]:
    if footprint is None:
        return []
    rounded = float(f"{footprint.area:.2g}") if footprint.area else 0.0
    area = f"{rounded:,.{0 if rounded >= 10 else 2}f} deg², in cells of {footprint.cell:.2g} deg²" if rounded else ""
    (south, north), ra = footprint.dec, footprint.ra
    ra_text = f"{ra[0]:.1f}° to {ra[1]:.1f}°" if ra else "0° to 360°"
    return [
        ("area", f"about {area}" if area else "unknown, too few objects"),
        ("right ascension", ra_text),
        ("declination", f"{south:.1f}° to {north:.1f}°".replace("-", "−")),
    ]


def _prefilter(info: RunInfo) -> str:
    """Describe the prefilter: rejected objects, and the fraction of candidates that pass it."""
    entry = info.first_look
    if not entry:
        return ""
    rejected, scanned = entry["discarded"], info.scanned
    return (
        f"The prefilter, a small network trained on the scores of the full ones, rejected {rejected:,} of {scanned:,} "
        f"objects ({rejected / scanned:.1%}). Of these {entry['audited']:,}, selected at random, were scored in full "
        f"as a check; {entry['lost']:,} of them are candidates. So the prefilter passes {entry['kept']:.1%} of the "
        f"candidates of a full scan, at 95 % confidence at least {entry['kept_lo']:.0%}. In prevalence and "
        "completeness the checked objects represent all rejected ones."
    )


def _provenance(info: RunInfo, model: Model | None) -> list[tuple[str, Any]]:
    entries = [
        ("run", info.fingerprint),
        ("model", info.identity.get("model")),
        ("recipe", info.identity.get("recipe")),
        ("galscan", info.versions.get("galscan")),
        ("precision", info.precision),
        ("device", info.device),
        ("cutout size", f"{info.size} px"),
        ("partitions", info.parts),
        ("purity method", purities.METHOD),
    ]
    if model is None:
        return [*entries, ("model file", "missing or changed: no interval of completeness, no known targets")]
    calibration = model.calibration.targets
    train = model.info["splits"]["train"]
    return [
        *entries,
        (
            "trained on",
            f"{train['positive']:,} targets and {train['negative']:,} negatives, labels '{model.schema.name}'",
        ),
        (
            "calibrated on",
            f"{int(calibration.sum()):,} targets and {int((calibration == 0).sum()):,} negatives, "
            + ("out-of-fold" if model.folds else "held out"),
        ),
        *((f"graded in {Path(g['run']).name}", g["sha256"]) for g in model.info.get("grades", [])),
    ]


# Images


def _known(
    run: Run,
    frame: pd.DataFrame,
    model: Model,
    stores: Mapping[str, Store],
    histogram: ScoreHistogram,
) -> dict[str, Any]:
    """Return counts of labelled targets by outcome, and images of the missed ones."""
    known = scan_facts.known_targets(run.tables, frame, model, list(stores.values()), histogram, run.targets)
    by_role = known.groupby(["role", "fate"]).size()
    fates = [fate for fate in scan_facts.FATES if (known["fate"] == fate).any()]
    rows = [
        (role, count(int((known["role"] == role).sum())), [count(int(by_role.get((role, fate), 0))) for fate in fates])
        for role in scan_facts.ROLES
        if (known["role"] == role).any()
    ]
    missed = known[~known["fate"].isin([scan_facts.CANDIDATE, scan_facts.NOT_SCANNED])]
    independent = known[(known["role"] != scan_facts.TRAINED) & (known["fate"] != scan_facts.NOT_SCANNED)]
    found, total = int((independent["fate"] == scan_facts.CANDIDATE).sum()), len(independent)
    return {
        "all": len(known), "fates": fates, "rows": rows, "missed": len(missed),
        "independent": f"{found:,} of {total:,} ({found / total:.0%})" if total else "",
        "cards": [_missed_card(row, stores) for row in missed.head(MISSED).to_dict("records")],
    }  # fmt: skip


def _missed_card(row: Mapping[Any, Any], stores: Mapping[str, Store]) -> dict[str, Any]:
    score = f"score {row['score']:.2f}".replace("-", "−") if np.isfinite(row["score"]) else ""
    about = f"about rank {row['about']:,}" if row["about"] and score else ""
    outcome = f"{row['fate']}: {row['why']}" if row["why"] else row["fate"]
    lines = [outcome, ", ".join(filter(None, (score, about)))]
    return {
        "name": _name(row, stores), "rank": "", "lines": [line for line in lines if line],
        "in_train": row["role"] == scan_facts.TRAINED, "tag": row["role"],
        "alt": f"Cutout of {row['id']}, a known target: {outcome}", **_picture(row["store"], row["index"], stores),
    }  # fmt: skip


def _quarantined(run: Run, stores: Mapping[str, Store]) -> list[dict[str, Any]]:
    """Return each quarantine reason with its count and a few images."""
    reasons = dict(sorted(run.info.quarantine_reasons.items(), key=lambda item: -item[1]))
    examples = _if_readable(lambda: scan_facts.quarantine(run.tables, reasons)) or {}
    return [
        {
            "reason": reason, "count": number,
            "cards": [
                {
                    "name": _name(row, stores), "rank": "", "lines": [], "in_train": False, "tag": "",
                    "alt": f"Cutout of {row['id']}, quarantined: {reason}",
                    **_picture(row["store"], row["index"], stores),
                }
                for row in (examples[reason].to_dict("records") if reason in examples else ())
            ],
        }
        for reason, number in reasons.items()
    ]  # fmt: skip


def _card(row: Mapping[Any, Any], stores: Mapping[str, Store]) -> dict[str, Any]:
    name = row["designation"] or str(row["objid"])
    votes = "1 vote" if row.get("votes") == 1 else f"{row.get('votes', 0)} votes"
    grade = f"grade {row['grade']}, {votes}" if row.get("grade") else ""
    return {
        "name": name, "rank": f"{row['rank']:,}", "in_train": bool(row["in_train"]), "tag": "trained on",
        "lines": [_numbers(row), *filter(None, [grade])],
        "alt": f"Cutout of {name}, rank {row['rank']:,}", **_picture(row["store"], row["index"], stores),
        **_position(row),
    }  # fmt: skip


def _position(row: Mapping[Any, Any]) -> dict[str, float | None]:
    """Return the position of a candidate (deg), None where it is unknown."""
    known = bool(np.isfinite(row["ra"]) and np.isfinite(row["dec"]))
    return {name: float(row[name]) if known else None for name in ("ra", "dec")}


def _numbers(row: Mapping[Any, Any]) -> str:
    """Return label or probability of a candidate, and purity; its score if purity is unknown."""
    if np.isnan(row["purity"]):
        return f"score {row['score']:.2f}".replace("-", "−")
    label = f"known: {row['known']}" if row.get("known") else f"p {row['p_target']:.2f}"
    return f"{label} · purity {row['purity']:.2f}"


def _name(row: Mapping[Any, Any], stores: Mapping[str, Store]) -> str:
    return f"{row['id']} in {row['store']}" if len(stores) > 1 else str(row["id"])


def _picture(store: Any, index: int, stores: Mapping[str, Store]) -> dict[str, Any]:
    """Return the image of an object; none if its store is missing, or it cannot be read or is blank."""
    opened = stores.get(str(store))
    if opened is None or not 0 <= index < opened.count:
        return {"uri": "", "size": 0, "absent": "image not available"}
    images = _if_readable(lambda: opened.images(slice(int(index), int(index) + 1)))
    if images is None or not images.any():
        return {"uri": "", "size": 0, "absent": "empty image"}
    return {"uri": thumbnails.data_uri(images[0]), "size": opened.size, "absent": ""}


# Reading


def _if_readable(read: Callable[[], T]) -> T | None:
    """Return the result of `read`, or None if a table or a chunk is missing or damaged: the page is written anyway."""
    try:
        return read()
    except (InputError, OSError, ValueError, KeyError, RuntimeError):
        return None
