"""The page of a scan: what was looked at, what came out, what was missed, and what all of it rests on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from galscan.candidates.table_stream import of_parquet
from galscan.core import thumbnails
from galscan.core.errors import GalscanError, InputError, NotFoundError
from galscan.core.files import read_json, write_text
from galscan.core.memory import release
from galscan.models.model import Model, open_model
from galscan.reports import plots, plots_sky, scan_facts
from galscan.reports.page import count, interval, render
from galscan.scanning import quantised
from galscan.scanning.run import tables
from galscan.stats import purity as purities
from galscan.store.layout import Store, open_store
from galscan.vetting.gradebook import in_words

T = TypeVar("T")
PICTURES = 48
LAST = 6  # pictures of the lowest accepted ranks
MISSED = 24
GRADED = "candidates-graded.parquet"
# Columns that the page counts and draws: of the list by the scores, and of the one that takes its place with grades.
COUNTED = ("store", "index", "rank", "score", "purity", "purity_lo", "purity_hi")
SHOWN = ("rank", "ra", "dec", "p_target", "purity", "purity_lo", "purity_hi", "known", "in_train")


@dataclass(frozen=True)
class _Graded:
    """What `galscan purity` left: the table with grades, and what it told."""

    path: Path
    told: dict[str, Any]

    @property
    def completeness(self) -> pd.DataFrame:
        return _read(self.path, ("completeness",))

    @property
    def limits(self) -> pd.DataFrame:
        """Limits of completeness at some ranks; of none where an older version wrote it."""
        return pd.DataFrame(self.told.get("completeness") or {"rank": [], "low": [], "high": []}, dtype=float)

    @property
    def limits_by_scores(self) -> pd.DataFrame | None:
        """Those by the scores alone; None where an older version wrote it."""
        told = self.told.get("completeness_by_scores")
        return None if told is None else pd.DataFrame(told, dtype=float)


def write_scan_report(run: str | Path) -> Path:
    """Write ``report.html`` into a run folder; with the grades, where `galscan.purity` has taken them in.

    Parts that cannot be had any more (a store or a model that moved) are left out and said to be absent.

    Raises
    ------
    NotFoundError
        If the folder has no run.json or no candidates.parquet.
    """
    run = Path(run)
    if not (run / "run.json").is_file() or not (run / "candidates.parquet").is_file():
        raise NotFoundError(f"{run} is not a run with candidates; make one with: galscan scan")
    info = read_json(run / "run.json")
    before = _read(run / "candidates.parquet", ("rank", "score", "known", "completeness"))
    graded = _graded(run, before)
    bundle, stores = _model_of(info), _stores(info)
    histogram = purities.ScoreHistogram.from_list(info.get("histogram") or [])
    footprint = _if_readable(lambda: scan_facts.footprint(tables(run, info)))
    # First what takes most memory, before the rest is read: the list may hold a million.
    completeness = plots.completeness(
        before,
        info,
        bundle,
        None if graded is None else (graded.completeness, graded.limits),
        None if graded is None else graded.limits_by_scores,
    )
    listed = len(before)
    del before
    release(listed)
    before = _read(run / "candidates.parquet", COUNTED)
    table = run / ("candidates.parquet" if graded is None else GRADED)
    frame = _read(table, SHOWN)
    accepted, sentence = _sentence(frame, info, graded)
    purity = info.get("purity") or {}
    prevalence = (purity if graded is None else graded.told["after"]).get("prevalence") or {}
    figures = [
        plots.purity(frame, accepted, None if graded is None else before),
        completeness,
        plots.scores(before, info, bundle, histogram),
    ]
    warning, ranked = _warning(frame, accepted), len(frame)
    before = before[["store", "index", "rank", "score"]]
    placed = frame.loc[np.isfinite(frame["ra"]) & np.isfinite(frame["dec"]), ["ra", "dec", "purity"]]
    last = _rows(table, accepted - LAST, accepted) if accepted > PICTURES else []
    best = _rows(table, 0, PICTURES)
    del frame
    release(listed)
    rate = info.get("images_per_s")
    page = render(
        "scan.html.j2",
        kind="scan",
        title=f"galscan: scan for {info.get('target', 'targets')}",
        target=info.get("target", "targets"),
        sentence=sentence,
        warning=warning,
        accepted=f"{accepted:,}",
        facts=[
            ("scored", count(info.get("scanned"))),
            ("set aside", count(info.get("quarantined"))),
            ("ranked", count(ranked)),
            ("graded", count(0 if graded is None else graded.told["graded"])),
            ("prevalence", interval(prevalence, percent=True)),
            ("rate", f"{rate:,.0f} images/s" if rate else "not measured"),
        ],
        ranks=_ranks(purity, graded),
        notes=[n for n in purity.get("notes", []) if not n.startswith("A first look")],
        graded_notes=[n for n in graded.told["after"]["notes"] if not n.startswith("A first look")] if graded else [],
        graders=in_words(graded.told["graders"], graded.told.get("agreement", [])) if graded else [],
        figures=figures,
        best=[_card(row, stores) for row in best],
        last=[_card(row, stores) for row in last],
        known=_if_readable(lambda: _known(run, info, before, bundle, stores, histogram)) if bundle else None,
        stores=info.get("stores", []),
        selection=info.get("selection", "all objects"),
        where=_where(footprint),
        sky=plots_sky.sky(placed, footprint) if len(placed) else None,
        looked=_looked(info),
        reasons=_set_aside(run, info, stores),
        timing=scan_facts.timing(tables(run, info), info),
        provenance=_provenance(info, bundle),
    )
    write_text(run / "report.html", page)
    return run / "report.html"


# What is said in words


def _sentence(frame: pd.DataFrame, info: Mapping[str, Any], graded: _Graded | None) -> tuple[int, str]:
    """Return how many candidates are accepted, and the result in a sentence."""
    scanned = f"{info.get('scanned') or 0:,} galaxies"
    if graded is not None:
        scanned += f", {graded.told['graded']:,} of which people graded"
    if frame.empty:
        return 0, f"No candidates among {scanned}."
    if frame["purity"].isna().all():
        why = (info.get("purity") or {}).get("unknown")
        return 0, f"{len(frame):,} candidates among {scanned}; their purity is unknown{f': {why}' if why else ''}."
    purity = frame["purity"].to_numpy()
    for limit in (0.8, 0.5):
        if accepted := int((purity >= limit).sum()):
            row = frame.iloc[accepted - 1]
            noun = "candidate" if accepted == 1 else "candidates"
            # The list may end before purity falls that low.
            end = " (and the ranked list ends there)" if accepted == len(frame) else ""
            limits = f"{row['purity_lo']:.2f} to {row['purity_hi']:.2f}"
            return (
                accepted,
                f"{accepted:,} {noun} at an expected purity of {row['purity']:.2f} ({limits}) among {scanned}{end}.",
            )
    best = min(10, len(frame))
    row = frame.iloc[best - 1]
    return 0, (
        f"No list among {scanned} reaches a purity of one half: of the best {best:,}, {row['purity']:.0%} "
        f"are expected to be targets "
        f"({row['purity_lo']:.0%} to {row['purity_hi']:.0%})."
    )


def _warning(frame: pd.DataFrame, accepted: int) -> str:
    trained = int(frame.head(accepted or len(frame))["in_train"].sum())
    warning = "Every figure is an estimate; look at the pictures before believing it."
    if trained:
        which = "these" if accepted else "the"
        warning += f" {trained:,} of {which} candidates were in the model's training set; purity counts them too."
    return warning


def _ranks(purity: Mapping[str, Any], graded: _Graded | None) -> list[tuple[str, str, str, str]]:
    """Return purity at a few ranks, by the scores alone and with the grades, and the fraction of ambiguous objects."""
    last = graded.told["after"] if graded else purity
    after, unclear = (graded.told["after"]["at"] if graded else {}), last.get("ambiguous_at", {})
    return [
        (f"{int(rank):,}", interval(at), interval(after.get(rank, {})), interval(unclear.get(rank, {})))
        for rank, at in purity.get("at", {}).items()
    ]


def _where(footprint: scan_facts.Footprint | None) -> list[tuple[str, str]]:
    if footprint is None:
        return []
    rounded = float(f"{footprint.area:.2g}") if footprint.area else 0.0
    area = f"{rounded:,.{0 if rounded >= 10 else 2}f} deg², in cells of {footprint.cell:.2g} deg²" if rounded else ""
    (south, north), ra = footprint.dec, footprint.ra
    east = f"{ra[0]:.1f}° to {ra[1]:.1f}°" if ra else "all around"
    return [
        ("area", f"about {area}" if area else "too few objects to tell"),
        ("right ascension", east),
        ("declination", f"{south:.1f}° to {north:.1f}°".replace("-", "−")),
    ]


def _looked(info: Mapping[str, Any]) -> str:
    """Say what the first look discarded, and what that cost."""
    looked = info.get("first_look")
    if not looked:
        return ""
    discarded, scanned = looked["discarded"], info["scanned"]
    who = ["a tiny network, taught what the full ones say,"] if info.get("cascade", True) else []
    who += ["the networks in integers of 8 bits"] if (info.get("int8") or {}).get("used") else []
    which = " and then ".join(who)
    return (
        f"{which[:1].upper()}{which[1:]} looked first and discarded {discarded:,} of {scanned:,} "
        f"objects ({discarded / scanned:.1%}). What that cost was measured: {looked['audited']:,} of the discarded, "
        f"drawn at random, were scored in full all the same, and {looked['lost']:,} of these are candidates. So "
        f"{looked['kept']:.1%} of the candidates that a scan in full would rank survived it; with 95 % confidence at "
        f"least {looked['kept_lo']:.0%}. Prevalence and completeness count the discarded by the audited."
    )


def _provenance(info: Mapping[str, Any], bundle: Model | None) -> list[tuple[str, Any]]:
    identity = info.get("identity") or {}
    told = [
        ("run", info.get("fingerprint")),
        ("model", identity.get("model")),
        ("recipe", identity.get("recipe")),
        ("galscan", (info.get("versions") or {}).get("galscan")),
        ("precision", info.get("precision")),
        ("device", info.get("device")),
        *([("8 bits", quantised.sentence(info["int8"]))] if info.get("int8") else []),
        ("cutout size", f"{info.get('size')} px"),
        ("parts", info.get("parts")),
        ("purity method", purities.METHOD),
    ]
    if bundle is None:
        return [*told, ("model's file", "gone, or another by now: no interval of completeness, no known targets")]
    calibration = bundle.calibration.targets
    taught = bundle.info["splits"]["train"]
    return [
        *told,
        ("learnt from", f"{taught['positive']:,} targets and {taught['negative']:,} others, labels '{bundle.schema}'"),
        (
            "calibrated on",
            f"{int(calibration.sum()):,} targets and {int((calibration == 0).sum()):,} others, "
            + ("out-of-fold" if bundle.folds else "held out"),
        ),
        *((f"graded in {Path(g['run']).name}", g["sha256"]) for g in bundle.info.get("grades", [])),
    ]


# What is shown


def _known(
    run: Path,
    info: Mapping[str, Any],
    frame: pd.DataFrame,
    bundle: Model,
    stores: Mapping[str, Store],
    histogram: purities.ScoreHistogram,
) -> dict[str, Any]:
    """Return what became of the targets that labels tell of, counted and, where they were missed, shown."""
    known = scan_facts.known_targets(
        tables(run, info), frame, bundle, list(stores.values()), histogram, info.get("targets", [bundle.target])
    )
    by_role = known.groupby(["role", "fate"]).size()
    fates = [fate for fate in scan_facts.FATES if (known["fate"] == fate).any()]
    rows = [
        (role, count(int((known["role"] == role).sum())), [count(int(by_role.get((role, fate), 0))) for fate in fates])
        for role in scan_facts.ROLES
        if (known["role"] == role).any()
    ]
    missed = known[~known["fate"].isin([scan_facts.CANDIDATE, scan_facts.ELSEWHERE])]
    fair = known[(known["role"] != scan_facts.TAUGHT) & (known["fate"] != scan_facts.ELSEWHERE)]
    found = int((fair["fate"] == scan_facts.CANDIDATE).sum())
    return {
        "all": len(known), "fates": fates, "rows": rows, "missed": len(missed),
        "fair": f"{found:,} of {len(fair):,} ({found / len(fair):.0%})" if len(fair) else "",
        "cards": [_missed_card(row, stores) for row in missed.head(MISSED).to_dict("records")],
    }  # fmt: skip


def _missed_card(row: Mapping[Any, Any], stores: Mapping[str, Store]) -> dict[str, Any]:
    score = f"score {row['score']:.2f}".replace("-", "−") if np.isfinite(row["score"]) else ""
    about = f"about rank {row['about']:,}" if row["about"] and score else ""
    where = f"{row['fate']}: {row['why']}" if row["why"] else row["fate"]
    lines = [where, ", ".join(filter(None, (score, about)))]
    return {
        "name": _name(row, stores), "rank": "", "lines": [line for line in lines if line],
        "in_train": row["role"] == scan_facts.TAUGHT, "tag": row["role"],
        "alt": f"Cutout of {row['id']}, a known target: {where}", **_picture(row["store"], row["index"], stores),
    }  # fmt: skip


def _set_aside(run: Path, info: Mapping[str, Any], stores: Mapping[str, Store]) -> list[dict[str, Any]]:
    """Return each reason, how many there are, and a few of them."""
    reasons = dict(sorted((info.get("quarantine_reasons") or {}).items(), key=lambda item: -item[1]))
    examples = _if_readable(lambda: scan_facts.quarantine(tables(run, info), reasons)) or {}
    return [
        {
            "why": why, "count": number,
            "cards": [
                {
                    "name": _name(row, stores), "rank": "", "lines": [], "in_train": False, "tag": "",
                    "alt": f"Cutout of {row['id']}, set aside: {why}", **_picture(row["store"], row["index"], stores),
                }
                for row in (examples[why].to_dict("records") if why in examples else ())
            ],
        }
        for why, number in reasons.items()
    ]  # fmt: skip


def _card(row: Mapping[Any, Any], stores: Mapping[str, Store]) -> dict[str, Any]:
    name = row["designation"] or str(row["objid"])
    votes = "1 vote" if row.get("votes") == 1 else f"{row.get('votes', 0)} votes"
    said = f"grade {row['grade']}, {votes}" if row.get("grade") else ""
    return {
        "name": name, "rank": f"{row['rank']:,}", "in_train": bool(row["in_train"]), "tag": "trained on",
        "lines": [_numbers(row), *filter(None, [said])],
        "alt": f"Cutout of {name}, rank {row['rank']:,}", **_picture(row["store"], row["index"], stores),
    }  # fmt: skip


def _numbers(row: Mapping[Any, Any]) -> str:
    """Return what a card says of a candidate: its label where that is known, and purity; its score where it is not."""
    if np.isnan(row["purity"]):
        return f"score {row['score']:.2f}".replace("-", "−")
    label = f"known: {row['known']}" if row.get("known") else f"p {row['p_target']:.2f}"
    return f"{label} · purity {row['purity']:.2f}"


def _name(row: Mapping[Any, Any], stores: Mapping[str, Store]) -> str:
    return f"{row['id']} in {row['store']}" if len(stores) > 1 else str(row["id"])


def _picture(store: Any, index: int, stores: Mapping[str, Store]) -> dict[str, Any]:
    """Return the picture of an object; none where its store is gone, or it cannot be read or shows nothing at all."""
    opened = stores.get(str(store))
    if opened is None or not 0 <= index < opened.count:
        return {"uri": "", "size": 0, "absent": "picture not at hand"}
    images = _if_readable(lambda: opened.images(slice(int(index), int(index) + 1)))
    if images is None or not images.any():
        return {"uri": "", "size": 0, "absent": "nothing to show"}
    return {"uri": thumbnails.data_uri(images[0]), "size": opened.size, "absent": ""}


# What is read


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read those of some columns of a ranked list that it has, a piece at a time: it may hold a million."""
    rows = of_parquet(path)
    rows = rows.select([name for name in columns if name in rows.names])
    words: dict[str, dict[Any, int]] = {name: {} for name in rows.names if rows.is_text(name)}
    filled = {
        field.name: np.empty(rows.count, np.int32 if field.name in words else field.type.to_pandas_dtype())
        for field in rows.schema
    }
    at = 0
    for piece in rows:
        for name, values in filled.items():
            column = piece[name].combine_chunks()
            if name in words:  # few of them are different
                codes, of = column.dictionary_encode(), words[name]
                own = np.array([of.setdefault(word, len(of)) for word in codes.dictionary.to_pylist()], np.int32)
                column = pa.array(own[codes.indices.to_numpy()])
            values[at : at + len(piece)] = column.to_numpy(zero_copy_only=False)
        at += len(piece)
    release(rows.count)
    return pd.DataFrame({
        name: pd.Categorical.from_codes(values, pd.Index(list(words[name]), dtype=object)) if name in words else values
        for name, values in filled.items()
    }, copy=False)  # fmt: skip


def _rows(path: Path, first: int, last: int) -> list[dict[str, Any]]:
    """Return some rows of a ranked list, with all their columns."""
    rows = of_parquet(path)
    found: list[dict[str, Any]] = []
    at = 0
    for piece in rows.pieces():
        if at >= last:
            break
        found += piece.slice(max(first - at, 0), max(last - max(first, at), 0)).to_pandas().to_dict("records")
        at += len(piece)
    return found


def _graded(run: Path, before: pd.DataFrame) -> _Graded | None:
    """Return what `galscan purity` wrote, where it is of these candidates."""
    if not (run / "purity.json").is_file() or not (run / GRADED).is_file():
        return None
    same = np.array_equal(_read(run / GRADED, ("score",))["score"], before["score"])
    return _Graded(run / GRADED, read_json(run / "purity.json")) if same else None


def _model_of(info: Mapping[str, Any]) -> Model | None:
    """Return the run's model, or None where it is gone or another by now."""
    try:
        bundle = open_model(str(info["model"]))
    except (GalscanError, KeyError, OSError):
        return None
    return bundle if bundle.model_hash == (info.get("identity") or {}).get("model") else None


def _stores(info: Mapping[str, Any]) -> dict[str, Store]:
    stores = {}
    for entry in info.get("stores", []):
        try:
            store = open_store(entry["path"])
        except (GalscanError, KeyError, OSError):
            continue
        if store.content_hash == entry.get("content_hash"):  # a rebuilt store would show other galaxies
            stores[str(entry.get("name"))] = store
    return stores


def _if_readable(read: Callable[[], T]) -> T | None:
    """Return what `read` does, or None: a page is written also where a table or a chunk is damaged by now."""
    try:
        return read()
    except (InputError, OSError, ValueError, KeyError, RuntimeError):
        return None
