"""The calibration of a model as a figure, and the HTML of a model in notebooks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galscan.core.display import html
from galscan.core.display.figures import BLUE, GREY
from galscan.core.errors import GalscanError
from galscan.core.old_names import existing
from galscan.stats.calibration import Calibration, Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_calibration(axes: Axes, groups: Reliability) -> None:
    """Draw observed against predicted fractions of targets, with 95 % intervals."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    errors = groups.observed - groups.low, groups.high - groups.observed
    axes.errorbar(
        groups.predicted, groups.observed, yerr=[e.clip(0, 1) for e in errors], fmt="o", color=BLUE, markersize=5,
        linewidth=1.2,
    )  # fmt: skip
    axes.set(xlabel="predicted probability", ylabel="fraction of targets", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def model_card(path: Path, info: Mapping[str, Any], title: str, calibration: Calibration) -> str:
    """Return the HTML of a model; `info` is the content of ``model.json``."""
    metrics = info["metrics"]
    chosen = metrics.get(metrics.get("chosen") or "") or {}
    precision = ""
    if (mean := chosen.get("ap_mean")) is not None:
        precision = f"{mean:.3f} ({chosen.get('ap_lo', math.nan):.3f} to {chosen.get('ap_hi', math.nan):.3f})"
    train = info["splits"].get("train") or {}
    real = {"real_only": "real galaxies", "real_plus_synthetic": "real and synthetic galaxies"}
    facts = [
        ("labels", info["schema"]),
        ("networks", len(info["weights"])),
        ("input", f"{info['size']} x {info['size']} px"),
        ("trained on", real.get(metrics.get("chosen"), "")),
        ("targets / negatives in the training set", f"{train.get('positive', 0):,} / {train.get('negative', 0):,}"),
        ("average precision (95 %)", precision),
        ("other answers", len(info["answers"]) or ""),
        ("prefilter", "yes" if info.get("first_look") else "no"),
    ]
    groups = calibration.reliability()
    chart = html.curve(
        groups.predicted, groups.observed, groups.low, groups.high, names=("predicted probability", "targets"),
        description="Observed fraction of targets against predicted probability", by_rank=False,
    )  # fmt: skip
    pictures = _synthetic(existing(path / "synthetic.zarr"))
    notes = ["Thumbnails: synthetic galaxies of the training set."] if pictures else []
    head = f"Model {info['target']}" + (f": {title}" if title and title != info["target"] else "")
    return html.card(head, str(path), facts, pictures=pictures, chart=chart, notes=notes)


def _synthetic(path: Path) -> list[html.Picture]:
    """Return the first synthetic galaxies of a model; none if it has no store of them, or one that is damaged."""
    if not path.is_dir():
        return []
    from galscan.store.layout import open_store  # zarr is not needed to use a model

    try:
        rows = slice(0, html.PICTURES)
        store = open_store(path)
        targets = store.column("truth/target", rows)
        return [
            html.Picture(image, f"target {target:.0f}")
            for image, target in zip(store.images(rows), targets, strict=True)
        ]
    except (GalscanError, OSError, KeyError):
        return []
