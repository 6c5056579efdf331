"""Build a store: complete or not visible, resumable, and independent of workers and interruptions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import xarray
import zarr

from galscan.core.errors import ConflictError, InputError, Interrupted
from galscan.store import layout
from galscan.store.build import ingest_survey
from galscan.store.ingest import ingest
from galscan.surveys.base import UNUSABLE, Cutout, Failed, Flag, NoCoverage, Outcome
from galscan.surveys.sizes import DEFAULT_SIZE


@dataclass
class Sky:
    """A survey of arithmetic: pixel values follow from the index; every tenth object has an error."""

    count: int = 700
    seed: int = 0
    size: int = 8
    text: bool = False
    stop_at: int = -1
    name: str = "sky"

    @property
    def id_dtype(self) -> np.dtype:
        return np.dtype("<U8" if self.text else "int64")

    def __len__(self) -> int:
        return self.count

    def describe(self) -> dict[str, Any]:
        return {"seed": self.seed, "nested": {"stretch": 1.5}}

    def schemas(self) -> dict[str, list[str]]:
        return {"efigi": ["dust"]}

    def truth(self) -> list[str]:
        return ["rare"]

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        index = np.arange(start, stop)
        return pd.DataFrame({
            "id": [f"G{i}" for i in index] if self.text else index + 2**60, "ra": index / 10.0, "dec": -index / 10.0,
            "efigi/dust": np.where(index % 2, np.nan, 0.5).astype("f4"), "truth/rare": (index % 3 == 0).astype("f4"),
        })  # fmt: skip

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        for i in range(start, stop):
            if i == self.stop_at:
                raise KeyboardInterrupt
            if i % 10 == 3:
                yield NoCoverage("outside the footprint")
            elif i % 10 == 7:
                yield Failed(f"file {i} is truncated", Flag.UNREADABLE)
            else:
                yield Cutout(np.full((8, 8, 3), i % 250, np.uint8), 0.4, Flag.EDGE if i == 1 else Flag.OK)


@pytest.mark.parametrize("text", [False, True])
def test_everything_arrives(tmp_path: Path, text: bool) -> None:
    store = ingest_survey(Sky(text=text), tmp_path / "s.zarr", workers=1)
    index = np.arange(700)
    flags = store.column("flags")
    assert (flags[3::10] == Flag.MISSING).all() and (flags[7::10] == Flag.UNREADABLE).all() and flags[1] == Flag.EDGE
    images = store.images()
    good = flags & int(UNUSABLE) == 0
    assert (images[good] == (index[good] % 250)[:, None, None, None]).all() and not images[~good].any()
    assert store.column("id").tolist() == ([f"G{i}" for i in index] if text else (index + 2**60).tolist())
    np.testing.assert_array_equal(store.column("ra"), index / 10)
    np.testing.assert_array_equal(store.labels("efigi")["dust"], np.where(index % 2, np.nan, 0.5))
    np.testing.assert_array_equal(store.truth()["rare"], index % 3 == 0)
    assert np.isnan(store.column("pixel_scale")[3]) and store.column("pixel_scale")[0] == 0.4
    assert store.attrs["provenance"] == Sky().describe() and store.name == "sky"
    assert not (tmp_path / "s.zarr.partial").exists()


def test_markers_do_not_disturb_other_readers(sky_store: layout.Store) -> None:
    path = Path(sky_store.path)
    names = ["plan.json", *(f"shard-0000{k}.json" for k in range(3))]
    assert sorted(p.name for p in (path / ".ingest").iterdir()) == names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xarray.open_zarr(path, consolidated=True) as data:
            assert data.sizes["object"] == 700
        assert len(list(zarr.open_group(path, mode="r").members(max_depth=None))) == 11


@pytest.mark.parametrize("stop_at", [0, 300])
def test_ctrl_c_and_resume(tmp_path: Path, sky_store: layout.Store, stop_at: int) -> None:
    out = tmp_path / "s.zarr"
    done = stop_at // 256
    with pytest.raises(Interrupted, match=f"after {done} of 3"):
        ingest_survey(Sky(stop_at=stop_at), out, workers=1)
    assert not out.exists()

    class Watched(Sky):
        seen: ClassVar[list[int]] = []

        def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
            self.seen.append(start)
            return super().cutouts(start, stop)

    resumed = ingest_survey(Watched(), out, workers=1)
    assert Watched.seen == [k * 256 for k in range(done, 3)]  # what was done is not done again
    assert resumed.content_hash == sky_store.content_hash


def test_killed_while_the_store_was_being_made(tmp_path: Path) -> None:
    partial = tmp_path / "s.zarr.partial"
    (partial / "images").mkdir(parents=True)
    (partial / "zarr.json").write_text("{ half")
    assert ingest_survey(Sky(), tmp_path / "s.zarr", workers=1).count == 700


def test_a_complete_store_is_returned_or_protected(sky_copy: Path) -> None:
    first = layout.open_store(sky_copy)
    before = (first.path / "zarr.json").stat().st_mtime_ns
    assert ingest_survey(Sky(), first.path, workers=1).content_hash == first.content_hash
    with pytest.raises(ConflictError, match="seed was 0, is 1"):
        ingest_survey(Sky(seed=1), first.path, workers=1)
    assert (first.path / "zarr.json").stat().st_mtime_ns == before


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("precious")
    for name in ("file", "folder"):
        with pytest.raises(ConflictError, match=name):
            ingest_survey(Sky(), tmp_path / name, workers=1)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "thesis.tex").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert ingest_survey(Sky(), tmp_path / "empty", workers=1).count == 700


# ---------------------------------------------------------------------------------------------- ingest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "pictures"
    path.mkdir()
    for i in (1, 2, 9):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path / f"{i}.png")
    (path / "catalog.csv").write_text("id,efigi_t\n1,-2\n2,3\n3,0\n")
    return path


def test_ingest_local(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ingest("local", out=tmp_path / "mine.zarr", path=folder, labels="efigi", size=16, workers=1)
    assert isinstance(store, layout.Store) and store.name == "mine" and store.size == 16
    output = capsys.readouterr()
    assert output.out == "" and "2 cutouts stored, unusable: 1 no image" in output.err
    assert "warning: 1 image(s) have no row in the catalog and are left out, the first is 9.png" in output.err
    ingest("local", out=tmp_path / "mine.zarr", path=folder, labels="efigi", size=16, workers=1)
    assert "was already complete" in capsys.readouterr().err


def test_ingest_names_and_places(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALSCAN_HOME", str(tmp_path / "home"))
    store = ingest("local", path=folder, name="galaxies", workers=1)
    assert store.size == DEFAULT_SIZE
    assert store.path == tmp_path / "home" / "surveys" / "galaxies.zarr" and store.name == "galaxies"
    store = ingest("simulated", count=300, size=16, rare_fraction=0.1, workers=1)
    assert store.path == tmp_path / "home" / "surveys" / "simulated.zarr" and store.name == "simulated"


def test_ingest_dry_run_writes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = ingest("local", out=tmp_path / "x" / "s.zarr", path=folder, labels="efigi", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert plan["objects"] == 3 and plan["shards"] == 1 and plan["images_without_row"] == 1
    assert plan["out"].endswith("s.zarr")
    store = ingest("local", out=tmp_path / "x" / "s.zarr", path=folder, labels="efigi", workers=1)
    assert plan["bytes"] >= 3 * store.size**2 * 3
    assert "nothing written" in capsys.readouterr().err
    assert json.dumps(plan)


def test_ingest_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'local'"):
        ingest("locl")
    with pytest.raises(InputError, match="--path"):
        ingest("local", out=tmp_path / "s.zarr")
    with pytest.raises(InputError, match="path"):
        ingest("simulated", out=tmp_path / "s.zarr", path=tmp_path, labels="efigi")
    with pytest.raises(InputError, match="workers is 0"):
        ingest_survey(Sky(), tmp_path / "s.zarr", workers=0)
    with pytest.raises(InputError, match="'sky'"):
        ingest_survey(Sky(count=0), tmp_path / "s.zarr")
