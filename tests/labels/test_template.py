from __future__ import annotations

import re

import pytest

from galscan.core.errors import InputError, NotFoundError
from galscan.labels.recipe import Recipe, _spellings, recipe_from_text
from galscan.labels.schema import Schema, load_schema, schema_names
from galscan.labels.settings import InjectRule, LabelRules, SyntheticRule
from galscan.labels.template import recipe_template
from tests.helpers import OWN_SCHEMA


@pytest.mark.parametrize("schema", schema_names())
def test_it_is_a_recipe_at_once_and_names_every_answer(schema):
    text = recipe_template("mine", [schema])
    recipe = recipe_from_text(text)
    assert recipe.name == "mine" and list(recipe.schemas) == [schema]
    assert all(answer.name in text and answer.title in text for answer in load_schema(schema).answers)


def keys(part) -> set[str]:
    return {_spellings(name, f)[0] for name, f in part.model_fields.items()}


def test_every_key_is_there_and_what_is_commented_out_is_what_holds_anyway():
    text = recipe_template("mine", ["efigi"])
    uncommented = re.sub(r"^#(?=[a-z\[])", "", text, flags=re.M)
    assert uncommented != text
    for part in (Recipe, LabelRules, SyntheticRule, InjectRule):
        for key in keys(part) - {"schemas"}:
            assert re.search(rf"^(\[+(schemas\.efigi\.)?{key}\]+$|{key} =)", uncommented, re.M), key
    given, whole = recipe_from_text(text), recipe_from_text(uncommented)
    settings = keys(Recipe) - {"schemas"}
    assert given.model_dump(include=settings) == whole.model_dump(include=settings)
    for name in settings - {"name", "title", "science", "size"}:
        part = getattr(whole, name)
        for key, field in type(part).model_fields.items():
            assert field.description, f"[{name}] {key} has no word of explanation"
            assert re.search(rf"^# .*\n# ?{key} = ", text, re.M), f"[{name}] {key}"


def test_a_tree_begins_with_the_thresholds_of_its_questions():
    rules = recipe_from_text(recipe_template("mine", ["gz2"], ["t08_odd_feature_a20_lens_or_arc"])).schemas["gz2"]
    assert rules.positive == "t08_odd_feature_a20_lens_or_arc >= 0.5 and t06_odd_a14_yes >= 0.42"
    assert rules.negative == "t08_odd_feature_a20_lens_or_arc < 0.1 or t06_odd_a14_yes < 0.223"
    # All answers on arms lead to the bulge, and so does "no arms": it is asked where the disk is not edge-on.
    bulge = recipe_from_text(recipe_template("mine", ["gz2"], ["t05_bulge_prominence_a13_dominant"])).schemas["gz2"]
    assert bulge.positive.endswith(" and t02_edgeon_a05_no >= 0.715")
    arms = recipe_from_text(recipe_template("mine", ["gz2"], ["t11_arms_number_a31_1"])).schemas["gz2"]
    assert arms.positive.endswith(" and t04_spiral_a08_spiral >= 0.619")
    smooth = recipe_from_text(recipe_template("mine", ["gz2"], ["t01_smooth_or_features_a01_smooth"])).schemas["gz2"]
    assert smooth.positive == "t01_smooth_or_features_a01_smooth >= 0.5"  # asked of all


@pytest.mark.parametrize("answer", load_schema("gz2").names)
def test_every_answer_can_be_what_it_is_about(answer):
    assert answer in recipe_from_text(recipe_template("mine", ["gz2", "efigi"], [answer])).schemas["gz2"].positive


def test_a_range_of_its_own_scales_the_example():
    rules = recipe_from_text(recipe_template("mine", ["efigi"], ["t"])).schemas["efigi"]
    assert (rules.positive, rules.negative) == ("t >= 2.5", "t < -1.75") and rules.synthetic.set["t"] == (4.2, 11)


def test_a_schema_of_ones_own(tmp_path):
    mine = tmp_path / "my labels.toml"
    mine.write_text(OWN_SCHEMA)
    assert isinstance(load_schema(str(mine)), Schema)
    assert recipe_from_text(recipe_template("mine", [str(mine)])).schemas["mine"].positive == "odd >= 5"
    assert load_schema("mine") == load_schema(str(mine))  # known by its name from now on


@pytest.mark.parametrize(
    ("name", "schemas", "answers", "words"),
    [
        ("../mine", ["gz2"], [], r"target name '../mine': use 1-64 letters"),
        ('a"b', ["gz2"], [], "use 1-64 letters"),
        ("ring", ["gz2"], [], "'ring' is the name of a shipped target"),
        ("mine", ["gz2", "gz2"], [], "give each once"),
        ("mine", ["efigi"], ["visible_dst"], "did you mean 'visible_dust'"),
    ],
)
def test_what_cannot_be_is_refused(name, schemas, answers, words):
    with pytest.raises(InputError, match=words):
        recipe_template(name, schemas, answers)


def test_a_schema_that_is_not_there():
    with pytest.raises(NotFoundError, match="did you mean 'gz2'"):
        recipe_template("mine", ["gz3"])
