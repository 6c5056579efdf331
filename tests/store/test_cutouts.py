from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from galscan.core.errors import InputError, UnknownObjectError
from galscan.store import cutouts, layout
from galscan.store.cutouts import NORTH_UP, celestial_wcs, checked_row, orientation, row_of


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store of 6 objects of 8 px, north up; the last has no position, the one before it no scale."""
    path = tmp_path_factory.mktemp("cutouts") / "s.zarr"
    provenance = {"orientation": NORTH_UP, "bands": "gri", "framing": {"radii": 8.48}, "stretch": {"Q": 8}}
    group = layout.create(
        path, survey="sky", count=6, size=8, id_dtype=np.dtype("<U8"), schemas={}, provenance=provenance
    )
    group["id"][:] = np.array(["NGC 1", "NGC 12", "IC 7", "same", "same", "M 31"])
    group["images"][:] = np.arange(6, dtype="uint8")[:, None, None, None]
    group["ra"][:], group["dec"][:] = [10, 20, 30, 40, 50, np.nan], [0, 60, -80, 1, 2, np.nan]
    group["pixel_scale"][:] = [0.4, 0.5, 0.6, 0.4, np.nan, 0.4]
    group["flags"][2] = 32
    layout.finish(path, "abc")
    return layout.open_store(path)


def test_a_cutout_is_found_by_id_and_by_row(store):
    cutout = store.cutout("NGC 12")
    assert cutout.data.shape == (8, 8, 3) and cutout.data.dtype == np.uint8 and (cutout.data == 1).all()
    assert cutout.meta == store[1].meta and len(store) == 6 and store[-1].meta["id"] == "M 31"
    assert cutout.meta | {"store": ""} == {
        "id": "NGC 12", "survey": "sky", "store": "", "row": 1, "ra": 20.0, "dec": 60.0, "frame": "icrs",
        "pixel_scale": 0.5, "orientation": NORTH_UP, "framing": {"radii": 8.48}, "bands": ["g", "r", "i"],
        "stretch": {"Q": 8}, "flags": [],
    }  # fmt: skip
    json.dumps(cutout.meta, allow_nan=False)
    assert store.cutout("IC 7").meta["flags"] == ["edge"]
    assert [one.meta["row"] for one in store] == list(range(6)), "iteration ends after the last row"


def test_the_wcs_has_north_at_the_top_and_east_to_the_left(store):
    for one in (store[0], store[1], store[2]):
        position = SkyCoord(one.meta["ra"], one.meta["dec"], unit="deg")
        centre, top, left = (one.wcs.pixel_to_world(x, y) for x, y in ((3.5, 3.5), (3.5, 2.5), (2.5, 3.5)))
        assert position.separation(centre).arcsec < 1e-6
        for other, angle in ((top, 0), (left, 90)):
            assert position.separation(other).arcsec == pytest.approx(one.meta["pixel_scale"], rel=1e-6)
            assert position.position_angle(other).deg == pytest.approx(angle, abs=0.1) or angle == 0
        assert abs(position.position_angle(top).wrap_at("180d").deg) < 0.1
        assert one.wcs.array_shape == one.data.shape[:2] and one.wcs.wcs.radesys == "ICRS"
    assert store[4].wcs is None and store[5].wcs is None


def test_no_wcs_where_the_orientation_is_unknown(shared_store):
    assert shared_store[5].wcs is None and shared_store[5].meta["orientation"] == "unknown"
    number = shared_store[5].meta["id"]
    assert shared_store.cutout(str(number)).meta["row"] == shared_store.cutout(np.int64(number)).meta["row"] == 5
    assert shared_store.cutout(number, north_up=True).wcs is not None
    frames = {"orientation": NORTH_UP + ", by mirroring and quarter turns"}
    assert orientation(frames | {"rotation_left": [-0.2, 0.1]}) == NORTH_UP == orientation({"survey": "simulated"})
    assert orientation(frames | {"rotation_left": [-20, 30]}) == orientation(frames) != NORTH_UP
    assert celestial_wcs(10, 0, 0, 8) is None and celestial_wcs(np.nan, 0, 1, 8) is None


def test_unknown_ids_and_rows(store, shared_store):
    for missing, near in (("NGC 13", "NGC 1"), ("M31", "M 31"), ("zzz", "same"), ("", "IC 7")):
        with pytest.raises(UnknownObjectError, match=near):
            store.cutout(missing)
    ids = shared_store.column("id")
    with pytest.raises(KeyError, match=str(ids.max())):
        shared_store.cutout(int(ids.max()) * 10)
    for wrong in ("1000.0", "NGC 1", 2**70):
        with pytest.raises(UnknownObjectError):
            shared_store.cutout(wrong)
    with pytest.raises(InputError, match="3, 4"):
        store.cutout("same")
    for row in (6, -7):
        with pytest.raises(IndexError, match=str(row)):
            store[row]
    for row in ("NGC 1", 1.0, slice(2)):
        with pytest.raises(InputError):
            store[row]
    assert checked_row(np.int64(-1), 6, "s") == 5


def test_an_unknown_id_among_a_million_is_answered_at_once():
    ids = np.arange(10**6).astype("<U20")
    with pytest.raises(UnknownObjectError, match="12345"):
        row_of(ids, "12345x", "s")
    assert cutouts.row_of(ids, "12345", "s") == 12345
