"""A selection: by condition, cone and coverage map; what is not known is not chosen."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError, NotFoundError
from galscan.scanning.selection import ALL, Selection, make_selection
from galscan.store import layout
from tests.helpers import tiny_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny_store(tmp_path_factory.mktemp("s") / "s.zarr", 500, 8)


def test_all_is_all(store):
    assert ALL.mask(store, slice(100, 200)).all() and not ALL and ALL.text() == "all objects"
    assert make_selection(None, None, None) == ALL


def test_a_condition_names_columns_and_labels(tmp_path):
    group = layout.create(
        tmp_path / "l.zarr", survey="l", count=4, size=8, id_dtype=np.dtype("int64"), schemas={"efigi": ["t"]},
        provenance={},
    )  # fmt: skip
    group["labels/efigi/t"][:] = [-3, 2, np.nan, -1]
    group["dec"][:] = [10, 10, 10, -10]
    layout.finish(tmp_path / "l.zarr", "x")
    labelled = layout.open_store(tmp_path / "l.zarr")
    chosen = make_selection("t <= 0 and dec > 0", None, None)
    assert chosen.mask(labelled, slice(0, 4)).tolist() == [True, False, False, False]
    assert chosen.mask(labelled, slice(1, 3)).tolist() == [False, False]
    with pytest.raises(InputError, match=r"l\.zarr.*'tt'.*did you mean 't'"):
        make_selection("tt > 0", None, None).check(labelled)


@given(st.floats(0, 360), st.floats(-90, 90), st.floats(0.01, 180))
def test_a_cone_is_as_astropy_measures_it(store, ra, dec, radius):
    there = SkyCoord(store.column("ra"), store.column("dec"), unit="deg")
    expected = there.separation(SkyCoord(ra, dec, unit="deg")).deg
    chosen = make_selection(None, (ra, dec, radius), None).mask(store, slice(0, store.count))
    sure = np.abs(expected - radius) > 1e-9
    assert (chosen == (expected <= radius))[sure].all()


def test_a_coverage_map_is_as_mocpy_reads_it(store, tmp_path):
    mocpy = pytest.importorskip("mocpy", reason="needs the extra moc")
    moc = mocpy.MOC.from_cone(120 * units.deg, 20 * units.deg, radius=40 * units.deg, max_depth=6)
    expected = moc.contains_lonlat(store.column("ra") * units.deg, store.column("dec") * units.deg)
    for name, form in (("m.fits", "fits"), ("m.json", "json"), ("m.txt", "ascii")):
        moc.save(tmp_path / name, format=form)
        chosen = make_selection(None, None, tmp_path / name)
        np.testing.assert_array_equal(chosen.mask(store, slice(0, store.count)), expected)
    assert 10 < expected.sum() < 200
    (tmp_path / "bad.fits").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad\.fits is not a readable MOC"):
        make_selection(None, None, tmp_path / "bad.fits")
    with pytest.raises(NotFoundError, match="no MOC"):
        make_selection(None, None, tmp_path / "none.fits")


@pytest.mark.parametrize("cone", [(400, 0, 1), (0, 95, 1), (0, 0, 0), (0, 0, float("nan"))])
def test_a_cone_off_the_sky_is_refused(cone):
    with pytest.raises(InputError, match="--cone"):
        make_selection(None, cone, None)


def test_where_nothing_is_known_nothing_is_chosen(store):
    group = layout.zarr.open_group(store.path, mode="r+")
    before = group["ra"][0]
    group["ra"][0] = np.nan
    assert not make_selection(None, (0, 0, 180), None).mask(store, slice(0, 1))[0]
    group["ra"][0] = before
    assert Selection(cone=(0, 0, 180)).text() == "within 180 deg of 0 +0"


def test_a_place_among_objects_without_positions_is_refused(tmp_path):
    store = tiny_store(tmp_path / "nowhere.zarr", 300)
    layout.zarr.open_group(store.path, mode="r+")["ra"][:] = np.nan
    with pytest.raises(InputError, match=r"nowhere\.zarr has no positions to select by; omit --cone and --moc"):
        make_selection(None, (0, 0, 180), None).check(store)
    make_selection("pixel_scale > 0.3", None, None).check(store)
