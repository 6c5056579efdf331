"""The `Survey` protocol: a catalog of objects, and for each a cutout or the reason why there is none.

An outcome is one of three types: `Cutout`, `NoCoverage`, `Failed`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


class Flag(enum.IntFlag):
    """Quality flags of a cutout. With any of the low five bits set it is not scored."""

    OK = 0
    MISSING = 1  # no image, or no coverage
    UNREADABLE = 2
    WRONG_SHAPE = 4
    NONFINITE = 8
    BLANK = 16
    EDGE = 32  # partly outside the image; the rest was filled
    UPSCALED = 64  # the source image had fewer pixels than the cutout


UNUSABLE = Flag.MISSING | Flag.UNREADABLE | Flag.WRONG_SHAPE | Flag.NONFINITE | Flag.BLANK

REASONS = {
    Flag.MISSING: "no image",
    Flag.UNREADABLE: "unreadable image",
    Flag.WRONG_SHAPE: "wrong shape",
    Flag.NONFINITE: "no finite pixels",
    Flag.BLANK: "blank image",
}


def reason(flags: int) -> str:
    """Return the reason of the first unusable bit of `flags`, or an empty string."""
    return next((text for flag, text in REASONS.items() if flags & flag), "")


@dataclass(frozen=True)
class Cutout:
    """An image as it is written to the store.

    Attributes
    ----------
    image : ndarray of uint8, shape (size, size, 3)
        Red, green, blue; row 0 is the top of the image.
    pixel_scale : float
        Arcsec per stored pixel, NaN if unknown.
    flags : Flag
        `Flag.EDGE` and `Flag.UPSCALED` only; a cutout with them is scored.
    """

    image: np.ndarray
    pixel_scale: float = float("nan")
    flags: Flag = Flag.OK


NOT_FOUND = "the service has no image there"  # reason of a `NoCoverage` that is retried, as surveys grow: HTTP 404


@dataclass(frozen=True)
class NoCoverage:
    """The survey does not cover the position; not retried, unless the reason is `NOT_FOUND`."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """The image cannot be used; `flag` is the kind of failure, `reason` its description."""

    reason: str
    flag: Flag = Flag.UNREADABLE


Outcome = Cutout | NoCoverage | Failed


@runtime_checkable
class Survey(Protocol):
    """A source of objects and cutouts in a fixed order, so that any range can be read again.

    Instances are small and picklable: ingest sends them to other processes.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """Pixels on a side of every cutout."""

    @property
    def id_dtype(self) -> np.dtype:
        """Data type of ids: int64 or fixed-width text."""

    def __len__(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """Return JSON-able provenance: everything that determines the pixels (settings, stretch, bands, seed)."""

    def schemas(self) -> dict[str, list[str]]:
        """Return the available labels: schema name -> answer names."""

    def truth(self) -> list[str]:
        """Return the names of truth columns (simulations only); never used in training."""

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        """Return rows `start` to `stop` of the catalog.

        Columns ``id``, ``ra``, ``dec`` (deg, ICRS, NaN where unknown), ``<schema>/<answer>`` (float32,
        NaN = not asked) for every label and ``truth/<name>`` for every truth column.
        """

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one outcome per object, in the order of `objects`."""
