"""Object identity: by position; without a position by id within one naming scheme."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.store import identity
from galscan.store.identity import RADIUS, Objects, groups, lineage_of, names, radius_of
from tests.helpers import tiny_store

ARCSEC = 1 / 3600


def rows(*given: tuple) -> tuple:
    """Return the columns of (ra, dec, lineage, id)."""
    return tuple(np.array(column, object if k > 1 else float) for k, column in enumerate(zip(*given, strict=True)))


@st.composite
def tables(draw, most: int = 12):
    """Draw rows of few names, lineages and places, some a little apart and some without a position."""
    n = draw(st.integers(1, most))
    place = st.sampled_from([(np.nan, np.nan), *((10 + k * ARCSEC, 1.0) for k in (0, 1, 2, 60, 61, 3600))])
    one = st.tuples(place, st.sampled_from(["a", "b"]), st.sampled_from(["1", "2", "587722981742084144"]))
    return rows(*((*where, lineage, name) for where, lineage, name in draw(st.lists(one, min_size=n, max_size=n))))


def same(group: np.ndarray) -> np.ndarray:
    return group[:, None] == group[None, :]


@settings(max_examples=15)
@given(tables(), st.randoms(use_true_random=False))
def test_the_order_of_rows_is_irrelevant(table, random):
    order = np.array(random.sample(range(len(table[0])), len(table[0])))
    moved = tuple(column[order] for column in table)
    np.testing.assert_array_equal(same(groups(*table))[np.ix_(order, order)], same(groups(*moved)))
    np.testing.assert_array_equal(names(groups(*table), *table)[order], names(groups(*moved), *moved))


@settings(max_examples=15)
@given(tables())
def test_an_object_has_one_name_and_close_rows_are_one_object(table):
    group = groups(*table)
    assert (group[group] == group).all() and (group <= np.arange(len(group))).all()
    one = same(group)
    np.testing.assert_array_equal(one, same(names(group, *table)))
    apart = np.abs(table[0][:, None] - table[0][None, :]) * 3600  # all have one declination, near the equator
    assert one[apart < RADIUS].all() and not one[apart > 100].any()


@settings(max_examples=15)
@given(tables(), tables(most=6))
def test_find_agrees_with_groups(known, queries):
    objects = Objects(*known)
    found = objects.find(*queries)
    group = groups(*known)
    for k, at in enumerate(found):
        alone = tuple(column[[k]] for column in queries)
        assert objects.find(*alone)[0] == at  # chunk by chunk is all at once
        with_it = groups(*(np.concatenate(pair) for pair in zip(known, alone, strict=True)))
        if at < 0:
            assert (with_it[:-1] != with_it[-1]).all()
        else:
            assert with_it[at] == with_it[-1] and group[at] == at


def test_a_name_without_a_position_is_its_lineages():
    known = Objects(*rows((np.nan, np.nan, "a", "17"), (10, 1, "a", "18"), (np.nan, np.nan, "a", "587722981742084144")))
    queries = rows(
        (np.nan, np.nan, "a", "17"), (np.nan, np.nan, "b", "17"), (5, 5, "a", "17"), (np.nan, np.nan, "a", "18"),
        (20, 1, "a", "18"), (np.nan, np.nan, "b", "587722981742084144"),
    )  # fmt: skip
    assert known.find(*queries).tolist() == [0, -1, 0, 1, -1, 2]
    assert known.find(np.nan, np.nan, "a", np.array([18, 17, 3])).tolist() == [1, 0, -1]  # numbers, and one lineage


def test_a_name_at_two_places_says_nothing_of_a_row_without_one():
    table = rows((10, 1, "a", "1"), (30, 1, "a", "1"), (np.nan, np.nan, "a", "1"))
    assert groups(*table).tolist() == [0, 1, 2]
    assert names(groups(*table), *table).tolist() == [
        "a/1 at 10.000000 +1.000000", "a/1 at 30.000000 +1.000000", "a/1 at nan +nan",
    ]  # fmt: skip


def test_where_right_ascension_begins_and_at_the_pole():
    assert groups([359.9999, 0.0001], [0.1, 0.1], "", ["a", "b"]).tolist() == [0, 0]
    assert groups([10, 190], [90 - 0.4 * ARCSEC] * 2, "", ["a", "b"], radius=1).tolist() == [0, 0]


@pytest.mark.parametrize("nowhere", [(0.0, 0.0), (np.nan, 5.0), (5.0, np.inf)])
def test_what_catalogues_write_for_no_position_is_none(nowhere):
    ra, dec = nowhere
    assert groups([ra] * 3, [dec] * 3, "a", [1, 2, 1]).tolist() == [0, 1, 0]


def test_many_rows_at_one_place_are_one_object():
    assert (groups(np.full(100_000, 5.0), np.full(100_000, 5.0), "", np.arange(100_000)) == 0).all()


def test_what_is_known_by_id_alone_is_found_by_id_alone():
    known = Objects.of(pd.DataFrame({"id": ["7", "8", "7"]}))
    assert known.find([1, 2, 3], [1, 2, 3], ["a", "b", "c"], [7, 9, 8]).tolist() == [0, -1, 1]
    assert Objects(None, None, None, []).find([1], [1], "a", [7]).tolist() == [-1]
    assert Objects([], [], [], []).find([1], [1], "a", [7]).tolist() == [-1]
    assert Objects([1], [1], "a", [7]).find([], [], [], []).tolist() == []


def test_the_radius_is_the_coarsest_astrometry(tmp_path):
    one = tiny_store(tmp_path / "a.zarr", 4)
    assert radius_of([one]) == RADIUS and radius_of([]) == RADIUS
    one.attrs["provenance"] = {"astrometry": 5.0}
    assert radius_of([one]) == 5
    for strange in ("5", -1, float("nan"), None, True):
        one.attrs["provenance"] = {"astrometry": strange}
        assert radius_of([one]) == RADIUS
    assert groups([10, 10 + 3 * ARCSEC], [0.1, 0.1], "", ["a", "b"], radius=5).tolist() == [0, 0]


def test_the_lineage_is_the_source_of_an_ingest(tmp_path):
    one = tiny_store(tmp_path / "a.zarr", 4, survey="sky")
    assert lineage_of(one) == "sky"  # it does not say where it is from
    lineages = {}
    for name, provenance in {
        "small": {"survey": "local", "path": "/a", "size": 32}, "large": {"survey": "local", "path": "/a", "size": 64},
        "other": {"survey": "local", "path": "/b"}, "sdss": {"survey": "sdss", "catalog": "/a"},
        "simulated": {"survey": "simulated", "seed": 1}, "strange": {"survey": 5},
    }.items():  # fmt: skip
        one.attrs["provenance"] = provenance
        lineages[name] = lineage_of(one)
    assert lineages["small"] == lineages["large"] and len(set(lineages.values())) == 5
    assert lineages["simulated"] == "simulated" and lineages["strange"] == "sky"


def test_many_queries():
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 200_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 200_000)))
    known = identity.Objects(ra[:20_000], dec[:20_000], "a", np.arange(20_000))
    found = known.find(ra, dec + 0.5 * ARCSEC, "b", np.arange(200_000) + 7)
    np.testing.assert_array_equal(found[:20_000], np.arange(20_000))
    assert (found[20_000:] >= 0).sum() < 5


def test_imaging_is_survey_frame_and_pixels(tmp_path):
    one = tiny_store(tmp_path / "a.zarr", 4, survey="sky")
    of = identity.imaging_of(one)
    assert of == {"survey": "sky", "frame": pytest.approx(0.4 * 32), "pixels": {}}  # it does not say where it is from
    one.attrs["provenance"] = {"survey": "sdss", "stretch": {"Q": 8}}
    sdss = identity.imaging_of(one)
    assert sdss["survey"] == "sdss" and not identity.same_imaging(of, sdss)
    one.attrs["provenance"] = {"survey": "local", "path": "/a"}
    assert identity.imaging_of(one)["survey"] == "sky"  # of files of one's own, the name
    for change, same in (
        ({}, True), ({"frame": 13.2}, True), ({"frame": 14.0}, False), ({"frame": None}, True),
        ({"survey": "other"}, False), ({"pixels": {}}, False),
    ):  # fmt: skip
        assert identity.same_imaging(sdss, sdss | change) == same == identity.same_imaging(sdss | change, sdss)
