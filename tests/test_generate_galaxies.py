from __future__ import annotations

import numpy as np
import pytest

from galscan.generate.galaxies import pixel_statistics


def test_pixel_statistics_are_those_of_roots():
    images = np.zeros((10, 4, 4, 3), np.uint8)
    images[..., 0] = 255
    mean, std = pixel_statistics(images)
    assert mean == pytest.approx((1, 0, 0))
    assert std == pytest.approx(0, abs=1e-6)
