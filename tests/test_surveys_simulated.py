"""The simulated sky: settings, repeatability, physics of the dust, and no shortcut to the answer."""

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from galscan.errors import InputError
from galscan.surveys import _population as population
from galscan.surveys import _render as render
from galscan.surveys._starlight import EXTINCTION, starlight, subset, transmission
from galscan.surveys.simulated import ANSWERS, SimulatedSurvey

SCHEMA = Path(__file__).parents[1] / "catalogs" / "simulated.toml"


@pytest.fixture(scope="module")
def half() -> pd.DataFrame:
    """Objects of a sky where half the galaxies are dust-lane early types."""
    return SimulatedSurvey(512, seed=21, rare_fraction=0.5).objects(0, 512)


def auc(values: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve, the better of both directions."""
    ranks = pd.Series(values).rank().to_numpy()
    n, m = positive.sum(), (~positive).sum()
    area = (ranks[positive].sum() - n * (n + 1) / 2) / (n * m)
    return max(area, 1 - area)


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


@pytest.mark.parametrize("size", [32, 48, 64, 96])
def test_a_range_equals_the_slice_whatever_the_boundaries(size: int) -> None:
    survey = SimulatedSurvey(280, size=size, seed=4)
    every = np.stack([c.image for c in survey.cutouts(230, 280)])
    assert every.shape == (50, size, size, 3) and every.dtype == np.uint8
    part = np.stack([c.image for c in survey.cutouts(250, 270)])
    assert (part == every[20:40]).all()
    pd.testing.assert_frame_equal(survey.objects(250, 270), survey.objects(0, 280)[250:270].reset_index(drop=True))


def test_object_depends_on_neither_count_nor_process() -> None:
    long, short = SimulatedSurvey(10**9, seed=4), pickle.loads(pickle.dumps(SimulatedSurvey(600, seed=4)))
    first = [c.image for c in long.cutouts(500, 520)]
    population.draw.cache_clear()
    assert all((a == c.image).all() for a, c in zip(first, short.cutouts(500, 520), strict=True))
    pd.testing.assert_frame_equal(long.objects(300, 520), short.objects(300, 520))


def test_seeds_and_objects_differ() -> None:
    one, other = (next(iter(SimulatedSurvey(5, seed=s).cutouts(0, 1))).image for s in (1, 2))
    assert (one != other).mean() > 0.5
    ids = [SimulatedSurvey(300, seed=s).objects(0, 300)["id"] for s in (0, 1, 9 * 10**9)]
    assert pd.concat(ids).is_unique and ids[2].iloc[-1] == 9 * 10**18 + 299


def test_the_same_galaxies_at_every_size() -> None:
    small, large = (SimulatedSurvey(256, size=s, seed=8).objects(0, 256) for s in (32, 96))
    pd.testing.assert_frame_equal(small, large)


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
    objects = SimulatedSurvey(768, seed=2, labelled=0.3).objects(0, 512)
    unlabelled = objects.filter(like="simulated/").isna()
    assert (unlabelled.all(axis=1) == unlabelled.any(axis=1)).all()
    assert abs(unlabelled.all(axis=1).mean() - 0.7) < 4 * np.sqrt(0.21 / 512)
    assert objects["truth/target_dustlane"].notna().all()
    assert objects["dec"].between(-60, 60).all() and objects["dec"].between(-30, 30).mean() == pytest.approx(
        0.577, abs=0.08
    )


@pytest.mark.parametrize("fraction", [0.0, 0.06, 1.0])
def test_rare_fraction_is_what_was_asked_for(fraction: float) -> None:
    n = 512
    found = SimulatedSurvey(n, seed=31, rare_fraction=fraction).objects(0, n)["truth/target_dustlane"].sum()
    # Where all must have a lane, a few galaxies are too small and faint to show any.
    assert abs(found - n * fraction) <= 3.5 * np.sqrt(n * fraction * (1 - fraction)) + 0.01 * n * fraction


def test_rings_and_mergers_are_a_few_per_cent() -> None:
    objects = SimulatedSurvey(1024, seed=5).objects(0, 1024)
    for name in ("ring", "merger"):
        assert 0.012 < objects[f"truth/target_{name}"].mean() < 0.047


def test_no_single_feature_gives_the_lane_away(half: pd.DataFrame) -> None:
    early = (half["simulated/early_type"] >= 0.5).to_numpy()
    lane = (half["truth/target_dustlane"] == 1).to_numpy()
    images = np.stack([c.image for c in SimulatedSurvey(512, seed=21, rare_fraction=0.5).cutouts(0, 512)])
    light = images[early].astype(float)
    features = {
        "axis ratio": half["truth/axis_ratio"][early],
        "colour of the stars": half["simulated/redness"][early],
        "size": half["simulated/size"][early],
        "bulge": half["simulated/bulge_to_total"][early],
        "flux in the picture": light.sum(axis=(1, 2, 3)),
        "colour of the picture": light[..., 2].sum(axis=(1, 2)) / light[..., 0].sum(axis=(1, 2)),
    }
    found = {name: auc(np.asarray(values), lane[early]) for name, values in features.items()}
    assert max(found.values()) < 0.7, found
    clean = early & (half["truth/dust_tau"] == 0).to_numpy()
    for low, high in ((0.2, 0.45), (0.45, 0.7), (0.7, 1.0)):
        chosen = half["truth/axis_ratio"].between(low, high).to_numpy()
        assert (chosen & clean).sum() > 10 and (chosen & lane).sum() > 10
    assert (np.histogram(half["truth/dust_inclination"][lane], [0, 45, 70, 90])[0] > 0.1 * lane.sum()).all()
    late_lanes = (half["simulated/early_type"] < 0.5) & (half["simulated/dust_lane"] >= 0.5)
    assert late_lanes.any() and ((half["simulated/edge_on"] >= 0.5) & (half["simulated/dusty"] == 0)).any()


def test_dust_darkens_and_reddens() -> None:
    sky = subset(population.draw(3, 0, 1.0), np.arange(256) < 48)
    stars, passed = starlight(sky, 64), transmission(sky, 64)
    assert (passed > 0).all() and (passed <= 1 + 1e-6).all()
    kept = (stars * passed).sum(axis=(2, 3)) / stars.sum(axis=(2, 3))
    assert (kept[:, 0] < kept[:, 1]).all() and (kept[:, 1] < kept[:, 2]).all(), "g dims more than r, r more than i"
    assert (kept[:, 0] < 0.995).all()
    with_dust, without = (
        render.pictures(sky, 64, np.random.default_rng(0), dust=d, noise=False) for d in (True, False)
    )
    change = without.astype(int) - with_dust
    assert (
        change.max(axis=(1, 2, 3)) > 15
    ).all() and change.min() > -10  # the stretch keeps colours, so red may gain a little


def test_dust_hides_only_what_is_behind_it() -> None:
    """A face-on opaque sheet through the centre hides half the light; an inclined one, F(y tan i)."""
    sky = {name: values[:1].copy() for name, values in population.draw(3, 0, 1.0).items()}
    sky |= {
        name: np.zeros(1)
        for name in ("dust_arms", "dust_warp", "dust_clumps", "dust_ring", "dust_angle", "angle", "x", "y")
    }
    sky |= {
        "dust_tau": np.array([1e4]),
        "dust_thickness": np.array([1e-3]),
        "dust_radius": np.array([0.4]),
        "dust_core": np.array([0.01]),
    }
    sky |= {"dust_side": np.array([1.0]), "dust_cos": np.array([1.0])}
    face_on = transmission(sky, 64)[0, 0]
    assert face_on[30:34, 30:34] == pytest.approx(0.5, abs=0.015) and face_on[0, 0] > 0.9
    sky["dust_cos"] = np.array([0.5])
    y = (np.arange(64) + 0.5) / 64 - 0.5
    expected = 0.5 * (
        1 + y * np.sqrt(3) / np.sqrt(3 * y**2 + y**2 + y[32] ** 2 + 0.01**2)
    )  # F at depth y tan 60, on the minor axis
    inside = np.abs(y) < 0.15
    assert transmission(sky, 64)[0, 0, :, 32][inside] == pytest.approx(expected[inside], abs=0.01)
    sky |= {"dust_tau": np.array([0.3]), "dust_cos": np.array([1.0])}
    thin = transmission(sky, 64)[0, :, 32, 32]
    assert thin == pytest.approx(
        (1 + np.exp(-0.3 * 1.6 * EXTINCTION)) / 2, abs=0.01
    )  # half of the light, each band its own


def test_pictures_look_like_a_survey() -> None:
    survey = SimulatedSurvey(256, seed=6)
    images = np.stack([c.image for c in survey.cutouts(0, 256)])
    corner = images[:, :6, :6].reshape(256, -1)
    assert 2 < np.median(corner) < 25, "the sky is near black"
    assert np.median(images[:, 30:34, 30:34]) > 120
    early = (survey.objects(0, 256)["simulated/early_type"] == 1).to_numpy()
    red, green, blue = np.median(images[early][:, 28:36, 28:36].reshape(-1, 3), axis=0)
    assert red > green > blue
    scales = [c.pixel_scale for c in survey.cutouts(0, 32)]
    assert all(0.1 < s < 10 for s in scales)
