"""Store layout: round trip with galscan, zarr and xarray, without warnings."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given
from hypothesis import strategies as st

from galscan.core.errors import InputError, NotFoundError, StorageError
from galscan.store import layout
from galscan.surveys.base import UNUSABLE, Flag, reason
from tests.helpers import tiny_store


def make(path: Path, count: int = 600, id_dtype: str = "int64", **more: object) -> zarr.Group:
    settings = {"survey": "sky", "size": 8, "schemas": {"efigi": ["dust", "t"]}, "truth": ["rare"]} | more
    settings |= {"provenance": {"seed": 1}}
    return layout.create(path, count=count, id_dtype=np.dtype(id_dtype), **settings)


@pytest.fixture(params=["int64", "<U12"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "s.zarr"
    group = make(path, id_dtype=request.param)
    group["id"][:] = np.arange(600).astype(request.param)
    group["images"][256:512] = 7
    group["labels/efigi/dust"][256:512] = 0.5
    group["truth/rare"][:] = 1
    (path / ".ingest").mkdir()
    (path / ".ingest" / "plan.json").write_text("{}")
    layout.finish(path, "abc")
    return path


def test_roundtrip(store: Path) -> None:
    s = layout.open_store(store)
    assert (s.name, s.count, s.size, s.shard, s.n_shards, s.content_hash) == ("sky", 600, 8, 256, 3, "abc")
    assert s.schemas == {"efigi": ["dust", "t"]}
    assert s.images(s.rows(1)).shape == (256, 8, 8, 3) and (s.images(s.rows(1)) == 7).all()
    assert not s.images(s.rows(0)).any() and len(s.images(s.rows(2))) == 88
    assert [str(i) for i in s.column("id", slice(0, 3))] == ["0", "1", "2"]
    labels = s.labels("efigi", s.rows(1))
    assert (labels["dust"] == 0.5).all() and labels["t"].isna().all() and labels["t"].dtype == np.float32
    assert (s.truth()["rare"] == 1).all()
    assert np.isnan(s.column("ra")).all()


def test_other_readers_open_it_without_a_warning(store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(store, consolidated=True)
        assert data["images"].dims == ("object", "y", "x", "band") and data["ra"].attrs["units"] == "deg"
        assert int(data["images"][300].values.max()) == 7
        data.close()
        group = zarr.open_group(store, mode="r")
        assert {"images", "id", "labels", "truth"} <= {name for name, _ in group.members()}
        assert group["labels/efigi/dust"].shape == (600,)


def test_create_replaces_what_was_there_but_keeps_the_folder(store: Path) -> None:
    before = store.stat().st_ino
    make(store, count=10)
    assert store.stat().st_ino == before and not (store / ".ingest").exists()
    assert zarr.open_group(store, mode="r")["images"].shape[0] == 10


def test_a_group_is_not_a_column(store: Path) -> None:
    with pytest.raises(InputError, match=r"'labels' of .* is a group"):
        layout.open_store(store).column("labels")


def test_finishing_twice_is_harmless(store: Path) -> None:
    layout.finish(store, "def")
    assert layout.open_store(store).content_hash == "def"


def test_unknown_schema_is_named(store: Path) -> None:
    with pytest.raises(InputError, match="no 'efig' labels; did you mean 'efigi'"):
        layout.open_store(store).labels("efig")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no store at .*galscan ingest"):
        layout.open_store(tmp_path / "none.zarr")


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a Zarr group"):
        layout.open_store(tmp_path)
    zarr.open_group(tmp_path / "g", mode="w", zarr_format=3)
    with pytest.raises(InputError, match="not a galscan store"):
        layout.open_store(tmp_path / "g")


def test_damaged_metadata(store: Path) -> None:
    (store / "zarr.json").write_text("{ half")
    with pytest.raises(InputError, match="not a Zarr group"):
        layout.open_store(store)


def test_unfinished_store_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr")
    with pytest.raises(InputError, match="not complete"):
        layout.open_store(tmp_path / "s.zarr")


def test_empty_store_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "s.zarr", count=0)
    layout.finish(tmp_path / "s.zarr", "x")
    with pytest.raises(InputError, match="holds no objects"):
        layout.open_store(tmp_path / "s.zarr")


def test_create_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        make(tmp_path / "file" / "s.zarr")


@given(st.integers(1, 30_000_000))
def test_shards_cover_everything_and_hold_whole_chunks(count: int) -> None:
    shard = layout.shard_size(count)
    assert layout.CHUNK <= shard <= layout.MAX_SHARD and shard % layout.CHUNK == 0
    assert -(-count // shard) <= max(8, -(-count // layout.MAX_SHARD))


@given(st.integers(0, 255))
def test_a_flag_has_a_reason_exactly_if_unusable(flags: int) -> None:
    assert bool(reason(flags)) == bool(flags & UNUSABLE)


def test_notes_are_not_reasons() -> None:
    assert reason(Flag.EDGE | Flag.UPSCALED) == "" and reason(Flag.BLANK | Flag.EDGE) == "blank image"


def test_images_of_rows_of_several_stores(tmp_path):
    store = tiny_store(tmp_path / "sky.zarr")
    rows = np.random.default_rng(0).permutation(590)[:80]
    rows = [*rows.tolist(), int(rows[3])]
    found = list(layout.read_images({"sky": store}, [("sky", row) for row in rows]))
    assert [rows[k] for k, _ in found] == sorted(rows)
    images = store.images()
    assert all(np.array_equal(image, images[rows[k]]) for k, image in found)
    assert all(image.base is None for _, image in found)  # a view would keep the chunk in memory
    assert list(layout.read_images({"sky": store}, [])) == []
