"""Label columns of catalogs: all spellings of votes, and the two forms of a decision tree."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galscan.core.errors import InputError
from galscan.labels.columns import read_answers, to_conditional, to_cumulative, votes_column
from galscan.labels.schema import load_schema


def test_attributes_know_what_undefined_is():
    table = pd.DataFrame({"EFIGI_T": [-1, 3, ""], "Visible Dust": [-1, 0.5, np.nan], "other": 1}).replace("", np.nan)
    frame = read_answers(load_schema("efigi"), table)
    assert list(frame) == ["t", "visible_dust"] and set(frame.dtypes) == {np.dtype("float32")}
    np.testing.assert_array_equal(frame["t"], [-1, 3, np.nan])  # a lenticular
    np.testing.assert_array_equal(frame["visible_dust"], [np.nan, 0.5, np.nan])


def test_wrong_values_are_refused():
    with pytest.raises(InputError, match=r"visible_dust: 1 values outside 0..1 \(first 7\)"):
        read_answers(load_schema("efigi"), pd.DataFrame({"visible_dust": [0.5, 7]}))
    with pytest.raises(InputError, match="not numeric"):
        read_answers(load_schema("efigi"), pd.DataFrame({"visible_dust": ["strong"]}))


@pytest.mark.parametrize("name", ["efigi", "gz1", "gz2", "gz2_leading"])
def test_no_labels_at_all(name):
    with pytest.raises(InputError, match=f"no '{name}' label column"):
        read_answers(
            load_schema(name), pd.DataFrame({"id": [1], "labell": ["x"]}).rename(columns={"labell": "nothing"})
        )


def test_the_nearest_column_is_offered():
    with pytest.raises(InputError, match="did you mean 'labell'"):
        read_answers(load_schema("gz1"), pd.DataFrame({"labell": ["merger"]}))


def test_an_empty_catalog_has_empty_labels():
    assert read_answers(load_schema("efigi"), pd.DataFrame({"efigi_t": []})).shape == (0, 1)


@pytest.mark.parametrize("numbers", [[4.0, np.nan, 4.0], pd.array([4, None, 4], "Int64"), ["4", "", "4"]])
def test_numbers_of_classes(numbers):
    """A missing one makes floats of them, and Parquet has integers that may be missing."""
    frame = read_answers(load_schema("gz10"), pd.DataFrame({"gz10_label": numbers}))
    np.testing.assert_array_equal(frame["cigar_smooth"], [1, np.nan, 1])


def test_classes_are_one_hot():
    frame = read_answers(load_schema("gz1"), pd.DataFrame({"label": ["merger", "", None, " elliptical "]}))
    np.testing.assert_array_equal(frame["merger"], [1, np.nan, np.nan, 0])
    np.testing.assert_array_equal(frame["elliptical"], [0, np.nan, np.nan, 1])
    with pytest.raises(InputError, match="did you mean 'merger'"):
        read_answers(load_schema("gz1"), pd.DataFrame({"label": ["mergers"]}))


# --- the decision tree ------------------------------------------------------------------------------------

KAGGLE_100008 = [  # the first galaxy of Kaggle's training table
    0.383147, 0.616853, 0, 0, 0.616853, 0.038452149, 0.578400851, 0.418397819, 0.198455181, 0, 0.104752126,
    0.512100874, 0, 0.054453, 0.945547, 0.201462524, 0.181684476, 0, 0, 0.0272265, 0, 0.0272265, 0, 0, 0, 0, 0, 0,
    0.279952491, 0.138445328, 0, 0, 0.092885571, 0, 0, 0, 0.325512248,
]  # fmt: skip


def kaggle(values):
    schema = load_schema("gz2")
    keys = [f"Class{int(t.id[1:])}.{k}" for t in schema.tasks for k in range(1, len(t.answers) + 1)]
    return pd.DataFrame([values], columns=keys)


def test_kaggles_votes_become_conditional():
    row = read_answers(load_schema("gz2"), kaggle(KAGGLE_100008)).iloc[0]
    assert row["t01_smooth_or_features_a01_smooth"] == pytest.approx(0.383147)
    assert row["t04_spiral_a08_spiral"] == pytest.approx(0.418397819 / 0.616853)
    assert row["t10_arms_winding_a28_tight"] == pytest.approx(0.279952491 / 0.418397819)
    assert row["t06_odd_a15_no"] == pytest.approx(0.945547)
    # Odd was voted by 5 %: two of 45 volunteers say nothing about what is odd. Nobody saw an edge-on disk.
    assert np.isnan(row["t08_odd_feature_a38_dust_lane"]) and np.isnan(row["t09_bulge_shape_a25_rounded"])


def test_an_incomplete_kaggle_table_is_refused():
    with pytest.raises(InputError, match=r"1 are missing, the first is Class6\.1"):
        read_answers(load_schema("gz2"), kaggle(KAGGLE_100008).drop(columns="Class6.1"))


ZOOBOT = {
    "smooth-or-featured-gz2_smooth": [6, 0, 3], "smooth-or-featured-gz2_featured-or-disk": [12, 0, 1],
    "smooth-or-featured-gz2_artifact": [2, 0, 1], "how-rounded-gz2_round": [1, 0, 0],
    "how-rounded-gz2_in-between": [3, 0, 2], "how-rounded-gz2_cigar": [8, 0, 1],
    "how-rounded-gz2_total-votes": [12, 0, 3], "how-rounded-gz2_round_fraction": [0.1, np.nan, 0],
    "how-rounded-gz2_in-between_fraction": [0.2, np.nan, 0.7], "how-rounded-gz2_cigar_fraction": [0.7, np.nan, 0.3],
    "bar-gz2_yes": [11, 0, 20],
}  # fmt: skip


def test_the_columns_of_galaxy_datasets_are_read_as_ours():
    frame = read_answers(load_schema("gz2"), pd.DataFrame(ZOOBOT))
    smooth = [c for c in frame if c.startswith("t01_smooth")]
    np.testing.assert_allclose(frame[smooth], [[0.3, 0.6, 0.1], [np.nan] * 3, [np.nan] * 3], rtol=1e-6)  # 5 are few
    np.testing.assert_array_equal(frame["t01_votes"], [20, 0, 5])
    np.testing.assert_allclose(frame["t07_rounded_a18_cigar_shaped"], [0.7, np.nan, np.nan], rtol=1e-6)  # as published
    assert not [c for c in frame if c.startswith("t03")]  # "no bar" is not there


def test_every_name_of_galaxy_datasets_is_known():
    """galaxy_datasets.shared.label_metadata.gz2_ortho_label_cols and decals_dr5_ortho_label_cols."""
    gz2 = {
        "smooth-or-featured": "smooth featured-or-disk artifact", "disk-edge-on": "yes no", "has-spiral-arms": "yes no",
        "bar": "yes no", "bulge-size": "dominant obvious just-noticeable no", "something-odd": "yes no",
        "how-rounded": "round in-between cigar", "bulge-shape": "round boxy no-bulge",
        "spiral-winding": "tight medium loose", "spiral-arm-count": "1 2 3 4 more-than-4 cant-tell",
    }  # fmt: skip
    decals = {
        "smooth-or-featured": "smooth featured-or-disk artifact", "disk-edge-on": "yes no", "has-spiral-arms": "yes no",
        "bar": "strong weak no", "bulge-size": "dominant large moderate small none",
        "how-rounded": "round in-between cigar-shaped", "edge-on-bulge": "boxy none rounded",
        "spiral-winding": "tight medium loose", "spiral-arm-count": "1 2 3 4 more-than-4 cant-tell",
        "merging": "none minor-disturbance major-disturbance merger",
    }  # fmt: skip
    for name, tree, suffix, missing in (("gz2", gz2, "-gz2", 7), ("gz_decals", decals, "-dr5", 0)):
        columns = [f"{question}{suffix}_{a}" for question, answers in tree.items() for a in answers.split()]
        votes = pd.DataFrame([np.arange(20, 20 + len(columns))], columns=columns)
        schema = load_schema(name)
        frame = read_answers(schema, votes).drop(
            columns=[votes_column(task.id) for task in schema.tasks], errors="ignore"
        )
        assert len(frame.columns) == len(columns) == len(schema.names) - missing
        for task in schema.tasks:
            if task.id != "t08":
                assert frame[list(task.answers)].sum(axis=1).item() == pytest.approx(1)


def test_two_campaigns_are_one_tree_and_an_earlier_one_is_not():
    asked = {"smooth-or-featured-dr5_smooth": [9, 0], "smooth-or-featured-dr5_featured-or-disk": [9, 0],
             "smooth-or-featured-dr5_artifact": [2, 0], "smooth-or-featured-dr8_smooth": [0, 30],
             "smooth-or-featured-dr8_featured-or-disk": [0, 5], "smooth-or-featured-dr8_artifact": [0, 5]}  # fmt: skip
    frame = read_answers(
        load_schema("gz_decals"), pd.DataFrame(asked | {"bar_yes": 9, "bar_no": 9, "bar_no_fraction": 0.5})
    )
    assert list(frame) == [f"smooth_or_featured_{a}" for a in ("smooth", "featured_or_disk", "artifact", "votes")]
    np.testing.assert_array_equal(frame["smooth_or_featured_votes"], [20, 40])
    np.testing.assert_allclose(frame["smooth_or_featured_smooth"], [0.45, 0.75], rtol=1e-6)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_cumulative_and_back(seed):
    schema, random = load_schema("gz2"), np.random.default_rng(seed)
    row = {}
    for task in schema.tasks:
        votes = random.uniform(0.02, 1, len(task.answers))
        row.update(zip(task.answers, votes / votes.sum(), strict=True))
    conditional = pd.DataFrame([row])[schema.names]
    cumulative = to_cumulative(schema, conditional)
    np.testing.assert_allclose(to_conditional(schema, cumulative), conditional, rtol=1e-9)
    flow = cumulative.iloc[0]
    for task in schema.tasks[1:]:
        into = sum(flow[a] for t in schema.tasks for a, after in t.answers.items() if after == task.id)
        assert sum(flow[a] for a in task.answers) == pytest.approx(1.0 if task.always else into)


def test_what_nobody_reached_is_zero_there_and_unknown_here():
    schema = load_schema("gz2")
    conditional = pd.DataFrame(np.nan, index=[0], columns=schema.names)
    conditional[
        [
            "t01_smooth_or_features_a01_smooth",
            "t01_smooth_or_features_a02_features_or_disk",
            "t01_smooth_or_features_a03_star_or_artifact",
        ]
    ] = [1.0, 0, 0]
    cumulative = to_cumulative(schema, conditional)
    assert cumulative["t04_spiral_a08_spiral"].item() == 0
    assert np.isnan(cumulative["t07_rounded_a17_in_between"].item())  # asked, but the votes are not known
    assert np.isnan(to_conditional(schema, cumulative)["t04_spiral_a08_spiral"].item())


def test_only_a_tree_has_cumulative_votes():
    with pytest.raises(InputError, match="not a decision tree"):
        to_cumulative(load_schema("efigi"), pd.DataFrame({"t": [1.0]}))


def test_survey_votes_need_enough_volunteers():
    stem = "t06_odd_a14_yes", "t06_odd_a15_no"
    table = pd.DataFrame({f"{stem[0]}_fraction": [0.5, 0.5], f"{stem[1]}_fraction": [0.5, 0.5],
                          f"{stem[0]}_count": [4, 5], f"{stem[1]}_count": [5, 5]})  # fmt: skip
    np.testing.assert_array_equal(read_answers(load_schema("gz2"), table)[stem[0]], [np.nan, 0.5])
    table[f"{stem[0]}_debiased"] = 0.7  # better than the plain fraction
    table[f"{stem[1]}_debiased"] = 0.3
    assert read_answers(load_schema("gz2"), table)[stem[0]].iloc[1] == pytest.approx(0.7)


def test_real_votes(real_data):
    table = pd.read_csv(real_data / "gz2-tables" / "gz2_stripe82_coadd_votes.csv.gz", nrows=5000)
    schema = load_schema("gz2")
    plain = read_answers(schema, table[[c for c in table if not c.endswith(("_debiased", "_weighted_fraction"))]])
    for task in schema.tasks:
        total = plain[list(task.answers)].sum(axis=1, min_count=1).dropna()
        assert len(total) > 100
        np.testing.assert_allclose(total, 1, atol=3e-3)  # the table has three decimals
    assert plain["t08_odd_feature_a38_dust_lane"].notna().mean() < 0.2  # most were never asked
    whole = read_answers(schema, table).astype(float)  # debiased: the shares of a question add up to 1 only roughly
    counts = table[[c for c in table if c.startswith("t08") and c.endswith("_count")]].sum(axis=1)
    np.testing.assert_array_equal(whole.pop("t08_votes"), counts)
    whole = whole[schema.names]
    back = to_conditional(schema, to_cumulative(schema, whole))
    assert back.notna().mean().mean() > 0.25
    np.testing.assert_allclose(back, whole.where(back.notna()), rtol=1e-9)


def test_real_attributes(real_data):
    frame = read_answers(load_schema("efigi"), pd.read_csv(real_data / "ngc-sdss" / "catalog.csv"))
    assert frame["t"].notna().sum() == frame["visible_dust"].notna().sum() == 882
    assert (frame["t"] == -1).sum() == 60
    assert ((frame["t"] <= 0) & (frame["visible_dust"] >= 0.5)).sum() == 53
