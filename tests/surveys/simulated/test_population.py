"""Simulated population: fractions as configured, and no feature that predicts the lane."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from galscan.surveys.simulated import population
from galscan.surveys.simulated.survey import SimulatedSurvey


def auc(values: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve, the better of both directions."""
    area = roc_auc_score(positive, values)
    return max(area, 1 - area)


def test_rings_and_mergers_are_a_few_per_cent(voted: pd.DataFrame) -> None:
    for name in ("ring", "merger"):
        assert 0.012 < voted[f"truth/target_{name}"].mean() < 0.047


def test_no_single_feature_gives_the_lane_away(half: pd.DataFrame) -> None:
    early = (half["simulated/early_type"] >= 0.5).to_numpy()
    lane = (half["truth/target_dustlane"] == 1).to_numpy()
    images = np.stack([c.image for c in SimulatedSurvey(512, 32, seed=21, rare_fraction=0.5).cutouts(0, 512)])
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


def test_lane_fraction_changes_only_the_dust_of_spirals() -> None:
    plain, crossed = population.draw(5, 0, 0.0), population.draw(5, 0, 0.0, 0.5)
    changed = crossed["crossed"]
    assert 30 < changed.sum() < 110 and not plain["crossed"].any()
    assert not (changed & crossed["early_type"]).any() and not crossed["target"].any()
    assert (crossed["lane"][changed] >= 0.45).mean() > 0.9
    for name, values in plain.items():
        if name != "crossed":
            np.testing.assert_array_equal(values[~changed], crossed[name][~changed], err_msg=name)
    for name in ("re", "axis_ratio", "flux", "arms"):  # the stars are the same, whatever crosses them
        np.testing.assert_array_equal(plain[name], crossed[name])
