"""Exceptions of galscan.

Messages are one line with the value, the limit and the remedy. The command line prints them without a traceback and
exits with ``exit_code``. Each class has a stable ``code`` for programs; ``--json`` prints it with the message.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GalscanError(Exception):
    """Base class, and failures not caused by the input (exit code 1)."""

    exit_code = 1
    code = "failed"


class InputError(GalscanError, ValueError):
    """Invalid input: a value, a file, a recipe (exit code 2)."""

    exit_code = 2
    code = "invalid-input"


class NotFoundError(InputError, FileNotFoundError):
    """A file, store, model, survey or recipe does not exist (exit code 2)."""

    code = "not-found"

    def __str__(self) -> str:  # FileNotFoundError would print "[Errno ...]"
        return str(self.args[0]) if self.args else ""


class UnknownObjectError(InputError, KeyError, IndexError):
    """A store has no object with this id, or no such row (exit code 2)."""

    code = "unknown-object"

    def __str__(self) -> str:  # KeyError would print quotation marks
        return str(self.args[0]) if self.args else ""


class ConflictError(InputError, FileExistsError):
    """The output path already holds something else; nothing was overwritten (exit code 2)."""

    code = "conflict"

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StorageError(GalscanError, OSError):
    """Writing failed (disk full, no permission); complete files are intact (exit code 1)."""

    code = "storage"

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class Interrupted(GalscanError):
    """The user pressed Ctrl-C; the run can be resumed (exit code 130)."""

    exit_code = 130
    code = "interrupted"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters; the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def nearest(name: str, options: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? (known: ...)"`` for an unknown `name`, as the end of a message."""
    known = sorted(set(options))
    if not known:
        return ""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{match[0]}'?" if match else ""
    listing = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"{hint} (known: {listing})"
