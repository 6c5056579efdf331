"""Parsers of option values, and their errors."""

from __future__ import annotations

import pytest
import typer

from galscan.cli.options import cone, number, pair


def test_values():
    assert pair("ra=x=y") == ("ra", "x=y")
    assert cone("180,-10.5,2") == (180.0, -10.5, 2.0)
    assert number("1e-3") == 0.001


@pytest.mark.parametrize(
    ("parse", "text"),
    [(pair, "id"), (pair, "id="), (pair, "=x"), (cone, "180,10"), (cone, "a,b,c"), (cone, ""), (number, "much")],
)
def test_wrong_values(parse, text):
    with pytest.raises(typer.BadParameter):
        parse(text)
