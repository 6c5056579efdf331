"""Rendering of simulated galaxies: PSF, noise, artefacts, stretch."""

from __future__ import annotations

import numpy as np

from galscan.store.ingest import ingest
from galscan.surveys.simulated import population
from galscan.surveys.simulated import rendering as render
from galscan.surveys.simulated.starlight import starlight, subset, transmission
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.synthesis.galaxies import MEASURED, measure


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


def test_pictures_look_like_a_survey() -> None:
    survey = SimulatedSurvey(256, size=64, seed=6)
    images = np.stack([c.image for c in survey.cutouts(0, 256)])
    corner = images[:, :6, :6].reshape(256, -1)
    assert 2 < np.median(corner) < 25, "the sky is near black"
    assert np.median(images[:, 30:34, 30:34]) > 120
    early = (survey.objects(0, 256)["simulated/early_type"] == 1).to_numpy()
    red, green, blue = np.median(images[early][:, 28:36, 28:36].reshape(-1, 3), axis=0)
    assert red > green > blue
    scales = [c.pixel_scale for c in survey.cutouts(0, 32)]
    assert all(0.1 < s < 10 for s in scales)


def test_no_more_grain_than_in_real_stamps(real_data, tmp_path) -> None:
    real = ingest("local", path=real_data / "gz2-kaggle", size=64, out=tmp_path / "gz2.zarr", workers=1)
    survey = SimulatedSurvey(256, size=64, seed=6)
    noise = list(MEASURED).index("image_noise")
    images = np.stack([c.image for c in survey.cutouts(0, 256)])
    simulated, true = (np.median(measure(stamps)[:, noise]) for stamps in (images, real.images()[:256]))
    assert 0.5 < simulated / true < 2
