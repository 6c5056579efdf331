from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError
from galscan.labels.recipe import load_recipe
from galscan.labels.schema import load_schema
from galscan.labels.settings import GeneratorSettings, Split
from galscan.models.roles import one_row_per_object
from galscan.store import layout
from galscan.store.build import ingest_survey
from galscan.store.identity import names_of
from galscan.surveys.resampling import resample
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.training.dataset import check_counts, load_galaxies, read_table
from galscan.training.split import split_objects

SPLIT, SCHEMA = Split(), load_schema("simulated")
RULES = load_recipe("dustlane").schemas["simulated"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[layout.Store]:
    survey = SimulatedSurvey(count=400, size=32, seed=1, rare_fraction=0.1, labelled=0.5)
    return [ingest_survey(survey, tmp_path_factory.mktemp("stores") / "a.zarr", workers=1)]


def table_of(stores) -> pd.DataFrame:
    table = read_table(stores, SCHEMA, RULES)
    return table.assign(split=split_objects(table, SPLIT, 0))


def load(stores, table, *, size: int = 32, unlabelled: bool = True):
    return load_galaxies(stores, table, SCHEMA.names, size, seed=0, unlabelled=unlabelled)


def test_held_out_objects_never_reach_the_generator(stores):
    table = read_table(stores, SCHEMA, RULES)
    # The same galaxies once more, unlabelled, as another store of the same sky would hold them.
    again = table.copy()
    again[[*SCHEMA.names, "target"]] = np.nan
    again["labelled"] = False
    table = pd.concat([table, again], ignore_index=True)
    galaxies = load(stores, table.assign(split=split_objects(table, SPLIT, 0)))
    training = galaxies.generator_set(GeneratorSettings())
    held = galaxies.images[galaxies.table["split"].isin(["calibration", "test"])]
    trained_on = {image.tobytes() for image in training.images}
    assert len(held) > 20 and not any(image.tobytes() in trained_on for image in held)
    top = training.weight == training.weight.max()
    assert top.sum() == ((galaxies.table["target"] == 1) & (galaxies.table["split"] == "train")).sum()
    assert training.weight[top].sum() / training.weight.sum() == pytest.approx(0.15)
    assert set(training.weight[~top]) == {1.0, 3.0}
    equal = galaxies.generator_set(GeneratorSettings(rare_share=0.0)).weight
    assert set(equal) == {1.0, 3.0}  # a target is as frequent as any labelled galaxy


def test_images_belong_to_their_rows(stores):
    t = table_of(stores)
    galaxies = load(stores, t, unlabelled=False)
    assert galaxies.labels.notna().any(axis=1).all()
    ids = stores[0].column("id").astype(str)
    images, scale = stores[0].images(), stores[0].column("pixel_scale")
    for k in range(0, len(galaxies.table), 37):
        row = np.flatnonzero(ids == galaxies.table["id"][k])[0]
        np.testing.assert_array_equal(galaxies.images[k], images[row])
        assert galaxies.table["frame"][k] == pytest.approx(32 * scale[row])  # arcsec on a side


def test_larger_stores_are_resampled_and_smaller_ones_refused(stores, tmp_path):
    larger = ingest_survey(SimulatedSurvey(count=120, size=48, seed=3), tmp_path / "b.zarr", workers=1)
    both = [*stores, larger]
    t = table_of(both)
    galaxies = load(both, t)
    assert galaxies.images.shape[1:] == (32, 32, 3)
    for number, images in enumerate((stores[0].images(), resample(larger.images(), 32))):
        rows = t.loc[t["survey"] == number, "row"]
        np.testing.assert_array_equal(galaxies.images[galaxies.table["survey"] == number], images[rows])
    # Resampling does not change how many arcsec a side has.
    frame = galaxies.table.loc[galaxies.table["survey"] == 1, "frame"].to_numpy()
    assert frame == pytest.approx(48 * larger.column("pixel_scale")[t.loc[t["survey"] == 1, "row"]])
    with pytest.raises(InputError, match="--size 48"):
        load(both, t, size=48)


def test_too_few_positives_are_counted(stores):
    t = read_table(stores, SCHEMA, RULES)
    t.loc[t["target"] == 1, "target"] = np.nan
    with pytest.raises(InputError, match=r"^0 positive"):
        check_counts(t, RULES, "dustlane")


@pytest.fixture(scope="module")
def two_names(stores, tmp_path_factory) -> list[layout.Store]:
    """The same sky twice: the second store has other names, and positions half an arcsecond off."""
    (one,) = stores
    path = tmp_path_factory.mktemp("again") / "b.zarr"
    group = layout.create(
        path, survey="other", count=one.count, size=one.size, id_dtype=np.dtype("<U32"), schemas=one.schemas,
        provenance={"survey": "local", "path": "/other"},
    )  # fmt: skip
    group["images"][:] = one.images()
    group["id"][:] = np.array([f"galaxy {k}" for k in range(one.count)])
    for name in ("ra", "pixel_scale", "flags", *(f"labels/simulated/{a}" for a in one.schemas["simulated"])):
        group[name][:] = one.column(name)
    group["dec"][:] = one.column("dec") + 0.5 / 3600
    layout.finish(path, "b")
    return [one, layout.open_store(path)]


def test_one_sky_under_two_naming_schemes_is_one_set_of_objects(stores, two_names):
    alone = table_of(stores)
    t = table_of(two_names)
    first, second = (t[t["survey"] == k].reset_index(drop=True) for k in (0, 1))
    assert (first["split"] == second["split"]).all() and (first["split"] != "").sum() > 100
    assert (first["object"] == second["object"]).all() and first["object"].is_unique
    galaxies = load(two_names, t)
    once = galaxies.table[one_row_per_object(galaxies.table)]
    for name in ("calibration", "test"):
        assert (once["split"] == name).sum() == (alone["split"] == name).sum()  # once each, in however many stores
    held = galaxies.table["split"].isin(["calibration", "test"])
    trained_on = {image.tobytes() for image in galaxies.generator_set(GeneratorSettings()).images}
    assert held.sum() > 40 and not any(image.tobytes() in trained_on for image in galaxies.images[held])
    assert not {*galaxies.not_held_out()} & {*np.flatnonzero(held)}


def test_objects_are_named_by_ids_within_one_lineage(stores, two_names):
    alone = read_table(stores, SCHEMA, RULES)
    assert alone["object"].tolist() == alone["id"].tolist()
    t = read_table(two_names, SCHEMA, RULES)
    t = t.assign(id=np.tile(np.arange(len(t) // 2), 2).astype(str), ra=np.nan)
    t["object"] = names_of(t)
    assert t["object"].is_unique and t["object"].iloc[0] == "simulated/0"
    t["object"] = names_of(t.assign(lineage="one"))  # two ingests of one source
    assert t["object"].nunique() == len(t) // 2 and t["object"].iloc[0] == "0"
