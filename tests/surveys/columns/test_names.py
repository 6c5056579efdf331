"""Names of columns: every name has a partner, and none belongs to two roles."""

from __future__ import annotations

import pandas as pd

from galscan.surveys.columns.angles import plain
from galscan.surveys.columns.names import PAIRS, ROLES, by_ucd, columns_of, find_pairs, single_coordinates


def test_no_name_has_two_meanings() -> None:
    roles = {role: {plain(name) for name in names} for role, names in ROLES.items()}
    for role, names in roles.items():
        for other, others in roles.items():
            assert role == other or not names & others, (role, other)
    assert len({tuple(map(plain, pair)) for pair in PAIRS}) >= len(PAIRS) - 8, "a few differ in punctuation only"


def test_pairs() -> None:
    assert find_pairs(["x", "RAJ2000", "_RAJ2000", "DEJ2000", "_DEJ2000"]) == [
        ("RAJ2000", "DEJ2000"), ("_RAJ2000", "_DEJ2000"),
    ]  # fmt: skip
    assert find_pairs(["ra_icrs", "dej2000"]) == [("ra_icrs", "dej2000")], "one of each kind"
    assert find_pairs(["alpha", "beta"]) == [] and single_coordinates(["alpha"]) == {"ra": [], "dec": []}
    assert columns_of(ROLES["id"], ["Obj ID", "OBJID", "x"]) == ["Obj ID", "OBJID"]


def test_ucds() -> None:
    frame = pd.DataFrame({"a": [1.0], "b": ["00 42 44"]})
    frame.attrs["ucd"] = {"a": "pos.eq.ra", "b": "pos.eq.ra;meta.main"}
    assert by_ucd(frame, "ra") == "a" and by_ucd(frame, "ra", 0, 2) is None
