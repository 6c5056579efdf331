"""Images in Parquet: HATS catalogs of the Multimodal Universe, and data sets of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import galscan
from galscan.core.errors import InputError
from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.files.formats import find_format, open_local
from galscan.surveys.files.multimodal import ParquetSurvey
from tests.packed_on_disk import encoded, image_column, legacysurvey, pictures, sky, write_hats

COUNT = 20


def columns(*, listed: bool = False, **changes: Any) -> dict[str, Any]:
    """Return the columns of the Legacy Surveys in the HATS form."""
    made = legacysurvey(COUNT)
    flat = {name: made[name] for name in ("object_id", "ra", "dec", "TYPE")}
    return flat | {"image": image_column(made, listed=listed), "_healpix_29": np.arange(COUNT)} | changes


@pytest.mark.parametrize("listed", [False, True])
def test_a_hats_catalog(tmp_path: Path, listed: bool) -> None:
    """Pixels, bands, scales and positions of each object; rows in any order, over partitions and row groups."""
    root = write_hats(tmp_path / "mmu_legacysurvey", columns(listed=listed))
    assert find_format(root) == "parquet"
    survey = open_local(root, size=20)
    made = legacysurvey(COUNT)
    assert survey.ids.tolist() == made["object_id"] and len(survey.files) == 2
    np.testing.assert_array_equal(survey.objects(0, COUNT)["ra"], made["ra"])
    assert (survey.rendering.red, survey.rendering.green, survey.rendering.blue) == ("i", "r", "g")
    outcomes = list(survey.cutouts(0, COUNT))
    for outcome in outcomes:
        assert isinstance(outcome, Cutout) and outcome.pixel_scale == pytest.approx(0.262)
        assert outcome.image[2:4].mean() > 2 * outcome.image[-4:-2].mean()  # the strip is in the upper part
    for first in (7, 0, 13, 4):  # back, and ahead
        (again,) = survey.cutouts(first, first + 1)
        np.testing.assert_array_equal(again.image, outcomes[first].image)


def test_it_becomes_a_store(tmp_path: Path) -> None:
    write_hats(tmp_path / "mmu", columns(efigi_t=np.full(COUNT, -2.0)))
    store = galscan.ingest(
        "local", path=tmp_path / "mmu", labels=["efigi"], size=32, out=tmp_path / "s.zarr", workers=1
    )
    assert store.count == COUNT and np.isfinite(store.column("labels/efigi/t")).all()
    assert store.images(slice(0, COUNT)).any(axis=(1, 2, 3)).all()
    assert store.attrs["provenance"]["format"] == "parquet"


def test_pictures_as_hugging_face_has_them(tmp_path: Path) -> None:
    """GZ10 in HATS, and shards of data sets: the bytes of a PNG or JPEG in a structure, or alone."""
    ra, dec = sky(COUNT)
    pngs = [encoded(image, "png") for image in pictures(COUNT, 16)]
    gz10 = {
        "object_id": [f"g{k}" for k in range(COUNT)], "ra": ra, "dec": dec, "gz10_label": np.arange(COUNT) % 10,
        "rgb_pixel_scale": np.full(COUNT, 0.262, np.float32),
        "rgb_image": pa.array([{"bytes": png, "path": None} for png in pngs]),
    }  # fmt: skip
    survey = ParquetSurvey(write_hats(tmp_path / "gz10", gz10), labels=("gz10",), size=16)
    assert survey.labels.to_numpy().sum() == COUNT and survey.pixel_scale[0] == pytest.approx(0.262)
    for outcome, picture in zip(survey.cutouts(0, COUNT), pictures(COUNT, 16), strict=True):
        np.testing.assert_array_equal(outcome.image, picture)
    pngs[3], pngs[4] = b"broken", None
    pq.write_table(pa.table({"id_str": gz10["object_id"], "image": pngs}), tmp_path / "train-00000-of-00001.parquet")
    survey = ParquetSurvey(tmp_path / "train-00000-of-00001.parquet", size=16)
    outcomes = list(survey.cutouts(0, 8))
    assert [k for k, outcome in enumerate(outcomes) if isinstance(outcome, Failed)] == [3, 4]
    assert outcomes[4].flag == Flag.MISSING and survey.ids[2] == "g2"


def test_arrays_of_colours_and_planes_in_one_list(tmp_path: Path) -> None:
    colours = pictures(6, 16)
    kind = pa.list_(pa.list_(pa.list_(pa.uint8())))
    pq.write_table(pa.table({"rgb": pa.array(colours.tolist(), kind)}), tmp_path / "a.parquet")
    for outcome, image in zip(ParquetSurvey(tmp_path / "a.parquet", size=16).cutouts(0, 6), colours, strict=True):
        np.testing.assert_array_equal(outcome.image, image)
    made = legacysurvey(8)
    flat = [
        {"band": bands, "flux": [p.ravel().tolist() for p in stack]}
        for bands, stack in zip(made["image_band"], made["image_array"], strict=True)
    ]
    pq.write_table(pa.table({"image": pa.array(flat)}), tmp_path / "b.parquet")
    survey = ParquetSurvey(tmp_path / "b.parquet", size=20)
    assert survey.ids.tolist() == list(range(8)) and all(isinstance(o, Cutout) for o in survey.cutouts(0, 8))


def test_damaged_objects_fail_alone(tmp_path: Path) -> None:
    image = image_column(legacysurvey(COUNT)).to_pylist()
    image[2]["flux"][1] = [*image[2]["flux"][1][:-1], [1.0]]  # a row that is too short
    image[5] = None
    image[6]["flux"] = [*image[6]["flux"][:3], None]  # no z, which is not used
    image[7]["flux"][0] = None  # no g
    kind = image_column(legacysurvey(1)).type
    survey = ParquetSurvey(write_hats(tmp_path / "mmu", columns(image=pa.array(image, kind))), size=20)
    failed = {k: o for k, o in enumerate(survey.cutouts(0, COUNT)) if isinstance(o, Failed)}
    assert set(failed) == {2, 5, 7} and failed[5].flag == failed[7].flag == Flag.MISSING


def test_a_catalog_joins_labels_by_id(tmp_path: Path) -> None:
    """The catalog of labels may be another HATS catalog, or a folder of Parquet."""
    root = write_hats(tmp_path / "mmu", columns())
    ids = legacysurvey(COUNT)["object_id"]
    labels = {"object_id": ids[4:10], "ra": np.arange(6.0), "dec": np.arange(6.0), "efigi_t": np.full(6, -2.0)}
    for number, catalog in enumerate((write_hats(tmp_path / "labels", labels), tmp_path / "folder")):
        if number:
            catalog.mkdir()
            for k in range(2):
                pd.DataFrame(labels).iloc[3 * k : 3 * k + 3].to_parquet(catalog / f"part-{k}.parquet", index=False)
        survey = open_local(root, catalog=catalog, labels=("efigi",), size=20)
        assert survey.ids.tolist() == ids[4:10] and survey.ra.tolist() == [0, 1, 2, 3, 4, 5]
        assert all(isinstance(outcome, Cutout) for outcome in survey.cutouts(0, 6))


def test_what_is_refused(tmp_path: Path) -> None:
    root = write_hats(tmp_path / "plain", {name: v for name, v in columns().items() if name != "image"})
    with pytest.raises(InputError, match="--catalog"):
        open_local(root)
    with pytest.raises(InputError, match="margin"):
        open_local(root / "plain_10arcs")
    root = write_hats(tmp_path / "mmu", columns())
    (root / "mmu" / "dataset" / "Norder=1" / "Dir=0" / "Npix=1.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(InputError, match=r"Npix=1"):
        open_local(root)


def test_a_table_beside_images_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded(pictures(1)[0], "png"))
    pd.DataFrame({"id": ["1"], "ra": [1.5], "dec": [2.5]}).to_parquet(tmp_path / "catalog.parquet")
    assert find_format(tmp_path) == "images" and open_local(tmp_path, size=16).ra.tolist() == [1.5]
