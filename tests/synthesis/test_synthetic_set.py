from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from PIL import Image

from galscan.core import thumbnails
from galscan.core.errors import InputError, NotFoundError
from galscan.labels.schema import load_schema
from galscan.labels.settings import LabelRules, SyntheticSettings
from galscan.store.layout import open_store
from galscan.synthesis import synthetic_set as module
from galscan.synthesis.galaxies import MEASURED, SHAPE
from galscan.synthesis.synthetic_set import (
    GENERATED,
    HOST,
    INJECTED,
    MINED,
    SyntheticSet,
    generate_set,
    read_conditions,
    read_synthetic_set,
    sheet,
    write_conditions,
    write_synthetic_set,
)

SCHEMA = load_schema("simulated")
CPU = torch.device("cpu")
RULES = LabelRules.model_validate(
    {
        "positive": "early_type >= 0.5 and dust_lane >= 0.5", "negative": "early_type < 0.5",
        "synthetic": {"from": "early_type >= 0.5", "set": {"dust_lane": [0.6, 1.0]}, "weights": {"dust_lane": 1.3}},
        "hard_negatives": [
            {"from": "early_type >= 0.5", "set": {"dust_lane": [0.0, 0.1]}},
            {"from": "early_type < 0.5", "set": {"dust_lane": [0.6, 1.0]}, "weights": {"dust_lane": 1.5}},
        ],
    }
)  # fmt: skip


def conditions(count: int = 40, *, early: float | None = None) -> pd.DataFrame:
    """Return conditions of galaxies; all rows differ, and half are early types."""
    random = np.random.default_rng(0)
    values = random.uniform(0.02, 0.2, (count, len(SCHEMA.names) + len(MEASURED))).astype(np.float32)
    table = pd.DataFrame(values, columns=[*SCHEMA.names, *MEASURED])
    table["early_type"] = np.float32(early) if early is not None else np.resize(np.float32([0, 1]), count)
    return table


TARGET = np.where(np.arange(40) % 2 == 0, 0.0, np.where(np.arange(40) % 4 == 1, 1.0, np.nan))
SURVEY = np.arange(40) % 3


@pytest.fixture
def requested(monkeypatch) -> list[dict]:
    """Replace the sampler by a stub; return the arguments of each call."""
    calls = []

    def stand_in(generator, values, survey, **options):
        calls.append({"values": values, "survey": survey, **options})
        return np.full((len(values), 16, 16, 3), len(calls), np.uint8)

    monkeypatch.setattr(module, "sample_images", stand_in)
    return calls


def generated(table: pd.DataFrame, rules: LabelRules = RULES, *, positives=6, negatives=12, **options) -> SyntheticSet:
    settings = SyntheticSettings(positives=positives, negatives=negatives, guidance=2.0, steps=7)
    given = {"seed": 3, "device": CPU} | options
    target, survey = TARGET[: len(table)], SURVEY[: len(table)]
    return generate_set(None, table, target, survey, rules, settings, **given)


def test_half_of_the_negatives_are_hard(requested):
    made = generated(conditions())
    assert [len(call["values"]) for call in requested] == [6, 6, 3, 3]
    assert len(made) == 18 and made.target.tolist() == [1.0] * 6 + [0.0] * 12
    assert [c["guidance"] for c in requested] == [2.0, 1.0, 2.0, 2.0]  # plain negatives are as the survey has them
    assert [c["weights"] for c in requested] == [{"dust_lane": 1.3}, {}, {}, {"dust_lane": 1.5}]
    assert {c["steps"] for c in requested} == {7} and len({c["seed"] for c in requested}) == 4
    assert made.images[:, 0, 0, 0].tolist() == [1] * 6 + [2] * 6 + [3] * 3 + [4] * 3


@pytest.mark.parametrize(("negatives", "fractions"), [(13, [7, 3, 3]), (3, [3]), (1, [1])])
def test_the_requested_negatives_are_made_however_they_are_divided(requested, negatives, fractions):
    made = generated(conditions(), negatives=negatives)
    assert [len(call["values"]) for call in requested] == [6, *fractions]
    assert (made.target == 0).sum() == negatives


def test_without_hard_negatives_all_are_plain(requested):
    generated(conditions(), RULES.model_copy(update={"hard_negatives": ()}))
    assert [len(call["values"]) for call in requested] == [6, 12]


def test_positives_carry_the_ranges_that_are_set_and_negatives_theirs(requested):
    labels = generated(conditions()).labels
    assert list(labels) == SCHEMA.names
    lane, early = labels["dust_lane"].to_numpy(), labels["early_type"].to_numpy()
    assert (lane[:6] >= 0.6).all() and (lane[:6] <= 1).all() and (early[:6] == 1).all() and len(set(lane[:6])) == 6
    assert (lane[6:12] <= 0.2).all() and (early[6:12] == 0).all()
    assert (lane[12:15] <= 0.1).all() and (early[12:15] == 1).all()
    assert (lane[15:] >= 0.6).all() and (early[15:] == 0).all()


def test_conditions_are_those_of_training_galaxies_in_all_that_is_not_set(requested):
    table = conditions()
    generated(table, negatives=30)
    free = [table.columns.get_loc(c) for c in table if c not in ("dust_lane", *SHAPE[1:])]  # the shape is turned
    known = {tuple(row[free]): k for k, row in enumerate(table.to_numpy())}
    rows = [np.array([known[tuple(v[free])] for v in call["values"]]) for call in requested]
    shape = [table.columns.get_loc(c) for c in SHAPE[1:]]
    for call, source in zip(requested, rows, strict=True):
        np.testing.assert_array_equal(call["survey"], SURVEY[source])
        requested_shape, real = (np.hypot(*v[:, shape].T) for v in (call["values"], table.to_numpy()[source]))
        np.testing.assert_allclose(requested_shape, real, atol=1e-5)
    assert (TARGET[rows[1]] == 0).all()
    lane = table.columns.get_loc("dust_lane")
    np.testing.assert_array_equal(
        requested[1]["values"][:, lane], table.to_numpy()[rows[1], lane]
    )  # nothing is set there
    assert np.isnan(TARGET[rows[0]]).any()  # of any early type, also an ambiguous one


def test_a_rule_that_no_galaxy_satisfies_is_skipped_among_hard_negatives_only(requested):
    made = generated(conditions(20, early=1.0))  # no late type: the second rule has nothing to start from
    assert [len(call["values"]) for call in requested] == [6, 6, 3] and len(made) == 15
    requested.clear()
    with pytest.raises(InputError, match=r"early_type >= 0\.5"):
        generated(conditions(20, early=0.0))


def test_the_seed_decides_and_another_draws_others(requested):
    first, again, other = (generated(conditions(), seed=s).labels for s in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    assert [c["seed"] for c in requested[:4]] == [c["seed"] for c in requested[4:8]]
    assert not {c["seed"] for c in requested[:4]} & {c["seed"] for c in requested[8:]}


def test_time_is_shared_and_labels_are_cut_with_the_images(requested, monkeypatch):
    sample = module.sample_images
    monkeypatch.setattr(module, "sample_images", lambda *a, **k: sample(*a, **k)[:2])
    made = generated(conditions(), seconds=18.0)
    assert [c["seconds"] for c in requested] == pytest.approx([6.0, 6.0, 3.0, 3.0])
    assert len(made.images) == len(made.labels) == len(made) == 8
    assert made.target.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(made.labels.to_numpy()[2:4], requested[1]["values"][:2, : len(SCHEMA.names)])


# --- on disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def some() -> SyntheticSet:
    random = np.random.default_rng(1)
    labels = pd.DataFrame(random.random((9, len(SCHEMA.names)), np.float32), columns=SCHEMA.names)
    labels.loc[3, "bar"] = np.nan
    images = random.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    return SyntheticSet.of_origin(images, labels, np.float32([1, 1, 1, 1, 0, 0, 0, 0, 0]))


def test_write_and_read(injected, tmp_path):
    write_synthetic_set(injected, tmp_path / "d.zarr", "synthetic-x", SCHEMA, {"seed": 7})
    back = read_synthetic_set(tmp_path / "d.zarr", "simulated")
    pd.testing.assert_frame_equal(back.labels, injected.labels)
    for name in ("images", "target", "origin", "host", "depth"):
        np.testing.assert_array_equal(getattr(back, name), getattr(injected, name))
    assert back.host.dtype.kind == back.origin.dtype.kind == "i"
    store = open_store(tmp_path / "d.zarr")
    assert store.name == "synthetic-x" and store.attrs["provenance"] == {"synthetic": True, "seed": 7}
    assert [p.name for p in tmp_path.iterdir()] == ["d.zarr"]
    with pytest.raises(NotFoundError):
        read_synthetic_set(tmp_path / "e.zarr", "simulated")


def test_the_content_hash_is_of_the_pixels_and_of_how_they_were_made(some, tmp_path):
    def content(name: str, made: SyntheticSet, seed: int) -> str:
        write_synthetic_set(made, tmp_path / name, "synthetic", SCHEMA, {"seed": seed})
        return open_store(tmp_path / name).content_hash

    images = some.images.copy()
    images[5, 3, 3, 1] ^= 1
    same = content("a", some, 0)
    assert content("b", some, 0) == same
    changed = SyntheticSet.of_origin(images, some.labels, some.target)
    assert len({same, content("c", changed, 0), content("d", some, 1)}) == 3


def test_select(some):
    rows = np.array([8, 3])
    few = some.select(rows)
    assert len(few) == 2 and list(few.labels.index) == [0, 1] and few.target.tolist() == [0, 1]
    np.testing.assert_array_equal(few.images, some.images[rows])
    np.testing.assert_array_equal(few.labels.to_numpy(), some.labels.to_numpy()[rows])
    positive = some.select(some.target == 1)
    assert len(positive) == len(positive.labels) == 4
    np.testing.assert_array_equal(positive.images, some.images[:4])


def test_conditions_are_written_and_read(tmp_path):
    table, survey = conditions(), np.array(["one", "two", "three"])[SURVEY]
    table.loc[2, "bar"] = np.nan
    write_conditions(table, TARGET, survey, tmp_path / "c.parquet")
    back, target, names = read_conditions(tmp_path / "c.parquet")
    pd.testing.assert_frame_equal(back, table)
    np.testing.assert_array_equal(target, TARGET)
    np.testing.assert_array_equal(names, survey)
    with pytest.raises(NotFoundError, match=r"other\.parquet"):
        read_conditions(tmp_path / "other.parquet")


def test_the_sheet_shows_both_kinds_with_what_was_asked(some, tmp_path, monkeypatch):
    many = some.select(np.repeat(np.arange(9), 12))  # 48 positives, 60 negatives
    shown = {}
    draw = thumbnails.contact_sheet

    def spy(images, path, **options):
        shown.update(options, images=images)
        return draw(images, path, **options)

    monkeypatch.setattr(thumbnails, "contact_sheet", spy)
    path = sheet(many, tmp_path / "s.png", ["dust_lane", "bar"], "a title")
    assert Image.open(path).size[0] > 800 and len(shown["images"]) == 48 and shown["title"] == "a title"
    np.testing.assert_array_equal(shown["images"][[0, 31, 32, 47]], some.images[[0, 2, 4, 5]])
    requested = many.labels.iloc[0]
    assert shown["captions"][0] == f"dust_lane {requested['dust_lane']:.2f}\nbar {requested['bar']:.2f}"
    sheet(many, tmp_path / "s.png", [], "", rows=np.array([100, 2]))
    np.testing.assert_array_equal(shown["images"], many.images[[100, 2]])
    assert shown["captions"] == ["", ""]


# --- injected features, with hosts ---------------------------------------------------------------------


@pytest.fixture
def injected(some) -> SyntheticSet:
    """Return four injected galaxies and an injected negative, three hosts of the four, and a mined negative."""
    origin = np.array([INJECTED] * 5 + [HOST] * 3 + [MINED])
    host = np.array([5, 6, 7, 5, -1, -1, -1, -1, -1])
    depth = np.where(origin == INJECTED, np.linspace(0.1, 0.5, 9), np.nan).astype(np.float32)
    return SyntheticSet(some.images, some.labels, some.target, origin, host, depth)


def test_generated_galaxies_have_no_host(some, injected):
    assert injected.synthetic.tolist() == [True] * 5 + [False] * 4
    assert (some.origin == GENERATED).all() and (some.host == -1).all() and np.isnan(some.depth).all()
    assert some.synthetic.all()
    hosts = SyntheticSet.of_origin(some.images, some.labels[::-1], some.target, HOST)
    assert not hosts.synthetic.any() and list(hosts.labels.index) == list(range(9))


def test_a_store_of_an_earlier_version_has_generated_galaxies(injected, tmp_path):
    write_synthetic_set(injected, tmp_path / "d.zarr", "synthetic-x", SCHEMA, {})
    zarr.open_group(tmp_path / "d.zarr", mode="r+").attrs["truth"] = ["target", "laid"]
    back = read_synthetic_set(tmp_path / "d.zarr", "simulated")
    assert (back.origin == GENERATED).all() and (back.host == -1).all() and np.isnan(back.depth).all()
    np.testing.assert_array_equal(back.target, injected.target)


def test_hosts_of_selected_and_joined_sets(injected):
    few = injected.select(np.array([7, 2, 0, 4]))
    assert few.host.tolist() == [-1, 0, -1, -1]  # the host of the third is not among them
    assert few.origin.tolist() == [HOST, INJECTED, INJECTED, INJECTED]
    np.testing.assert_array_equal(few.depth, injected.depth[[7, 2, 0, 4]])
    assert injected.select(injected.origin != MINED).host.tolist() == [5, 6, 7, 5, -1, -1, -1, -1]
    both = SyntheticSet.joined([few, injected])
    assert both.host.tolist() == [-1, 0, -1, -1, 9, 10, 11, 9, -1, -1, -1, -1, -1] and len(both) == 13
    np.testing.assert_array_equal(both.images[both.host[4]], injected.images[5])
    assert len(SyntheticSet.joined([injected.select(np.empty(0, int))])) == 0


def test_the_sheet_shows_injected_ones_before_drawn_ones_and_no_hosts(some, injected, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(thumbnails, "contact_sheet", lambda images, path, **k: shown.update(k, images=images) or path)
    both = SyntheticSet.joined([some.select(np.repeat(np.arange(9), 12)), injected.select(np.repeat(np.arange(9), 12))])
    sheet(both, tmp_path / "s.png", ["dust_lane"], "")
    first = [injected.images[0]] * 12 + [injected.images[1]] * 4
    expected = [*first, *[some.images[0]] * 12, *[some.images[1]] * 4, *[injected.images[4]] * 8, *[some.images[4]] * 8]
    np.testing.assert_array_equal(shown["images"], expected)
    assert len(shown["captions"]) == 48
    sheet(injected, tmp_path / "s.png", [], "")
    np.testing.assert_array_equal(shown["images"], injected.images[:5])  # neither hosts nor mined ones
