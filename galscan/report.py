"""One self-contained HTML page a run and a model: what was done, what came out, pictures and curves.

No scripts and no requests: every picture and curve is inside the page. Text goes through jinja2's autoescape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

import galscan
from galscan import pictures, plots
from galscan.candidates import purity as purities
from galscan.classify.bundle import Bundle, open_bundle
from galscan.errors import GalscanError, NotFoundError
from galscan.files import read_json, write_text
from galscan.store.layout import Store, open_store

PICTURES = 48
LAST = 6  # pictures of the lowest accepted ranks


def write_scan_report(run: str | Path) -> Path:
    """Write ``report.html`` into a run folder.

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
    frame = pd.read_parquet(run / "candidates.parquet")
    bundle = _model_of(info)
    histogram = purities.ScoreHistogram.from_list(info.get("histogram") or [])
    accepted, sentence = _sentence(frame, info)
    figures = [
        plots.purity(frame, accepted),
        plots.completeness(frame, info, bundle, histogram),
        plots.scores(frame, info, bundle, histogram),
    ]
    if len(placed := frame[np.isfinite(frame["ra"]) & np.isfinite(frame["dec"])]):
        figures.append(plots.sky(placed))
    stores = _stores(info)
    best = [_card(row, stores) for row in frame.head(PICTURES).to_dict("records")]
    last = frame.head(accepted).tail(LAST) if accepted > PICTURES else frame.head(0)
    trained = int(frame.head(accepted or len(frame))["in_train"].sum())
    warning = "Every figure is an estimate; look at the pictures before believing it."
    if trained:
        which = "these" if accepted else "the"
        warning += f" {trained:,} of {which} candidates were in the model's training set; purity counts them too."
    identity, prevalence = info.get("identity") or {}, (info.get("purity") or {}).get("prevalence") or {}
    rate = info.get("images_per_s")
    page = render(
        "scan.html.j2",
        kind="scan",
        title=f"galscan: scan for {info.get('target', 'targets')}",
        target=info.get("target", "targets"),
        sentence=sentence,
        warning=warning,
        accepted=f"{accepted:,}",
        trained=bool(frame["in_train"].any()),
        facts=[
            ("scored", _count(info.get("scanned"))),
            ("set aside", _count(info.get("quarantined"))),
            ("ranked", _count(len(frame))),
            ("prevalence", _interval(prevalence, percent=True)),
            ("rate", f"{rate:,.0f} images/s" if rate else "not measured"),
            ("time", duration(info.get("wall_s"))),
        ],
        notes=(info.get("purity") or {}).get("notes", []),
        figures=figures,
        best=best,
        last=[_card(row, stores) for row in last.to_dict("records")],
        stores=info.get("stores", []),
        reasons=sorted((info.get("quarantine_reasons") or {}).items(), key=lambda item: -item[1]),
        provenance=[
            ("run", info.get("fingerprint")),
            ("model", identity.get("model")),
            ("recipe", identity.get("recipe")),
            ("galscan", (info.get("versions") or {}).get("galscan")),
            ("precision", info.get("precision")),
            ("device", info.get("device")),
            ("cutout size", f"{info.get('size')} px"),
            ("parts", info.get("parts")),
            ("purity method", purities.METHOD),
        ],
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def write_model_report(model: str | Path) -> Path:
    """Write ``report.html`` into a model folder (also one that is still being written).

    Raises
    ------
    NotFoundError
        If there is no model.
    InputError
        If it cannot be read.
    """
    bundle = open_bundle(model)
    info, metrics = bundle.info, bundle.metrics
    path, test = bundle.path, metrics.get("test") or {}
    rows, names = [], {"real_only": "real galaxies only", "real_plus_dreamt": "real and dreamt galaxies"}
    for key, name in names.items():
        if entry := metrics.get(key):
            rows.append(
                {
                    "name": name,
                    "value": _number(entry.get("ap_mean")),
                    "chosen": metrics.get("chosen") == key,
                    "interval": f"{_number(entry.get('ap_lo'))} to {_number(entry.get('ap_hi'))}",
                    "each": "  ".join(_number(ap) for ap in entry.get("ap", [])),
                }
            )
    gain = metrics.get("gain")
    if gain:
        rows.append(
            {
                "name": "gain by dreams",
                "value": _number(gain.get("mean"), sign=True),
                "chosen": False,
                "each": "",
                "interval": f"{_number(gain.get('lo'), sign=True)} to {_number(gain.get('hi'), sign=True)}",
            }
        )
    told = ""
    if test:
        told = (
            f"Measured on {test.get('positives', 0):,} targets and {test.get('negatives', 0):,} others, real objects "
            f"that neither trained nor calibrated; targets are {test.get('prevalence', math.nan):.1%} of them, "
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
        dreams=pictures.data_uri((path / "dreams.png").read_bytes()) if (path / "dreams.png").is_file() else "",
        screened=_screened(metrics.get("dreams")),
        splits=[(name, _count(c.get("positive")), _count(c.get("negative"))) for name, c in counts.items()],
        provenance=[
            ("model", bundle.model_hash),
            ("recipe", bundle.recipe.hash),
            *((f"weights {n}", h) for n, h in info.get("weights", {}).items()),
            *((name, version) for name, version in (info.get("versions") or {}).items()),
            ("morphology", ", ".join(bundle.answers)),
        ],
        recipe=bundle.recipe.text,
    )
    write_text(path / "report.html", page)
    return path / "report.html"


def render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("galscan", "templates"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(version=galscan.__version__, **values)


# What is said in words


def _sentence(frame: pd.DataFrame, info: Mapping[str, Any]) -> tuple[int, str]:
    """Return how many candidates are accepted, and the result in a sentence."""
    scanned = f"{info.get('scanned') or 0:,} galaxies"
    if frame.empty:
        return 0, f"No candidates among {scanned}."
    purity = frame["purity"].to_numpy()
    for limit in (0.8, 0.5):
        if count := int((purity >= limit).sum()):
            row = frame.iloc[count - 1]
            noun = "candidate" if count == 1 else "candidates"
            # The list may end before purity falls that low.
            end = " (and the ranked list ends there)" if count == len(frame) else ""
            interval = f"{row['purity_lo']:.2f} to {row['purity_hi']:.2f}"
            return (
                count,
                f"{count:,} {noun} at an expected purity of {row['purity']:.2f} ({interval}) among {scanned}{end}.",
            )
    count = min(10, len(frame))
    row = frame.iloc[count - 1]
    return 0, (
        f"No list among {scanned} reaches a purity of one half: of the best {count:,}, {row['purity']:.0%} "
        f"are expected to be targets "
        f"({row['purity_lo']:.0%} to {row['purity_hi']:.0%})."
    )


def _model_sentence(metrics: Mapping[str, Any], gain: Mapping[str, float] | None) -> str:
    chosen = metrics.get(metrics.get("chosen") or "") or {}
    head = (
        f"Average precision {_number(chosen.get('ap_mean'))} on held-out real galaxies"
        if chosen
        else "No test figures were recorded"
    )
    if not gain or gain.get("mean") is None:
        return head + ("; trained without dreams." if chosen else ".")
    low, high = gain.get("lo", -math.inf), gain.get("hi", math.inf)
    effect = "dreams helped" if low > 0 else "dreams hurt" if high < 0 else "whether dreams helped cannot be told"
    mean, low_text, high_text = (_number(value, sign=True) for value in (gain["mean"], low, high))
    return f"{head}; {effect} ({mean}, {low_text} to {high_text})."


def _screened(dreams: Mapping[str, Any] | None) -> str:
    """Say how many dreams were dropped before training, and why."""
    if not dreams or "dropped" not in dreams:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dreams["dropped"].items())
    return (
        f"Of {dreams['all']:,} dreams ({dreams['positive']:,} of the target) {dreams['kept']:,} were used "
        f"({dreams['kept_positive']:,} of the target); dropped before training: {reasons or 'none'}."
    )


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return (f"{value:+.3f}" if sign else f"{value:.3f}").replace("-", "−")


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def duration(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.1f} s" if value < 120 else f"{value / 60:,.1f} min" if value < 7200 else f"{value / 3600:,.1f} h"


def _interval(entry: Mapping[str, float | None], *, percent: bool = False) -> str:
    value, low, high = (entry.get(k) for k in ("value", "low", "high"))
    if value is None:
        return "–"
    scale, unit = (100, " %") if percent else (1, "")
    return f"{value * scale:.2g}{unit} ({(low or 0) * scale:.2g} to {(high if high is not None else 1) * scale:.2g})"


# What is read


def _model_of(info: Mapping[str, Any]) -> Bundle | None:
    """Return the run's model, or None where it is gone or another by now."""
    try:
        bundle = open_bundle(str(info["model"]))
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


def _card(row: Mapping[Any, Any], stores: Mapping[str, Store]) -> dict[str, Any]:
    uri, size = "", 0
    if (store := stores.get(str(row["store"]))) is not None and 0 <= row["index"] < store.count:
        image = store.images(slice(int(row["index"]), int(row["index"]) + 1))[0]
        uri, size = pictures.data_uri(image), image.shape[0]
    return {
        "rank": f"{row['rank']:,}",
        "name": row["designation"] or str(row["objid"]),
        "p": f"{row['p_target']:.2f}",
        "purity": f"{row['purity']:.2f}",
        "in_train": bool(row["in_train"]),
        "uri": uri,
        "size": size,
    }
