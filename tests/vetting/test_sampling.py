from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galscan.scanning.plan import StoreRef
from galscan.scanning.run import Run
from galscan.store.identity import Objects
from galscan.vetting import sampling
from tests.candidate_tables import run_of
from tests.helpers import tiny_store


@given(st.integers(0, 5000), st.integers(0, 10**6), st.integers(0, 10**9), st.integers(0, 300), st.integers(1, 3000))
def test_strata_are_a_partition_of_the_scanned_objects(candidates, others, discarded, best, rank):
    found = sampling.strata(candidates, others, discarded, best, rank)
    assert sum(s.population for s in found) == candidates + others + discarded
    ranks = [rank for s in found if s.last for rank in range(s.first, s.last + 1)]
    assert ranks == list(range(1, candidates + 1))
    assert all(s.population > 0 for s in found) and len({s.name for s in found}) == len(found)
    assert not any(s.first <= max(rank, best) < s.last for s in found)  # none on both sides of the wanted rank
    assert (sampling.BEST in {s.name for s in found}) == (best > 0 and candidates > 0)
    counts = sampling.default_counts(found, best + 10) if found else {}
    assert all(0 < counts[s.name] <= s.population for s in found)
    ready = sampling.queue_counts(found, 50)
    assert all(0 < ready[s.name] <= s.population for s in found)
    assert sum(ready.values()) >= min(50, candidates + others + discarded)


def test_strata_grow_with_rank():
    found = sampling.strata(100_000, 10, 0)
    assert [(s.first, s.last) for s in found if s.last] == [
        (1, 32), (33, 100), (101, 316), (317, 1000), (1001, 4642), (4643, 21544), (21545, 100_000),
    ]  # fmt: skip
    assert [s.name for s in found][:2] == ["1-32", "33-100"]


def test_population_excludes_known_labels():
    known = np.full(150, np.nan)
    known[[0, 5, 100]] = [1, 0, 0]
    found = sampling.strata(150, 10, 0, known=known)
    assert {s.name: s.population for s in found} == {"1-47": 45, "48-150": 102, "not ranked": 10}


@pytest.fixture(scope="module")
def run(tmp_path_factory, shared_model):
    """A run of 900 objects: 150 candidates, 2 of them rescored; 700 discarded, 50 scored in full and not ranked."""
    place = tmp_path_factory.mktemp("run")
    store = tiny_store(place / "sky.zarr", 900, 32, survey="sky")
    (place / "run" / "scores").mkdir(parents=True)
    rows = np.arange(900)
    stage = np.where(rows < 702, "prefilter", "full").astype(object)
    stage[[0, 1]] = "rescored"
    table = pd.DataFrame({name: store.column(name) for name in ("id", "ra", "dec")})
    table = table.assign(store="sky", index=rows, stage=pd.Categorical(stage))
    for k in range(3):
        table.iloc[k * 300 : k * 300 + 300].to_parquet(place / "run" / "scores" / f"part-{k:05d}.parquet")
    ranked = table.iloc[[*range(752, 900), 0, 1]].reset_index(drop=True)
    ranked = ranked.rename(columns={"id": "objid"}).assign(rank=np.arange(1, 151))
    ranked.to_parquet(place / "run" / "candidates.parquet")
    return run_of(
        place / "run", scanned=900, first_look={"discarded": 702, "lost": 2}, model=str(shared_model.path),
        identity={"model": shared_model.model_hash}, stores=[StoreRef("sky", str(store.path), store.content_hash, 900)],
    )  # fmt: skip


def drawn(run, size=100, seed=1, best=0):
    found = sampling.strata_of(run, best)
    return sampling.draw(run, found, sampling.queue_counts(found, size), seed=seed), found


def test_all_strata_are_sampled_without_replacement(run):
    items, found = drawn(run)
    assert {s.name: s.population for s in found} == {"1-47": 47, "48-150": 103, "not ranked": 50, "discarded": 700}
    survey = items[items["kind"] == "survey"]
    assert not survey.duplicated(["store", "row"]).any()
    count = survey.groupby("stratum").size().to_dict()
    assert count == {"1-47": 47, "48-150": 100, "not ranked": 13, "discarded": 13}
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


def test_larger_sample_begins_with_the_smaller_one(run):
    """The first n of a stratum are a simple random sample without replacement, whatever n becomes."""
    small, large = (drawn(run, size)[0] for size in (20, 90))
    for stratum in ("1-47", "48-150", "not ranked", "discarded"):
        few, many = (list(t.loc[t["stratum"] == stratum, "row"]) for t in (small, large))
        assert len(few) < len(many) and few == many[: len(few)] and few != sorted(few)
        assert len(set(many)) == len(many)
    assert not small.equals(drawn(run, 20, seed=2)[0]) and small.equals(drawn(run, 20)[0])


def test_controls_are_mixed_in(run):
    items, _ = drawn(run, size=20)
    controls = items[items["kind"] != "survey"]
    # The model was trained on objects 1000 to 1009, the first five of them targets; the first two are candidates.
    known = {str(i) for i in range(1000, 1005)}
    shown = set(items.loc[items["kind"] == "survey", "id"])
    assert set(controls.loc[controls["kind"] == "positive", "id"]) == known - shown
    assert len(controls) == sampling.BLANKS + len(known - shown) and {"1000", "1001"} & (known - shown)
    order = sampling.shuffled(items, 3)
    assert (np.diff(order["rank"][order["rank"] > 0]) < 0).mean() > 0.3


def test_objects_of_a_stratum_have_equal_chances(run, monkeypatch):
    """Each of 47 is among the first 12 in 12 of 47 draws; the variance over them is that of so many coins."""
    nothing = pd.DataFrame(columns=["store", "row", "id", "ra", "dec"])
    monkeypatch.setattr(sampling, "_known_targets", lambda *_: nothing)
    drawn, seeds = np.zeros(48), 60
    found = sampling.strata_of(run)[:1]
    for seed in range(seeds):
        items = sampling.draw(run, found, {"1-47": 12}, seed=seed)
        drawn[items.loc[items["rank"] > 0, "rank"]] += 1
    expected = seeds * 12 / 47
    assert drawn[1:].sum() == 12 * seeds and drawn[0] == 0
    assert ((drawn[1:] - expected) ** 2).mean() == pytest.approx(expected * (1 - 12 / 47), rel=0.6)


@pytest.fixture
def labelled(run, tmp_path, monkeypatch):
    """The run with labels of every second candidate, and of 25 objects that are none."""
    words = np.array(["", "target", "", "negative", "", "ambiguous"])
    run.candidates.assign(known=words[np.arange(150) % 6]).to_parquet(tmp_path / "candidates.parquet")
    (tmp_path / "scores").symlink_to(run.path / "scores")
    table = pd.concat(pd.read_parquet(path) for path in (run.path / "scores").glob("*.parquet"))
    ids = table.loc[table["index"] // 25 == 29, "id"].to_numpy()
    monkeypatch.setattr(sampling, "_labelled", lambda run: Objects(None, None, None, ids))
    return Run(tmp_path, run.info.updated(known_beyond=[25, 25]))


def test_objects_of_known_label_are_not_sampled(labelled):
    label = sampling.known_labels(labelled)
    assert np.isnan(label[::2]).all() and (label[1::6] == 1).all() and (label[3::6] == 0).all()
    assert (label[5::6] == 0).all() and labelled.info.known_beyond == (25, 25)
    items, found = drawn(labelled)
    assert {s.name: s.population for s in found} == {"1-47": 24, "48-150": 51, "not ranked": 25, "discarded": 700}
    survey = items[items["kind"] == "survey"]
    assert (survey.loc[survey["rank"] > 0, "rank"] % 2 == 1).all() and (survey["rank"] > 0).sum() == 75
    beyond = survey.loc[survey["rank"] == 0, "row"]
    assert (beyond // 25 != 29).all() and len(beyond) == 25 + 28
    assert "positive" in set(items["kind"])  # they serve as controls all the same


def test_there_are_no_known_targets_without_the_model(run, tmp_path):
    items, _ = drawn(Run(run.path, run.info.updated(model=str(tmp_path / "gone"))), 20)
    assert set(items["kind"]) == {"survey", "blank"}


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 1000))
def test_order_is_random_and_begins_with_a_galaxy(galaxies, blanks, seed):
    kinds = [sampling.SURVEY] * galaxies + [sampling.BLANK] * blanks
    items = pd.DataFrame({"number": range(len(kinds)), "kind": kinds})
    order = sampling.shuffled(items, seed)
    assert order["kind"][0] == sampling.SURVEY and sorted(order["number"]) == list(range(len(kinds)))
    assert order.equals(sampling.shuffled(items, seed))
    assert sampling.shuffled(items[items["kind"] == sampling.BLANK], seed).shape == (blanks, 2)
