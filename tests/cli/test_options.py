"""Parsers of option values, and their errors."""

from __future__ import annotations

import pytest

from galscan.cli.options import number, pairs, parse_cone
from galscan.core.errors import InputError


def test_pairs():
    assert pairs("--column", None) is None
    assert pairs("--column", ["id=name", "ra=x=y"]) == {"id": "name", "ra": "x=y"}
    with pytest.raises(InputError, match="--column"):
        pairs("--column", ["id"])


def test_cones():
    assert parse_cone(None) is None
    assert parse_cone("180,-10.5,2") == (180.0, -10.5, 2.0)
    for text in ("180,10", "a,b,c", ""):
        with pytest.raises(InputError, match="--cone"):
            parse_cone(text)


def test_numbers():
    assert number("--set", "1e-3") == 0.001
    with pytest.raises(InputError, match="--set"):
        number("--set", "much")
