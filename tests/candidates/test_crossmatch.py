"""Matches with reference lists, compared with the separations of all pairs."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import angular_separation
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from galscan.candidates import crossmatch, table_stream
from galscan.candidates.crossmatch import BELOW, CANDIDATE, DISCARDED, ELSEWHERE, QUARANTINED, recovered
from galscan.candidates.reference_catalog import ReferenceCatalog
from galscan.core.errors import InputError
from galscan.core.files import read_json, write_json
from galscan.scanning.partitions import scores_path
from tests.candidate_tables import candidates

ARCSEC = 1 / 3600


def reference_list(ra, dec, names=None, title="k") -> ReferenceCatalog:
    ra, dec = np.asarray(ra, float), np.asarray(dec, float)
    names = np.array([f"{title}{n}" for n in range(len(ra))] if names is None else names, object)
    return ReferenceCatalog(title, names, ra, dec, 0, [])


def read(table: table_stream.TableStream) -> pd.DataFrame:
    return pd.concat([piece.to_pandas() for piece in table], ignore_index=True)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 89.999, -90.0, 45.0]), st.floats(0.5, 60))
def test_nearest_on_the_sphere_at_poles_and_zero_hours(seed, middle, radius):
    rng = np.random.default_rng(seed)
    spread = 2 * radius * ARCSEC

    def around(n):
        dec = np.clip(middle + rng.uniform(-spread, spread, n), -90, 90)
        return (rng.uniform(-spread, spread, n) / max(np.cos(np.radians(middle)), 1e-4)) % 360, dec

    ra, dec = around(30)
    ra[4] = np.nan
    known = reference_list(*around(12))
    rows = table_stream.from_frame(candidates(30).assign(ra=ra, dec=dec))
    found = read(crossmatch.annotate(rows, [known], radius))
    positions = [np.radians(values)[:, None] for values in (ra, dec)] + [np.radians(known.ra), np.radians(known.dec)]
    separations = np.degrees(angular_separation(*positions)) * 3600
    matched = separations.min(axis=1) <= radius  # False for NaN
    nearest = known.names[np.nan_to_num(separations).argmin(axis=1)]
    assert (found["known_name"] == np.where(matched, nearest, "")).all()
    assert (found["known_ref"] == np.where(matched, "k", "")).all()
    np.testing.assert_allclose(found["known_sep"], np.where(matched, separations.min(axis=1), np.nan), atol=1e-6)


def test_all_matching_lists_are_named_nearest_first(monkeypatch):
    monkeypatch.setattr(table_stream, "PIECE", 2)
    frame = candidates(5).assign(ra=[10.0, 20, 30, np.nan, 50], dec=[0.0, 0, 0, 0, 0])
    far = reference_list([10, 20], [2 * ARCSEC] * 2, title="far")
    near = reference_list([10, 30], [ARCSEC] * 2, title="near")
    table = crossmatch.annotate(table_stream.from_frame(frame), [far, near], 3)
    found = read(table)
    assert found["known_name"].tolist() == ["near0", "far1", "near1", "", ""]
    assert found["known_ref"].tolist() == ["near; far", "far", "near", "", ""]
    assert crossmatch.count(table) == {"known": 3, "unmatched": 1, "not_asked": 0}
    assert table.names.index("known_name") == table.names.index("in_train") + 1
    again = crossmatch.annotate(table, [near], 3)  # of a table that was annotated before
    assert again.names == table.names and crossmatch.count(again)["known"] == 2
    with pytest.raises(InputError, match="'near'"):
        crossmatch.annotate(table, [near, near], 3)


def test_no_candidates_and_no_positions():
    known = reference_list([1], [1])
    for frame in (candidates().head(0), candidates(2)):
        table = crossmatch.annotate(table_stream.from_frame(frame), [known], 3)
        assert crossmatch.count(table)["known"] == 0 and table.schema.field("known_sep").type == "double"


def of_rows(store, numbers) -> ReferenceCatalog:
    """Return a list of objects of the store, an arcsecond off."""
    ra, dec = store.column("ra")[numbers], store.column("dec")[numbers]
    return reference_list(ra, dec + ARCSEC, [f"row {n}" for n in numbers])


def test_every_fate(listed_run, listed_store):
    known = of_rows(listed_store, [20, 4, 100, 550, 595, 3])
    known = ReferenceCatalog(
        "k", np.append(known.names, "far"), np.append(known.ra, 0.0), np.append(known.dec, 89.0), 2, []
    )
    found = recovered(listed_run, known, 3)
    objects = found.objects.set_index("name")
    fates = [CANDIDATE, CANDIDATE, BELOW, DISCARDED, QUARANTINED, CANDIDATE, ELSEWHERE]
    assert objects["fate"].tolist() == fates and objects["rank"].tolist() == [21, 5, 0, 0, 0, 4, 0]
    assert objects.loc["row 550", "score"] == -5 and objects.loc["row 595", "reason"] == "no image"
    assert objects.loc["row 100", "score"] == pytest.approx(np.linspace(4, -4, 600)[100])
    assert objects["sep"].drop("far").to_numpy() == pytest.approx(1, abs=1e-6) and np.isnan(objects.loc["far", "sep"])
    assert found.missed["name"].tolist() == ["row 100", "row 550", "row 595", "far"]
    assert found.lowest_score == pytest.approx(np.linspace(4, -4, 600)[39])
    summary = found.summary()
    assert summary["scanned"] == 5 and summary["ranks"] == [4, 5, 21] and summary["without_position"] == 2
    fraction = summary["recovered"]
    assert fraction["found"] == 3 and fraction["of"] == 5
    assert [fraction["low"], fraction["high"]] == pytest.approx([beta.ppf(0.025, 3, 3), beta.ppf(0.975, 4, 2)])


def test_objects_that_the_model_was_trained_on(listed_run, listed_store, tmp_path):
    # The model was trained on the ids 1000 to 1009, which are the store's first ten rows.
    known = of_rows(listed_store, [0, 1, 15, 9, 300])
    found = recovered(listed_run, known, 3)
    assert found.objects["in_train"].tolist() == [True, True, False, True, False]
    summary = found.summary()
    assert summary["recovered"]["found"] == 4 and "not trained on" in summary["text"]
    assert (summary["recovered_untrained"]["found"], summary["recovered_untrained"]["of"]) == (1, 2)
    run = shutil.copytree(listed_run, tmp_path / "run")
    write_json(run / "run.json", read_json(run / "run.json") | {"model": str(tmp_path / "missing")})
    summary = recovered(run, known).summary()
    assert summary["recovered_untrained"] is None and "the model is missing" in summary["text"]


def test_two_known_objects_may_match_one_candidate(listed_run, listed_store):
    ra, dec = listed_store.column("ra")[7], listed_store.column("dec")[7]
    found = recovered(listed_run, reference_list([ra, ra], [dec, dec + 2 * ARCSEC]), 3)
    assert found.objects["rank"].tolist() == [8, 8]
    assert found.summary()["sharing"] == 1 and "1 match the same candidate" in found.summary()["text"]


def test_candidate_is_preferred_to_other_scanned_objects(listed_run, listed_store, tmp_path):
    run = shutil.copytree(listed_run, tmp_path / "run")
    position = listed_store.column("ra")[2], listed_store.column("dec")[2]
    table = pq.read_table(scores_path(run, 1))
    frame = table.to_pandas()
    frame.loc[frame["index"] == 400, ["ra", "dec"]] = position  # exactly there, and the candidate an arcsecond off
    pq.write_table(
        pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(table.schema.metadata),
        scores_path(run, 1),
    )
    found = recovered(run, reference_list([position[0]], [position[1] + ARCSEC / 2]), 3).objects.iloc[0]
    assert found["fate"] == CANDIDATE and found["rank"] == 3


def test_list_without_scanned_objects(listed_run):
    summary = recovered(listed_run, reference_list([0.0], [89.0])).summary()
    assert summary["scanned"] == 0 and summary["recovered"]["value"] is None
    assert summary["text"].endswith("1 not scanned")


def test_list_in_a_file(listed_run, listed_store, tmp_path):
    known = of_rows(listed_store, [12])
    pd.DataFrame({"name": known.names, "ra": known.ra, "dec": known.dec}).to_csv(tmp_path / "kaviraj2012.csv")
    found = recovered(listed_run, tmp_path / "kaviraj2012.csv")
    assert found.title == "kaviraj2012" and found.objects["rank"].tolist() == [13] and found.radius == 3


def test_missing_scores_and_wrong_radius(listed_run, tmp_path):
    run = shutil.copytree(listed_run, tmp_path / "run")
    scores_path(run, 1).unlink()
    with pytest.raises(InputError, match=r"part-00001\.parquet"):
        recovered(run, reference_list([0.0], [89.0]))
    with pytest.raises(InputError, match="--radius 61"):
        recovered(run, reference_list([0.0], [89.0]), 61)
