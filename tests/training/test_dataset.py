from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from galscan.core.errors import InputError
from galscan.labels.recipe import load_recipe
from galscan.labels.schema import load_schema
from galscan.labels.settings import GeneratorSettings, Split
from galscan.store import layout
from galscan.store.build import ingest_survey
from galscan.store.identity import names_of
from galscan.surveys.resampling import resample
from galscan.surveys.simulated.survey import SimulatedSurvey
from galscan.training.dataset import MIN_POSITIVES, check_counts, load_galaxies, read_table
from galscan.training.split import split_objects

SPLIT = Split()


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[layout.Store]:
    folder = tmp_path_factory.mktemp("stores")
    labelled = SimulatedSurvey(count=400, size=32, seed=1, rare_fraction=0.1, labelled=0.5)
    return [ingest_survey(labelled, folder / "a.zarr", workers=1)]


def test_held_out_objects_never_reach_the_generator(stores):
    recipe, schema = load_recipe("dustlane"), load_schema("simulated")
    t = read_table(stores, schema, recipe.schemas["simulated"])
    # The same galaxies once more, unlabelled, as another store of the same sky would hold them.
    again = t.copy()
    again[[*schema.names, "target"]] = np.nan
    again["labelled"] = False
    t = pd.concat([t, again.assign(survey=0)], ignore_index=True)
    t["split"] = split_objects(t, SPLIT, 0)
    galaxies = load_galaxies(stores, t, schema.names, 32, seed=0, unlabelled=True)
    teaching = galaxies.generator_set(GeneratorSettings())
    held = galaxies.images[galaxies.table["split"].isin(["calibration", "test"])]
    assert len(held) > 20
    trained_on = {image.tobytes() for image in teaching.images}
    assert not any(image.tobytes() in trained_on for image in held)
    top = teaching.weight == teaching.weight.max()
    assert top.sum() == ((galaxies.table["target"] == 1) & (galaxies.table["split"] == "train")).sum()
    assert teaching.weight[top].sum() / teaching.weight.sum() == pytest.approx(0.15)
    assert set(teaching.weight[~top]) == {1.0, 3.0}
    often = galaxies.generator_set(GeneratorSettings(rare_share=0.0)).weight
    assert set(often) == {1.0, 3.0}  # then a target is drawn as any labelled galaxy


def test_images_belong_to_their_rows(stores):
    recipe, schema = load_recipe("dustlane"), load_schema("simulated")
    t = read_table(stores, schema, recipe.schemas["simulated"])
    t["split"] = split_objects(t, SPLIT, 0)
    galaxies = load_galaxies(stores, t, schema.names, 32, seed=0, unlabelled=False)
    assert galaxies.labels.notna().any(axis=1).all()
    ids = stores[0].column("id").astype(str)
    images, scale = stores[0].images(), stores[0].column("pixel_scale")
    for k in range(0, len(galaxies.table), 37):
        row = np.flatnonzero(ids == galaxies.table["id"][k])[0]
        np.testing.assert_array_equal(galaxies.images[k], images[row])
        assert galaxies.table["frame"][k] == pytest.approx(32 * scale[row])  # arcsec on a side


def test_larger_stores_are_resampled_and_smaller_ones_refused(stores, tmp_path):
    recipe, schema = load_recipe("dustlane"), load_schema("simulated")
    larger = ingest_survey(SimulatedSurvey(count=120, size=48, seed=3), tmp_path / "b.zarr", workers=1)
    both = [*stores, larger]
    t = read_table(both, schema, recipe.schemas["simulated"])
    t["split"] = split_objects(t, SPLIT, 0)
    galaxies = load_galaxies(both, t, schema.names, 32, seed=0, unlabelled=True)
    assert galaxies.images.shape[1:] == (32, 32, 3)
    for number, images in enumerate((stores[0].images(), resample(larger.images(), 32))):
        rows = t.loc[t["survey"] == number, "row"]
        np.testing.assert_array_equal(galaxies.images[galaxies.table["survey"] == number], images[rows])
    # Resampling does not change how many arcsec a side has.
    frame = galaxies.table.loc[galaxies.table["survey"] == 1, "frame"].to_numpy()
    assert frame == pytest.approx(48 * larger.column("pixel_scale")[t.loc[t["survey"] == 1, "row"]])
    with pytest.raises(InputError, match="--size 48"):
        load_galaxies(both, t, schema.names, 48, seed=0, unlabelled=True)


def test_too_few_positives_are_counted_and_help_is_named(stores):
    recipe, schema = load_recipe("dustlane"), load_schema("simulated")
    rules = recipe.schemas["simulated"]
    t = read_table(stores, schema, rules)
    t.loc[t["target"] == 1, "target"] = np.nan
    with pytest.raises(
        InputError, match=rf"0 positive examples of 'dustlane' among .* at least {MIN_POSITIVES}.*label more"
    ):
        check_counts(t, rules, "dustlane")


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
    recipe, schema = load_recipe("dustlane"), load_schema("simulated")
    alone = read_table(stores, schema, recipe.schemas["simulated"])
    alone["split"] = split_objects(alone, SPLIT, 0)
    t = read_table(two_names, schema, recipe.schemas["simulated"])
    t["split"] = split_objects(t, SPLIT, 0)
    first, second = (t[t["survey"] == k].reset_index(drop=True) for k in (0, 1))
    assert (first["split"] == second["split"]).all() and (first["split"] != "").sum() > 100
    assert (first["object"] == second["object"]).all() and first["object"].is_unique
    galaxies = load_galaxies(two_names, t, schema.names, 32, seed=0, unlabelled=True)
    for name in ("calibration", "test"):
        assert len(galaxies.rows(name)) == (alone["split"] == name).sum()  # once each, in however many stores
        assert galaxies.table.loc[galaxies.rows(name), "object"].is_unique
    held = galaxies.table["split"].isin(["calibration", "test"])
    trained_on = {image.tobytes() for image in galaxies.generator_set(GeneratorSettings()).images}
    assert held.sum() > 40 and not any(image.tobytes() in trained_on for image in galaxies.images[held])
    assert not {*galaxies.not_held_out()} & {*np.flatnonzero(held)}


def test_a_split_of_one_store_goes_by_its_ids(stores):
    t = read_table(stores, load_schema("simulated"), load_recipe("dustlane").schemas["simulated"])
    assert t["object"].tolist() == t["id"].tolist()


def test_row_numbers_of_two_stores_are_other_objects(two_names):
    schema, rules = load_schema("simulated"), load_recipe("dustlane").schemas["simulated"]
    t = read_table(two_names, schema, rules)
    t = t.assign(id=np.tile(np.arange(len(t) // 2), 2).astype(str), ra=np.nan)
    t["object"] = names_of(t)
    assert t["object"].is_unique and t["object"].iloc[0] == "simulated/0"
    t["object"] = names_of(t.assign(lineage="one"))  # two ingests of one source
    assert t["object"].nunique() == len(t) // 2 and t["object"].iloc[0] == "0"
