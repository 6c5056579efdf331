"""Append to a store: no object lost or duplicated, and the old store readable until the new one is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.core.errors import ConflictError, Interrupted
from galscan.store import append, layout
from galscan.store.build import ingest_survey, pending
from galscan.store.layout import Store
from galscan.store.manifest import manifest, outcomes
from galscan.surveys.base import Failed, Outcome
from tests.store.test_build import Sky


@dataclass
class Some(Sky):
    """Some objects of the sky of arithmetic, in the order given; `requested` lists the cutouts that were read."""

    which: tuple[int, ...] = ()
    schema: str = "efigi"
    night: str = "first"
    heal: bool = False
    requested: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.count = len(self.which)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"catalog": self.night, "objects": self.count}

    def schemas(self) -> dict[str, list[str]]:
        return {self.schema: ["dust"]}

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        sky = super().objects(0, max(self.which) + 1).iloc[list(self.which[start:stop])]
        return sky.rename(columns={"efigi/dust": f"{self.schema}/dust"}).reset_index(drop=True)

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        for i in self.which[start:stop]:
            self.requested.append(i)
            (outcome,) = super().cutouts(i, i + 1)
            yield outcome if not (self.heal and isinstance(outcome, Failed)) else next(super().cutouts(i - 1, i))


def some(*ranges: range, **more: Any) -> Some:
    return Some(which=tuple(i for r in ranges for i in r), **more)


def contents(store: Store) -> dict[str, np.ndarray]:
    names = [name for name, member in store.group.members(max_depth=None) if isinstance(member, zarr.Array)]
    return {name: store.column(name) for name in names}


def same(one: Store, other: Store) -> None:
    """Compare two stores object by object, as their readers see them."""
    assert one.count == other.count and one.schemas == other.schemas
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)
    pd.testing.assert_frame_equal(manifest(one), manifest(other))


@pytest.mark.parametrize("text", [False, True])
def test_what_is_new_comes_after_what_is_there(tmp_path: Path, text: bool) -> None:
    out = tmp_path / "s.zarr"
    before = ingest_survey(some(range(700), text=text), out, workers=1)
    more = some(range(0, 900, 3), range(701, 1200, 2), night="second", text=text)
    store = ingest_survey(more, out, workers=1, append=True)
    new = [i for i in more.which if i >= 700]
    assert more.requested == new, "what is there is not asked for"
    assert store.content_hash != before.content_hash and store.shard == before.shard == 256
    straight = ingest_survey(some(range(700), new, text=text), tmp_path / "straight.zarr", workers=1)  # type: ignore[arg-type]
    same(store, straight)
    assert store.content_hash == straight.content_hash
    assert store.attrs["appended"] == [{"rows": [700, 700 + len(new)], "count": more.count, "survey": more.describe()}]
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["s.zarr", "straight.zarr"]
    with xarray.open_zarr(out, consolidated=True) as data:
        assert data.sizes["object"] == store.count
    assert zarr.open_array(out / "images", mode="r").shape[0] == store.count, "also for who reads one array alone"


def test_the_same_commands_again_find_nothing_to_do(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    first, second = some(range(300)), some(range(400), night="second")
    ingest_survey(first, out, workers=1, append=True)  # of what is not there it makes a store
    assert len(first.requested) == 300
    store = ingest_survey(second, out, workers=1, append=True)
    for survey in (first, second, some(range(100, 350), night="third")):
        survey.requested.clear()
        assert ingest_survey(survey, out, workers=1, append=True).content_hash == store.content_hash
        assert survey.requested == [] and not (tmp_path / "s.zarr.partial").exists()
    for survey in (first, second):
        assert ingest_survey(survey, out, workers=1).content_hash == store.content_hash
    with pytest.raises(ConflictError, match=r"catalog was .first., is .third.*or add the new objects with --app"):
        ingest_survey(some(range(100, 350), night="third"), out, workers=1)


@settings(max_examples=4)
@given(st.lists(st.sets(st.integers(0, 19)), min_size=1, max_size=3), st.integers(2, 10))
def test_however_it_is_divided(parts: list[set[int]], step: int) -> None:
    """The objects of any catalogs, overlapping as they may, in the order of the appends; shards of `step`."""
    groups = [sorted(part) for part in parts if part] or [[0]]
    order = list(dict.fromkeys(i for group in groups for i in group))
    place = Path(tempfile.mkdtemp())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CHUNK", 1)
        patch.setattr(layout, "shard_size", lambda count: step)
        for night, group in enumerate(groups):
            survey = some(group, night=str(night))  # type: ignore[arg-type]
            grown = ingest_survey(survey, place / "grown.zarr", workers=1, append=True)
            assert len(survey.requested) == len(set(survey.requested))
        straight = ingest_survey(some(order), place / "straight.zarr", workers=1)  # type: ignore[arg-type]
    same(grown, straight)
    assert grown.content_hash == straight.content_hash
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def present(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return ingest_survey(some(range(300)), tmp_path_factory.mktemp("present") / "s.zarr", workers=1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"size": 16}, "size was 8, is 16"),
        ({"name": "other"}, "name was .sky., is .other."),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"schema": "gz1"}, "schemas.efigi was .*; schemas.gz1 was null"),
        ({"text": True}, "'G0'"),
    ],
)
def test_other_surveys_are_refused(present: Store, other: dict[str, Any], message: str) -> None:
    survey, out = some(range(400), night="second", **other), Path(present.path)
    for refused in (lambda: ingest_survey(survey, out, workers=1, append=True), lambda: pending(survey, out)):
        with pytest.raises(ConflictError, match=message):
            refused()
    if not other.get("text"):
        with pytest.raises(ConflictError, match=r"--out$"):
            ingest_survey(survey, out, workers=1)
    assert layout.open_store(out).content_hash == present.content_hash and not survey.requested
    assert not (out.parent / "s.zarr.partial").exists()


def test_ids_that_are_longer(tmp_path: Path) -> None:
    @dataclass
    class Long(Some):
        prefix: str = "G"

        @property
        def id_dtype(self) -> np.dtype:
            return np.dtype(f"<U{len(self.prefix) + 4}")

        def objects(self, start: int, stop: int) -> pd.DataFrame:
            table = super().objects(start, stop)
            return table.assign(id=[f"{self.prefix}{i}" for i in self.which[start:stop]])

    out = tmp_path / "s.zarr"
    ingest_survey(Long(which=tuple(range(10))), out, workers=1)
    store = ingest_survey(Long(which=(3, 4), prefix="NGC-00-", night="b"), out, workers=1, append=True)
    assert store.column("id").tolist()[-3:] == ["G9", "NGC-00-3", "NGC-00-4"]
    numbers = ingest_survey(some(range(2), night="c"), out, workers=1, append=True)
    assert numbers.column("id").tolist()[-2:] == [str(2**60), str(2**60 + 1)]
    with pytest.raises(ConflictError, match=r"id 'N-{31}3' has 33 char.* allows 32; write these objects to another st"):
        ingest_survey(Long(which=(3,), prefix="N" + 31 * "-", night="d"), out, workers=1, append=True)


@pytest.mark.parametrize("stop_at", [700, 1199])
def test_ctrl_c(tmp_path: Path, stop_at: int) -> None:
    out = tmp_path / "s.zarr"
    before = ingest_survey(some(range(700)), out, workers=1)
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    done = (stop_at - 512) // 256
    with pytest.raises(Interrupted, match=rf"stopped after {done} of 3 new shards of .*, which is unchanged until"):
        ingest_survey(some(range(1200), night="b", stop_at=stop_at), out, workers=1, append=True)
    assert files == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert layout.open_store(out).content_hash == before.content_hash
    with pytest.raises(ConflictError, match=r"partial was begun with other settings: .*catalog was .b., is .c."):
        ingest_survey(some(range(1300), night="c"), out, workers=1, append=True)
    assert ingest_survey(some(range(700)), out, workers=1).content_hash == before.content_hash, "it can be used"
    rest = some(range(1200), night="b")
    store = ingest_survey(rest, out, workers=1, append=True)
    assert rest.requested[0] == max(700, 512 + 256 * done), "what was done is not done again"
    assert store.content_hash == ingest_survey(some(range(1200)), tmp_path / "straight.zarr", workers=1).content_hash


def test_killed_after_each_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each of the renames the store is the old or the new one, and any command continues the move."""
    expected = ingest_survey(some(range(600)), tmp_path / "straight.zarr", workers=1)
    out = tmp_path / "s.zarr"
    old = ingest_survey(some(range(300)), out, workers=1)
    old_contents, old_manifest, rename, left = contents(old), manifest(old), os.replace, [0]

    class Killed(BaseException):
        pass

    def count_down(source: str | Path, target: str | Path) -> None:
        if "s.zarr.partial" in str(source) and "s.zarr.partial" not in str(target):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
        rename(source, target)

    monkeypatch.setattr(os, "replace", count_down)
    surveys = some(range(600), night="b"), some(range(300))  # the first command continues the move as well
    for moves in range(100):
        survey, left[0] = surveys[moves % 2], min(moves, 1)
        survey.requested.clear()
        try:
            store = ingest_survey(survey, out, workers=1, append=not moves % 2)
            break
        except Killed:
            pass
        state = layout.open_store(out)
        assert state.content_hash == old.content_hash and survey.requested == ([] if moves else list(range(300, 600)))
        for name in ("images", "id", "flags"):
            np.testing.assert_array_equal(state.column(name), old_contents[name], err_msg=f"{name} after {moves} moves")
        pd.testing.assert_frame_equal(manifest(state), old_manifest)
    assert moves > 8 and survey.requested == []
    same(store, expected)
    assert not (tmp_path / "s.zarr.partial").exists()


def test_killed_when_all_was_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "s.zarr"
    ingest_survey(some(range(300)), out, workers=1)
    clear = layout.clear_folder
    monkeypatch.setattr(layout, "clear_folder", lambda path: clear(path) if not path.is_dir() or not any(
        f.name == "plan.json" for f in path.rglob("*")) else (_ for _ in ()).throw(KeyboardInterrupt))  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        ingest_survey(some(range(600), night="b"), out, workers=1, append=True)
    monkeypatch.undo()
    assert layout.open_store(out).count == 600 and append.ready_to_publish(out)
    assert ingest_survey(some(range(700), night="c"), out, workers=1, append=True).count == 700
    assert not (tmp_path / "s.zarr.partial").exists()


def test_what_failed_is_found_by_its_id(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    ingest_survey(some(range(300)), out, workers=1)
    grown = ingest_survey(some(range(250, 500), night="b"), out, workers=1, append=True)
    assert outcomes(grown)["failed"] == 50
    second = some(range(250, 500), night="b", heal=True)
    store = ingest_survey(second, out, workers=1, retry_failed=True, append=True)
    assert sorted(second.requested) == list(range(257, 500, 10)), "what this catalog does not have is left alone"
    assert outcomes(store)["failed"] == 25 and store.content_hash != grown.content_hash
    images, ids = store.images(), store.column("id") - 2**60
    for i in second.requested:
        assert (images[ids == i] == (i - 1) % 250).all()
    first = some(range(300), heal=True)
    store = ingest_survey(first, out, workers=1, retry_failed=True)
    assert sorted(first.requested) == list(range(7, 250, 10)) and outcomes(store)["failed"] == 0
    more = ingest_survey(some(range(600), night="c"), out, workers=1, append=True)
    assert more.count == 600 and outcomes(more)["failed"] == 10


def test_a_retry_that_was_killed_between_two_renames(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    before = ingest_survey(some(range(300)), out, workers=1)
    out.rename(tmp_path / ".s.zarr.galscan-replaced")
    assert ingest_survey(some(range(300)), out, workers=1).content_hash == before.content_hash
    assert not (tmp_path / ".s.zarr.galscan-replaced").exists()


def test_a_store_that_was_not_ingested(tmp_path: Path) -> None:
    from tests.helpers import tiny_store

    store = tiny_store(tmp_path / "s.zarr", count=10)
    with pytest.raises(ConflictError, match="is not a finished galscan ingest"):
        ingest_survey(some(range(5)), Path(store.path), workers=1, append=True)


@dataclass
class Placed(Some):
    """Some objects, and a list of where they are: `away` degrees from where the sky has them."""

    away: float = 0.0

    @property
    def ra(self) -> np.ndarray:
        return super().objects(0, self.count)["ra"].to_numpy()

    @property
    def dec(self) -> np.ndarray:
        return super().objects(0, self.count)["dec"].to_numpy() + self.away


def test_an_id_at_another_position_is_refused(present: Store) -> None:
    out = Path(present.path)
    more = tuple(range(290, 310))
    for away in (0.0, 5 / 3600):  # the same object, measured again
        assert len(pending(Placed(which=more, night="b", away=away), out)) == 10
    with pytest.raises(
        ConflictError, match=r"10 of these objects have an id of .* but another position.* is at .*--out"
    ):
        pending(Placed(which=more, night="b", away=0.1), out)
