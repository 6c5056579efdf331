from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.labels.recipe import recipe_from_text
from galscan.labels.rules import parse_rule
from galscan.labels.schema import load_schema
from galscan.store import layout
from galscan.training import rule_check
from galscan.training.split import split_objects

EFIGI = load_schema("efigi")
TEXT = """
name = "x"
title = "X"
size = 16
[schemas.efigi]
positive = "t <= 0 and visible_dust >= 0.5"
negative = "t > 0 or visible_dust == 0"
morphology = ["t"]
[schemas.efigi.synthetic]
from = "t <= 0"
set = { visible_dust = [0.6, 1.0] }
[[schemas.efigi.hard_negatives]]
from = "t > 0"
set = { visible_dust = [0.5, 1.0] }
"""


def labelled_store(path, name="s", count=200, size=16, seed=0, *, early=0.5, unlabelled=20):
    """Write a store with the two answers that the rules above ask for, in quarters."""
    rng = np.random.default_rng(seed)
    group = layout.create(
        path, survey=name, count=count, size=size, id_dtype=np.dtype("int64"),
        schemas={"efigi": ["t", "visible_dust"]}, provenance={},
    )  # fmt: skip
    group["images"][:] = rng.integers(0, 255, (count, size, size, 3), np.uint8)
    group["id"][:] = np.arange(count) + 1000 * seed
    t = np.where(rng.random(count) < early, -2.0, 3.0)
    dust = rng.integers(0, 5, count) / 4
    t[:unlabelled] = dust[:unlabelled] = np.nan
    group["labels/efigi/t"][:], group["labels/efigi/visible_dust"][:] = t, dust
    layout.finish(path, f"{name}{seed}")
    return layout.open_store(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return labelled_store(tmp_path_factory.mktemp("check") / "s.zarr")


def test_objects_are_counted_by_what_they_are(store):
    recipe = recipe_from_text(TEXT)
    table = rule_check.read(recipe, EFIGI, [store])
    t, dust = store.column("labels/efigi/t"), store.column("labels/efigi/visible_dust")
    row = rule_check.counts(table)[0]
    assert row["positive"] == ((t <= 0) & (dust >= 0.5)).sum() > 20
    assert row["negative"] == ((t > 0) | (dust == 0)).sum()
    assert row["ambiguous"] == ((t <= 0) & (dust == 0.25)).sum() > 0
    assert row["unlabelled"] == 20 and row["not_asked"] == row["both"] == 0
    assert sum(row[kind] for kind in rule_check.KINDS) == row["objects"] == 200
    splits = rule_check.splits(table)
    assert sum(s["positive"] for s in splits.values()) == row["positive"]
    assert rule_check.problem(recipe, EFIGI, table, [store]) is None


RULES = st.sampled_from(
    ["t <= 0", "visible_dust >= 0.5", "t <= 0 and visible_dust >= 0.5", "t > 0 or visible_dust == 0",
     "not t > 0 and (visible_dust < 1 or t < -1) and inclination >= 0.5"]
)  # fmt: skip
VALUES = st.sampled_from([np.nan, 0.0, 0.25, 0.5, 1.0])


@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=40), RULES, RULES)
def test_the_counts_add_up_and_a_waterfall_ends_where_the_rule_does(rows, positive, negative):
    table = pd.DataFrame(np.nan, range(len(rows)), EFIGI.names)
    table[["t", "visible_dust", "inclination"]] = rows
    falls = rule_check.waterfall(positive, table, EFIGI)
    true, _ = parse_rule(positive, EFIGI.names).evaluate(rule_check.columns_of(table, EFIGI))
    assert falls["steps"][-1]["so_far"] == true.sum()
    for step in falls["steps"]:
        assert step["true"] + step["not_asked"] <= len(rows)
        if step["without"] is not None:
            assert step["without"] >= true.sum() if falls["join"] == "and" else step["without"] <= true.sum()


def test_conflicting_objects_are_named(store):
    recipe = recipe_from_text(TEXT.replace("t > 0 or visible_dust == 0", "t <= 0 and visible_dust >= 0.75"))
    table = rule_check.read(recipe, EFIGI, [store])
    both = table.loc[table["kind"] == "both", "id"]
    assert len(both) and table.loc[table["kind"] == "both", "target"].isna().all()
    result = rule_check.problem(recipe, EFIGI, table, [store])
    assert result.startswith(f"{len(both)} objects") and f"'{both.iloc[0]}' of s" in result


@pytest.fixture(autouse=True)
def scatter_is_known(monkeypatch):
    """Cross-fit however few unlabelled galaxies there are."""
    monkeypatch.setattr("galscan.training.split.reserved", lambda table, **_: table.head(1))


def test_the_split_is_the_one_that_training_makes(store):
    recipe = recipe_from_text(TEXT)
    table = rule_check.read(recipe, EFIGI, [store], seed=3)
    assert (table["split"] == split_objects(table, recipe.split, 3)).all()  # whole images: it is fixed
    assert set(rule_check.splits(table)) == {"train", "calibration", "test"}
    injects = recipe_from_text(TEXT + "[synthetic]\npositives = 0\n")
    folds = rule_check.read(injects, EFIGI, [store], seed=3)
    assert (folds["split"] == split_objects(folds, injects.split, 3, injects.classifier.members)).all()
    counts = rule_check.splits(folds)
    assert list(counts) == [f"fold {k}" for k in range(injects.classifier.members)]
    assert sum(n["positive"] for n in counts.values()) == (folds["target"] == 1).sum()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("dust >= 0.5", "dust >= 0.5 and inclination >= 0.5", "0 positive examples of 'x' among 180 labelled"),
        ('from = "t <= 0"', 'from = "inclination > 0"', "no training galaxy satisfies synthetic.from"),
        ("size = 16", "size = 32", "--size 32 or more"),
    ],
)  # fmt: skip
def test_what_makes_training_impossible(store, old, new, words):
    recipe = recipe_from_text(TEXT.replace(old, new, 1))
    table = rule_check.read(recipe, EFIGI, [store])
    result = rule_check.problem(recipe, EFIGI, table, [store])
    assert words in result and "\n" not in result
    none = recipe_from_text(TEXT.replace(old, new, 1) + "[synthetic]\npositives = 0\n")
    if "synthetic.from" in words:  # nothing is then drawn
        assert rule_check.problem(none, EFIGI, rule_check.read(none, EFIGI, [store]), [store]) is None


def result(text, *stores):
    recipe = recipe_from_text(text)
    return rule_check.warnings(recipe, EFIGI, rule_check.read(recipe, EFIGI, stores))


def test_warnings(store, tmp_path):
    (few,) = result(TEXT, store)
    assert few.startswith("15 positives for calibration")
    late = labelled_store(tmp_path / "late.zarr", "late", seed=1, early=0.0)
    assert "all positives are in s, negatives in other stores as well" in " ".join(result(TEXT, store, late))
    tight = TEXT.replace('negative = "t > 0 or visible_dust == 0"', 'negative = "t > 0 or visible_dust < 0.5"')
    assert "the rules leave nothing ambiguous" in " ".join(result(tight, store))
    wide = TEXT.replace('morphology = ["t"]', 'morphology = ["t", "bar_length"]')
    assert "bar_length: known of no object" in result(wide, store)
    wrong = TEXT.replace("set = { visible_dust = [0.6, 1.0] }", "set = { visible_dust = [0.0, 0.2] }")
    assert "0% of the galaxies of synthetic satisfy" in " ".join(result(wrong, store))
    wrong = TEXT.replace('from = "t > 0"', 'from = "t <= 0"')
    assert "100% of the galaxies of hard_negatives.0 satisfy" in " ".join(result(wrong, store))
    nobody = TEXT.replace('from = "t > 0"', 'from = "t > 9"')
    assert "no training galaxy satisfies hard_negatives.0.from, 't > 9': nothing is made of it" in result(nobody, store)


INJECT = """
[schemas.efigi.inject]
feature = "dust_lane"
hosts = "t <= 0 and visible_dust == 0"
measure = "visible_dust >= 0.75"
[[schemas.efigi.inject_negatives]]
feature = "dust_lane"
hosts = "t > 9"
[[schemas.efigi.inject_negatives]]
feature = "artefact"
hosts = "t <= 0"
"""
MINED = TEXT.replace("[schemas.efigi.synthetic]", 'mined_negatives = "t >= 8"\n[schemas.efigi.synthetic]')


def test_hosts_and_measured_galaxies_are_counted(store):
    recipe = recipe_from_text(MINED + INJECT)
    table = rule_check.read(recipe, EFIGI, [store])
    t, dust = table["t"], table["visible_dust"]
    found = {e["key"]: e for e in rule_check.sources(recipe.schemas["efigi"], table, EFIGI)[2:]}
    assert {key: e["match"] for key, e in found.items()} == {
        "inject.hosts": ((t <= 0) & (dust == 0)).sum(), "inject.measure": (dust >= 0.75).sum(),
        "inject_negatives.0.hosts": 0, "inject_negatives.1.hosts": (t <= 0).sum(), "mined_negatives": 0,
    }  # fmt: skip
    assert 0 < found["inject.hosts"]["training"] < found["inject.hosts"]["match"]
    missing = "no training galaxy satisfies {}, '{}': nothing is made of it"
    of_hosts, mined = missing.format("inject_negatives.0.hosts", "t > 9"), missing.format("mined_negatives", "t >= 8")
    assert [w for w in result(MINED + INJECT, store) if "nothing is made" in w] == [of_hosts, mined]
    without = "\n[synthetic]\ninjected = 0\n"
    assert [w for w in result(MINED + INJECT + without, store) if "nothing is made" in w] == [mined]
    without += "mined = 0\n"
    assert not [w for w in result(MINED + INJECT + without, store) if "nothing is made" in w]


def test_a_rarely_asked_answer_is_named(tmp_path):
    store = labelled_store(tmp_path / "s.zarr", unlabelled=0)
    dust = store.column("labels/efigi/visible_dust")
    dust[6:] = np.nan
    layout.zarr.open_group(store.path, mode="r+")["labels/efigi/visible_dust"][:] = dust
    assert "visible_dust: asked of 3.0% of the labelled objects only" in result(TEXT, layout.open_store(store.path))


def test_sources_and_hard_negatives(store):
    recipe = recipe_from_text(TEXT)
    table = rule_check.read(recipe, EFIGI, [store])
    t, dust = table["t"], table["visible_dust"]
    source, hard = rule_check.sources(recipe.schemas["efigi"], table, EFIGI)
    assert (source["key"], source["match"]) == ("synthetic.from", (t <= 0).sum())
    assert 0 < source["training"] < source["match"]
    assert (hard["key"], hard["match"]) == ("hard_negatives.0.from", (t > 0).sum())
    grade = rule_check.hardness(recipe.schemas["efigi"], table, EFIGI)
    assert (grade[(t > 0) & (dust >= 0.5)] == 2).all() and (grade[(t > 0) & (dust < 0.5)] == 0).all()
    assert (grade[(t <= 0) & (dust == 0)] == 1).all()  # a clean early type lacks the dust alone


def test_captions(store):
    gz2 = load_schema("gz2")
    rule = parse_rule("t06_odd_a14_yes >= 0.4 and t08_odd_feature_a19_ring >= 0.5 and t03_bar_a06_bar > 0", gz2.names)
    table = pd.DataFrame([[0.51] * len(gz2.names)], columns=gz2.names)
    assert rule_check.named(rule, gz2, table, 0) == ["a06_bar 0.51", "a14_yes 0.51"]
