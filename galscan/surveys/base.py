"""What every survey offers: a catalog of objects, and a cutout (or the reason for none) of each.

An outcome is one of three value types, so that "no coverage" and "failed" can never be mistaken for
a galaxy: `Cutout`, `NoCoverage`, `Failed`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd


class Flag(enum.IntFlag):
    """What is known about one cutout. The low five bits are reasons never to score it."""

    OK = 0
    MISSING = 1  # no image, or no coverage
    UNREADABLE = 2
    WRONG_SHAPE = 4
    NONFINITE = 8
    BLANK = 16
    EDGE = 32  # part of the stamp lies beyond the image and was filled
    UPSCALED = 64  # the source had fewer pixels than the store


UNUSABLE = Flag.MISSING | Flag.UNREADABLE | Flag.WRONG_SHAPE | Flag.NONFINITE | Flag.BLANK

REASONS = {
    Flag.MISSING: "no image",
    Flag.UNREADABLE: "unreadable image",
    Flag.WRONG_SHAPE: "wrong shape",
    Flag.NONFINITE: "no finite pixels",
    Flag.BLANK: "blank image",
}


def reason(flags: int) -> str:
    """Return the words for the first unusable bit of `flags`, or an empty string."""
    return next((text for flag, text in REASONS.items() if flags & flag), "")


@dataclass(frozen=True)
class Cutout:
    """One image as it goes into the store.

    Attributes
    ----------
    image : ndarray of uint8, shape (size, size, 3)
        Red, green, blue; row 0 is the top of the picture.
    pixel_scale : float
        Arcsec per stored pixel, NaN where unknown.
    flags : Flag
        Harmless notes (`Flag.EDGE`, `Flag.UPSCALED`); never a reason not to score.
    """

    image: np.ndarray
    pixel_scale: float = float("nan")
    flags: Flag = Flag.OK


@dataclass(frozen=True)
class NoCoverage:
    """The survey never looked there; final."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """There should be an image, but it cannot be used: `flag` says how, `reason` in words."""

    reason: str
    flag: Flag = Flag.UNREADABLE


Outcome = Cutout | NoCoverage | Failed


@runtime_checkable
class Survey(Protocol):
    """A source of objects and cutouts, in one fixed order, so that a range can be asked for again.

    Instances are small and picklable: ingest sends them to other processes.
    """

    @property
    def name(self) -> str:
        """The survey's name."""
        ...

    @property
    def size(self) -> int:
        """Pixels on a side of every cutout."""
        ...

    @property
    def id_dtype(self) -> np.dtype:
        """int64, or fixed-width text."""
        ...

    def __len__(self) -> int:
        """Return the number of objects."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return JSON-able provenance: everything that decides the pixels (settings, stretch, bands, seed)."""
        ...

    def schemas(self) -> dict[str, list[str]]:
        """Return the label columns it can give: schema name -> answer names."""
        ...

    def truth(self) -> list[str]:
        """Return the names of truth columns (simulations only); never shown to training."""
        ...

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        """Return rows `start` to `stop` of the catalog.

        Columns ``id``, ``ra``, ``dec`` (deg, ICRS, NaN where unknown), ``<schema>/<answer>`` (float32,
        NaN = not asked) for every label and ``truth/<name>`` for every truth column.
        """
        ...

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one outcome an object, in the order of `objects`."""
        ...
