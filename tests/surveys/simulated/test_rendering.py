"""Rendering of simulated galaxies: PSF, noise, artefacts, stretch."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.surveys.files.local import LocalSurvey
from galscan.surveys.simulated import population
from galscan.surveys.simulated import rendering as render
from galscan.surveys.simulated.starlight import starlight, subset, transmission
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis.galaxies import MEASURED, measure


def test_dust_darkens_and_reddens() -> None:
    sky = subset(population.draw(3, 0, 1.0), np.arange(256) < 24)
    stars, passed = starlight(sky, 64), transmission(sky, 64)
    assert (passed > 0).all() and (passed <= 1 + 1e-6).all()
    kept = (stars * passed).sum(axis=(2, 3)) / stars.sum(axis=(2, 3))
    assert (kept[:, 0] < kept[:, 1]).all() and (kept[:, 1] < kept[:, 2]).all(), "g dims more than r, r more than i"
    assert (kept[:, 0] < 0.995).all()
    dusty, clean = (render.pictures(sky, 64, np.random.default_rng(0), dust=d, noise=False) for d in (True, False))
    change = clean.astype(int) - dusty
    assert (change.max(axis=(1, 2, 3)) > 15).all()
    assert change.min() > -10, "the stretch keeps colours, so red may gain a little"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([c.image for c in SimulatedSurvey(256, size=64, seed=6).cutouts(0, 256)])


def test_pictures_look_like_a_survey(images) -> None:
    assert 2 < np.median(images[:, :6, :6]) < 25, "the sky is near black"
    assert np.median(images[:, 30:34, 30:34]) > 120
    survey = SimulatedSurvey(256, size=64, seed=6)
    early = (survey.objects(0, 256)["simulated/early_type"] == 1).to_numpy()
    red, green, blue = np.median(images[early][:, 28:36, 28:36].reshape(-1, 3), axis=0)
    assert red > green > blue
    assert all(0.1 < c.pixel_scale < 10 for c in survey.cutouts(0, 32))


def test_no_more_grain_than_in_real_stamps(images, real_data) -> None:
    real = np.stack([c.image for c in LocalSurvey(real_data / "gz2-kaggle", size=64).cutouts(0, 128)])
    noise = list(MEASURED).index("image_noise")
    simulated, true = (np.median(measure(stamps)[:, noise]) for stamps in (images[:128], real))
    assert 0.5 < simulated / true < 2
