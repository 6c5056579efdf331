from __future__ import annotations

import pytest

from galscan.core import errors


@pytest.mark.parametrize(
    ("kind", "builtin", "code"),
    [
        (errors.GalscanError, Exception, 1),
        (errors.InputError, ValueError, 2),
        (errors.NotFoundError, FileNotFoundError, 2),
        (errors.ConflictError, FileExistsError, 2),
        (errors.StorageError, OSError, 1),
        (errors.Interrupted, errors.GalscanError, 130),
    ],
)
def test_exit_codes_and_builtin_parents(kind, builtin, code):
    error = kind("what, where, how to mend it")
    assert isinstance(error, builtin) and isinstance(error, errors.GalscanError)
    assert error.exit_code == code
    assert str(error) == "what, where, how to mend it"
    assert isinstance(str(kind()), str)


def test_nearest():
    assert errors.nearest("dustlanes", ["ring", "dustlane"]) == "; did you mean 'dustlane'? (known: dustlane, ring)"
    assert errors.nearest("zzz", ["ring"]) == " (known: ring)"
    assert errors.nearest("x", []) == ""
    assert errors.nearest("zzz", [f"name{i:02}" for i in range(20)]).endswith("name11, ...)")
