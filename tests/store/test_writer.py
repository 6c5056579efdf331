"""Writer of shards: complete or not at all, independent of the number of processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr

from galscan.core.errors import GalscanError, Interrupted
from galscan.store.build import ingest_survey
from galscan.store.layout import Store
from galscan.surveys.base import Cutout, Failed, Flag, NoCoverage, Outcome
from tests.store.test_build import Sky


def test_processes_make_the_same_store(tmp_path: Path, sky_store: Store) -> None:
    one = sky_store
    two = ingest_survey(Sky(), tmp_path / "two.zarr", workers=2)
    assert one.content_hash == two.content_hash
    np.testing.assert_array_equal(one.images(), two.images())
    assert ingest_survey(Sky(count=699), tmp_path / "three.zarr", workers=1).content_hash != one.content_hash


def test_the_hash_sees_labels_flags_and_ids(tmp_path: Path) -> None:
    class Relabelled(Sky):
        def objects(self, start: int, stop: int) -> pd.DataFrame:
            return super().objects(start, stop).assign(**{self.changed: np.float32(7)})  # type: ignore[attr-defined]

    class Reflagged(Sky):
        def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
            return (Failed("", Flag.BLANK) if isinstance(o, NoCoverage) else o for o in super().cutouts(start, stop))

    surveys = [Sky(100), Reflagged(100)]
    for column in ("efigi/dust", "truth/rare", "ra"):
        surveys.append(Relabelled(100))
        surveys[-1].changed = column  # type: ignore[attr-defined]
    hashes = {ingest_survey(s, tmp_path / f"{n}.zarr", workers=1).content_hash for n, s in enumerate(surveys)}
    assert len(hashes) == len(surveys)


def test_a_shard_without_marker_is_written_whole(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    with pytest.raises(Interrupted):
        ingest_survey(Sky(stop_at=600), out, workers=1)
    group = zarr.open_group(tmp_path / "s.zarr.partial", mode="r+")
    group["images"][512:700] = 99  # what a killed process may have left
    group["labels/efigi/dust"][512:700] = 99
    store = ingest_survey(Sky(), out, workers=1)
    assert store.images(slice(514, 515)).max() == 514 % 250 and not store.images(slice(517, 518)).any()
    assert np.nanmax(store.column("labels/efigi/dust")) == 0.5


def test_a_survey_that_breaks_its_promise(tmp_path: Path) -> None:
    class Short(Sky):
        def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
            return super().cutouts(start, stop - 1)

    class Small(Sky):
        def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
            yield Cutout(np.zeros((4, 4, 3), np.uint8))

    with pytest.raises(GalscanError, match="returned 256 rows and 255 cutouts"):
        ingest_survey(Short(), tmp_path / "a.zarr", workers=1)
    with pytest.raises(GalscanError, match=r"returned an image of \(4, 4, 3\) uint8, not \(8, 8, 3\)"):
        ingest_survey(Small(), tmp_path / "b.zarr", workers=1)


def test_progress_is_told_object_by_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    @contextmanager
    def track(*_: object, **__: object) -> Iterator[Any]:
        yield lambda n=1, note="": told.append(n)

    class Slow(Sky):
        def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
            for k, outcome in enumerate(super().cutouts(start, stop)):
                time.sleep(0.6 if k in (50, 100) else 0)
                yield outcome

    monkeypatch.setattr("galscan.core.progress.track", track)
    ingest_survey(Slow(count=200), tmp_path / "s.zarr", workers=1)
    assert sum(told) == 200 and len(told) == 3
