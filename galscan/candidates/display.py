"""Purity against rank as a figure, and the HTML of a run in notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from galscan.candidates.table_stream import from_parquet
from galscan.core.display import html
from galscan.core.display.figures import BLUE, GREY, ORANGE
from galscan.core.errors import GalscanError
from galscan.scanning.run import GRADED, Run
from galscan.scanning.run_info import CANDIDATES
from galscan.stats.purity import nodes
from galscan.store.layout import read_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE = ["rank", "purity", "purity_lo", "purity_hi"]


def by_rank(axes: Axes, ranks: np.ndarray, label: str) -> None:
    """Label the axes of a figure over ranks; logarithmic for long lists."""
    axes.set(xlabel="rank", ylabel=label, ylim=(-0.02, 1.02))
    if len(ranks) > 20:
        axes.set(xscale="log", xlim=(1, ranks[-1]))


def shade(axes: Axes, ranks: Any, low: Any, high: Any, colour: str, label: str | None = None) -> None:
    """Shade an interval; those by the scores alone are fainter."""
    alpha = 0.22 if colour == BLUE else 0.18
    axes.fill_between(ranks, low, high, color=colour, alpha=alpha, linewidth=0, label=label)


def draw_purity(axes: Axes, frame: pd.DataFrame, accepted: int = 0, before: pd.DataFrame | None = None) -> None:
    """Draw purity against rank with its interval, and the rank of the last accepted candidate, if that is not 0.

    If `frame` holds estimates with grades, `before` holds those by the scores alone.
    """
    ranks = frame["rank"].to_numpy()
    if before is not None:
        shade(axes, ranks, before["purity_lo"], before["purity_hi"], GREY, "by scores alone")
        axes.plot(ranks, before["purity"], color=GREY, linewidth=1.4)
    shade(axes, ranks, frame["purity_lo"], frame["purity_hi"], BLUE)
    label = "purity down to this rank" if before is None else "with grades"
    axes.plot(ranks, frame["purity"], color=BLUE, linewidth=2, label=label)
    if before is None:
        label = "probability of this candidate"
        # Objects with a known label have probability 0 or 1, which would make the line jump.
        unlabelled = frame[frame["known"] == ""] if "known" in frame else frame
        axes.plot(unlabelled["rank"], unlabelled["p_target"], color=GREY, linewidth=1.2, linestyle="--", label=label)
    if accepted:
        axes.axvline(accepted, color=ORANGE, linewidth=1.2)
        side = "right" if accepted > ranks[-1] / 2 else "left"
        axes.text(
            accepted, 1.02, f" {accepted:,} ", color=ORANGE, va="bottom", ha=side, transform=axes.get_xaxis_transform()
        )
    by_rank(axes, ranks, "purity")
    axes.legend(loc="lower left")


def plot_purity(axes: Axes, run: Run) -> None:
    """Draw the purity of a run of one target; where it is unknown, the reason."""
    frame = _rows(run.path / CANDIDATES, [*CURVE, "p_target", "known"])
    before = None
    if run.table_file.stem == GRADED:
        frame, before = _rows(run.table_file, CURVE), frame
    draw_purity(axes, frame, 0, before)
    if not frame["purity"].notna().any():
        axes.text(0.5, 0.5, _why_unknown(run), ha="center", va="center", wrap=True, transform=axes.transAxes)


def _rows(path: Any, columns: list[str]) -> pd.DataFrame:
    """Return columns of a table of candidates, at a subset of the ranks of a long list."""
    stream = from_parquet(path)  # raises an `InputError` if the file is damaged
    present = [name for name in columns if name in stream.names]
    frame = pq.read_table(path, columns=present).to_pandas()
    return frame.iloc[nodes(len(frame)) - 1]


def _why_unknown(run: Run) -> str:
    if run.info.is_similarity_list:
        return "Ranked by similarity to examples: purity is unknown."
    why = run.purity.get("unknown")
    return f"Purity is unknown: {why}." if why else "Purity is unknown."


def run_card(run: Run, pictures: int = html.PICTURES) -> str:
    """Return the HTML of a run, with at most so many thumbnails; it reads no other images."""
    info = run.info
    counts = [("scored", f"{info.scanned:,}"), ("quarantined", f"{info.quarantined:,}")]
    stores = ("stores", ", ".join(store.name for store in info.stores))
    head = f"Run {' + '.join(run.own_targets)}"
    if info.status != "done":
        facts = [("status", info.status), ("objects", f"{info.objects:,}"), stores]
        return html.card(head, str(run.path), facts)
    if info.is_multi_target:
        each = pictures // len(run.targets)
        inner = [run_card(run.of(target), each) for target in run.targets]
        return html.card(head, str(run.path), [*counts, stores], inner=inner)
    purity = run.purity
    facts = [*counts, ("candidates", f"{info.candidates:,}"), stores]
    unknown = info.is_similarity_list or purity.get("unknown")
    if not unknown:
        facts.append(("prevalence", _percent(purity.get("prevalence") or {})))
        facts += [(f"purity of the top {int(k):,}", _percent(entry)) for k, entry in (purity.get("at") or {}).items()]
    frame = _rows(run.table_file, CURVE)
    known = frame["purity"].notna().any()
    chart = html.curve(
        *(frame[name].to_numpy(float) for name in CURVE), names=("rank", "purity"),
        description=f"Purity against rank, with its interval, of {info.candidates:,} candidates",
    )  # fmt: skip
    notes = [] if known or not len(frame) else [_why_unknown(run)]
    top = _top(run, pictures)
    notes += ["Thumbnails: the best candidates, with rank and score."] if top else []
    return html.card(head, str(run.path), facts, pictures=top, chart=chart, notes=notes)


def _percent(entry: Any) -> str:
    """Return e.g. ``54 % (10 to 97)``; empty if unknown."""
    value, low, high = (entry.get(key) for key in ("value", "low", "high"))
    if value is None:
        return ""
    ends = [100 * end for end in (value, low or 0.0, 1.0 if high is None else high)]
    texts = [f"{end:.0f}" if end > 99 else f"{end:.2g}" for end in ends]
    return f"{texts[0]} % ({texts[1]} to {texts[2]})"


def _top(run: Run, count: int) -> list[html.Picture]:
    """Return the best candidates whose store is still there and unchanged."""
    if not count:
        return []
    stream = from_parquet(run.table_file).head(count).select(["store", "index", "rank", "score"])
    best = pd.concat([piece.to_pandas() for piece in stream] or [pd.DataFrame(columns=stream.names)])
    stores = run.stores_if_unchanged()
    best = best[best["store"].isin(list(stores))]
    rows = [(str(name), int(row)) for name, row in zip(best["store"], best["index"], strict=True)]
    try:
        images = dict(read_images(stores, rows))
    except (GalscanError, OSError):
        return []
    captions = [f"{rank}: {score:.2f}" for rank, score in zip(best["rank"], best["score"], strict=True)]
    return [html.Picture(images[k], captions[k]) for k in range(len(rows))]
