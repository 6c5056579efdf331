from __future__ import annotations

import pytest

from galscan.core import errors


@pytest.mark.parametrize(
    ("kind", "builtin", "exit_code", "code"),
    [
        (errors.GalscanError, Exception, 1, "failed"),
        (errors.InputError, ValueError, 2, "invalid-input"),
        (errors.NotFoundError, FileNotFoundError, 2, "not-found"),
        (errors.UnknownObjectError, KeyError, 2, "unknown-object"),
        (errors.UnknownObjectError, IndexError, 2, "unknown-object"),
        (errors.ConflictError, FileExistsError, 2, "conflict"),
        (errors.StorageError, OSError, 1, "storage"),
        (errors.Interrupted, errors.GalscanError, 130, "interrupted"),
    ],
)
def test_codes_and_builtin_parents(kind, builtin, exit_code, code):
    error = kind("what, where, how to mend it")
    assert isinstance(error, builtin) and isinstance(error, errors.GalscanError)
    assert (error.exit_code, error.code) == (exit_code, code)
    assert str(error) == "what, where, how to mend it"
    assert isinstance(str(kind()), str)


def test_nearest():
    assert errors.nearest("dustlanes", ["ring", "dustlane"]) == "; did you mean 'dustlane'? (known: dustlane, ring)"
    assert errors.nearest("zzz", ["ring"]) == " (known: ring)"
    assert errors.nearest("x", []) == ""
    assert errors.nearest("zzz", [f"name{i:02}" for i in range(20)]).endswith("name11, ...)")


def test_first_line():
    assert errors.first_line(ValueError("\none\ntwo")) == "one" and errors.first_line(OSError()) == "OSError"
    assert len(errors.first_line(ValueError("x" * 999))) == 200
