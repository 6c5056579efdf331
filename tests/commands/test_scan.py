"""The scan command: from stores and a model to a ranked catalogue, and errors for wrong options."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table

import galscan
from galscan.candidates import ranking
from galscan.commands.scan import scan
from galscan.core import home, progress
from galscan.core.errors import ConflictError, GalscanError, InputError, NotFoundError
from galscan.models.model import open_model
from galscan.reports.scan import write_scan_report
from galscan.scanning import cluster, run
from galscan.stats.histogram import ScoreHistogram
from galscan.store import layout
from galscan.store.ingest import ingest
from galscan.store.layout import open_store
from galscan.surveys.resampling import resample
from galscan.vetting import planning, sampling
from tests.helpers import tiny_bundle, tiny_store


@pytest.fixture
def here(monkeypatch, client):
    """Work in this process: the cluster's own tests start real workers."""
    starts = []

    @contextmanager
    def connect(*args, **kwargs):
        starts.append(args)
        yield client

    monkeypatch.setattr(cluster, "connect", connect)
    return starts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data home with two surveys and one model."""
    place = tmp_path_factory.mktemp("home")
    tiny_store(place / "surveys" / "sky.zarr", 700, survey="sky", unusable=4)
    tiny_store(place / "surveys" / "more.zarr", 300, survey="more", seed=3)
    tiny_bundle(place / "models" / "dustlane")
    return place


@pytest.fixture(autouse=True)
def data_home(monkeypatch, place, no_pages):
    monkeypatch.setenv("GALSCAN_HOME", str(place))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.fixture(scope="module")
def finished(place, client, tmp_path_factory, no_pages):
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GALSCAN_HOME", str(place))
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        patch.setattr(cluster, "connect", contextmanager(lambda *args, **kwargs: iter([client])))
        return scan(survey=["sky", "more"], target="dustlane", out=out, top=100)


def test_outputs_of_a_scan_of_two_surveys(finished):
    info, table = finished.info, finished.candidates
    assert (info.status, info.scanned, info.quarantined, info.candidates) == ("done", 996, 4, 100)
    assert sum(info.quarantine_reasons.values()) == 4
    prevalence = info.purity["prevalence"]
    assert 0 <= prevalence["low"] <= prevalence["value"] <= prevalence["high"] <= 1
    assert sorted(info.purity["at"], key=int) == ["10", "100"]
    written = json.loads((finished.path / "run.json").read_text())
    assert json.loads(json.dumps(info.to_dict(), allow_nan=False)) == written
    assert list(table["rank"]) == list(range(1, 101)) and table["score"].is_monotonic_decreasing
    assert set(table["store"]) == {"sky", "more"} and table["p_target"].between(0, 1).all()
    trained = table.loc[table["in_train"], "objid"].astype(str)
    assert set(trained) <= set(open_model(home.model_path("dustlane")).objects("train").id)
    path = finished.path / "candidates.fits"
    header = fits.getheader(path, 1)
    assert len(Table.read(path)) == 100 and header["RUNSHA"] == info.fingerprint
    assert (header["NSCANNED"], header["NQUARANT"]) == (996, 4)
    assert str(finished.path).encode() not in path.read_bytes()


def test_times_are_those_of_the_whole_command(here, tmp_path):
    progress.command_started["scan"] = time.perf_counter() - 100  # as the command line does
    first = scan(survey="more", out=tmp_path / "run", top=10).info
    assert list(first.seconds) == ["start", "prepare", "scan", "rank", "report", "close"]
    assert first.wall_s > first.seconds["start"] > 100
    assert sum(first.seconds.values()) == pytest.approx(first.wall_s, abs=0.01)
    assert not progress.command_started


def test_heavy_libraries_are_imported_where_they_are_used():
    code = "import sys, galscan.commands.scan; print(*{name.partition('.')[0] for name in sys.modules})"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"numpy", "zarr"} <= {*imported}
    assert not {"torch", "pandas", "scipy", "matplotlib", "astropy"} & {*imported}


def test_a_lost_or_damaged_output_is_written_again_from_the_scores(here, tmp_path):
    options = {"survey": "more", "out": tmp_path / "run", "top": 10}
    first = scan(**options)
    names = ("candidates.fits", "candidates.parquet", "contact.png")
    before = {name: (first.path / name).read_bytes() for name in names}
    table = first.path / "candidates.parquet"
    table.write_bytes(before[table.name][:-30])
    with pytest.raises(InputError, match="candidates"):
        galscan.export(first.path, tmp_path / "x.fits")
    table.write_bytes(before[table.name])
    first.info.updated(histogram=[[10**9, 1]]).write(first.path)
    with pytest.raises(InputError, match="histogram"):
        run.open_run(first.path).histogram  # noqa: B018
    table.unlink()
    with pytest.raises(InputError, match="candidates"):
        run.open_run(first.path)
    first.info.updated(status="running").write(first.path)
    again = scan(**options)
    assert len(here) == 1 and again.info.images_per_s is None  # this process scored nothing
    assert again.info.status == "done" and again.info.histogram == first.info.histogram
    assert {name: (again.path / name).read_bytes() for name in names} == before


def test_the_same_command_again_returns_at_once(finished, monkeypatch, capfd):
    def never(*args, **kwargs):
        raise AssertionError("nothing is to be done")

    monkeypatch.setattr(cluster, "connect", never)
    again = scan(survey=["sky", "more"], target="dustlane", out=finished.path, top=100)
    assert again.info == finished.info
    assert "finished; nothing to do" in capfd.readouterr().err


def test_the_run_folder_is_in_the_data_home_by_default(here, place):
    got = scan(survey="more", target="dustlane", top=5)
    assert got.path.parent == place / "runs"
    assert got.path.name == f"dustlane-more-{got.info.fingerprint[:8]}"


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, place, capfd):
    before = sorted(place.rglob("*"))
    got = scan(survey="sky", out=tmp_path / "run", workers=2, dry_run=True)
    assert got.info.status == "planned"
    assert not (tmp_path / "run").exists() and sorted(place.rglob("*")) == before
    out, err = capfd.readouterr()
    assert out == ""
    for words in ("700 cutouts of 32 px", "2 processes", "objects/s", str(tmp_path / "run")):
        assert words in err


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"target": "dustlane"}, InputError, "more, sky"),
        ({"survey": "skyy", "target": "dustlane"}, NotFoundError, "'sky'"),
        ({"store": "/nowhere.zarr", "target": "dustlane"}, NotFoundError, "/nowhere.zarr"),
        ({"survey": "sky", "target": "ring"}, NotFoundError, "'ring'"),
        ({"survey": "sky", "model": "/nowhere"}, NotFoundError, "/nowhere"),
        ({"survey": "sky", "target": "ring", "model": "models/dustlane"}, InputError, "'ring'"),
        ({"survey": "sky", "target": "dustlane", "cluster": "lokal"}, InputError, "'local'"),
        ({"survey": "sky", "target": "dustlane", "where": "decc > 0"}, InputError, "'decc'"),
        ({"survey": "sky", "target": "dustlane", "cone": (0, 99, 1)}, InputError, "--cone"),
        ({"survey": "sky", "model": ["models/dustlane", "models/dustlane"]}, InputError, "'dustlane'"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_nothing_is_written(
    options, error, named, place, tmp_path, monkeypatch
):
    monkeypatch.chdir(place)
    with pytest.raises(error, match=named):
        scan(out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_images_of_too_few_pixels_are_refused(tmp_path):
    small = tiny_store(tmp_path / "small.zarr", 30, 24)
    with pytest.raises(InputError, match="--size 32"):
        scan(store=small.path, target="dustlane", out=tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["small.zarr"]


def test_neither_target_nor_model(monkeypatch, tmp_path, place):
    monkeypatch.setattr(home, "data_home", lambda: tmp_path)
    store = place / "surveys" / "sky.zarr"
    with pytest.raises(InputError, match="train one with galscan train-rare"):
        scan(store=store)
    for name in ("one", "two", "three.partial"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"models in .*: choose one with --target: one, two;"):
        scan(store=store)


def test_larger_images_are_scored_as_a_store_of_them_resampled(here, tmp_path):
    large = tiny_store(tmp_path / "large.zarr", 300, 48, survey="large", unusable=3)
    small = tiny_store(tmp_path / "small.zarr", 300, 32, survey="small", unusable=3)
    layout.zarr.open_group(small.path, mode="r+")["images"][:] = resample(large.images(), 32)
    got, same = (scan(store=s.path, out=tmp_path / s.name, top=300) for s in (large, small))
    columns = ["objid", "score", "score_std", "flags"]  # probabilities rest on resamples that the fingerprint seeds
    pd.testing.assert_frame_equal(got.candidates[columns], same.candidates[columns])
    assert got.info.quarantine_reasons == same.info.quarantine_reasons and got.info.scanned == 297
    assert got.info.size == 32 and got.info.stores[0].size == 48


def test_stores_of_several_sizes_in_one_scan(here, tmp_path):
    large = tiny_store(tmp_path / "large.zarr", 300, 48, survey="large", seed=7)
    got = scan(survey="more", store=large.path, out=tmp_path / "run", top=60)
    assert got.info.scanned == 600 and set(got.candidates["store"]) == {"large", "more"}
    galscan.info(tmp_path / "run", sheet=tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_duplicates_and_training_objects_under_other_names(here, tmp_path):
    stores = [tiny_store(tmp_path / f"{name}.zarr", 60, survey=name) for name in ("a", "b")]
    model = tiny_bundle(tmp_path / "model")
    splits = pd.read_parquet(model.path / "splits.parquet").tail(10).assign(lineage="another survey")
    splits = splits.assign(id=[f"J{k}" for k in range(10)], object=[f"J{k}" for k in range(10)])
    splits = splits.assign(**{name: stores[0].column(name)[:10] for name in ("ra", "dec")})
    splits.to_parquet(model.path / "splits.parquet", index=False)
    found = scan(store=[s.path for s in stores], model=model.path, out=tmp_path / "run", top=120)
    table = found.candidates
    assert table["index"][table["in_train"]].value_counts().to_dict() == dict.fromkeys(range(10), 2)
    assert table["duplicate"].sum() == 60 and not table.drop_duplicates("index")["duplicate"].any()
    assert any("60 of the 120 candidates repeat an object" in note for note in found.info.purity["notes"])
    assert [ref.lineage for ref in found.info.stores] == ["a", "b"]


@pytest.mark.parametrize("status", ["running", "done"])
def test_a_store_that_has_grown_is_another(here, tmp_path, status):
    out, options = tmp_path / "s.zarr", {"size": 32, "name": "grows", "workers": 1}
    ingest("simulated", out=out, count=300, **options)
    info = scan(store=out, target="dustlane", out=tmp_path / "run", top=5).info
    info.updated(status=status).write(tmp_path / "run")
    ingest("simulated", out=out, count=400, append=True, **options)
    with pytest.raises(ConflictError, match=r"stores was grows \w+, now grows \w+"):
        scan(store=out, target="dustlane", out=tmp_path / "run", top=5)
    assert scan(store=out, target="dustlane", out=tmp_path / "again", top=5).info.scanned == 400


def test_a_store_without_one_usable_image_gives_a_reason_and_no_candidates(here, tmp_path):
    tiny_store(tmp_path / "dark.zarr", 30, survey="dark", unusable=30)
    with pytest.raises(GalscanError, match="10 blank image, 10 no image, 10 unreadable image"):
        scan(store=tmp_path / "dark.zarr", target="dustlane", out=tmp_path / "run")


def test_surveys_outside_the_calibration_are_named(finished, here, tmp_path):
    assert any("has no object of sky, more; all are of tiny" in note for note in finished.info.purity["notes"])
    tiny_store(tmp_path / "tiny.zarr", 3, survey="tiny")
    few = scan(store=tmp_path / "tiny.zarr", target="dustlane", out=tmp_path / "run")
    assert not any("has no object of" in note for note in few.info.purity["notes"])
    assert few.info.candidates == len(few.candidates) == 3 and few.info.purity["at"] == {}


def test_selection(place, here, tmp_path, capsys):
    run = scan(survey=["sky"], target="dustlane", out=tmp_path / "run", where="dec > 0", limit=600, top=50)
    dec = open_store(place / "surveys" / "sky.zarr").column("dec")[:600]
    assert run.info.scanned + run.info.quarantined == (dec > 0).sum()
    assert (run.candidates["dec"] > 0).all() and "dec > 0" in run.info.selection
    with pytest.raises(InputError, match="dec > 89"):
        scan(survey=["sky"], target="dustlane", where="dec > 89", out=tmp_path / "none")


def test_a_survey_too_small_for_a_prefilter(here, tmp_path, capsys):
    from galscan.models.model import PREFILTER_FILE
    from galscan.models.prefilter import Prefilter, TinyNet, save_prefilter

    (tmp_path / "model").mkdir()
    save_prefilter(Prefilter(TinyNet()), tmp_path / "model" / PREFILTER_FILE)
    tiny_bundle(tmp_path / "model")
    run = scan(survey=["sky"], model=tmp_path / "model", out=tmp_path / "run", cascade=True, top=50)
    assert "no prefilter: a prefilter needs a sample of at least 1,196" in capsys.readouterr().err
    assert run.info.scanned == 696 and run.info.first_look is None


@pytest.mark.gpu
@pytest.mark.parametrize("cluster", ["local", "cuda"])
def test_a_gpu_finds_the_same_candidates(cluster, here, tmp_path, cuda):
    if cluster == "cuda":
        pytest.importorskip("dask_cuda", reason="needs the extra 'cuda'")
    how = {"survey": ["sky"], "target": "dustlane", "top": 100}
    cpu = scan(**how, out=tmp_path / "cpu", device="cpu", workers=1)
    gpu = scan(**how, out=tmp_path / "gpu", device="cuda", cluster=cluster, workers=1)
    assert gpu.info.scanned == cpu.info.scanned
    assert len(set(cpu.candidates["objid"]) & set(gpu.candidates["objid"])) >= 95  # ties and rounding at the end


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """Models of three targets: two with a common trunk, and a separate one."""
    import torch

    from galscan.labels.recipe import load_recipe
    from galscan.models.network import GalaxyNet

    folder = tmp_path_factory.mktemp("targets")
    torch.manual_seed(5)
    joint = GalaxyNet(8, len(load_recipe("dustlane").schemas["simulated"].morphology), 2).eval()
    tiny_bundle(folder / "dustlane", networks=[joint.only(0)])
    tiny_bundle(folder / "merger", "merger", seed=2)
    (folder / "both").mkdir()
    tiny_bundle(folder / "both" / "dustlane", networks=[joint.only(0)])
    tiny_bundle(folder / "both" / "demo", "demo", networks=[joint.only(1)])
    (folder / "both" / "models.json").write_text('{"targets": ["dustlane", "demo"]}')
    return folder


def test_several_targets_in_one_scan_equal_each_alone(here, targets, tmp_path):
    run = scan(survey="sky", model=[targets / "both", targets / "merger"], out=tmp_path / "all", top=50)
    assert run.targets == ["dustlane", "demo", "merger"] and len(list((run.path / "scores").iterdir())) == 3
    for name, path in (("dustlane", targets / "dustlane"), ("merger", targets / "merger")):
        alone, own = scan(survey="sky", model=path, out=tmp_path / name, top=50), run.of(name)
        assert own.path == run.path / name and own.info.target == name
        assert list(own.candidates["objid"]) == list(alone.candidates["objid"])
        np.testing.assert_allclose(own.candidates["score"], alone.candidates["score"], atol=1e-4)
        answers = run.info.answers if name == "dustlane" else ["merger"]
        pd.testing.assert_frame_equal(own.candidates[answers[:7]], alone.candidates[answers[:7]], atol=1e-3)
        assert own.info.scanned == alone.info.scanned == 696
        for file in ("candidates.fits", "contact.png", "report.html"):
            assert (own.path / file).is_file()
    rows = pd.read_parquet(run.path / "scores")
    assert {"score_dustlane", "score_std_demo", "first_look_merger"} <= {*rows} and "score" not in rows
    assert list(run.summary()["runs"]) == run.targets
    assert (
        scan(survey="sky", model=[targets / "both", targets / "merger"], out=tmp_path / "all", top=50).path == run.path
    )


def test_one_of_several_targets_is_a_run_like_any_other(here, targets, tmp_path):
    run = scan(survey="sky", model=targets / "both", out=tmp_path / "run", top=50)
    for verb in (lambda path: galscan.export(path, tmp_path / "x.fits"), lambda path: run.candidates, galscan.purity):
        with pytest.raises(InputError, match=r"several targets; name one of them: .*run/dustlane, .*run/demo"):
            verb(run.path)
    assert galscan.export(run.path / "demo", tmp_path / "x.moc.fits").details["objects"] == 696
    assert galscan.export(run.path / "demo", tmp_path / "x.fits").rows == 50
    store = open_store(run.info.stores[0].path)
    (tmp_path / "known.csv").write_text("name,ra,dec\n" + "".join(
        f"g{k},{ra},{dec}\n" for k, (ra, dec) in enumerate(zip(store.column("ra"), store.column("dec"), strict=True))
    ))  # fmt: skip
    (known,) = galscan.export(run.path / "demo", tmp_path / "x.fits", known=tmp_path / "known.csv").recovered
    assert known.summary()["scanned"] >= 690 and known.missed["score"].notna().sum() > 600
    found = sampling.strata_of(run.of("demo"))
    sample = sampling.draw(run.of("demo"), found, {s.name: 5 for s in found})
    assert (sample["stratum"] == "not ranked").any()
    with pytest.raises(InputError, match="not for 'ring'"):
        run.of("ring")


@pytest.mark.slow
def test_a_scan_of_several_targets_resumes(here, targets, tmp_path):
    options = {"survey": "sky", "model": [targets / "both"], "top": 50}
    whole = scan(out=tmp_path / "whole", **options)
    half = scan(out=tmp_path / "half", **options)
    for path in (half.path / "run.json", half.path / "demo" / "run.json"):
        path.write_text(path.read_text().replace('"done"', '"running"'))
    (half.path / "scores" / "part-00001.parquet").unlink()
    again = scan(out=tmp_path / "half", **options)
    (half.path / "demo" / "candidates.parquet").unlink()
    assert scan(out=tmp_path / "half", **options).of("demo").info.status == "done"
    for name in again.targets:
        first, second = ((r.path / name / "candidates.fits").read_bytes() for r in (whole, again))
        assert first == second


def test_a_target_is_found_among_those_trained_together(targets, place, monkeypatch, tmp_path):
    import shutil

    monkeypatch.setenv("GALSCAN_HOME", str(tmp_path))
    shutil.copytree(targets / "both", tmp_path / "models" / "both")
    shutil.copytree(targets / "merger", tmp_path / "models" / "merger")
    planned = scan(store=place / "surveys" / "sky.zarr", target=["demo", "merger"], dry_run=True)
    assert planned.info.model == [str(tmp_path / "models" / name) for name in ("both/demo", "merger")]
    (tmp_path / "models" / "both" / "models.json").write_text('{"targets": ["../../etc"]}')
    with pytest.raises(InputError, match=r"models\.json is damaged"):
        scan(store=place / "surveys" / "sky.zarr", model=tmp_path / "models" / "both", dry_run=True)


def test_objects_of_known_label_are_data(place, here, tmp_path):
    """Ten training objects are in the store: they are ranked by their labels and excluded from the estimate."""
    store = tiny_store(tmp_path / "tiny.zarr", 600)
    found = scan(store=store.path, model=place / "models" / "dustlane", out=tmp_path / "run", top=200)
    known = found.candidates[found.candidates["known"] != ""]
    beyond, targets = found.info.known_beyond
    assert len(known) + beyond == 10 and (known["known"] == "target").sum() + targets == 5
    assert known["in_train"].all() and set(known["known"]) <= {"target", "negative"}
    assert ScoreHistogram.from_list(found.info.histogram).total == 590 and found.info.scanned == 600
    np.testing.assert_array_equal(known["p_target"], (known["known"] == "target").astype(float))
    assert any("training, calibration or test sets" in note for note in found.info.purity["notes"])
    again = planning.estimate_by_scores(found)[0]
    np.testing.assert_allclose(again.purity_lo, found.candidates["purity_lo"], rtol=1e-6)
    column = fits.getdata(found.path / "candidates.fits", 1)["known"]
    assert sorted({str(word).strip() for word in column}) == sorted({"", *known["known"]})


def test_equal_ids_in_another_store_are_no_known_label(place, here, tmp_path):
    """Of early versions' models nothing but ids is known: an object of another store has its number by chance."""
    store = tiny_store(tmp_path / "other.zarr", 200, survey="other")
    found = scan(store=store.path, model=place / "models" / "dustlane", out=tmp_path / "run", top=200)
    assert {"1000", "1009"} <= set(found.candidates["objid"].astype(str))
    assert (found.candidates["known"] == "").all() and found.info.known_beyond == (0, 0)


def test_a_model_carried_to_another_survey_claims_no_purity(place, here, tmp_path):
    model = shutil.copytree(place / "models" / "dustlane", tmp_path / "model")
    info = json.loads((model / "model.json").read_text())
    info["imaging"] = [{"survey": "sdss", "frame": 40.0, "pixels": {}}]
    (model / "model.json").write_text(json.dumps(info))
    found = scan(survey="sky", model=model, out=tmp_path / "run", top=50)
    columns = ["p_target", *ranking.ESTIMATES]
    assert found.candidates[columns].isna().all(axis=None)
    header = fits.getheader(found.path / "candidates.fits", 1)
    assert header["PURITY"] == "unknown" and "PREVAL" not in header
    assert "calibrated with images of sdss" in found.info.purity["unknown"]
    assert "unknown" in found.summary()["text"] and f"galscan vet {found.path}" in found.summary()["text"]
    assert "their purity is unknown" in write_scan_report(found.path).read_text()
    with pytest.raises(InputError, match="grade a sample"):
        galscan.export(found.path, tmp_path / "some.fits", min_purity=0.5)
    assert galscan.export(found.path, tmp_path / "some.fits", top=10).rows == 10
