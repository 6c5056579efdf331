"""Figures quoted in docs/explanation are those of the benchmark results; after a new measurement, correct the pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _interval(name: str, form: str = ".2f", end: str = "") -> str:
    """Return the template of a figure with its limits."""
    value, low, high = (f"{{{name}{part}{end}:{form}}}" for part in ("", "_lo", "_hi"))
    return f"{value} ({low} to {high})"


# By page and result file: figures as they are quoted, with their names in the file.
QUOTED = {
    ("synthetic-galaxies", "synthetic"): (
        "| {real_ap_real:.2f} | **{real_ap_synthetic:.2f}** | " + _interval("real_ap_ratio") + " |",
        "| {real_strong_real:.2f} | {real_strong_synthetic:.2f} | " + _interval("real_strong_ratio") + " |",
        "| {real_early_real:.2f} | {real_early_synthetic:.2f} | " + _interval("real_early_ratio") + " |",
        "| {arm_maps_over_real:.2f} | {arm_maps_over_synthetic:.2f} | " + _interval("arm_maps_over_ratio") + " |",
        "| {real_ap_real_8:.2f} | {real_ap_synthetic_8:.2f} | " + _interval("real_ap_ratio", end="_8") + " |",
        "| {real_ap_real_0:.2f} | {real_ap_synthetic_0:.2f} | " + _interval("real_ap_ratio", end="_0") + " |",
        "{arm_maps_over_prior_ratio:.2f}", "{arm_maps_over_prior_ratio_lo:.2f} to {arm_maps_over_prior_ratio_hi:.2f}",
        "{acceptance_synthetic:.0%}", "{acceptance_real:.0%} of {acceptance_real_n}",
        "{acceptance_hosts:.0%} of {acceptance_hosts_n}",
        "{sim_ap_real:.2f}", "{sim_ap_synthetic:.2f}", _interval("sim_ap_ratio"),
        "{sim_completeness_real:.2f}", "{sim_completeness_synthetic:.2f}",
        "{sim_completeness_ratio_lo:.2f} to {sim_completeness_ratio_hi:.2f}",
        "{sim_completeness_ratio_lo_0:.2f} to {sim_completeness_ratio_hi_0:.2f}",
        "{sim_completeness_paper:.2f}", "{sim_detections_over_plain:.0f}, at least {sim_detections_over_plain_lo:.0f}",
    ),
    ("synthetic-galaxies", "labels"): tuple(
        _interval(f"gain_over_better_{labels}", ".3f") for labels in (50, 200, 1000)
    ),
    ("synthetic-galaxies", "spine"): (
        "{ap_real_only:.2f} to {ap_real_plus_synthetic:.2f}", "{ap_gain_lo:.3f} to {ap_gain_hi:.3f}",
    ),
    ("synthetic-galaxies", "features"): (
        "| {ring_real:.2f} | {ring_synthetic:.2f} | " + _interval("ring_ratio") + " |",
        "| {ring_plain_real:.2f} | {ring_plain_synthetic:.2f} | " + _interval("ring_plain_ratio") + " |",
        "| {merger_real:.2f} | {merger_synthetic:.2f} | " + _interval("merger_ratio") + " |",
        "{few_shot_gain:+.0%} ({few_shot_gain_lo:+.0%} to {few_shot_gain_hi:+.0%})",
        "{lens_found:.0%} ({lens_found_lo:.0%} to {lens_found_hi:.0%})", "{lens_found_1_in_100:.0%}",
        "{lens_found_among_ellipticals:.0%}", "{lens_found_plain:.0%}",
        "{lens_found_by_half[0]:.0%}", "{lens_found_by_half[1]:.0%}",
    ),
    ("purity", "purity"): (
        "| {coverage[covers_100]:.1%} | {coverage[graded_covers_100]:.1%} |",
        "| {coverage[covers_1000]:.1%} | {coverage[graded_covers_1000]:.1%} |",
        "| {coverage[covers_completeness]:.1%} | {coverage[graded_covers_completeness]:.0%} |",
        "| {coverage[covers_prevalence]:.1%} | {coverage[graded_covers_prevalence]:.0%} |",
        "| {width_100:.2f} | {graded_width_100:.2f} |", "| {width_1000:.2f} | {graded_width_1000:.2f} |",
        "| {width_to_ideal_1000:.1f} | {graded_width_to_ideal_1000:.1f} |",
        "{shape_to_ideal_1000:.1f}", "{law_to_ideal_1000:.1f}", "**{carried_honest:.0%}**",
        "{votes_ring_model[purity_100]:.0%}",
        "{carried_by[framing][honest]:.0%}", "{carried_by[seeing][honest]:.0%}", "{carried_by[depth][honest]:.0%}",
    ),
    ("networks", "similar"): tuple(
        f"| {{{kind}[galscan]:.0%}} | {{{kind}[random]:.0%}} | {{{kind}[plain_mean]:.0%}} |"
        for kind in ("dusty_early", "ring", "edge_on", "perturbed")
    ),
    ("networks", "scan"): (
        "{ratio_to_forward:.2f}", "{jpeg_loader_ratio:.0f} times", "{jpeg_loader_ratio_single:.1f} times",
    ),
    ("networks", "morphology"): (
        "{vote_coverage_90:.0%}", "{six_target_cost:.1f} times", "{six_target_cost_first_look:.1f} times",
    ),
    ("store", "ingest"): (
        "{objects:,} objects", "{stored:,}", "{no_coverage:,}", "{failed} failed", "{failed_at_first} before",
    ),
    ("stretch", "frames"): ("{cutouts_per_core_s:,.0f}",),
    ("purity", "crossfit"): (
        "{coverage_crossfit_1000:.0%}", "{simulated_width_ratio_crossfit_100:.2f}",
        "{simulated_width_ratio_crossfit_1000:.2f}", "{coverage_uncorrected_1000:.1%}",
    ),
    ("identity", "crossfit"): (
        "{crossfit_ap:.2f}", "{fixed_ap:.2f}",
        "{crossfit_ap_ratio:.2f}, {crossfit_ap_ratio_lo:.2f} to {crossfit_ap_ratio_hi:.2f}",
        "{truth_above_uncorrected_1000:.1%}", "{truth_above_crossfit_1000:.1%}",
    ),
    ("cascade", "scan"): (
        "| {cascade_speedup:.1f} |", "| {cascade_kept:.1%} |", "{million_wall_s:.0f} s ({million_images_per_s:,.0f}",
        "{first_look[discarded]:,}", "{first_look[audited]:,}", "{first_look[kept_lo]:.0%}",
    ),
    ("stretch", "stretch"): (
        "{ellipticals}", "{lanes}", "{reddening_0001:.2f}", "{reddening_law:.2f}",
        "{reddening_0012:.2f}", "{reddening_000025:.2f}",
    ),
    ("scan-on-clusters", "ledger"): (
        "{billion_parts:,}", "{billion_scheduled_s:.0f} s", "{merge_s:.0f} s", "{peak_mb:.0f} MB",
    ),
    ("limits", "purity"): ("{carried_honest:.0%}", "{carried_by[seeing][honest]:.0%}"),
    ("limits", "morphology"): ("{six_target_cost:.1f} times",),
}  # fmt: skip


def _plain(text: str) -> str:
    """Return text on one line, with one kind of minus and of per cent."""
    return " ".join(text.split()).replace("−", "-").replace(" %", "%")


@pytest.mark.parametrize(("page", "result"), QUOTED, ids=["-".join(key) for key in QUOTED])
def test_quoted_figures_are_those_of_the_results(page, result):
    text = _plain((ROOT / "docs" / "explanation" / f"{page}.md").read_text(encoding="utf-8"))
    figures = json.loads((ROOT / "tests/benchmarks/results" / f"{result}.json").read_text(encoding="utf-8"))["figures"]
    figures = {name.replace(".", ""): value for name, value in figures.items()}  # a dot would be an attribute
    quoted = [_plain(quoted.format(**figures)) for quoted in QUOTED[page, result]]
    assert [figure for figure in quoted if figure not in text] == []
