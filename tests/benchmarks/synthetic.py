"""What synthetic galaxies bring: on real galaxies, and on a simulated survey at its natural prevalence.

    python -m tests.benchmarks.synthetic [--quick] [--json] [--seeds N]

1. The 882 NGC galaxies with EFIGI labels (``GALSCAN_TEST_DATA``, default ``../shared/data``), divided at random: 20, 8
   or none of the 53 dusty early types train, with 400 others; the rest, the same objects each time, is searched.
2. 100,000 simulated galaxies of which 0.15 % are dusty early types; 20 or none of the labelled ones train.

In both, training on real galaxies alone stands beside training with features injected into real galaxies as the recipe
does it; in the real half also with maps of the physical prior, maps that the diffusion model samples, and both, and
with whole images of a diffusion model (``--image-seeds``). All have the same number of steps. The synthetic training
set of the first division is then evaluated by a network that never saw one (``galscan evaluate``). Ratios have 95 %
intervals over divisions and test galaxies, paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import galscan
from galscan.core.files import read_json
from galscan.labels.recipe import load_recipe
from galscan.stats import metrics
from galscan.stats.metrics import Scored, WorkingPoint
from galscan.store.layout import open_store
from tests.benchmarks._ablation import ratio, read_scores, select
from tests.benchmarks._record import DATA, arguments, record, work_folder
from tests.helpers import tiny_recipe

PREVALENCE, PURITY = 0.0015, 0.8
STRONG = 0.75  # of visible_dust: a lane plain to the eye
STEPS = {"real": 400, "simulated": 1000}  # of every classifier
INJECTED = ("prior", "maps", "both")
METHOD = {"prior": "prior", "diffusion": "maps", "both": "both"}[load_recipe("dustlane").generator.maps]
REAL = ("attributes",)  # real only, oversampled, with attribute heads: the best of the real-only ways so far


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("synthetic", __doc__ or "")
    parser.add_argument("--seeds", type=int, default=5, help="divisions")
    parser.add_argument("--simulated-seeds", type=int, help="divisions of the simulated half; default: as --seeds")
    parser.add_argument("--fewer-seeds", type=int, help="divisions with 8 and with none labelled; default: as --seeds")
    parser.add_argument("--image-seeds", type=int, default=1, help="divisions in which whole images are drawn")
    parser.add_argument("--members", type=int, default=1, help="networks of each arm and division")
    parser.add_argument("--only", choices=("real", "simulated"), help="one half; the figures of the other are missing")
    parser.add_argument("--labelled", default="20,8,0", help="numbers of labelled targets: 20 and, or not, 8 and 0")
    parser.add_argument("--arms", default=",".join(INJECTED), help="ways to inject, of prior, maps and both")
    parser.add_argument(
        "--evaluation", choices=("both", "real", "none"), default="both",
        help="halves of which galscan evaluate evaluates the synthetic galaxies: the simulated one takes long",
    )  # fmt: skip
    options = parser.parse_args(argv)
    quick, seed = options.quick, options.seed
    work = work_folder("synthetic", options)
    seeds = 2 if quick else options.seeds
    fewer = min(seeds, options.fewer_seeds or seeds)
    labelled = [int(n) for n in options.labelled.split(",")]
    arms = tuple(options.arms.split(","))
    if 20 not in labelled or METHOD not in arms:
        parser.error(f"--labelled needs 20, --arms the recipe's own way, {METHOD}")
    figures: dict[str, Any] = {"seeds": seeds, "seeds_fewer_labelled": fewer, "members": options.members}
    figures["method"] = METHOD
    how: dict[str, Any] = {"members": options.members, "seed": seed, "survey_size": 100_000}
    evaluate = options.evaluation
    if options.only != "simulated":
        figures |= _real(work, seeds, fewer, options.image_seeds, labelled, arms, quick, how, evaluate != "none")
    if options.only != "real":
        of_sky = min(seeds, options.simulated_seeds or seeds)
        figures |= _simulated(work, of_sky, min(fewer, of_sky), labelled, quick, how, evaluate == "both")
    record("synthetic", options, figures)
    return figures


def _recipe(work: Path, name: str, size: int, steps: int, generator: str = "") -> str:
    """Write the shipped recipe with other pixels and steps, and with another generator where one is given."""
    text = load_recipe("dustlane").text.replace("size = 96", f"size = {size}", 1)
    if generator:
        before, rest = text.split("[generator]", 1)
        text = f"{before}{generator}\n[synthetic]{rest.split('[synthetic]', 1)[1]}"
    path = work / f"{name}.toml"
    path.write_text(f"{text}\n[classifier]\nsteps = {steps}\n", encoding="utf-8")
    return str(path)


def _real(
    work: Path, seeds: int, fewer: int, image_seeds: int, labelled: list[int], injected: tuple[str, ...], quick: bool,
    how: dict[str, Any], evaluate: bool,
) -> dict[str, Any]:  # fmt: skip
    size = 32 if quick else load_recipe("dustlane").size
    ngc = galscan.ingest("local", path=DATA / "ngc-sdss", labels=["efigi"], size=size, out=work / "ngc.zarr").path
    recipe = str(tiny_recipe(work / "real.toml", size=size)) if quick else _recipe(work, "real", size, STEPS["real"])
    common = {"store": ngc, "negatives": 100 if quick else 400, "reserved": 20, "purity": 0.5, **how}
    labels = open_store(ngc).labels("efigi").set_axis(open_store(ngc).column("id").astype(str))
    scored = _ablate(recipe, work / "real", labelled, seeds, fewer, injected, common)
    point = WorkingPoint(float(np.mean([one.targets.mean() for one in scored[20]])), 0.5, 0.5)
    best = max(REAL, key=lambda arm: metrics.measure(scored[20], point)[arm][:, 0].mean())
    figures: dict[str, Any] = {"real_best_real_only": best, "real_divisions": seeds, "real_steps": STEPS["real"]}
    figures |= _counts("real", scored[20])
    figures |= ratio("real_ap", "", scored[20], METHOD, scored[20], best, point)
    if 8 in scored:
        figures |= ratio("real_ap", "_8", scored[8], METHOD, scored[8], "attributes", point)
    if 0 in scored:  # beside 20 labelled without synthetic ones
        figures |= ratio("real_ap", "_0", scored[0], METHOD, scored[20][:fewer], best, point)
    strong = labels.index[labels["visible_dust"] >= STRONG]
    plain = [select(one, strong, negatives=True) for one in scored[20]]
    figures |= ratio("real_strong", "", plain, METHOD, plain, best, point)
    early = labels.index[labels["t"] <= 0]  # among which only dust tells, not the type
    among = [select(one, early) for one in scored[20]]
    figures |= ratio("real_early", "", among, METHOD, among, best, point)
    for arm in injected:
        figures |= ratio(f"arm_{arm}_over", "", scored[20], arm, scored[20], best, point)
    if {"maps", "prior"} <= set(injected):
        figures |= ratio("arm_maps_over_prior", "", scored[20], "maps", scored[20], "prior", point)
    values = metrics.measure(scored[20], point)
    figures |= {f"arm_{arm}": float(values[arm][:, 0].mean()) for arm in injected}
    figures |= {f"arm_{arm}_each": values[arm][:, 0].round(4).tolist() for arm in (*REAL, *injected)}
    if image_seeds:
        # A diffusion model of whole galaxies that is trained for minutes draws no lane.
        out = work / "real-images"
        drawn = recipe if quick else _recipe(work, "images", size, STEPS["real"], IMAGES)
        galscan.ablate(drawn, out=out, seeds=image_seeds, positives=20, arms=("attributes", "images"), method="images",
                       **common)  # fmt: skip
        images = read_scores(out, image_seeds)
        found = metrics.measure(images, point)
        figures |= {f"arm_{arm}": float(found[arm][:, 0].mean()) for arm in ("images",)}
        figures["arm_images_each"] = found["images"][:, 0].round(4).tolist()
        figures["arm_images_real_only"] = float(found["attributes"][:, 0].mean())
    notes = [read_json(path) for path in sorted((work / "real-20").glob(f"repeat-*/{METHOD}.json"))]
    figures |= {f"real_{key}": sum(n[key] for n in notes) for key in ("hosts", "hosts_unlabelled", "measured_maps")}
    if not evaluate:
        return figures
    return figures | _acceptance("", work / "real", recipe, ngc, how["seed"], 20 if quick else STEPS["real"])


IMAGES = """
[generator]
kind = "flow"
steps = 240
batch = 8
"""


def _simulated(
    work: Path, seeds: int, fewer: int, labelled: list[int], quick: bool, how: dict[str, Any], evaluate: bool
) -> dict[str, Any]:
    size, count, rare = (32, 3_000, 0.02) if quick else (64, 100_000, PREVALENCE)
    sky = galscan.ingest(
        "simulated", out=work / "survey.zarr", count=count, size=size, seed=73, rare_fraction=rare
    ).path
    tiny = str(tiny_recipe(work / "simulated.toml", size=size)) if quick else ""
    recipe = tiny or _recipe(work, "simulated", size, STEPS["simulated"])
    common = {
        "store": sky, "reserved": 20, "max_test": 400 if quick else 20_000, "prevalence": PREVALENCE, "purity": PURITY,
        "negatives": 500 if quick else 13_300, **how,
    }  # fmt: skip
    others = ("plain", "focal", METHOD)
    scored = _ablate(recipe, work / "simulated", [n for n in labelled if n != 8], seeds, fewer, others, common)
    point = WorkingPoint(PREVALENCE, PURITY, 0.5)
    value = {arm: v[:, 1].mean() for arm, v in metrics.measure(scored[20], point).items()}
    best = max(REAL, key=lambda arm: value[arm])
    figures: dict[str, Any] = {"sim_best_real_only": best, "sim_divisions": seeds, "sim_steps": STEPS["simulated"]}
    figures |= _counts("sim", scored[20])
    figures |= ratio("sim_completeness", "", scored[20], METHOD, scored[20], best, point, 1)
    figures |= ratio("sim_ap", "", scored[20], METHOD, scored[20], best, point)
    if 0 in scored:
        figures |= ratio("sim_completeness", "_0", scored[0], METHOD, scored[20][:fewer], best, point, 1)
    paper = max(("plain", "focal"), key=lambda arm: value[arm])
    over = ratio("sim_over_paper", "", scored[20], METHOD, scored[20], paper, point, 1)
    figures |= {
        "sim_paper_baseline": paper, "sim_completeness_paper": over["sim_over_paper_real"],
        "sim_detections_over_plain": over["sim_over_paper_ratio"],
        "sim_detections_over_plain_lo": over["sim_over_paper_ratio_lo"],
    }  # fmt: skip
    if not evaluate:
        return figures
    steps = 20 if quick else STEPS["simulated"]
    return figures | _acceptance("sim_", work / "simulated", recipe, sky, how["seed"], steps)


def _ablate(
    recipe: str, place: Path, labelled: list[int], seeds: int, fewer: int, arms: tuple[str, ...], common: dict[str, Any]
) -> dict[int, list[Scored]]:
    """Train and score with each number of labelled targets; all `arms` with 20 of them, else the recipe's own way."""
    scored = {}
    for positives in labelled:
        out, repeats = Path(f"{place}-{positives}"), seeds if positives == 20 else fewer
        ways = (*REAL, *arms) if positives == 20 else (*REAL, METHOD)
        galscan.ablate(recipe, out=out, seeds=repeats, positives=positives, arms=ways, method=METHOD, **common)
        scored[positives] = read_scores(out, repeats)
    return scored


def _counts(name: str, scored: Sequence[Scored]) -> dict[str, Any]:
    return {f"{name}_test_positives": [int(one.targets.sum()) for one in scored],
            f"{name}_test_negatives": [int((1 - one.targets).sum()) for one in scored]}  # fmt: skip


def _acceptance(prefix: str, place: Path, recipe: str, store: Path, seed: int, steps: int) -> dict[str, Any]:
    """Evaluate the synthetic galaxies of the first division."""
    synthetic, out = Path(f"{place}-20") / "repeat-00" / f"{METHOD}.zarr", Path(f"{place}-evaluation")
    evaluation = galscan.evaluate(synthetic, target=recipe, store=store, out=out, seed=seed, steps=steps)
    accepted = evaluation["acceptance"]
    return {
        f"{prefix}acceptance_{which}{key}": accepted[which]["at_zero"][name]
        for which in ("real", "synthetic", "hosts") for key, name in (("", "fraction"), ("_n", "n"))
    }  # fmt: skip


if __name__ == "__main__":
    main()
