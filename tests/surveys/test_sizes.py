"""Stores of the default size can be used by every shipped recipe."""

from __future__ import annotations

import pytest

from galscan.core.errors import InputError
from galscan.labels.recipe import load_recipe, recipe_names
from galscan.surveys.sizes import DEFAULT_SIZE, MAX_SIZE, MIN_SIZE, check_size


@pytest.mark.parametrize("name", recipe_names())
def test_no_shipped_recipe_needs_more(name: str) -> None:
    assert load_recipe(name).size <= DEFAULT_SIZE, f"a store made without --size is refused by target {name}"


def test_limits() -> None:
    for size in (MIN_SIZE, DEFAULT_SIZE, MAX_SIZE):
        check_size(size)
    for size in (MIN_SIZE - 1, MAX_SIZE + 1):
        with pytest.raises(InputError, match=f"{size} pixels"):
            check_size(size)
