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
from galscan.labels.recipe import load_recipe, recipe_from_text, recipe_names
from galscan.labels.rules import parse_rule, target_mask
from galscan.labels.schema import load_schema
from galscan.labels.settings import GeneratorSettings, InjectRule, SyntheticRule

STRIPE82 = "gz2-tables/gz2_stripe82_coadd_votes.csv.gz"
SMALL = """
name = "x"
title = "X"
[schemas.efigi]
positive = "visible_dust >= 0.5"
negative = "visible_dust == 0"
morphology = ["visible_dust", "t"]
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
        if not name.startswith("demo"):
            assert re.search(r"\([A-Z][^()]* \d{4}, [^()]*\d\)", recipe.science), f"{name} has no reference"


def test_there_are_targets_for_every_kind_of_labels():
    schemas = [s for name in recipe_names() for s in load_recipe(name).schemas]
    assert len(recipe_names()) > 10 and schemas.count("gz2") >= 10
    assert schemas.count("simulated") >= 6  # a scan for six at once can be tried on a sky whose truth is known


@cache
def possible(name: str) -> dict[str, np.ndarray]:
    """Return random labels: fractions of one question add up to 1, attributes come in quarters."""
    schema, count = load_schema(name), 100_000
    rng = np.random.default_rng(0)
    columns = {a.name: rng.integers(4 * a.low, 4 * a.high, count, endpoint=True) / 4 for a in schema.answers}
    for task in schema.tasks:
        fractions = rng.dirichlet(np.full(len(task.answers), 0.4), count)  # mostly near a corner
        columns |= dict(zip(task.answers, fractions.T, strict=True))
    return columns


@pytest.mark.parametrize("name", recipe_names())
def test_no_object_can_be_positive_and_negative(name):
    for schema_name, rules in load_recipe(name).schemas.items():
        schema = load_schema(schema_name)
        columns = possible(schema_name)
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
    columns = possible(schema_name)
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
    with pytest.raises(NotFoundError, match=r"y\.toml"):
        load_recipe(str(tmp_path / "y.toml"))
    with pytest.raises(NotFoundError, match="did you mean 'dustlane'"):
        load_recipe("dustlanes")


# Text of a recipe, what replaces it, and the key or value in the message.
WRONG = [
    ('title = "X"', 'titel = "X"', "'title'"),
    ('title = "X"', 'title = "X"\nsizes = 64', "'sizes'; did you mean 'size'"),
    ('title = "X"', 'title = "X"\nsize = 60', "size: .*60"),
    ('title = "X"', 'title = "X"\ntext = "y"', "'text'"),
    ("morphology", "morfology", "'schemas.efigi.morfology'; did you mean 'morphology'"),
    ("weights", "weight", "'schemas.efigi.synthetic.weight'; did you mean 'weights'"),
    ("from = ", "frm = ", "from"),
    ('"t"]', '"t", "tt"]', "morphology .*'tt'"),
    ('"t"]', '"t", "t"]', "twice"),
    ("visible_dust >= 0.5", "visible_dst >= 0.5", "did you mean 'visible_dust'"),
    ("visible_dust >= 0.5", "visible_dust >= 2", "visible_dust >= 2"),
    ("visible_dust >= 0.5", "visible_dust", "not a condition"),
    ('from = "t <= 0"', 'from = "t < -6"', "t < -6"),
    ("[0.6, 1.0]", "[1.0, 0.6]", r"synthetic\.set\.visible_dust = \[1, 0\.6\]"),
    ("[0.6, 1.0]", "[0.6, 1.1]", r"synthetic\.set\.visible_dust = \[0\.6, 1\.1\]"),
    ("[0.6, 1.0]", "[0.6]", "synthetic.set"),
    ("set = { visible_dust", "set = { invisible_dust", "synthetic.set .*'invisible_dust'"),
    ("weights = { visible_dust", "weights = { visible", "synthetic.weights .*'visible'"),
    ("1.3", "-1", "weights.visible_dust"),
    ('name = "x"', 'name = "../x"', "name: "),
    ('name = "x"', "name = ", "TOML"),
    # hard negatives are numbered
    ("[0.5, 0.9]", "[0.9, 0.5]", r"hard_negatives\.0\.set\.visible_dust = \[0\.9, 0\.5\]"),
    ("[0.0, 0.1]", "[-0.1, 0.1]", r"hard_negatives\.1\.set\.visible_dust"),
    ("t = 2.0", "tt = 2.0", r"hard_negatives\.1\.weights .*'tt'"),
    ('"t > 0"', '"u > 0"', "'u'"),
    ('"t > 0"', '"t > 11"', "t > 11"),
    ("set = { visible_dust = [0.5", "sets = { visible_dust = [0.5", "hard_negatives.0.sets'; did you mean 'set'"),
    ('from = "t > 0"', "", "hard_negatives.0.from'"),
    # injected features
    ('"dust_lane"', '"dust_lanes"', r"schemas\.efigi\.inject\.feature: .*'dust_lanes'"),
    ('"artefact"', '"cosmic"', r"inject_negatives\.1\.feature: .*'cosmic'"),
    ('"dust_lane"', '"artefact"', "inject.feature = 'artefact'"),
    ('"dust_lane"', '"star"', "inject.feature = 'star'"),
    ("and visible_dust == 0", "and visible_dst == 0", "'visible_dst'; did you mean 'visible_dust'"),
    ('hosts = "t <= -3"', 'hosts = "tt <= -3"', "'tt'"),
    ("t <= 0 and", "t <= -7 and", "t <= -7"),
    ("visible_dust <= 0.2", "visible_dst <= 0.2", "'visible_dst'"),
    ("visible_dust <= 0.2", "visible_dust <= -0.2", "visible_dust <= -0.2"),
    ("visible_dust >= 0.75", "visible_dst >= 0.75", "'visible_dst'"),
    ("visible_dust >= 0.75", "visible_dust >= 1.75", "visible_dust >= 1.75"),
    ("t >= 8", "t >= 12", "t >= 12"),
    ("t >= 8", "u >= 8", "'u'"),
    ("t >= 8", "bar_length >= 0.5", "mined_negatives .*'bar_length'.* morphology"),
    ('["visible_dust", "t"]', '["t"]', r"inject\.unlabelled_hosts .*'visible_dust'.* morphology"),
    ("{ visible_dust = [0.4", "{ visible_dst = [0.4", "inject.values .*'visible_dst'"),
    ("[0.4, 1.0]", "[0.4, 1.1]", r"inject\.values\.visible_dust = \[0\.4, 1\.1\]"),
    ("[0.3, 0.9]", "[-0.3, 0.9]", r"inject_negatives\.0\.values\.visible_dust = \[-0\.3, 0\.9\]"),
    ("[0.4, 1.0] }", "[0.4, 1.0] }\nplain = 0.05", r"inject\.plain: .*0\.05"),
    ("[0.4, 1.0]", "[0.4]", r"inject\.values\.visible_dust"),
    ('measure = "', 'masked = ["tt"]\nmeasure = "', "inject.masked .*'tt'"),
    ('measure = "', 'donors = "t < 0"\nmeasure = "', "inject.donors: .*'dust_lane'"),
    ("measure", "measures", r"'schemas\.efigi\.inject\.measures'; did you mean 'measure'"),
    ('hosts = "t >= 2"\n', "", r"'schemas\.efigi\.inject_negatives\.0\.hosts'"),
    ('hosts = "t >= 2"', 'hosts = "t >= 2"\nmeasure = "t >= 2"', r"inject_negatives\.0\.measure"),
    ("schemas.efigi", "schemas.efigy", "did you mean 'efigi'"),
    ("schemas.efigi", 'schemas."my.toml"', "my.toml"),
]
# Tables that are added, and the key or value in the message.
WRONG_TABLES = [
    ("[generator]\nstep = 3", "'generator.step'; did you mean 'steps'"),
    ("[generator]\nlearning_rate = nan", "learning_rate"),
    ("[generator]\nstart = 3", "generator.start: .*3"),
    ("[generator]\nwidths = [32]", "generator.widths: "),
    ("[generator]\naugment = 2", "generator.augment: .*2"),
    ('[generator]\nkind = "maps"\nmaps = "x"', "generator.maps: .*'x'"),
    ('[generator]\nkind = "maps"\nwidths = [8, 8]', "generator.widths.*8"),
    ('[generator]\nkind = "maps"\naugment = 1', "'generator.augment'"),
    ('[generator]\nkind = "maps"\nmeasured_fraction = 2', "generator.measured_fraction: .*2"),
    ("[split]\ntrain = 0.9", "split"),
    ('[scan]\nprecision = "int8"', "scan.precision"),
    ("[classifier]\nsteps = 0", "classifier.steps: .*0"),
    ('[classifier]\nsampling = "all"', "classifier.sampling: .*'all'"),
    ('[classifier]\nloss = "hinge"', "classifier.loss: .*'hinge'"),
    ("[classifier]\nreal_last = 1.5", "classifier.real_last: .*1.5"),
    ("[classifier]\nhosts = -0.1", "classifier.hosts: .*-0.1"),
    ("[classifier]\nsynthetic_positives = 1.0", "classifier.synthetic_positives"),
    ("[classifier]\npositive_fraction = 0.7\nsynthetic_positives = 0.35", "1.2"),
    ("[synthetic]\ninjected = -1", "synthetic.injected: .*-1"),
]


def full(old: str = "", new: str = "") -> str:
    """Return a recipe with rules of all kinds; the first `old` is replaced by `new`."""
    mined, tables = INJECT.split("[schemas.efigi.inject]", 1)
    rules = SMALL.replace('"t"]\n', f'"t"]{mined}', 1)
    text = rules + HARD + "[schemas.efigi.inject]" + tables
    assert old in text
    return text.replace(old, new, -1 if old.startswith("schemas.") else 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [(full(old, new), message) for old, new, message in WRONG]
    + [(f"{full()}\n{table}", message) for table, message in WRONG_TABLES]
    + [('name = "x"\ntitle = "X"', "'schemas'")],
)
def test_invalid_recipes(text, message):
    with pytest.raises(InputError, match=message) as error:
        recipe_from_text(text, "x.toml")
    assert "\n" not in str(error.value) and "x.toml" in str(error.value)


def test_a_model_with_a_rule_that_never_applied_is_read():
    text = full('["visible_dust", "t"]', '["t"]')
    assert recipe_from_text(text, "model/recipe.toml", load_schema("efigi")).name == "x"


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


def test_what_is_injected_is_read():
    recipe = recipe_from_text(full())
    rules = recipe.schemas["efigi"]
    assert rules.inject == InjectRule(
        feature="dust_lane", hosts="t <= 0 and visible_dust == 0",
        unlabelled_hosts="t <= -1 and visible_dust <= 0.2", values={"visible_dust": (0.4, 1.0)},
        measure="visible_dust >= 0.75",
    )  # fmt: skip
    assert [rule.feature for rule in rules.inject_negatives] == ["dust_lane", "artefact"]
    assert rules.inject_negatives[1].values == {} and rules.mined_negatives == "t >= 8"
    assert recipe.hash != recipe_from_text(SMALL).hash
    masked = recipe_from_text(full('measure = "', 'masked = ["t"]\nmeasure = "'))
    assert masked.schemas["efigi"].inject.masked == ("t",) and masked.hash != recipe.hash
    falling = recipe_from_text(full("[0.4, 1.0]", "[1.0, 0.4]")).schemas["efigi"].inject
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


def test_schema_for():
    recipe = load_recipe("merger")
    assert recipe.schema_for(["gz1", "other"]) == "gz1"
    assert recipe.schema_for(["simulated", "efigi"]) == "efigi"  # the recipe's order, not the store's
    with pytest.raises(InputError, match="gz2_leading"):
        recipe.schema_for(["gz2_leading"])
    with pytest.raises(InputError, match="none"):
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
    hashes = {"demo": "694f3de2", "dustlane": "dc73378c", "ring": "d4184772", "merger": "ab6e0be7"}
    assert {name: load_recipe(name).hash[:8] for name in hashes} == hashes


def test_tables_of_version_0_1_are_read_with_a_note(tmp_path, capsys):
    new = load_recipe("dustlane")
    text = new.text.replace("[synthetic]", "[dream]").replace(".synthetic]", ".dream]") + "\n[first_look]\nsteps = 7\n"
    (tmp_path / "old.toml").write_text(text)
    old = load_recipe(str(tmp_path / "old.toml"))
    assert (old.synthetic, old.schemas, old.prefilter.steps) == (new.synthetic, new.schemas, 7)
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2 and "[dream] is renamed to [synthetic]" in notes[0] and "[prefilter]" in notes[1]
