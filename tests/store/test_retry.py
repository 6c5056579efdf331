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
    """Failed objects succeed on the second day, except those that end in 97; `requested` lists what was read."""

    day: int = 1
    stop_after: int = 10**9
    requested: list[int] = field(default_factory=list)

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        for i, outcome in zip(range(start, stop), super().cutouts(start, stop), strict=True):
            if self.day > 1 and len(self.requested) == self.stop_after:
                raise KeyboardInterrupt
            self.requested.append(i)
            heals = isinstance(outcome, Failed) and self.day > 1 and i % 100 != 97
            yield Cutout(np.full((8, 8, 3), i % 250, np.uint8), 0.4) if heals else outcome


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the content hash of a store of the second day."""
    return ingest_survey(Healing(day=2), tmp_path_factory.mktemp("healed") / "s.zarr", workers=1).content_hash


def test_only_failed_objects_are_retried(sky_copy: Path, healed: str) -> None:
    out = sky_copy
    first = layout.open_store(out)
    ingest_survey(Healing(day=2), out, workers=1)
    assert layout.open_store(out).content_hash == first.content_hash, "only with retry_failed"
    second = Healing(day=2)
    store = ingest_survey(second, out, retry_failed=True)
    assert sorted(second.requested) == list(range(7, 700, 10))
    result = outcomes(store)
    assert (result["stored"], result["no_coverage"], result["failed"]) == (623, 70, 7)
    assert store.content_hash == healed
    np.testing.assert_array_equal(store.images()[107], 107)
    assert [p.name for p in out.parent.iterdir()] == ["s.zarr"]
    third = Healing(day=2)
    ingest_survey(third, out, retry_failed=True)
    assert sorted(third.requested) == list(range(97, 700, 100))


def test_a_retry_that_is_stopped(sky_copy: Path, healed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old store is unchanged until the new one is complete; the same command resumes."""
    monkeypatch.setattr("random.sample", lambda values, count: list(values))
    monkeypatch.setattr("random.randrange", lambda stop: 0)
    out = sky_copy
    before = layout.open_store(out)
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(Interrupted, match="47"):
        ingest_survey(Healing(day=2, stop_after=30), out, retry_failed=True)  # the first shard holds 25 failed ones
    assert files == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert layout.open_store(out).content_hash == before.content_hash
    rest = Healing(day=2)
    store = ingest_survey(rest, out, retry_failed=True)
    assert rest.requested[:3] == [97, 197, 257]
    assert store.content_hash == healed


def test_a_retry_of_an_unavailable_service(sky_copy: Path, healed: str) -> None:
    """Objects fetched before it are in the store."""

    class Dying(Healing):
        def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
            if len(self.requested) == 40:
                raise GalscanError("unavailable")
            return super().cutouts(start, stop)

    out = sky_copy
    survey = Dying(day=2)
    with pytest.raises(GalscanError, match="unavailable"):
        ingest_survey(survey, out, retry_failed=True)
    table = manifest(layout.open_store(out))
    fetched = [i for i in survey.requested if i % 100 != 97]
    assert len(survey.requested) == 40 and (table["outcome"][fetched] == "stored").all()
    assert (table["outcome"] == "failed").sum() == 70 - len(fetched) and not out.with_name("s.zarr.partial").exists()
    ingest_survey(Healing(day=2), out, retry_failed=True)
    assert layout.open_store(out).content_hash == healed


def test_a_retry_of_an_unfinished_ingest(tmp_path: Path, healed: str) -> None:
    out = tmp_path / "s.zarr"
    with pytest.raises(Interrupted):
        ingest_survey(Healing(stop_at=600), out, workers=1)
    second = Healing(day=2)
    store = ingest_survey(second, out, workers=1, retry_failed=True)
    assert outcomes(store)["failed"] == 7
    assert second.requested[:188] == list(range(512, 700)), "first what is missing, then what failed"
    assert store.content_hash == healed


def test_a_retry_with_other_settings_is_refused(sky_copy: Path) -> None:
    with pytest.raises(ConflictError, match="seed was 0, is 1"):
        ingest_survey(Healing(seed=1), sky_copy, retry_failed=True)
