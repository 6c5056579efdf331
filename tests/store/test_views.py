from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from galscan.core.errors import InputError, UnknownObjectError
from galscan.store.layout import Store
from tests.helpers import tiny_store

matplotlib.use("agg")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store(tmp_path_factory.mktemp("views") / "s.zarr", 40, 32, survey="<sky>")


def test_html_shows_a_dozen_images_and_reads_no_more(store, monkeypatch):
    read = []
    monkeypatch.setattr(
        Store,
        "column",
        lambda self, name, rows, old=Store.column: (read.append((name, rows)), old(self, name, rows))[1],
    )
    text = store._repr_html_()
    assert text.count("<img") == 12 and "&lt;sky&gt;" in text and "<sky>" not in text
    assert sum(rows.stop - rows.start for name, rows in read if name == "images") == 12
    assert all(rows.stop <= 256 for _, rows in read), "no column is read completely"


def test_text(store):
    assert repr(store).startswith("<Store <sky>: 40 cutouts of 32 px") and len(store) == 40


def test_images_without_pixels_are_not_shown(tmp_path):
    bad = tiny_store(tmp_path / "bad.zarr", 5, 32, unusable=3)
    assert bad._repr_html_().count("<img") == 2
    none = tiny_store(tmp_path / "none.zarr", 3, 32, unusable=3)
    assert none._repr_html_().count("<img") == 0
    with pytest.raises(InputError, match="0 rows"):
        none.plot()


def test_plot(store):
    from matplotlib import pyplot

    axes = store.plot([5, 30, -1], columns=2)
    ids = store.column("id")
    assert [one.get_title() for one in axes] == [str(ids[k]) for k in (5, 30, 39)]
    assert (np.asarray(axes[1].images[0].get_array()) == store.images(slice(30, 31))[0]).all()
    assert store.plot().shape == (12,)
    pyplot.close("all")
    with pytest.raises(UnknownObjectError, match="40"):
        store.plot([40])
    with pytest.raises(InputError, match="columns=0"):
        store.plot([1], columns=0)
    with pytest.raises(InputError, match="101"):
        store.plot([1] * 101)
