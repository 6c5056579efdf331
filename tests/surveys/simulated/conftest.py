"""Simulated skies that several tests use."""

from __future__ import annotations

import pandas as pd
import pytest

from galscan.surveys.simulated.survey import SimulatedSurvey


@pytest.fixture(scope="session")
def half() -> pd.DataFrame:
    """Objects of a sky where half the galaxies are dust-lane early types."""
    return SimulatedSurvey(512, seed=21, rare_fraction=0.5).objects(0, 512)


@pytest.fixture(scope="session")
def voted() -> pd.DataFrame:
    """Objects of a sky with votes, where a fifth of the galaxies are dust-lane early types."""
    return SimulatedSurvey(1024, seed=4, rare_fraction=0.2, votes=True).objects(0, 1024)
