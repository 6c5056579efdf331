"""`galscan similar`: a list that the page, the exports and the next training take, from a scan with embeddings."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from PIL import Image

from galscan.candidates.export.formats import export
from galscan.cli import main
from galscan.commands.info import info
from galscan.commands.purity import purity
from galscan.commands.scan import scan
from galscan.commands.similar import similar
from galscan.commands.vet import vet
from galscan.core.errors import ConflictError, InputError
from galscan.scanning.partitions import embeddings_path
from galscan.scanning.run import open_run
from galscan.store.layout import open_store
from galscan.vetting.labels import read_labels
from galscan.vetting.sampling import BLANK, POSITIVE
from tests.grading import book, served
from tests.helpers import tiny_bundle, tiny_store


@pytest.fixture(scope="module")
def place(tmp_path_factory, scans_here, no_pages):
    """A scan with embeddings of 700 objects, three of them unusable; 7 and 8 are the same picture."""
    place = tmp_path_factory.mktemp("similar")
    tiny_store(place / "sky.zarr", 700, 32, survey="sky", unusable=3)
    import zarr

    group = zarr.open_group(place / "sky.zarr", mode="r+")
    group["images"][8] = group["images"][7]
    tiny_bundle(place / "model")
    line = f"scan --store {place}/sky.zarr --model {place}/model --embeddings --workers 1 --top 60 --out {place}/run"
    assert main.run(line.split()) == 0
    return place


@pytest.fixture(scope="module")
def like(place):
    """A list as the command line makes it."""
    line = f"similar --run {place}/run --like 1007,1020 --top 80 --out {place}/like"
    assert main.run(line.split()) == 0
    return place / "like"


def test_the_list_is_in_the_order_of_likeness_and_without_its_examples(place, like):
    run = open_run(like)
    frame = run.candidates
    assert len(frame) == 80 and not {1007, 1020} & set(frame["objid"])
    assert (np.diff(frame["score"]) <= 0).all() and (frame["rank"] == np.arange(1, 81)).all()
    assert frame[["p_target", "purity", "purity_lo", "purity_hi", "completeness"]].isna().all(axis=None)
    store = open_store(place / "sky.zarr")
    assert (store.column("id")[frame["index"]] == frame["objid"]).all()
    assert "not a probability" in run.summary()["text"] and info(like)["candidates"] == 80
    assert Image.open(like / "contact.png").size[0] > 500
    info(like, sheet=place / "sheet.png")


def test_the_same_picture_is_the_nearest_of_all(place):
    frame = similar(run=place / "run", like=1007, top=5, out=place / "twin").candidates
    assert frame["objid"][0] == 1008 and frame["score"][0] == pytest.approx(1, abs=1e-3)


def test_larger_stores_and_images_are_resampled_for_the_network(place, tmp_path, scans_here):
    store = tiny_store(tmp_path / "large.zarr", 60, 48, survey="large")
    Image.fromarray(store.images(slice(30, 31))[0]).save(tmp_path / "mine.png")
    options = {"image": tmp_path / "mine.png", "store": store.path, "model": place / "model"}
    got = similar(**options, top=3, out=tmp_path / "like").candidates
    assert got["objid"][0] == 1030 and got["score"][0] == pytest.approx(1, abs=1e-3)


def test_a_picture_from_elsewhere_finds_its_own(place, tmp_path):
    image = open_store(place / "sky.zarr").images(slice(30, 31))[0]
    Image.fromarray(image).save(tmp_path / "mine.png")
    run = similar(run=place / "run", image=tmp_path / "mine.png", top=3, out=tmp_path / "like")
    assert run.candidates["objid"][0] == 1030 and run.info.like[0]["file"] == str(tmp_path / "mine.png")
    planes = image.transpose(2, 0, 1)[::-1, ::-1].astype(np.float32)
    fits.writeto(tmp_path / "mine.fits", planes + np.random.default_rng(0).normal(0, 1, planes.shape))
    mixed = similar(run=place / "run", image=tmp_path / "mine.fits", like="1030", top=3, out=tmp_path / "mixed")
    assert len(mixed.info.like) == 2 and 1030 not in set(mixed.candidates["objid"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("no.png", None, "no such file"),
        ("text.txt", b"galaxy", "ends in none of the suffixes of JPEG, PNG and FITS"),
        ("broken.jpg", b"\xff\xd8\xff nothing", "square cutout"),
        ("broken.fits", b"SIMPLE  =", "square cutout"),
        ("wide.png", (40, 60, 3), "40 x 60 pixels, not square"),
        ("flat.png", (40, 40, 3), "all pixels are equal"),
    ],
)
def test_a_bad_picture_is_one_line_and_leaves_nothing(name, content, words, place, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        Image.fromarray(np.full(content, 7, np.uint8)).save(path)
    with pytest.raises(InputError, match=words):
        similar(run=place / "run", image=path, out=tmp_path / "like")
    assert not (tmp_path / "like").exists()


def test_the_same_list_is_there_already_and_another_is_refused(place, like, capsys):
    before = (like / "run.json").read_bytes()
    assert len(similar(run=place / "run", like=["1020", "1007"], top=80, out=like).candidates) == 80
    assert "nothing to do" in capsys.readouterr().err and (like / "run.json").read_bytes() == before
    (like / "candidates.parquet").unlink()
    assert len(similar(run=place / "run", like=["1020", "1007"], top=80, out=like).candidates) == 80
    with pytest.raises(ConflictError, match="holds another scan: top was 80, now 81"):
        similar(run=place / "run", like=["1007", "1020"], top=81, out=like)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("similar --run {run}", "no examples: name objects of the survey with --like"),
        ("similar --run {run} --like 1007,", "no examples: "),
        ("similar --run {run} --like 5", "not one of the 697 objects"),
        ("similar --run {run} --like 1699", "was quarantined"),
        ("similar --run {run} --like 1007 --model {model}", "--run already names stores and a model"),
        ("similar --run {run} --like 1007 --top 0", "--top"),
        ("similar --run {model} --like 1007", "is not the folder of a scan"),
        ("similar --like 1007", "nothing to scan"),
        ("vet {like} --width 0.1", "purity cannot be estimated"),
        ("export {like} --min-purity 0.5 --out x.fits", "limit it with --top"),
        ("purity {like}", "galscan train-rare --target NEW.toml --grades"),
        ("scan --store {sky} --model {model} --embeddings --cascade", "has no prefilter|have no embedding"),
    ],
)
def test_mistakes_are_one_line(line, words, place, like, capsys):
    names = {name: place / name for name in ("run", "model")} | {"like": like, "sky": place / "sky.zarr"}
    assert main.run(line.format(**names).split()) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert pd.Series([err]).str.contains(words.replace("?", "[?]"))[0], err


def test_a_model_that_is_another_by_now_sees_no_pictures_but_ids_still_do(place, tmp_path):
    for name in ("model", "run"):
        shutil.copytree(place / name, tmp_path / name)
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(told | {"model": str(tmp_path / "gone")}))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="is missing or has changed since the scan"):
        similar(run=tmp_path / "run", image=tmp_path / "a.png", out=tmp_path / "x")
    assert not similar(run=tmp_path / "run", like=1007, top=9, out=tmp_path / "y").candidates["in_train"].any()


def test_stores_and_a_model_are_scanned_once_and_searched_as_often_as_wanted(place, galscan_home, capsys):
    first = similar(store=place / "sky.zarr", model=place / "model", like=1007, top=9)
    assert first.path.parent == galscan_home / "runs" and "scanning 700 objects" in capsys.readouterr().err
    second = similar(store=place / "sky.zarr", model=place / "model", like=1008, top=9)
    assert "scanning" not in capsys.readouterr().err and second.path != first.path
    assert len(list((galscan_home / "runs").iterdir())) == 3


def test_other_scans_stay_what_they_were_asked_for(place):
    from galscan.models.model import open_model
    from galscan.scanning.plan import make_plan

    stores, bundles = [open_store(place / "sky.zarr")], [open_model(place / "model")]
    assert "embeddings" not in make_plan(stores, bundles).identity
    assert make_plan(stores, bundles, embeddings=True).identity["embeddings"] == 64


def test_removed_or_damaged_embeddings_are_made_again_by_the_same_command(place, tmp_path):
    run = shutil.copytree(place / "run", tmp_path / "run")
    path = embeddings_path(run, 1)
    before, best = path.read_bytes(), (run / "candidates.parquet").read_bytes()
    path.unlink()
    with pytest.raises(InputError, match=r"run its scan command again"):
        similar(run=run, like=1007, out=tmp_path / "like")
    options = {"store": place / "sky.zarr", "model": place / "model", "top": 60, "workers": 1, "embeddings": True}
    scan(**options, out=run)
    assert path.read_bytes() == before and (run / "candidates.parquet").read_bytes() == best


def test_the_vetting_page_shows_it_and_its_grades_teach_any_target(place, like, tmp_path):
    told = vet(like, serve=False, best=20, size=40)
    strata = {s["stratum"]: s["objects"] for s in told["sample"]}
    assert sum(strata.values()) == 695 and told["controls"] == {"positive": 2, "blank": 4}
    assert "train-rare --target NEW.toml" in told["text"]
    with served(like) as (_, address):
        page, _, token = address.partition("?")
        items = json.load(urllib.request.urlopen(f"{page}api/items?{token}"))["items"]
        assert len(items) == sum(s["drawn"] for s in told["sample"]) + 6
        assert urllib.request.urlopen(f"{page}image/{items[0]['item']}.png?{token}").read(4) == b"\x89PNG"
    with book(like) as one:
        items = one.items()
        assert (
            set(items.loc[items["kind"] == POSITIVE, "id"]) == {"1007", "1020"} and (items["kind"] == BLANK).sum() == 4
        )
        for item in items["item"]:
            one.record(f"key-{item:05d}", int(item), "ann", "A" if item % 3 else "not")
    taught = read_labels(like)
    assert taught.target is None and len(taught.held_out) == 0 and len(taught.table) == len(items) - 6
    with pytest.raises(InputError, match="ranks objects by similarity to examples, which is not calibrated"):
        purity(like)


def test_exports_say_what_the_order_is(like, tmp_path):
    export(like, tmp_path / "x.fits")
    header = fits.getheader(tmp_path / "x.fits", 1)
    assert "PURMETH" not in header and "ranked by similarity to examples" in str(header["HISTORY"])
    assert len(Table.read(tmp_path / "x.fits")) == 80
    for name in ("x.vot", "x.csv", "x.pdf", "x.reg", "x.moc.json"):
        assert export(like, tmp_path / name).path.stat().st_size > 100
    known = Path(tmp_path / "known.csv")
    frame = open_run(like).candidates
    known.write_text(f"name,ra,dec\nmine,{frame['ra'][0]},{frame['dec'][0]}\n")
    assert export(like, tmp_path / "k.csv", known=known).known == 1


def test_a_list_can_be_searched_in_turn(like, tmp_path):
    again = similar(run=like, like=int(open_run(like).candidates["objid"][0]), top=5, out=tmp_path / "again")
    assert len(again.candidates) == 5 and again.info.scanned == 696  # but for its own example
