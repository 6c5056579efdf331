"""``galscan generate`` for targets whose feature is injected into real galaxies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from galscan.core import home
from galscan.core.errors import InputError
from galscan.labels.recipe import Recipe
from galscan.labels.rules import parse_rule
from galscan.labels.schema import Schema, load_schema
from galscan.labels.settings import InjectRule, LabelRules, MapSettings
from galscan.models import roles
from galscan.models.model import Model
from galscan.store import identity, layout
from galscan.surveys.resampling import pixels_text
from galscan.training.dataset import read_table

if TYPE_CHECKING:
    from galscan.synthesis.injection import Candidates, Maps
    from galscan.synthesis.synthetic_set import SyntheticSet


@dataclass(frozen=True)
class Injection:
    """The plan of an injection: feature, hosts and source of maps."""

    recipe: Recipe
    schema: Schema
    rule: InjectRule
    stores: list[layout.Store]
    table: pd.DataFrame
    """Galaxies that may be hosts, as returned by `galscan.training.dataset.read_table`."""
    model: Model | None
    maps: str
    """"prior", "measured", "base", or the path of a diffusion model of maps."""
    named: bool
    """Whether `maps` was given by the user; then it is not mixed with the prior, whatever the recipe sets."""

    @property
    def rules(self) -> LabelRules:
        """The recipe's rules with this injection only."""
        rules = self.recipe.schemas[self.schema.name]
        return rules.model_copy(update={"inject": self.rule, "inject_negatives": (), "mined_negatives": ""})


def injects(recipe: Recipe, model: Model | None, generator: str | None) -> bool:
    """Return whether the target is made by injection, and not by a given generator of whole images."""
    from galscan.synthesis import backends

    if not isinstance(recipe.generator, MapSettings) or all(rules.inject is None for rules in recipe.schemas.values()):
        return False
    if model is not None and any(backends.find(folder) for folder in (model.path, model.path.parent)):
        return False
    return generator is None or not backends.generates_whole_images(generator)


def plan_injection(
    recipe: Recipe,
    model: Model | None,
    generator: str | None,
    store: str | Path | Sequence[str | Path],
    base: str | None,
    image_options: Mapping[str, Any],
) -> Injection:
    """Plan an injection from labels, without reading images.

    `base` is a rule for the hosts, instead of the recipe's. Raises `InputError` if stores, rule, weights and options do
    not fit together, or any of the `image_options`, of generators of whole images, has a value.
    """
    stores = [layout.open_store(path) for path in home.find_stores((), store)]
    if not stores:
        raise InputError(
            f"--store is missing: '{recipe.name}' injects a feature into real galaxies; name a store that holds them"
        )
    for option, value in image_options.items():
        if value not in (None, {}, ()):
            raise InputError(
                f"--{option} is an option for generators of whole images; '{recipe.name}' injects a feature into real "
                "galaxies ('inject' in its recipe): leave it out"
            )
    schema = model.schema if model else load_schema(recipe.schema_for(s for opened in stores for s in opened.schemas))
    recipe.schema_for([schema.name])
    rule = recipe.schemas[schema.name].inject
    if rule is None:
        raise InputError(f"target '{recipe.name}' has no 'inject' rule for {schema.name} labels; add one to its recipe")
    if base is not None:
        parse_rule(base, schema.names).check(schema.ranges)
        rule = rule.model_copy(update={"hosts": base, "unlabelled_hosts": ""})
    for opened in stores:
        if opened.size < recipe.size:
            raise InputError(
                f"{opened.path} holds {opened.size} px cutouts, the recipe of '{recipe.name}' needs {recipe.size} px; "
                f"ingest with --size {recipe.size} or more, or use a recipe with size = {opened.size} or less"
            )
    if model is not None and model.size != recipe.size:
        raise InputError(f"--model {model.path} takes {model.size} px images, the recipe is for {recipe.size} px")
    table = read_table(stores, schema, recipe.schemas[schema.name])
    if model is not None:
        # Nothing made from an object that a model held out may enter its training. The diffusion model of maps in the
        # folder of a cross-fitted model was fine-tuned without the first fold.
        held_out = roles.held_out_from(pd.Series(model.split_of(table, identity.radius_of(stores))))
        table = table[~held_out].reset_index(drop=True)
    plan = Injection(recipe, schema, rule, stores, table, model, _maps(recipe, rule, model, generator), bool(generator))
    if not labelled_hosts(plan) and (model is None or table[schema.names].notna().any(axis=1).all()):
        raise _no_host(plan)
    return plan


def labelled_hosts(plan: Injection) -> int:
    """Return the number of labelled galaxies that satisfy the rule, including those that cannot be measured."""
    columns = {name: plan.table[name].to_numpy() for name in plan.schema.names}
    return int(parse_rule(plan.rule.hosts, plan.schema.names).evaluate(columns)[0].sum())


def describe(plan: Injection) -> dict[str, Any]:
    """Return the plan as it is printed and written to the output."""
    predicted = f", and unlabelled ones as {plan.model.path} predicts" if plan.model else ""
    mixed = (
        not plan.named
        and plan.maps not in ("prior", "measured")
        and getattr(plan.recipe.generator, "maps", "") == "both"
    )
    return {
        "feature": plan.rule.feature, "hosts": " ".join(plan.rule.hosts.split()), "values": plan.rule.values,
        "maps": f"{plan.maps}, mixed with the prior" if mixed else plan.maps,
        "galaxies": f"{labelled_hosts(plan):,} labelled hosts{predicted}",
        "stores": [[s.name, pixels_text(s.size, plan.recipe.size), s.content_hash] for s in plan.stores],
    }  # fmt: skip


def make_injected(plan: Injection, count: int, seed: int, device: str) -> tuple[SyntheticSet, dict[str, Any]]:
    """Inject the feature until `count` targets show it; return these with their hosts, and counts of the hosts.

    Raises `InputError` if no host is left, or the hosts yield fewer than `count` targets.
    """
    from galscan.core import device as devices
    from galscan.labels.settings import SyntheticSettings
    from galscan.synthesis.injection import injected_set
    from galscan.synthesis.synthetic_set import HOST, INJECTED

    torch_device = devices.pick(device)
    candidates = _candidates(plan, seed, torch_device)
    rows = candidates.satisfying(plan.rule.hosts, plan.rule.unlabelled_hosts or plan.rule.hosts)
    if not len(rows) or not candidates.hosts(rows).measured.any():
        raise _no_host(plan)
    sources: dict[str, Maps] = {plan.rule.feature: _source(plan, candidates, torch_device)}
    settings = SyntheticSettings(injected=count, mined=0)
    synthetic, counts = injected_set(candidates, plan.rules, settings, sources, seed=seed)
    targets = np.flatnonzero((synthetic.origin == INJECTED) & (synthetic.target == 1))
    synthetic, made = synthetic.select(np.union1d(targets, synthetic.host[targets])), len(targets)
    if made < count:
        positive = " ".join(plan.rules.positive.split())
        raise InputError(
            f"{made:,} of --count {count:,} were made: in the other hosts the feature is not visible, or they do not "
            f"satisfy '{positive}' with it; give another rule with --from, or another store with --store"
        )
    host_counts = {key: counts[key] for key in ("hosts_unlabelled", "hosts_not_measured", "invisible", "too_faint")}
    hosts = int((synthetic.origin == HOST).sum())
    return synthetic, {"hosts": hosts, "hosts_to_choose": counts["hosts"]} | host_counts


def _no_host(plan: Injection) -> InputError:
    hosts = " ".join(plan.rule.hosts.split())
    remedy = "" if plan.model else ", name a --model that predicts the labels of unlabelled ones"
    return InputError(
        f"no galaxy of the stores satisfies '{hosts}' and can be measured: give another rule with --from{remedy}, or "
        "another store with --store"
    )


def _maps(recipe: Recipe, rule: InjectRule, model: Model | None, generator: str | None) -> str:
    """Return the source of the maps: the given one, the model's weights, the base weights, or the prior."""
    from galscan.synthesis.diffusion.maps import load_weights
    from galscan.synthesis.features.base import has_model, has_prior
    from galscan.training.synthetic import MODEL

    assert isinstance(recipe.generator, MapSettings)
    if not has_prior(rule.feature):
        if generator is not None:
            raise InputError(
                f"--generator {generator}: the feature '{rule.feature}' has neither a prior nor a diffusion model, its "
                "maps are measured on the stores; leave the option out"
            )
        return "measured"
    if generator is None:
        fine_tuned = model.path / MODEL if model else None
        if recipe.generator.maps == "prior" or not has_model(rule.feature):
            return "prior"
        generator = str(fine_tuned) if fine_tuned is not None and fine_tuned.is_file() else "base"
    if generator != "prior":
        load_weights(rule.feature, generator)
    return generator


def _candidates(plan: Injection, seed: int, device: Any) -> Candidates:
    from galscan.models.ensemble import load_networks
    from galscan.training.dataset import load_galaxies
    from galscan.training.synthetic import candidates_of

    model, schema = plan.model, plan.schema
    galaxies = load_galaxies(
        plan.stores, plan.table, schema.names, plan.recipe.size, seed=seed, unlabelled=model is not None
    )
    network = load_networks(model)[0] if model else None
    answers = model.answers if model else []
    return candidates_of(galaxies, np.arange(len(galaxies.images)), plan.stores, network, answers, schema, device)


def _source(plan: Injection, candidates: Candidates, device: Any) -> Maps:
    from galscan.synthesis.diffusion.maps import load_weights, map_source, measured_maps
    from galscan.training.synthetic import MODEL

    settings = plan.recipe.generator
    assert isinstance(settings, MapSettings)
    map_model = None if plan.maps in ("prior", "measured") else load_weights(plan.rule.feature, plan.maps)
    # Only weights that were fine-tuned on measured maps model how these differ from the prior's.
    fine_tuned = plan.model is not None and plan.maps == str(plan.model.path / MODEL)
    rule = plan.rule if fine_tuned or plan.maps == "measured" else plan.rule.model_copy(update={"measure": ""})
    maps, rows = measured_maps(candidates, rule)
    strength = np.full(len(rows), np.nan, np.float32)
    if plan.named:
        settings = settings.model_copy(update={"maps": "diffusion"})
    return map_source(rule, settings, map_model, maps, strength, device=device)
