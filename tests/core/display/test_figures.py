from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from galscan.core.display.figures import given_or_new, show_images

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def test_axes_of_the_caller_or_new_ones():
    from matplotlib import pyplot

    given = pyplot.subplots()[1]
    new = given_or_new(None)
    assert given_or_new(given) is given and new.figure is not given.figure and new.figure is pyplot.gcf()


def test_images_are_drawn_in_rows_with_their_titles():
    images = [np.full((8, 8, 3), k, np.uint8) for k in range(5)]
    axes = show_images(images, list("abcde"), 3)
    assert axes.shape == (5,) and [one.get_title() for one in axes] == list("abcde")
    assert [int(one.images[0].get_array().max()) for one in axes] == list(range(5))
    assert len(axes[0].figure.axes) == 6
