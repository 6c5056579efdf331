"""Every error galscan raises on purpose.

A message is one line that names the value, the limit it broke and the remedy. The command line
prints it without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GalscanError(Exception):
    """Something failed that is not the user's mistake (exit code 1)."""

    exit_code = 1


class InputError(GalscanError, ValueError):
    """The user gave something that cannot work: a value, a file, a recipe (exit code 2)."""

    exit_code = 2


class NotFoundError(InputError, FileNotFoundError):
    """A file, store, model, survey or recipe that was named does not exist (exit code 2)."""

    def __str__(self) -> str:  # FileNotFoundError would print "[Errno ...]"
        return str(self.args[0]) if self.args else ""


class ConflictError(InputError, FileExistsError):
    """The output place already holds something else; nothing was overwritten (exit code 2)."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class StorageError(GalscanError, OSError):
    """Writing failed (disk full, no permission); what was complete before is intact (exit code 1)."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class Interrupted(GalscanError):
    """The user pressed Ctrl-C; the run can be resumed (exit code 130)."""

    exit_code = 130


def nearest(name: str, options: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? (known: ...)"`` for an unknown `name`, to end a message with."""
    known = sorted(set(options))
    if not known:
        return ""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{match[0]}'?" if match else ""
    listing = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"{hint} (known: {listing})"
