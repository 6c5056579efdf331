"""Subsets of a survey, and the rendering of an existing store. The tests of all surveys are in test_base."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.core.errors import ConflictError
from galscan.surveys.files.images import Rendering
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.surveys.subsets import ids, stored_rendering, take
from tests.store.test_build import Sky

OLD = Rendering("i", "r", "g", {"g": 1.0, "r": 2.0, "i": 3.0}, {"g": False, "r": False, "i": False})


def rendering(factor: float = 1.0, sky: bool = False, blue: str = "g") -> Rendering:
    unit = {blue: factor, "r": 2.0, "i": 3.0}
    return Rendering("i", "r", blue, unit, dict.fromkeys(unit, sky))


def test_ids():
    assert ids(Sky(count=5)).tolist() == [2**60 + i for i in range(5)]
    survey = SimulatedSurvey(20, size=16, seed=3)
    assert ids(survey).tolist() == survey.objects(0, 20)["id"].tolist()


def test_take_all_or_nothing():
    survey = Sky(count=5)
    assert take(survey, np.arange(5)) is survey and len(take(survey, np.array([], int))) == 0
    assert list(take(survey, np.array([1, 3])).cutouts(0, 0)) == []
    assert take(survey, np.array([1, 3])).objects(2, 2).empty


def test_the_stretch_of_the_store_is_kept():
    kept = stored_rendering(rendering(1.7), OLD.describe(), "s.zarr")
    assert kept == OLD and stored_rendering(rendering(1.7, blue="u"), OLD.describe(), "s.zarr") == rendering(
        1.7, blue="u"
    )
    assert stored_rendering(None, OLD.describe(), "s.zarr") is None and stored_rendering(OLD, None, "s.zarr") == OLD


@pytest.mark.parametrize(
    ("new", "value"),
    [
        (rendering(30), "30 times"),
        (rendering(0.01), "0.01 times"),
        (rendering(sky=True), "sky is not subtracted"),
    ],
)
def test_images_in_other_units_are_refused(new, value):
    with pytest.raises(ConflictError, match=value):
        stored_rendering(new, OLD.describe(), "s.zarr")
