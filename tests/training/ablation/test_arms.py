from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.labels.settings import ClassifierSettings
from galscan.stats.metrics import Scored, WorkingPoint
from galscan.training.ablation.arms import (
    ARMS,
    BASELINES,
    REAL_ONLY,
    REFERENCE,
    SYNTHETIC,
    VARIANTS,
    as_table,
    as_text,
    evaluate,
    labelled_objects,
    make_repeats,
    verdict,
)

POINT = WorkingPoint(0.02, 0.8, 0.5)
RECIPE = ClassifierSettings()
TARGETS = np.repeat([1, 0], [40, 300])


def objects(positives: int = 40, negatives: int = 300, ambiguous: int = 60) -> pd.Series:
    kinds = np.repeat([1.0, 0.0, np.nan], [positives, negatives, ambiguous])
    return pd.Series(kinds, index=[f"g{i:04d}" for i in range(len(kinds))])


def divide(given: pd.Series, **changes):
    options = {"seeds": 2, "folds": 1, "positives": None, "negatives": None, "max_test": None, "seed": 0}
    return make_repeats(given, **{**options, **changes})


# -- arms ------------------------------------------------------------------------------------------


def test_settings_of_the_arms():
    assert set(REAL_ONLY) == {name for name, arm in ARMS.items() if not arm.synthetic}
    for name in BASELINES:
        settings = ARMS[name].settings(RECIPE)
        assert settings.morphology_weight == 0
        assert settings.sampling == ("oversampled" if name == "oversampled" else "natural")
        assert settings.loss == (name if name in ("weighted", "focal") else "plain")
    for name in (REFERENCE, *SYNTHETIC):  # as the recipe is, but for the synthetic galaxies there are
        assert ARMS[name].settings(RECIPE) == RECIPE
    assert [ARMS[name].kind for name in SYNTHETIC] == list(SYNTHETIC) == ["prior", "maps", "both", "images"]
    assert {name for name, arm in ARMS.items() if arm.injected} == {"prior", "maps", "both", *VARIANTS}
    assert [name for name, arm in ARMS.items() if arm.generated] == ["images"]
    changes = {"hosts": 0.0}, {"synthetic_positives": 0.12}, {"real_last": 0.0}
    for name, change in zip(VARIANTS, changes, strict=True):
        assert ARMS[name].kind == "both"
        assert ARMS[name].settings(RECIPE) == RECIPE.model_copy(update=change)
    for arm in ARMS.values():
        changed = arm.settings(RECIPE)
        assert (changed.steps, changed.batch, changed.width) == (RECIPE.steps, RECIPE.batch, RECIPE.width)
        ClassifierSettings.model_validate(changed.model_dump())


# -- division --------------------------------------------------------------------------------------


@given(st.integers(8, 60), st.integers(30, 200), st.integers(0, 40), st.integers(0, 9), st.sampled_from([1, 2, 3]))
def test_no_object_is_on_two_sides_and_ambiguous_ones_are_not_in_the_test_set(
    positives, negatives, ambiguous, seed, folds
):
    given_objects = objects(positives, negatives, ambiguous)
    repeats = divide(given_objects, seed=seed, folds=folds, seeds=1)
    assert len(repeats) == folds
    tested = pd.concat([r.side[r.side == "test"] for r in repeats])
    for r in repeats:
        assert r.side.index.is_unique
        assert given_objects[r.side.index[r.side == "test"]].notna().all()
        for side, counts in r.counts.items():
            kinds = given_objects[r.side.index[r.side == side]]
            assert counts["positives"] == (kinds == 1).sum() and counts["negatives"] == (kinds == 0).sum()
    if folds > 1:  # each object with a target is tested once
        assert tested.index.is_unique and set(tested.index) == set(given_objects.index[given_objects.notna()])


def test_training_sets_have_the_natural_proportions():
    (repeat,) = divide(objects(), positives=10, seeds=1)
    assert repeat.counts == {
        "train": {"positives": 10, "negatives": 75, "ambiguous": 15}, "test": {"positives": 30, "negatives": 225},
    }  # fmt: skip
    (capped,) = divide(objects(), positives=10, negatives=25, max_test=100, seeds=1)
    assert capped.counts["train"] == {"positives": 10, "negatives": 25, "ambiguous": 5}
    assert capped.counts["test"] == {"positives": 30, "negatives": 100}


def test_with_reserved_positives_the_test_set_is_the_same():
    some, few, none = (divide(objects(), positives=p, reserved=20, negatives=100, seeds=1)[0] for p in (20, 8, 0))
    for repeat in (some, few, none):
        assert repeat.counts["test"] == {"positives": 20, "negatives": 200}
        assert set(repeat.side.index[repeat.side == "test"]) == set(some.side.index[some.side == "test"])
    assert [r.counts["train"]["positives"] for r in (some, few, none)] == [20, 8, 0]
    trained = [set(r.side.index[r.side == "train"]) for r in (some, few, none)]
    assert trained[2] < trained[1] < trained[0]  # and negatives are the same


def test_division_is_by_seed_and_not_by_the_order_of_rows():
    a, b = divide(objects())
    assert set(a.side.index[a.side == "test"]) != set(b.side.index[b.side == "test"])
    table = objects().rename("target").rename_axis("object").reset_index().assign(x=1.0)
    again = divide(labelled_objects(table.sample(frac=1, random_state=0), ["x"]))
    for one, other in zip((a, b), again, strict=True):
        assert one.side.to_dict() == other.side.to_dict()


def test_an_object_in_two_stores_is_one_and_a_target_in_either_counts():
    columns = {"object": [*"aabbcd"], "target": [1, np.nan, 0, 1, np.nan, np.nan], "x": [1, 1, 1, 1, 1, np.nan]}
    table = pd.DataFrame(columns)
    found = labelled_objects(table, ["x"])
    assert found.to_dict() == pytest.approx({"a": 1.0, "b": 1.0, "c": np.nan}, nan_ok=True)
    repeat = divide(objects(), seeds=1)[0]
    ids = pd.Series([*repeat.side.index, "unknown"])
    assert (repeat.has(ids, "train") | repeat.has(ids, "test")).sum() == len(repeat.side)
    assert not repeat.has(ids, "test")[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"positives": 39}, "--positives 39: of 40 positives, 0 to 38"),
        ({"positives": -1, "reserved": 20}, "--positives -1"),
        ({"positives": 0}, "--positives 0 needs --negatives"),
        ({"positives": 30, "folds": 2}, "0 to 20"),
        ({"positives": 8, "reserved": 39}, "--reserved 39: of 40 positives, 0 to 38"),
        ({"reserved": 8, "folds": 2}, "--folds 2"),
        ({"folds": 21}, "--folds 21"),
        ({"max_test": 1}, "1 for testing"),
    ],
)
def test_impossible_divisions_are_refused_with_the_limit(options, words):
    with pytest.raises(InputError, match=words):
        divide(objects(), **options)


# -- evaluation --------------------------------------------------------------------------------------


def scored(count: int = 3, **separations: float) -> list[Scored]:
    """Repeats in which an arm separates its targets from its negatives by so many standard deviations."""
    made = []
    for r in range(count):
        random = np.random.default_rng(r)
        noise = random.normal(0, 1, len(TARGETS))
        scores = {
            name: noise + 0.3 * random.normal(0, 1, len(TARGETS)) + s * TARGETS for name, s in separations.items()
        }
        made.append(Scored(np.array([f"{r}-{i}" for i in range(len(TARGETS))], object), TARGETS, scores))
    return made


def evaluated(given: list[Scored], method: str = "maps") -> dict:
    result = evaluate(given, POINT, survey_size=1000, method=method, seed=0)
    return result | {"point": POINT._asdict()}


def test_an_arm_against_itself_gains_exactly_nothing():
    repeats = scored(plain=2.0)
    same = [r._replace(scores={name: r.scores["plain"] for name in ("plain", "attributes", "maps")}) for r in repeats]
    for gain in evaluated(same)["gains"]["maps"].values():
        for metric in ("ap", "completeness", "purity"):
            assert (gain[metric]["gain"], gain[metric]["lo"], gain[metric]["hi"]) == (0.0, 0.0, 0.0)
        assert gain["detections"]["ratio"] == gain["detections"]["lo"] == gain["detections"]["hi"] == 1.0


def test_gains_are_over_the_best_baseline_of_each_metric_and_over_the_reference():
    result = evaluated(scored(plain=1.0, focal=2.5, attributes=2.0, maps=4.0))
    arms, gain = result["arms"], result["gains"]["maps"]
    assert result["best_baseline"] == dict.fromkeys(("ap", "completeness", "purity"), "focal")
    assert set(result["gains"]) == {"attributes", "maps"}
    assert gain["best_baseline"]["ap"]["gain"] == pytest.approx(
        arms["maps"]["ap"]["mean"] / arms["focal"]["ap"]["mean"] - 1
    )
    assert gain["attributes"]["ap"]["gain"] > gain["best_baseline"]["ap"]["gain"]
    assert gain["best_baseline"]["ap"]["lo"] > 0
    detections = gain["best_baseline"]["detections"]
    assert detections["ratio"] == pytest.approx(
        arms["maps"]["detections"]["mean"] / arms["focal"]["detections"]["mean"]
    )
    assert detections["lo"] <= detections["ratio"] and detections["against"] == "focal"
    assert arms["focal"]["detections"]["mean"] == pytest.approx(arms["focal"]["completeness"]["mean"] * 0.02 * 1000)
    json.dumps(result, allow_nan=False)


def test_the_best_baseline_may_be_the_reference():
    result = evaluated(scored(plain=1.0, focal=2.0, attributes=2.5, maps=4.0))
    assert result["best_baseline"] == dict.fromkeys(("ap", "completeness", "purity"), "attributes")
    gain = result["gains"]["maps"]
    assert gain["best_baseline"] == gain["attributes"] and gain["attributes"]["ap"]["lo"] > 0
    assert result["gains"]["attributes"]["best_baseline"]["ap"]["gain"] == 0


def test_the_interval_of_a_gain_is_paired():
    """Two arms that err on the same galaxies differ by less than their own intervals are wide."""
    repeats = scored(plain=2.0)
    better = [r._replace(scores={**r.scores, "maps": r.scores["plain"] + 0.2 * r.targets}) for r in repeats]
    result = evaluated(better)
    gain, own = result["gains"]["maps"]["best_baseline"]["ap"], result["arms"]["plain"]["ap"]
    assert gain["lo"] > 0
    assert gain["hi"] - gain["lo"] < 0.7 * (own["hi"] - own["lo"]) / own["mean"]


def test_ratios_to_a_baseline_that_finds_nothing():
    """In all repeats, there is no ratio; in two of three, there is no upper bound, as a resample may lack the third."""
    nothing = [r._replace(scores={**r.scores, "plain": -100.0 * r.targets}) for r in scored(plain=4.0, maps=4.0)]
    result = evaluated(nothing)
    found = result["gains"]["maps"]["best_baseline"]["detections"]
    assert (found["ratio"], found["lo"], found["hi"]) == (None, None, None) and "finds none" in found["note"]
    assert "no ratio of detections" in verdict(result)[0]
    result = evaluated([scored(1, plain=4.0, maps=4.0)[0], *nothing[1:]])
    found = result["gains"]["maps"]["best_baseline"]["detections"]
    assert found["ratio"] > 1 and found["hi"] is None and "no upper bound" in found["note"]
    assert "no upper bound" in verdict(result)[0] and json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("separation", "words"), [(4.0, "gains over"), (0.2, "loses against"), (2.0, "no certain gain")]
)
def test_the_verdict_and_the_table(separation, words):
    result = evaluated(scored(plain=2.0, attributes=2.0, maps=separation))
    for sentence in verdict(result):
        assert words in sentence
    text = as_text(result)
    assert text.splitlines()[-2:] == verdict(result) and "<- method" in text
    assert "the same network without synthetic galaxies" in text
    table = as_table(result).set_index("arm")
    assert table.loc["maps", "ap_hi"] == result["arms"]["maps"]["ap"]["hi"]
    metrics = ("ap", "completeness", "purity", "detections")
    assert {f"{metric}{end}" for metric in metrics for end in ("", "_lo", "_hi")} <= {*table}


def test_curves_fall_and_hold_the_spread_of_the_repeats():
    curves = evaluated(scored(plain=1.5))["curves"]
    low, mean, high = (np.array(curves["plain"][k]) for k in ("lo", "purity", "hi"))
    assert (np.diff(mean) <= 1e-12).all() and (low <= mean).all() and (mean <= high).all() and (high > low).any()
    assert len(mean) == len(curves["completeness"]) == 50
