"""Retry of failed objects, and of no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from galscan.core.errors import ConflictError, GalscanError, Interrupted
from galscan.store import layout
from galscan.store.build import ingest_survey
from galscan.store.manifest import manifest, outcomes
from galscan.surveys.base import Cutout, Failed, Outcome
from tests.store.test_build import Sky


@dataclass
class Healing(Sky):
    """Failed objects come on the second day, but for those that end in 97; `asked` says which were asked for."""

    day: int = 1
    stop_after: int = 10**9
    asked: list[int] = field(default_factory=list)

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        for i, outcome in zip(range(start, stop), super().cutouts(start, stop), strict=True):
            if self.day > 1 and len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(i)
            heals = isinstance(outcome, Failed) and self.day > 1 and i % 100 != 97
            yield Cutout(np.full((8, 8, 3), i % 250, np.uint8), 0.4) if heals else outcome


def test_what_failed_is_asked_for_again_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    first = ingest_survey(Healing(), out, workers=1)
    ingest_survey(Healing(day=2), out, workers=1)
    assert layout.open_store(out).content_hash == first.content_hash, "not without being told to"
    second = Healing(day=2)
    store = ingest_survey(second, out, retry_failed=True)
    assert sorted(second.asked) == list(range(7, 700, 10))
    result = outcomes(store)
    assert (result["stored"], result["no_coverage"], result["failed"]) == (623, 70, 7)
    assert store.content_hash == ingest_survey(Healing(day=2), tmp_path / "straight.zarr", workers=1).content_hash
    np.testing.assert_array_equal(store.images()[107], 107)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["s.zarr", "straight.zarr"]
    third = Healing(day=2)
    ingest_survey(third, out, retry_failed=True)
    assert sorted(third.asked) == list(range(97, 700, 100))


def test_a_retry_that_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old store is unchanged until the new one is complete; the same command resumes."""
    monkeypatch.setattr("random.sample", lambda values, count: list(values))
    monkeypatch.setattr("random.randrange", lambda stop: 0)
    out = tmp_path / "s.zarr"
    before = ingest_survey(Healing(), out, workers=1)
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(Interrupted, match=r"stopped with 47 of .*s.zarr still failed; run the same command to resume"):
        ingest_survey(Healing(day=2, stop_after=30), out, retry_failed=True)  # the first shard holds 25 failed ones
    assert files == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert layout.open_store(out).content_hash == before.content_hash
    rest = Healing(day=2)
    store = ingest_survey(rest, out, retry_failed=True)
    assert rest.asked[:3] == [97, 197, 257]
    assert store.content_hash == ingest_survey(Healing(day=2), tmp_path / "straight.zarr", workers=1).content_hash


def test_a_retry_that_meets_a_dead_host(tmp_path: Path) -> None:
    """Objects fetched before it are in the store."""

    class Dying(Healing):
        def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
            if len(self.asked) == 40:
                raise GalscanError("the host is left alone")
            return super().cutouts(start, stop)

    out = tmp_path / "s.zarr"
    ingest_survey(Healing(), out, workers=1)
    survey = Dying(day=2)
    with pytest.raises(GalscanError, match="left alone"):
        ingest_survey(survey, out, retry_failed=True)
    told = manifest(layout.open_store(out))
    healed = [i for i in survey.asked if i % 100 != 97]
    assert len(survey.asked) == 40 and (told["outcome"][healed] == "stored").all()
    assert (told["outcome"] == "failed").sum() == 70 - len(healed) and not (tmp_path / "s.zarr.partial").exists()
    ingest_survey(Healing(day=2), out, retry_failed=True)
    straight = ingest_survey(Healing(day=2), tmp_path / "straight.zarr", workers=1)
    assert layout.open_store(out).content_hash == straight.content_hash


def test_a_retry_of_what_is_not_finished(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    with pytest.raises(Interrupted):
        ingest_survey(Healing(stop_at=600), out, workers=1)
    second = Healing(day=2)
    store = ingest_survey(second, out, workers=1, retry_failed=True)
    assert outcomes(store)["failed"] == 7
    assert second.asked[:188] == list(range(512, 700)), "first what is missing, then what failed"
    assert store.content_hash == ingest_survey(Healing(day=2), tmp_path / "straight.zarr", workers=1).content_hash


def test_a_retry_with_other_settings_is_refused(tmp_path: Path) -> None:
    ingest_survey(Healing(), tmp_path / "s.zarr", workers=1)
    with pytest.raises(ConflictError, match="seed was 0, is 1"):
        ingest_survey(Healing(seed=1), tmp_path / "s.zarr", retry_failed=True)
