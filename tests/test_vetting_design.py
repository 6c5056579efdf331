"""The sample to grade: every object of a stratum with the same chance, and nothing left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.errors import InputError
from galscan.scanning.run import Run
from galscan.vetting import design
from tests.helpers import tiny_bundle, tiny_store


@given(st.integers(0, 5000), st.integers(0, 10**6), st.integers(0, 10**9), st.integers(1, 300), st.integers(0, 300))
def test_strata_share_out_all_that_was_scanned(candidates, others, discarded, best, more):
    found = design.strata(candidates, others, discarded, best)
    assert sum(s.population for s in found) == candidates + others + discarded
    ranks = [rank for s in found if s.last for rank in range(s.first, s.last + 1)]
    assert ranks == list(range(1, candidates + 1))
    assert all(s.population > 0 for s in found) and len({s.name for s in found}) == len(found)
    counts = design.shares(found, best + more)
    assert all(0 < counts[s.name] <= s.population for s in found)
    if len(found) > 1:
        assert sum(counts.values()) <= best + more + len(found)  # at least one of each


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 900 objects: 150 candidates, of which 2 were audited; 700 discarded, 48 seen in full and not ranked."""
    place = tmp_path_factory.mktemp("run")
    store = tiny_store(place / "sky.zarr", 900, 32, survey="sky")
    model = tiny_bundle(place / "model")
    (place / "run" / "scores").mkdir(parents=True)
    rows = np.arange(900)
    stage = np.where(rows < 702, "first look", "full").astype(object)
    stage[[0, 1]] = "audit"
    table = pd.DataFrame({name: store.column(name) for name in ("id", "ra", "dec")})
    table = table.assign(store="sky", index=rows, stage=pd.Categorical(stage))
    for k in range(3):
        table.iloc[k * 300 : k * 300 + 300].to_parquet(place / "run" / "scores" / f"part-{k:05d}.parquet")
    ranked = table.iloc[[*range(752, 900), 0, 1]].reset_index(drop=True)
    ranked = ranked.rename(columns={"id": "objid"}).assign(rank=np.arange(1, 151))
    ranked.to_parquet(place / "run" / "candidates.parquet")
    info = {
        "scanned": 900, "first_look": {"discarded": 702, "lost": 2}, "model": str(model.path),
        "stores": [{"path": str(store.path), "content_hash": store.content_hash, "name": "sky"}],
    }  # fmt: skip
    return Run(place / "run", info)


def test_every_stratum_is_drawn_from_and_nothing_twice(run):
    items, found = design.draw(run, best=40, size=100, seed=1)
    assert {s.name: s.population for s in found} == {
        "best": 40, "upper": 22, "middle": 35, "lower": 53, "not ranked": 50, "discarded": 700,
    }  # fmt: skip
    survey = items[items["kind"] == "survey"]
    assert not survey.duplicated(["store", "row"]).any()
    drawn = survey.groupby("stratum").size().to_dict()
    assert drawn["best"] == 40 and drawn["discarded"] == drawn["not ranked"] == 9 and len(survey) == 100
    table = pd.concat(pd.read_parquet(p) for p in sorted((run.path / "scores").glob("*.parquet")))
    stage = dict(zip(table["index"], table["stage"], strict=True))
    ranked = set(run.candidates["index"])
    for row in survey[survey["stratum"] == "discarded"]["row"]:
        assert stage[row] != "full" and row not in ranked
    for row in survey[survey["stratum"] == "not ranked"]["row"]:
        assert stage[row] == "full" and row not in ranked
    by_rank = run.candidates.set_index("rank")["index"]
    with_rank = survey[survey["rank"] > 0]
    np.testing.assert_array_equal(by_rank.loc[with_rank["rank"]], with_rank["row"])


def test_controls_are_mixed_in_and_the_order_is_random(run):
    items, _ = design.draw(run, best=40, size=100, seed=1)
    controls = items[items["kind"] != "survey"]
    # tiny_bundle was trained on objects 1000 to 1009, the first five of them targets; the first two are candidates.
    known = {str(i) for i in range(1000, 1005)}
    shown = set(items.loc[items["kind"] == "survey", "id"])
    assert set(controls.loc[controls["kind"] == "positive", "id"]) == known - shown
    assert len(controls) == design.BLANKS + len(known - shown) and {"1000", "1001"} & (known - shown)
    assert (np.diff(items["rank"][items["rank"] > 0]) < 0).mean() > 0.3
    pd.testing.assert_frame_equal(items, design.draw(run, best=40, size=100, seed=1)[0])
    assert not items.equals(design.draw(run, best=40, size=100, seed=2)[0])


def test_every_object_of_a_stratum_has_the_same_chance(run):
    seen = np.zeros(151)
    for seed in range(20):
        items, _ = design.draw(run, best=10, size=60, seed=seed)
        seen[items.loc[items["rank"] > 0, "rank"]] += 1
    assert (seen[1:11] == 20).all()
    lower = seen[62:151]
    assert lower.mean() == pytest.approx(20 * 12 / 89, rel=0.35) and lower.std() < 1.6 * np.sqrt(lower.mean())


def test_numbers_that_make_no_sense_are_refused(run):
    for best, size in ((0, 10), (20, 10)):
        with pytest.raises(InputError, match="--best"):
            design.draw(run, best=best, size=size)


def test_without_the_model_there_are_no_known_targets(run, tmp_path):
    items, _ = design.draw(Run(run.path, run.info | {"model": str(tmp_path / "gone")}), best=5, size=20)
    assert set(items["kind"]) == {"survey", "blank"}
