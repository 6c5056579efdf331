"""Features other than dust lanes, injected into real galaxies.

    python -m tests.benchmarks.features [--quick] [--json] [--seeds N] [--only PART ...]

Rings and mergers: 20 labelled galaxies with the feature and many without it train, the rest is searched; every seed
divides the galaxies again. Networks that train with the recipe's injections as well stand beside those that train on
real galaxies alone, with morphology heads, for mergers also beside plain ones. Rings are those of the EFIGI galaxies of
``ngc-sdss`` (in ``GALSCAN_TEST_DATA``, default ``../shared/data``), among them `ring_plain` with an attribute of 0.75
or more; mergers those of ``gz1-sdss``. `ring_ratio` and `merger_ratio` are of the average precision, with 95 %
intervals over divisions and test galaxies.

Votes: `few_shot_gain` of `tests.benchmarks.morphology`, dust lanes with 40 examples among galaxies with votes.

Lenses: the galaxies of ``gz1-sdss`` are divided at random into two halves. Networks are trained on one half, none of
whose galaxies is labelled a lens, with arcs injected into its ellipticals as the recipe does it, and search the other
half, in turn. There, 2,000 visible lenses of the prior (other hosts and other sources) are in ellipticals; negatives
are all galaxies as they are, these ellipticals included. `lens_found` is the fraction of the lenses above the score
that one negative in 1,000 exceeds, with the 95 % interval over lenses and negatives; `lens_found_plain` of those as
deep as the recipe's `plain`, `lens_found_among_ellipticals` with the ellipticals as the only negatives. The images show
4.24 Petrosian radii, 6 arcsec in the median of that survey, so all are taken to be 25.4 arcsec wide, which sets the
seeing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import galscan
from galscan.core.concurrency import cores
from galscan.core.files import atomic_path
from galscan.labels.recipe import load_recipe
from galscan.labels.schema import load_schema
from galscan.labels.settings import LabelRules, SyntheticSettings
from galscan.models.ensemble import member_scores
from galscan.models.weights import load_network, save_network
from galscan.stats import metrics
from galscan.stats.metrics import Scored, WorkingPoint
from galscan.store.layout import Store, open_store
from galscan.synthesis.features.base import find_feature
from galscan.synthesis.flux import Stretch
from galscan.synthesis.injection import Candidates, injected_set
from galscan.training.synthetic import examples_of
from galscan.training.train import Examples, train_classifier
from tests.benchmarks._ablation import ratio, read_scores, select
from tests.benchmarks._processes import side_by_side
from tests.benchmarks._record import DATA, arguments, record, work_folder
from tests.benchmarks.morphology import few_shot
from tests.helpers import tiny_recipe

CPU = torch.device("cpu")
FRAME = 4.24 * 6.0  # arcsec
HOSTS = "elliptical >= 0.5"
ANSWERS = ["elliptical", "edge_on", "merger"]
REAL = {"ring": ("attributes",), "merger": ("plain", "attributes")}  # ways to train on real galaxies alone
STEPS = 400  # of each network for rings and mergers
PLAIN = 0.75  # attribute of a ring that is plain to the eye
FALSE = 1000  # one false positive in so many


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("features", __doc__ or "")
    parser.add_argument("--seeds", type=int, default=5, help="divisions")
    parser.add_argument("--members", type=int, default=2, help="networks of each half of the lenses, averaged")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="parts; the figures of others are missing")
    options = parser.parse_args(argv)
    work, figures = work_folder("features", options), {}
    for name, part in PARTS.items():
        if name in (options.only or PARTS):
            figures |= part(work, options)
    record("features", options, figures)
    return figures


# Rings and mergers


def rings(work: Path, options: Any) -> dict[str, Any]:
    """Search the rings of EFIGI's galaxies, also only the plain ones among all negatives."""
    store, figures, scored, best, point = gain(work, "ring", "ngc-sdss", "efigi", 200, options)
    labels = store.labels("efigi").set_axis(store.column("id").astype(str))
    plain = labels.index[labels[["inner_ring", "outer_ring"]].max(axis=1) >= PLAIN]
    only = [select(one, plain, negatives=True) for one in scored]
    figures["ring_plain_test"] = [int(one.targets.sum()) for one in only]
    return figures | ratio("ring_plain", "", only, "prior", only, best, point)


def mergers(work: Path, options: Any) -> dict[str, Any]:
    """Search the mergers of Galaxy Zoo 1."""
    return gain(work, "merger", "gz1-sdss", "gz1", 1000, options)[1]


def gain(
    work: Path, target: str, folder: str, schema: str, negatives: int, options: Any
) -> tuple[Store, dict[str, Any], list[Scored], str, WorkingPoint]:
    """Train and search as often as there are seeds; return the store, figures, scores and the best real-only arm."""
    quick, seeds, recipe = options.quick, 2 if options.quick else options.seeds, load_recipe(target)
    size = 32 if quick else recipe.size
    source = galscan.ingest("local", path=DATA / folder, labels=[schema], size=size, out=work / f"{target}.zarr").path
    path = work / f"{target}.toml"
    if quick:
        tiny_recipe(path, target, size=size)
    else:
        path.write_text(f"{recipe.text}\n[classifier]\nsteps = {STEPS}\n", encoding="utf-8")
    out = work / target
    galscan.ablate(
        str(path), store=source, out=out, seeds=seeds, positives=20, negatives=100 if quick else negatives,
        arms=(*REAL[target], "prior"), method="prior", seed=options.seed,
    )  # fmt: skip
    scored = read_scores(out, seeds)
    point = WorkingPoint(float(np.mean([one.targets.mean() for one in scored])), 0.8, 0.5)
    values = {arm: found[:, 0] for arm, found in metrics.measure(scored, point).items()}
    best = max(REAL[target], key=lambda arm: values[arm].mean())
    figures: dict[str, Any] = {
        f"{target}_best_real_only": best, f"{target}_divisions": seeds, f"{target}_size": size,
        f"{target}_steps": STEPS,
        f"{target}_test_positives": [int(one.targets.sum()) for one in scored],
        f"{target}_test_negatives": [int((1 - one.targets).sum()) for one in scored],
    }  # fmt: skip
    figures |= {f"{target}_ap_{arm}": found.round(4).tolist() for arm, found in values.items()}
    return open_store(source), figures | ratio(target, "", scored, "prior", scored, best, point), scored, best, point


def votes(work: Path, options: Any) -> dict[str, Any]:
    """Predict votes with few examples of one answer."""
    return few_shot(work, options.quick, options.seeds)


# Lenses


@dataclass(frozen=True)
class Lenses:
    """What a half of the lens benchmark needs; every network leaves its file in `work`."""

    work: Path
    store: Path
    size: int
    steps: int
    injected: int  # into the training half
    lenses: int  # to be found in the other one
    seed: int

    def half(self, number: int) -> Candidates:
        """Return the galaxies of a half."""
        store = open_store(self.store)
        order = np.random.default_rng([self.seed, 1]).permutation(store.count)
        rows = np.sort(order[number::2])
        labels = store.labels("gz1").iloc[rows].reset_index(drop=True).astype(np.float32)
        n = len(rows)
        return Candidates(
            store.images()[rows], labels, pd.DataFrame(index=range(n)), np.full(n, np.nan), np.zeros(n, int),
            np.full(n, FRAME), [Stretch()], ["irg"],
        )  # fmt: skip

    def network(self, number: int, member: int) -> Path:
        return self.work / f"lens-{number}-{member}-{self.steps}-{self.seed}.safetensors"

    def train(self, number: int, member: int) -> None:
        """Train a network on a half. In a process of its own."""
        path = self.network(number, member)
        if path.is_file():
            return
        schema, galaxies = load_schema("gz1"), self.half(number)
        rules = lens_rules()
        used = [rule.feature for rule in (rules.inject, *rules.inject_negatives)]
        sources = {name: find_feature(name).prior for name in used}
        settings = SyntheticSettings(injected=self.injected, mined=0)
        made, _ = injected_set(galaxies, rules, settings, sources, seed=self.seed + 10 * member)
        nothing = np.zeros((len(galaxies.images), 1), np.float32)
        real = Examples.from_labels(galaxies.images, nothing, galaxies.labels, ANSWERS, schema)
        synthetic = examples_of(made, made.target, ANSWERS, schema)
        classifier = load_recipe("lens").classifier
        network = train_classifier(
            real, synthetic, classifier, steps=self.steps, seed=self.seed + member, device=CPU, label=path.stem
        )
        save_network(network, path)

    def search(self, number: int, members: int) -> dict[str, np.ndarray]:
        """Return scores of the galaxies of the other half, and of lenses in them with their depth."""
        path = self.work / f"lens-{number}-{members}-{self.steps}-{self.seed}-{self.lenses}.npz"
        if not path.is_file():
            networks = [load_network(self.network(number, k)) for k in range(members)]
            galaxies = self.half(1 - number)
            images, depth, visible = self.injected_lenses(galaxies, number)
            scores = [member_scores(networks, i, CPU).mean(0)[:, 0] for i in (galaxies.images, images)]
            early = np.isin(np.arange(len(galaxies.images)), galaxies.satisfying(HOSTS))
            with atomic_path(path) as temporary, temporary.open("wb") as handle:
                np.savez(handle, negatives=scores[0], early=early, lenses=scores[1], depth=depth, visible=visible)
        with np.load(path) as found:
            return dict(found)

    def injected_lenses(self, galaxies: Candidates, number: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Return images and depths of visible lenses of the prior, and the fraction of its lenses that are visible."""
        lens, random = find_feature("lens"), np.random.default_rng([self.seed, 2, number])
        rows = galaxies.satisfying(HOSTS)
        rows = rows[galaxies.hosts(rows).measured]
        images, depths, found, tried = [], [], 0, 0
        while found < self.lenses:
            hosts = random.choice(rows, 200)
            injected, depth = lens.inject(
                galaxies.images[hosts], galaxies.hosts(hosts), lens.prior(len(hosts), random), Stretch(), random,
                bands="irg", seeing=galaxies.seeing(hosts),
            )  # fmt: skip
            visible = depth >= lens.LEAST_DEPTH
            images.append(injected[visible])
            depths.append(depth[visible])
            found, tried = found + int(visible.sum()), tried + len(hosts)
        return np.concatenate(images)[: self.lenses], np.concatenate(depths)[: self.lenses], found / tried


def lens_rules() -> LabelRules:
    """Return the recipe's rules of injection for galaxies that have labels of Galaxy Zoo 1."""
    rules = load_recipe("lens").schemas["gz2"]
    assert rules.inject is not None
    changes = {"hosts": HOSTS, "unlabelled_hosts": "", "donors": "", "values": {}, "masked": ()}
    negatives = tuple(rule.model_copy(update=changes) for rule in rules.inject_negatives)
    return LabelRules(
        positive=HOSTS, negative="elliptical < 0.5", synthetic={"from": HOSTS},
        inject=rules.inject.model_copy(update=changes), inject_negatives=negatives,
    )  # fmt: skip


def lenses(work: Path, options: Any) -> dict[str, Any]:
    """Train on each half and search the other one."""
    quick, recipe = options.quick, load_recipe("lens")
    size = 48 if quick else recipe.size
    source = galscan.ingest("local", path=DATA / "gz1-sdss", labels=["gz1"], size=size, out=work / "gz1.zarr").path
    halves, members = (0,) if quick else (0, 1), 1 if quick else options.members
    trial = Lenses(
        work, Path(source), size, recipe.classifier.steps, recipe.synthetic.injected, 2000 // len(halves), options.seed
    )
    if quick:
        trial = replace(trial, steps=60, injected=300, lenses=200)
    side_by_side(Lenses.train, [(trial, half, k) for half in halves for k in range(members)], cores())
    found = [trial.search(half, members) for half in halves]
    plain = lens_rules().inject.plain
    rng = np.random.default_rng(options.seed)
    drawn = [found_fraction([_resampled(half, rng) for half in found]) for _ in range(1000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    clear = [half | {"lenses": half["lenses"][half["depth"] >= plain]} for half in found]
    return {
        "lens_found": found_fraction(found), "lens_found_lo": float(low), "lens_found_hi": float(high),
        "lens_found_by_half": [found_fraction([half]) for half in found],
        "lens_found_plain": found_fraction(clear), "lens_found_1_in_100": found_fraction(found, 100),
        "lens_found_among_ellipticals": found_fraction(
            [half | {"negatives": half["negatives"][half["early"]]} for half in found]
        ),
        "lens_searched": sum(len(half["lenses"]) for half in found),
        "lens_plain_searched": sum(len(half["lenses"]) for half in clear),
        "lens_negatives": sum(len(half["negatives"]) for half in found),
        "lens_visible_fraction": float(np.mean([half["visible"] for half in found])),
        "lens_size": size, "lens_steps": trial.steps, "lens_members": members, "lens_injected": trial.injected,
    }  # fmt: skip


def _resampled(half: dict[str, np.ndarray], random: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: random.choice(half[name], len(half[name])) for name in ("negatives", "lenses")}


def found_fraction(halves: list[dict[str, np.ndarray]], false: int = FALSE) -> float:
    """Return the fraction of the lenses above the score that one negative in `false` exceeds, in each half."""
    above = []
    for half in halves:
        threshold = np.sort(half["negatives"])[::-1][len(half["negatives"]) // false]
        above.append(half["lenses"] > threshold)
    return float(np.concatenate(above).mean())


PARTS = {"votes": votes, "lens": lenses, "merger": mergers, "ring": rings}

if __name__ == "__main__":
    main()
