"""One self-contained HTML page a run and a model: what was done, what came out, pictures and curves.

No scripts and no requests: every picture and curve is inside the page. Text goes through jinja2's autoescape.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

import galscan
from galscan import pictures
from galscan.candidates import purity as purities
from galscan.classify.bundle import Bundle, open_bundle
from galscan.errors import GalscanError, NotFoundError
from galscan.files import read_json, write_text
from galscan.store.layout import Store, open_store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = 48
LAST = 6  # pictures of the lowest accepted ranks
_BLUE, _ORANGE, _GREY = "#1f5f8b", "#c4701f", "#8a95a3"
_STYLE: Any = {
    "svg.hashsalt": "galscan",
    "svg.fonttype": "path",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a95a3",
    "axes.labelcolor": "#1d2733",
    "xtick.color": "#55616f",
    "ytick.color": "#55616f",
    "axes.grid": True,
    "grid.color": "#e6eaee",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


class Plot(NamedTuple):
    """A curve as the page shows it."""

    uri: str
    alt: str
    caption: str


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
    histogram = _histogram(run)
    accepted, sentence = _sentence(frame, info)
    figures = [
        _purity_plot(frame, accepted),
        _completeness_plot(frame, info, bundle, histogram),
        _score_plot(frame, info, bundle, histogram),
    ]
    if len(placed := frame[np.isfinite(frame["ra"]) & np.isfinite(frame["dec"])]):
        figures.append(_sky_plot(placed))
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
    page = _render(
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
            ("time", _seconds(info.get("wall_s"))),
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
    figures = [p for p in (_pr_plot(metrics, names), _calibration_plot(bundle)) if p]
    counts = info.get("splits") or {}
    page = _render(
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
            ("time", _seconds(metrics.get("seconds"))),
        ],
        rows=rows,
        test=told,
        figures=figures,
        dreams=pictures.data_uri((path / "dreams.png").read_bytes()) if (path / "dreams.png").is_file() else "",
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


def _render(template: str, **values: Any) -> str:
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


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return (f"{value:+.3f}" if sign else f"{value:.3f}").replace("-", "−")


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _seconds(value: float | None) -> str:
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


def _histogram(run: Path) -> purities.ScoreHistogram:
    histogram = purities.ScoreHistogram.empty()
    for path in sorted((run / "scores").glob("*.parquet")):
        histogram.add(pq.read_table(path, columns=["score"])["score"].to_numpy())
    return histogram


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


# What is drawn


def _drawn(figure: Figure, alt: str, caption: str) -> Plot:
    """Return a figure as SVG in a data address: no date in it, and the same bytes for the same numbers."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    return Plot("data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), alt, caption)


def _axes(width: float = 5.4, height: float = 3.5, **options: Any) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot(**options)


def _styled(draw: Any) -> Any:
    """Draw with the page's style, whatever style the caller's matplotlib has."""
    import functools

    @functools.wraps(draw)
    def wrapper(*args: Any) -> Plot | None:
        import matplotlib

        with matplotlib.rc_context(matplotlib.rcParamsDefault), matplotlib.rc_context(_STYLE):
            return draw(*args)  # type: ignore[no-any-return]

    return wrapper


def _by_rank(axes: Axes, ranks: np.ndarray, label: str) -> None:
    axes.set(xlabel="rank", ylabel=label, ylim=(-0.02, 1.02))
    if len(ranks) > 20:
        axes.set_xscale("log")
        axes.set_xlim(1, len(ranks))


@_styled
def _purity_plot(frame: pd.DataFrame, accepted: int) -> Plot:
    figure, axes = _axes()
    ranks = frame["rank"].to_numpy()
    axes.fill_between(
        ranks, frame["purity_lo"], frame["purity_hi"], color=_BLUE, alpha=0.16, linewidth=0, label="interval"
    )
    axes.plot(ranks, frame["purity"], color=_BLUE, linewidth=2, label="purity at this rank and above")
    axes.plot(
        ranks, frame["p_target"], color=_GREY, linewidth=1.2, linestyle="--", label="probability of this candidate"
    )
    if accepted:
        axes.axvline(accepted, color=_ORANGE, linewidth=1.2)
        axes.annotate(
            f" {accepted:,}",
            (accepted, 1.0),
            color=_ORANGE,
            ha="right" if accepted > len(ranks) / 2 else "left",
            va="bottom",
        )
    _by_rank(axes, ranks, "purity")
    axes.legend(loc="lower left")
    ends = (
        f"{frame['purity'].iloc[0]:.2f} at rank 1 to {frame['purity'].iloc[-1]:.2f} at rank {len(frame):,}"
        if len(frame)
        else "no candidates"
    )
    return _drawn(
        figure,
        f"Purity against rank with its interval: {ends}",
        "Expected fraction of targets among the candidates down to a rank, and its interval.",
    )


@_styled
def _completeness_plot(
    frame: pd.DataFrame, info: Mapping[str, Any], bundle: Bundle | None, histogram: purities.ScoreHistogram
) -> Plot:
    figure, axes = _axes()
    ranks = frame["rank"].to_numpy()
    if bundle is not None and 0 < len(frame) <= histogram.total:
        # The table keeps no interval of completeness; the same seed gives the one of the scan again.
        settings = bundle.recipe.purity
        again = purities.estimate(
            bundle.calibration,
            histogram,
            frame["score"].to_numpy(np.float64),
            bootstrap=settings.bootstrap,
            confidence=settings.confidence,
            seed=int(str(info.get("fingerprint", "0"))[:8], 16),
        )
        axes.fill_between(ranks, again.completeness_lo, again.completeness_hi, color=_BLUE, alpha=0.16, linewidth=0)
    axes.plot(ranks, frame["completeness"], color=_BLUE, linewidth=2)
    _by_rank(axes, ranks, "completeness")
    known = frame["completeness"].dropna()
    ends = (
        f"{known.iloc[-1]:.2f} at rank {len(frame):,}" if len(known) else "unknown, as the estimated prevalence is zero"
    )
    return _drawn(
        figure,
        f"Completeness against rank: {ends}",
        "Expected fraction of all targets in the survey that a list down to a rank holds.",
    )


@_styled
def _score_plot(
    frame: pd.DataFrame, info: Mapping[str, Any], bundle: Bundle | None, histogram: purities.ScoreHistogram
) -> Plot:
    figure, axes = _axes()
    counts, centres = histogram.counts, histogram.centres
    used = np.flatnonzero(counts)
    caption = "Scores of everything scanned."
    if len(used):
        wide = max(1, round((centres[used[-1]] - centres[used[0]]) / 0.05 / 60))  # about 60 bars
        first, stop = used[0], used[0] + -(-(used[-1] - used[0] + 1) // wide) * wide
        span = np.arange(first, stop)
        inside = np.where(span < len(counts), counts[np.minimum(span, len(counts) - 1)], 0).reshape(-1, wide)
        middle = (-40 + 0.05 * (span + 0.5)).reshape(-1, wide)
        axes.bar(middle.mean(1), inside.sum(1), width=wide * 0.05, color="#cbd3dc", label="all objects")
        prevalence = ((info.get("purity") or {}).get("prevalence") or {}).get("value")
        if bundle is not None and prevalence:
            targets = (inside * bundle.calibration.probability(middle, prevalence)).sum(1)
            axes.step(
                middle.mean(1),
                np.maximum(targets, 1e-9),
                where="mid",
                color=_ORANGE,
                linewidth=1.8,
                label="expected targets",
            )
            caption = "Scores of everything scanned, and the targets the calibration expects among them."
        if len(frame):
            axes.axvline(
                float(frame["score"].iloc[-1]),
                color=_BLUE,
                linewidth=1.2,
                linestyle=":",
                label=f"last ranked ({len(frame):,})",
            )
        axes.set(yscale="log", ylim=(0.3, 2 * inside.sum(1).max()))
        axes.legend(loc="upper right")
    axes.set(xlabel="score (logit)", ylabel="objects")
    return _drawn(figure, f"Histogram of {histogram.total:,} scores on a logarithmic scale", caption)


@_styled
def _sky_plot(placed: pd.DataFrame) -> Plot:
    ra, dec, colour = placed["ra"].to_numpy(), placed["dec"].to_numpy(), placed["purity"].to_numpy()
    middle = np.degrees(np.angle(np.exp(1j * np.radians(ra)).mean())) % 360
    offset = (ra - middle + 180) % 360 - 180
    small = np.ptp(offset) < 40 and np.ptp(dec) < 40
    if small:
        figure, axes = _axes()
        drawn = axes.scatter(middle + offset, dec, c=colour, s=16, cmap="viridis", vmin=0, vmax=1, linewidth=0)
        axes.set(xlabel="right ascension (deg)", ylabel="declination (deg)")
        axes.set_aspect(1 / max(np.cos(np.radians(dec.mean())), 0.05), adjustable="datalim")
        axes.invert_xaxis()
    else:
        figure, axes = _axes(height=3.1, projection="mollweide")
        x = -np.radians((ra + 180) % 360 - 180)  # east to the left, as on the sky
        drawn = axes.scatter(x, np.radians(dec), c=colour, s=14, cmap="viridis", vmin=0, vmax=1, linewidth=0)
        axes.set_xticks(np.radians([-120, -60, 0, 60, 120]), ["120°", "60°", "0°", "300°", "240°"], fontsize=8)
        axes.set_yticks(np.radians([-60, -30, 0, 30, 60]), ["−60°", "−30°", "0°", "30°", "60°"], fontsize=8)
    figure.colorbar(drawn, ax=axes, label="purity", shrink=0.75, pad=0.06)
    return _drawn(
        figure,
        f"Sky map of {len(placed):,} candidates with known positions",
        f"Where the {len(placed):,} candidates with coordinates are (ICRS, east to the left).",
    )


@_styled
def _pr_plot(metrics: Mapping[str, Any], names: Mapping[str, str]) -> Plot | None:
    figure, axes = _axes()
    drawn = False
    for key, colour in (("real_only", _GREY), ("real_plus_dreamt", _BLUE)):
        if curve := (metrics.get(key) or {}).get("pr_curve"):
            axes.step(curve["recall"], curve["precision"], where="post", color=colour, linewidth=2, label=names[key])
            drawn = True
    if not drawn:
        return None
    if (prevalence := (metrics.get("test") or {}).get("prevalence")) is not None:
        axes.axhline(prevalence, color="#b8c1cb", linewidth=1, linestyle=":", label="at random")
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
    axes.legend(loc="lower left")
    return _drawn(
        figure,
        "Precision against recall on the test set",
        "Precision and recall of the ensemble on held-out real galaxies.",
    )


@_styled
def _calibration_plot(bundle: Bundle) -> Plot:
    """Draw observed against predicted fractions, in groups with about as many targets each, with binomial intervals."""
    from scipy.stats import beta

    calibration = bundle.calibration
    predicted = calibration.probability(calibration.scores)
    found = predicted[calibration.targets == 1]
    # Groups of equal size would all lie near zero where targets are rare.
    edges = np.unique(np.quantile(found, np.linspace(0, 1, max(2, min(8, len(found) // 5)) + 1)))
    group = np.searchsorted(edges, predicted, side="right")
    groups = [np.flatnonzero(group == g) for g in np.unique(group)]
    x = np.array([predicted[g].mean() for g in groups])
    hits, sizes = np.array([calibration.targets[g].sum() for g in groups]), np.array([len(g) for g in groups])
    y = hits / sizes
    low, high = beta.ppf(0.025, hits + 0.5, sizes - hits + 0.5), beta.ppf(0.975, hits + 0.5, sizes - hits + 0.5)
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color="#b8c1cb", linewidth=1, linestyle=":")
    axes.errorbar(x, y, yerr=np.clip([y - low, high - y], 0, 1), fmt="o", color=_BLUE, markersize=5, linewidth=1.2)
    axes.set(xlabel="predicted probability", ylabel="fraction of targets", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return _drawn(
        figure,
        "Observed fraction of targets against predicted probability",
        f"Calibration on {hits.sum():,.0f} targets and {(sizes - hits).sum():,.0f} others; "
        "bars are 95 % intervals, the dotted line is perfect. The sigmoid was fitted to these objects.",
    )
