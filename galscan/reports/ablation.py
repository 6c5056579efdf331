"""Report page of an ablation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from galscan.core.files import read_json, write_text
from galscan.reports import plots_ablation
from galscan.reports.page import duration, render
from galscan.training.ablation import arms


def write_ablation_report(path: str | Path) -> Path:
    """Write ``report.html`` and ``curves.png`` into the folder of an ablation."""
    path = Path(path)
    result = read_json(path / "ablation.json")
    plots_ablation.write_curves(result, path / "curves.png")
    point, repeats = result["point"], result["repeats"]
    figures = [
        plots_ablation.gains(result, "ap", "average precision"),
        plots_ablation.gains(result, "completeness", f"detections at purity {point['purity']:g}"),
    ]
    page = render(
        "ablation.html.j2",
        kind="ablation",
        title=f"galscan: gain by synthetic galaxies for {result['target']}",
        target=result["title"],
        verdict=arms.verdict(result),
        facts=[
            ("repeats", len(repeats)),
            ("networks", len(repeats) * len(result["arms"]) * result["members"]),
            ("prevalence", f"{point['prevalence']:.3g}"),
            ("training positives", _range(r["train"]["positives"] for r in repeats)),
            ("test positives", _range(r["test"]["positives"] for r in repeats)),
            ("test negatives", _range(r["test"]["negatives"] for r in repeats)),
            ("time", duration(sum(result["seconds"].values()))),
        ],
        result=result,
        figures=[f for f in figures if f],
        curves=plots_ablation.curves(result),
        provenance=[
            ("request", result["request_hash"]),
            ("recipe", result["recipe_hash"]),
            *((f"store {name}", content) for name, content in result["request"]["stores"]),
            ("labels", result["schema"]),
            ("steps per network", f"{result['steps']:,}"),
        ],
    )
    write_text(path / "report.html", page)
    return path / "report.html"


def _range(counts: Iterable[int]) -> str:
    low, high = min(counts := list(counts)), max(counts)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
