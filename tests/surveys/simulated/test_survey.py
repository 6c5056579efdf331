"""The simulated sky: settings, repeatability, labels that agree with the truth."""

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError
from galscan.surveys.simulated import population
from galscan.surveys.simulated.survey import ANSWERS, SimulatedSurvey

SCHEMA = Path(__file__).parents[3] / "catalogs" / "simulated.toml"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("count", 0), ("count", -3), ("count", 2.5), ("count", "many"), ("size", 14), ("size", 514),
        ("size", 65), ("seed", -1), ("seed", 10**10), ("rare_fraction", -0.1), ("rare_fraction", 1.1),
        ("rare_fraction", float("nan")), ("labelled", 2),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(InputError, match=setting):
        SimulatedSurvey(**{"count": 10, setting: value})


@pytest.mark.parametrize("size", [32, 96])
def test_a_range_equals_the_slice_whatever_the_boundaries(size: int) -> None:
    survey = SimulatedSurvey(280, size=size, seed=4)
    every = np.stack([c.image for c in survey.cutouts(230, 280)])
    assert every.shape == (50, size, size, 3) and every.dtype == np.uint8
    part = np.stack([c.image for c in survey.cutouts(250, 270)])
    assert (part == every[20:40]).all()
    pd.testing.assert_frame_equal(survey.objects(250, 270), survey.objects(0, 280)[250:270].reset_index(drop=True))


def test_object_depends_on_neither_count_nor_process() -> None:
    long, short = SimulatedSurvey(10**9, 32, seed=4), pickle.loads(pickle.dumps(SimulatedSurvey(600, 32, seed=4)))
    first = [c.image for c in long.cutouts(500, 520)]
    population.draw.cache_clear()
    assert all((a == c.image).all() for a, c in zip(first, short.cutouts(500, 520), strict=True))
    pd.testing.assert_frame_equal(long.objects(300, 520), short.objects(300, 520))


def test_seeds_and_objects_differ() -> None:
    one, other = (next(iter(SimulatedSurvey(5, 32, seed=s).cutouts(0, 1))).image for s in (4, 6))
    assert (one != other).mean() > 0.5
    ids = np.concatenate([SimulatedSurvey(300, seed=s).ids for s in (0, 1, 9 * 10**9)])
    assert len(set(ids.tolist())) == 900 and ids[-1] == 9 * 10**18 + 299


def test_labels_agree_with_truth_and_schema(half: pd.DataFrame) -> None:
    answers = {a["name"]: a for a in tomllib.loads(SCHEMA.read_text(encoding="utf-8"))["answer"]}
    assert set(answers) == set(ANSWERS)
    for name, answer in answers.items():
        assert half[f"simulated/{name}"].between(answer["low"], answer["high"]).all(), name
    label = half.filter(like="simulated/").rename(columns=lambda c: c.removeprefix("simulated/"))
    assert ((label.early_type >= 0.5) & (label.dust_lane >= 0.5) == (half["truth/target_dustlane"] == 1)).all()
    assert ((label.ring >= 0.5) == (half["truth/target_ring"] == 1)).all()
    assert ((label.merger >= 0.5) == (half["truth/target_merger"] == 1)).all()
    assert set(np.unique(label.dust_lane)) <= {0, 0.25, 0.5, 0.75, 1}
    assert (half["truth/dust_inclination"].isna() == (half["truth/dust_tau"] == 0)).all()


def test_some_objects_stay_unlabelled_but_true() -> None:
    objects = SimulatedSurvey(768, seed=4, rare_fraction=0.2, labelled=0.3).objects(0, 512)
    unlabelled = objects.filter(like="simulated/").isna()
    assert (unlabelled.all(axis=1) == unlabelled.any(axis=1)).all()
    assert abs(unlabelled.all(axis=1).mean() - 0.7) < 4 * np.sqrt(0.21 / 512)
    assert objects["truth/target_dustlane"].notna().all()
    assert objects["dec"].between(-60, 60).all()
    assert objects["dec"].between(-30, 30).mean() == pytest.approx(0.577, abs=0.08)


@pytest.mark.parametrize("fraction", [0.0, 0.06, 1.0])
def test_rare_fraction(fraction: float) -> None:
    n = 256
    found = SimulatedSurvey(n, seed=31, rare_fraction=fraction).objects(0, n)["truth/target_dustlane"].sum()
    # Where all must have a lane, a few galaxies are too small and faint to show any.
    assert abs(found - n * fraction) <= 3.5 * np.sqrt(n * fraction * (1 - fraction)) + 0.01 * n * fraction
