from __future__ import annotations

import pickle
import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.labels.columns import read_answers
from galscan.labels.recipe import check_synthetic, load_recipe, recipe_from_text, recipe_names
from galscan.labels.rules import parse_rule, target_mask
from galscan.labels.schema import Schema, load_schema
from galscan.labels.settings import GeneratorSettings, InjectRule, SyntheticRule

STRIPE82 = "gz2-tables/gz2_stripe82_coadd_votes.csv.gz"
SMALL = """
name = "x"
title = "X"
[schemas.efigi]
positive = "visible_dust >= 0.5"
negative = "visible_dust == 0"
morphology = ["t"]
[schemas.efigi.synthetic]
from = "t <= 0"
set = { visible_dust = [0.6, 1.0] }
weights = { visible_dust = 1.3 }
"""
INJECT = """
mined_negatives = "t >= 8"
[schemas.efigi.inject]
feature = "dust_lane"
hosts = "t <= 0 and visible_dust == 0"
unlabelled_hosts = "t <= -1 and visible_dust <= 0.2"
values = { visible_dust = [0.4, 1.0] }
measure = "visible_dust >= 0.75"
[[schemas.efigi.inject_negatives]]
feature = "dust_lane"
hosts = "t >= 2"
values = { visible_dust = [0.3, 0.9] }
[[schemas.efigi.inject_negatives]]
feature = "artefact"
hosts = "t <= -3"
"""
HARD = """
[[schemas.efigi.hard_negatives]]
from = "t > 0"
set = { visible_dust = [0.5, 0.9] }
[[schemas.efigi.hard_negatives]]
from = "t <= -3"
set = { visible_dust = [0.0, 0.1] }
weights = { t = 2.0 }
"""


def test_shipped_recipes_load():
    assert {"dustlane", "ring", "merger"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.title and recipe.science.strip()
        if name != "demo":
            assert re.search(r"\([A-Z][^()]* \d{4}, [^()]*\d\)", recipe.science), f"{name} has no reference"


def test_there_are_targets_for_every_kind_of_labels():
    schemas = [s for name in recipe_names() for s in load_recipe(name).schemas]
    assert len(recipe_names()) > 10 and schemas.count("gz2") >= 10
    assert schemas.count("simulated") >= 6  # a scan for six at once can be tried on a sky whose truth is known


def possible(schema: Schema, count: int) -> dict[str, np.ndarray]:
    """Draw labels that galaxies could have: shares of one question add up to 1, attributes come in quarters."""
    rng = np.random.default_rng(0)
    columns = {a.name: rng.integers(4 * a.low, 4 * a.high, count, endpoint=True) / 4 for a in schema.answers}
    for task in schema.tasks:
        shares = rng.dirichlet(np.full(len(task.answers), 0.4), count)  # mostly near a corner
        columns |= dict(zip(task.answers, shares.T, strict=True))
    return columns


@pytest.mark.parametrize("name", recipe_names())
def test_no_object_can_be_positive_and_negative(name):
    for schema_name, rules in load_recipe(name).schemas.items():
        schema = load_schema(schema_name)
        columns = possible(schema, 40_000)
        mask = target_mask(parse_rule(rules.positive, schema.names), parse_rule(rules.negative, schema.names), columns)
        assert (mask == 1).any() and (mask == 0).any() and np.isnan(mask).any()


# Each group in labels of which only one can be given: nobody is called two of them.
APART = {
    "gz2": [
        {"dustlane", "ring", "lens", "irregular", "merger"}, {"disturbed", "irregular", "merger"},  # one choice of odd
        {"barred_early", "strong_bar", "edge_on_no_bulge"}, {"barred_early", "bulge_spiral", "boxy_bulge"},
        {"one_armed", "many_armed", "edge_on_no_bulge"}, {"strong_bar", "boxy_bulge"},
    ],
    "efigi": [
        {"merger", "disturbed"}, {"irregular", "disturbed"}, {"barred_early", "strong_bar", "irregular"},
        {"dustlane", "strong_bar"}, {"dustlane", "bulge_spiral", "edge_on_no_bulge"}, {"bulge_spiral", "irregular"},
    ],
    "simulated": [
        {"barred_early", "strong_bar"}, {"barred_early", "bulge_spiral"}, {"bulge_spiral", "edge_on_no_bulge"},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("schema_name", "group"), [(s, g) for s, groups in APART.items() for g in groups])
def test_targets_that_exclude_each_other_share_no_galaxy(schema_name, group):
    schema = load_schema(schema_name)
    columns = possible(schema, 200_000)
    found = [
        parse_rule(load_recipe(name).schemas[schema_name].positive, schema.names).evaluate(columns)[0]
        for name in sorted(group)
    ]
    assert all(one.any() for one in found) and np.sum(found, axis=0).max() == 1


def test_a_recipe_is_frozen_and_travels():
    recipe = load_recipe("dustlane")
    with pytest.raises(Exception, match="frozen"):
        recipe.size = 32
    copy = pickle.loads(pickle.dumps(recipe))  # to a Dask worker, never to disk
    assert copy == recipe and copy.text == recipe.text and copy.hash == recipe.hash


def test_the_hash_is_of_the_content():
    recipe = recipe_from_text(SMALL)
    assert recipe.text == SMALL
    assert recipe_from_text("# a comment\n" + SMALL).hash == recipe.hash
    assert recipe_from_text("size = 64\n" + SMALL).hash == recipe.hash  # the default, spelt out
    assert recipe_from_text("size = 32\n" + SMALL).hash != recipe.hash
    assert recipe_from_text(SMALL.replace(">= 0.5", ">= 0.75")).hash != recipe.hash


def test_a_path_works_as_well(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(SMALL)
    assert load_recipe(str(path)) == recipe_from_text(SMALL)
    with pytest.raises(NotFoundError, match="does not exist"):
        load_recipe(str(tmp_path / "y.toml"))
    with pytest.raises(NotFoundError, match="unknown target 'dustlanes'; did you mean 'dustlane'"):
        load_recipe("dustlanes")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "X"', 'titel = "X"', "did you mean 'title'|'title' is missing"),
        ('title = "X"', 'title = "X"\nsizes = 64', "unknown key 'sizes'; did you mean 'size'"),
        ('title = "X"', 'title = "X"\nsize = 60', "size: .*multiple of 8.*got 60"),
        ('title = "X"', 'title = "X"\ntext = "y"', "unknown key 'text'"),
        ("morphology", "morfology", "unknown key 'schemas.efigi.morfology'; did you mean 'morphology'"),
        ("weights", "weight", "unknown key 'schemas.efigi.synthetic.weight'; did you mean 'weights'"),
        (
            "[schemas.efigi]",
            "[generator]\nstep = 3\n[schemas.efigi]",
            "unknown key 'generator.step'; did you mean 'steps'",
        ),
        ("[schemas.efigi]", "[classifier]\nsteps = 0\n[schemas.efigi]", "classifier.steps: .*got 0"),
        ("[schemas.efigi]", "[generator]\nlearning_rate = nan\n[schemas.efigi]", "learning_rate"),
        ("[schemas.efigi]", "[split]\ntrain = 0.9\n[schemas.efigi]", "add up to 1"),
        ("[schemas.efigi]", '[scan]\nprecision = "int8"\n[schemas.efigi]', "scan.precision"),
        ("from = ", "frm = ", "from"),
        ('["t"]', '["t", "tt"]', "morphology names the unknown label 'tt'"),
        ('["t"]', '["t", "t"]', "twice"),
        ("visible_dust >= 0.5", "visible_dst >= 0.5", "did you mean 'visible_dust'"),
        ("visible_dust >= 0.5", "visible_dust >= 2", "impossible rule"),
        ("visible_dust >= 0.5", "visible_dust", "not a condition"),
        ("t <= 0", "t < -6", "impossible rule"),
        ("[0.6, 1.0]", "[1.0, 0.6]", "must rise and lie within 0..1"),
        ("[0.6, 1.0]", "[0.6, 1.1]", "must rise and lie within 0..1"),
        ("[0.6, 1.0]", "[0.6]", "synthetic.set"),
        ("set = { visible_dust", "set = { invisible_dust", "synthetic.set names the unknown label"),
        ("weights = { visible_dust", "weights = { visible", "synthetic.weights names the unknown label"),
        ("1.3", "-1", "weights.visible_dust"),
        ("[schemas.efigi]", '[classifier]\nsampling = "all"\n[schemas.efigi]', "classifier.sampling: .*'natural'"),
        ("[schemas.efigi]", '[classifier]\nloss = "hinge"\n[schemas.efigi]', "classifier.loss: .*'focal'"),
        ("[schemas.efigi]", "[classifier]\nreal_last = 1.5\n[schemas.efigi]", "classifier.real_last: .*got 1.5"),
        ("[schemas.efigi]", "[classifier]\nhosts = -0.1\n[schemas.efigi]", "classifier.hosts: .*got -0.1"),
        (
            "[schemas.efigi]",
            "[classifier]\nsynthetic_positives = 1.0\n[schemas.efigi]",
            "classifier.synthetic_positives: .*less than 1",
        ),
        (
            "[schemas.efigi]",
            "[classifier]\npositive_fraction = 0.7\nsynthetic_positives = 0.35\n[schemas.efigi]",
            "positive_fraction, synthetic_positives and synthetic_negatives add up to 1.2; stay below 1: the rest",
        ),
        ("[schemas.efigi]", "[synthetic]\ninjected = -1\n[schemas.efigi]", "synthetic.injected: .*got -1"),
        ("[schemas.efigi]", "[generator]\nstart = 3\n[schemas.efigi]", "generator.start: .*got 3"),
        ("[schemas.efigi]", "[generator]\nwidths = [32]\n[schemas.efigi]", "generator.widths: "),
        ("[schemas.efigi]", "[generator]\naugment = 2\n[schemas.efigi]", "generator.augment: .*got 2"),
        ("[schemas.efigi]", '[generator]\nkind = "maps"\nmaps = "x"\n[schemas.efigi]', "generator.maps: .*got 'x'"),
        ("[schemas.efigi]", '[generator]\nkind = "maps"\nwidths = [8, 8]\n[schemas.efigi]', "generator.widths.*got 8"),
        (
            "[schemas.efigi]",
            '[generator]\nkind = "maps"\naugment = 1\n[schemas.efigi]',
            "unknown key 'generator.augment'",
        ),
        (
            "[schemas.efigi]",
            '[generator]\nkind = "maps"\nmeasured_fraction = 2\n[schemas.efigi]',
            "generator.measured_fraction: .*got 2",
        ),
        ('name = "x"', 'name = "../x"', "name: "),
        ('name = "x"', "name = ", "is not TOML"),
    ],
)
def test_a_wrong_recipe_is_told_in_one_line(old, new, message):
    assert old in SMALL
    with pytest.raises(InputError, match=message) as error:
        recipe_from_text(SMALL.replace(old, new, 1), "x.toml")
    assert "\n" not in str(error.value) and "x.toml" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[0.5, 0.9]",
            "[0.9, 0.5]",
            r"hard_negatives\.0\.set\.visible_dust = \[0\.9, 0\.5\] must rise and lie within 0..1",
        ),
        ("[0.0, 0.1]", "[-0.1, 0.1]", r"hard_negatives\.1\.set\.visible_dust"),
        ("t = 2.0", "tt = 2.0", r"hard_negatives\.1\.weights names the unknown label 'tt'"),
        ("t > 0", "u > 0", "unknown"),
        ("t > 0", "t > 11", "impossible rule"),
        ("set = { visible_dust = [0.5", "sets = { visible_dust = [0.5", "hard_negatives.0.sets'; did you mean 'set'"),
        ('from = "t > 0"', "", "hard_negatives.0.from' is missing"),
    ],
)
def test_a_wrong_hard_negative_is_told_by_its_number(old, new, message):
    assert old in HARD
    recipe_from_text(SMALL + HARD)
    with pytest.raises(InputError, match=message) as error:
        recipe_from_text(SMALL + HARD.replace(old, new, 1))
    assert "\n" not in str(error.value)


def test_hard_negatives_and_starting_weights_are_read():
    recipe = recipe_from_text(SMALL + HARD)
    first, second = recipe.schemas["efigi"].hard_negatives
    assert first == SyntheticRule.model_validate({"from": "t > 0", "set": {"visible_dust": (0.5, 0.9)}})
    assert second.base == "t <= -3" and second.weights == {"t": 2.0}
    assert recipe.hash != recipe_from_text(SMALL).hash
    assert recipe.generator.start == GeneratorSettings().start == "base"
    assert (recipe.classifier.sampling, recipe.classifier.loss) == ("oversampled", "plain")
    changed = SMALL.replace(
        "[schemas.efigi]",
        '[generator]\nstart = "mine.safetensors"\n[classifier]\nsampling = "natural"\nloss = "focal"\n[schemas.efigi]',
        1,
    )
    other = recipe_from_text(changed)
    assert other.generator.start == "mine.safetensors"
    assert (other.classifier.sampling, other.classifier.loss) == ("natural", "focal")


def injecting(old: str = "", new: str = "") -> str:
    """Return a recipe that injects a feature; `old` is replaced by `new` in the rules that say so."""
    assert old in INJECT
    mined, tables = INJECT.replace(old, new, 1).split("[schemas.efigi.inject]", 1)
    rules = SMALL.replace('morphology = ["t"]\n', f'morphology = ["t"]{mined}', 1)
    return rules + "[schemas.efigi.inject]" + tables


def test_what_is_injected_is_read():
    recipe = recipe_from_text(injecting())
    rules = recipe.schemas["efigi"]
    assert rules.inject == InjectRule(
        feature="dust_lane", hosts="t <= 0 and visible_dust == 0",
        unlabelled_hosts="t <= -1 and visible_dust <= 0.2", values={"visible_dust": (0.4, 1.0)},
        measure="visible_dust >= 0.75",
    )  # fmt: skip
    assert [rule.feature for rule in rules.inject_negatives] == ["dust_lane", "artefact"]
    assert rules.inject_negatives[1].values == {} and rules.mined_negatives == "t >= 8"
    assert recipe.hash != recipe_from_text(SMALL).hash
    falling = recipe_from_text(injecting("[0.4, 1.0]", "[1.0, 0.4]")).schemas["efigi"].inject
    assert falling.values["visible_dust"] == (1.0, 0.4)  # an answer that the feature makes less likely
    words = recipe.synthetic.summary(rules)
    assert words.startswith(
        "2,000 positives and 500 negatives injected into real galaxies; "
        "up to 500 too faint for a target, as negatives; 200 mined negatives; 300 posi"
    )
    assert "generated" not in recipe.synthetic.summary(rules, whole=False)
    none = recipe.synthetic.model_copy(update={"injected": 0})  # and then nothing is mined either
    assert (
        none.summary(rules) == "300 positives and 600 negatives generated"
        and none.summary(rules, whole=False) == "none"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"dust_lane"',
            '"dust_lanes"',
            r"schemas\.efigi\.inject\.feature: .*'dust_lane' or 'artefact' \(got 'dust_lanes'\)",
        ),
        ('"artefact"', '"cosmic"', r"inject_negatives\.1\.feature: .*'dust_lane' or 'artefact' \(got 'cosmic'\)"),
        ('"dust_lane"', '"artefact"', "inject.feature = 'artefact' makes no targets; use it in inject_neg"),
        ("visible_dust == 0", "visible_dst == 0", "unknown label 'visible_dst'; did you mean 'visible_dust'"),
        ("t <= -3", "tt <= -3", "unknown label 'tt'"),
        ("t <= 0 and", "t <= -7 and", "impossible rule"),
        ("visible_dust <= 0.2", "visible_dst <= 0.2", "did you mean 'visible_dust'"),
        ("visible_dust <= 0.2", "visible_dust <= -0.2", "impossible rule"),
        ("visible_dust >= 0.75", "visible_dst >= 0.75", "did you mean 'visible_dust'"),
        ("visible_dust >= 0.75", "visible_dust >= 1.75", "impossible rule"),
        ("t >= 8", "t >= 12", "impossible rule"),
        ("t >= 8", "u >= 8", "unknown label 'u'"),
        (
            "{ visible_dust = [0.4",
            "{ visible_dst = [0.4",
            "inject.values names the unknown label 'visible_dst'; did you",
        ),
        ("[0.4, 1.0]", "[0.4, 1.1]", r"inject\.values\.visible_dust = \[0\.4, 1\.1\] must lie within 0\.\.1"),
        (
            "[0.3, 0.9]",
            "[-0.3, 0.9]",
            r"inject_negatives\.0\.values\.visible_dust = \[-0\.3, 0\.9\] must lie within 0\.\.1",
        ),
        ("[0.4, 1.0] }", "[0.4, 1.0] }\nplain = 0.05", r"inject\.plain: .*greater than 0.1 \(got 0.05\)"),
        ("[0.4, 1.0] }", "[0.4, 1.0] }\nplain = 1.5", r"inject\.plain: .*got 1.5"),
        ("[0.4, 1.0]", "[0.4]", r"inject\.values\.visible_dust"),
        ("measure", "measures", r"unknown key 'schemas\.efigi\.inject\.measures'; did you mean 'measure'"),
        ('hosts = "t >= 2"\n', "", r"'schemas\.efigi\.inject_negatives\.0\.hosts' is missing"),
        ('hosts = "t >= 2"', 'hosts = "t >= 2"\nmeasure = "t >= 2"', r"inject_negatives\.0\.measure"),
    ],
)
def test_a_wrong_injection_is_reported_by_its_key(old, new, message):
    with pytest.raises(InputError, match=message) as error:
        recipe_from_text(injecting(old, new), "x.toml")
    assert "\n" not in str(error.value) and "x.toml" in str(error.value)


def test_every_shipped_dream_can_be_dreamt():
    for name in recipe_names():
        for schema, rules in load_recipe(name).schemas.items():
            for rule in (rules.synthetic, *rules.hard_negatives):
                check_synthetic("synthetic", rule, load_schema(schema))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"from": "t < -6"}, "impossible rule"),
        ({"from": "t <"}, "t <"),
        ({"from": "t <= 0", "set": {"visible_dust": (0, 2)}}, r"^here\.set\.visible_dust = \[0, 2\] .* within 0\.\.1$"),
        ({"from": "t <= 0", "set": {"t": (-7, 0)}}, r"here\.set\.t = \[-7, 0\] .* within -6\.\.11"),
        ({"from": "t <= 0", "set": {"visible_dst": (0, 1)}}, "here.set names .*did you mean 'visible_dust'"),
        ({"from": "t <= 0", "weights": {"visible_dst": 1}}, "here.weights names .*did you mean 'visible_dust'"),
    ],
)
def test_a_dream_that_does_not_fit_the_schema_is_refused(rule, message):
    with pytest.raises(InputError, match=message):
        check_synthetic("here", SyntheticRule.model_validate(rule), load_schema("efigi"))


def test_unknown_schema_and_none():
    with pytest.raises(InputError, match="did you mean 'efigi'"):
        recipe_from_text(SMALL.replace("schemas.efigi", "schemas.efigy"))
    with pytest.raises(InputError, match="'schemas' is missing"):
        recipe_from_text('name = "x"\ntitle = "X"')


def test_schema_for():
    recipe = load_recipe("merger")
    assert recipe.schema_for(["gz1", "other"]) == "gz1"
    assert recipe.schema_for(["simulated", "efigi"]) == "efigi"  # the recipe's order, not the store's
    with pytest.raises(
        InputError, match="rules for efigi, gz2, gz1, simulated labels, but the stores have gz2_leading"
    ):
        recipe.schema_for(["gz2_leading"])
    with pytest.raises(InputError, match="have none"):
        recipe.schema_for([])


@cache
def read_labels(catalog: Path, schema: str) -> pd.DataFrame:
    return read_answers(load_schema(schema), pd.read_csv(catalog))


@pytest.mark.parametrize(
    ("target", "schema", "catalog", "positives", "negatives"),
    [
        ("dustlane", "efigi", "ngc-sdss/catalog.csv", 53, 792),
        ("ring", "efigi", "ngc-sdss/catalog.csv", 123, 451),
        ("merger", "efigi", "ngc-sdss/catalog.csv", 52, 661),
        ("merger", "gz1", "gz1-sdss/catalog.csv", 97, 5187),
        ("ring", "gz2", STRIPE82, 393, 10721),
        ("merger", "gz2", STRIPE82, 504, 10915),
        ("dustlane", "gz2", STRIPE82, 3, 7354),  # hardly a question for 20,000 galaxies
        ("lens", "gz2", STRIPE82, 10, 11311),
        ("irregular", "gz2", STRIPE82, 77, 10967),
        ("irregular", "efigi", "ngc-sdss/catalog.csv", 18, 792),
        ("disturbed", "gz2", STRIPE82, 19, 10962),
        ("disturbed", "efigi", "ngc-sdss/catalog.csv", 102, 454),
        ("edge_on_no_bulge", "gz2", STRIPE82, 107, 10006),
        ("edge_on_no_bulge", "efigi", "ngc-sdss/catalog.csv", 27, 798),
        ("boxy_bulge", "gz2", STRIPE82, 19, 8609),
        ("one_armed", "gz2", STRIPE82, 68, 7170),
        ("many_armed", "gz2", STRIPE82, 104, 6772),
        ("barred_early", "gz2", STRIPE82, 39, 8274),
        ("barred_early", "efigi", "ngc-sdss/catalog.csv", 56, 785),
        ("strong_bar", "gz2", STRIPE82, 282, 6986),
        ("strong_bar", "efigi", "ngc-sdss/catalog.csv", 75, 651),
        ("bulge_spiral", "gz2", STRIPE82, 38, 6733),
        ("bulge_spiral", "efigi", "ngc-sdss/catalog.csv", 43, 540),
    ],
)
def test_rules_on_real_labels(real_data, target, schema, catalog, positives, negatives):
    labels = read_labels(real_data / catalog, schema).reindex(columns=load_schema(schema).names)
    rules = load_recipe(target).schemas[schema]
    columns = {c: labels[c].to_numpy() for c in labels}
    mask = target_mask(parse_rule(rules.positive, columns), parse_rule(rules.negative, columns), columns)
    assert (int((mask == 1).sum()), int((mask == 0).sum())) == (positives, negatives)
    assert parse_rule(rules.synthetic.base, columns).evaluate(columns)[0].sum() >= positives / 2


@pytest.mark.parametrize(("schema", "catalog"), [("gz2", STRIPE82), ("efigi", "ngc-sdss/catalog.csv")])
def test_targets_that_exclude_each_other_share_no_real_galaxy(real_data, schema, catalog):
    labels = read_labels(real_data / catalog, schema).reindex(columns=load_schema(schema).names)
    columns = {c: labels[c].to_numpy() for c in labels}
    for group in APART[schema]:
        rules = [load_recipe(name).schemas[schema].positive for name in group]
        assert sum(parse_rule(rule, columns).evaluate(columns)[0].astype(int) for rule in rules).max() == 1


def test_recipes_that_name_trained_models_stay_what_they_are():
    hashes = {"demo": "694f3de2", "dustlane": "dc73378c", "ring": "e2d0065c", "merger": "17ac7680"}
    assert {name: load_recipe(name).hash[:8] for name in hashes} == hashes


def test_rules_go_by_the_name_of_a_schema():
    with pytest.raises(
        InputError, match=r"schemas.my.toml: give the name of a label schema, not a file; galscan ingest"
    ):
        recipe_from_text(SMALL.replace("schemas.efigi", 'schemas."my.toml"'))


def test_tables_of_version_0_1_are_read_with_a_note(tmp_path, capsys):
    new = load_recipe("dustlane")
    text = new.text.replace("[synthetic]", "[dream]").replace(".synthetic]", ".dream]") + "\n[first_look]\nsteps = 7\n"
    (tmp_path / "old.toml").write_text(text)
    old = load_recipe(str(tmp_path / "old.toml"))
    assert (old.synthetic, old.schemas, old.prefilter.steps) == (new.synthetic, new.schemas, 7)
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and "[dream] is renamed to [synthetic]" in notes[0] and "[prefilter]" in notes[1]
