"""What is known and what was found again, beside a match that compares every pair."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from galscan.candidates import crossmatch, table_stream
from galscan.candidates.crossmatch import BELOW, CANDIDATE, DISCARDED, ELSEWHERE, QUARANTINED, recovered
from galscan.candidates.reference_catalog import ReferenceCatalog
from galscan.core.errors import InputError
from galscan.store.layout import open_store
from tests.candidate_tables import candidates, scanned_run

ARCSEC = 1 / 3600


def listed(ra, dec, names=None, title="k") -> ReferenceCatalog:
    ra, dec = np.asarray(ra, float), np.asarray(dec, float)
    names = np.array([f"{title}{n}" for n in range(len(ra))] if names is None else names, object)
    return ReferenceCatalog(title, names, ra, dec, 0, [])


def read(table: table_stream.TableStream) -> pd.DataFrame:
    return pd.concat([piece.to_pandas() for piece in table], ignore_index=True)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 89.999, -90.0, 45.0]), st.floats(0.5, 60))
def test_the_nearest_on_the_sphere_across_poles_and_zero_hours(seed, middle, radius):
    rng = np.random.default_rng(seed)
    spread = 2 * radius * ARCSEC

    def around(n):
        dec = np.clip(middle + rng.uniform(-spread, spread, n), -90, 90)
        return (rng.uniform(-spread, spread, n) / max(np.cos(np.radians(middle)), 1e-4)) % 360, dec

    ra, dec = around(30)
    frame = candidates(30).assign(ra=np.where(np.arange(30) == 4, np.nan, ra), dec=dec)
    known = listed(*around(12))
    found = read(crossmatch.annotate(table_stream.from_frame(frame), [known], radius))
    there = SkyCoord(known.ra, known.dec, unit="deg")
    for k in range(30):
        apart = SkyCoord(ra[k], dec[k], unit="deg").separation(there).arcsec
        if k == 4 or apart.min() > radius:
            assert found["known_name"][k] == "" and found["known_ref"][k] == "" and np.isnan(found["known_sep"][k])
        else:
            assert found["known_name"][k] == known.names[apart.argmin()]
            assert found["known_sep"][k] == pytest.approx(apart.min(), abs=1e-6)


def test_all_lists_that_have_it_are_named_the_nearest_first(monkeypatch):
    monkeypatch.setattr(table_stream, "PIECE", 2)
    frame = candidates(5).assign(ra=[10.0, 20, 30, np.nan, 50], dec=[0.0, 0, 0, 0, 0])
    far, near = listed([10, 20], [2 * ARCSEC] * 2, title="far"), listed([10, 30], [ARCSEC] * 2, title="near")
    table = crossmatch.annotate(table_stream.from_frame(frame), [far, near], 3)
    found = read(table)
    assert found["known_name"].tolist() == ["near0", "far1", "near1", "", ""]
    assert found["known_ref"].tolist() == ["near; far", "far", "near", "", ""]
    assert crossmatch.count_known(table) == 3
    assert table.names.index("known_name") == table.names.index("in_train") + 1
    again = crossmatch.annotate(table, [near], 3)  # of a table that was annotated before
    assert again.names == table.names and crossmatch.count_known(again) == 2


def test_no_candidates_and_no_places():
    known = listed([1], [1])
    for frame in (candidates().head(0), candidates(2)):
        table = crossmatch.annotate(table_stream.from_frame(frame), [known], 3)
        assert crossmatch.count_known(table) == 0 and "known_sep" in table.names
        assert table.schema.field("known_sep").type == "double"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scanned_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def store(run):
    return open_store(run.parent / "sky.zarr")


def of_rows(store, numbers, off=ARCSEC) -> ReferenceCatalog:
    """Return a list of objects of the store, an arcsecond off."""
    ra, dec = store.column("ra")[numbers], store.column("dec")[numbers]
    return listed(ra, dec + off, [f"row {n}" for n in numbers])


def test_everything_that_became_of_a_list(run, store):
    known = of_rows(store, [20, 4, 100, 550, 595, 3])
    known = ReferenceCatalog(
        "k", np.append(known.names, "far"), np.append(known.ra, 0.0), np.append(known.dec, 89.0), 2, []
    )
    found = recovered(run, known, 3)
    objects = found.objects.set_index("name")
    assert objects["fate"].to_dict() == {
        "row 20": CANDIDATE, "row 4": CANDIDATE, "row 100": BELOW, "row 550": DISCARDED, "row 595": QUARANTINED,
        "row 3": CANDIDATE, "far": ELSEWHERE,
    }  # fmt: skip
    assert objects["rank"].to_dict() == {
        "row 20": 21,
        "row 4": 5,
        "row 100": 0,
        "row 550": 0,
        "row 595": 0,
        "row 3": 4,
        "far": 0,
    }
    assert objects.loc["row 550", "score"] == -5 and objects.loc["row 595", "reason"] == "no image"
    assert objects.loc["row 100", "score"] == pytest.approx(np.linspace(4, -4, 600)[100])
    assert objects["sep"].drop("far").to_numpy() == pytest.approx(1, abs=1e-6) and np.isnan(objects.loc["far", "sep"])
    assert found.missed["name"].tolist() == ["row 100", "row 550", "row 595", "far"]
    assert found.lowest_score == pytest.approx(np.linspace(4, -4, 600)[39])
    told = found.summary()
    assert told["scanned"] == 5 and told["ranks"] == [4, 5, 21] and told["without_position"] == 2
    assert told["recovered"]["found"] == 3 and told["recovered"]["of"] == 5
    assert told["recovered"]["low"] == pytest.approx(beta.ppf(0.025, 3, 3))
    assert told["recovered"]["high"] == pytest.approx(beta.ppf(0.975, 4, 2))


def test_what_the_model_was_trained_on_is_told_apart(run, store):
    # The tiny model was trained on the ids 1000 to 1009, which are the store's first ten rows.
    found = recovered(run, of_rows(store, [0, 1, 15, 9, 300]), 3)
    assert found.objects["in_train"].tolist() == [True, True, False, True, False]
    told = found.summary()
    assert told["recovered"]["found"] == 4 and told["recovered_untrained"] == told["recovered_untrained"] | {
        "found": 1, "of": 2
    }  # fmt: skip
    assert "not trained on" in told["text"]


def test_without_its_model_that_is_not_known(tmp_path):
    run = scanned_run(tmp_path)
    known = of_rows(open_store(tmp_path / "sky.zarr"), [1])
    (tmp_path / "model" / "model.json").unlink()
    told = recovered(run, known).summary()
    assert told["recovered_untrained"] is None and "the model is missing" in told["text"]


def test_two_known_objects_may_share_a_candidate(run, store):
    ra, dec = store.column("ra")[7], store.column("dec")[7]
    found = recovered(run, listed([ra, ra], [dec, dec + 2 * ARCSEC]), 3)
    assert found.objects["rank"].tolist() == [8, 8]
    assert found.summary()["sharing"] == 1 and "1 match the same candidate" in found.summary()["text"]


def test_of_several_scanned_objects_the_best_rank_is_told(run, store):
    everything = store.column("ra"), store.column("dec")
    there = SkyCoord(*everything, unit="deg")
    # With a radius of 60" neighbours on this random sky are rare, so one is made between two rows.
    pair = SkyCoord(everything[0][2], everything[1][2], unit="deg")
    apart = pair.separation(there)
    assert (apart < 60 * units.arcsec).sum() == 1
    frame = pd.read_parquet(run / "scores" / "part-00001.parquet")
    moved = frame.assign(ra=np.where(frame["index"] == 400, everything[0][2], frame["ra"]))
    moved["dec"] = np.where(frame["index"] == 400, everything[1][2], frame["dec"])
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = (run / "scores" / "part-00001.parquet").read_bytes()
    marks = pq.read_schema(run / "scores" / "part-00001.parquet").metadata
    pq.write_table(
        pa.Table.from_pandas(moved, preserve_index=False).replace_schema_metadata(marks),
        run / "scores" / "part-00001.parquet",
    )
    try:
        found = recovered(run, listed([everything[0][2]], [everything[1][2]]), 3).objects.iloc[0]
        assert found["fate"] == CANDIDATE and found["rank"] == 3
    finally:
        (run / "scores" / "part-00001.parquet").write_bytes(before)


def test_a_list_of_nothing_that_was_scanned(run):
    told = recovered(run, listed([0.0], [89.0])).summary()
    assert told["scanned"] == 0 and told["recovered"]["value"] is None and told["text"].endswith("1 not scanned")


def test_a_file_is_read_and_named(run, store, tmp_path):
    known = of_rows(store, [12])
    pd.DataFrame({"name": known.names, "ra": known.ra, "dec": known.dec}).to_csv(tmp_path / "kaviraj2012.csv")
    found = recovered(run, tmp_path / "kaviraj2012.csv")
    assert found.title == "kaviraj2012" and found.objects["rank"].tolist() == [13] and found.radius == 3


def test_what_was_scanned_must_be_there(tmp_path):
    run = scanned_run(tmp_path)
    (run / "scores" / "part-00001.parquet").unlink()
    with pytest.raises(InputError, match=r"part-00001\.parquet is missing, or of another scan"):
        recovered(run, listed([0.0], [89.0]))
    with pytest.raises(InputError, match="--radius 61"):
        recovered(run, listed([0.0], [89.0]), 61)
