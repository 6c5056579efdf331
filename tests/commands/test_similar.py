from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from astropy.io import fits
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
from galscan.vetting.labels import read_labels
from galscan.vetting.sampling import BLANK, POSITIVE
from tests.grading import book
from tests.helpers import tiny_store


@pytest.fixture(scope="module")
def source(tmp_path_factory, shared_store, shared_model, scans_here, no_pages):
    """Return a scan with embeddings of 700 objects, three of them unusable."""
    out = tmp_path_factory.mktemp("similar") / "run"
    return scan(store=shared_store.path, model=shared_model.path, embeddings=True, workers=1, top=60, out=out).path


@pytest.fixture(scope="module")
def like(source):
    """Return the list of a command."""
    line = f"similar --run {source} --like 1007,1020 --top 80 --out {source.parent}/like"
    assert main.run(line.split()) == 0
    return source.parent / "like"


def test_list_in_order_of_similarity_without_its_examples(like, shared_store, tmp_path):
    run = open_run(like)
    frame = run.candidates
    assert len(frame) == 80 and not {1007, 1020} & set(frame["objid"])
    assert (np.diff(frame["score"]) <= 0).all() and (frame["rank"] == np.arange(1, 81)).all()
    assert frame[["p_target", "purity", "purity_lo", "purity_hi", "completeness"]].isna().all(axis=None)
    assert (shared_store.column("id")[frame["index"]] == frame["objid"]).all()
    assert "not a probability" in run.summary()["text"] and info(like)["candidates"] == 80
    assert Image.open(like / "contact.png").size[0] > 500
    info(like, sheet=tmp_path / "sheet.png")


def test_images_as_examples(source, shared_store, tmp_path):
    image = shared_store.images(slice(30, 31))[0]
    Image.fromarray(image).save(tmp_path / "mine.png")
    run = similar(run=source, image=tmp_path / "mine.png", top=3, out=tmp_path / "like")
    assert run.candidates["objid"][0] == 1030 and run.candidates["score"][0] == pytest.approx(1, abs=1e-3)
    assert run.info.like[0]["file"] == str(tmp_path / "mine.png")
    planes = image.transpose(2, 0, 1)[::-1, ::-1].astype(np.float32)
    fits.writeto(tmp_path / "mine.fits", planes + np.random.default_rng(0).normal(0, 1, planes.shape))
    mixed = similar(run=source, image=tmp_path / "mine.fits", like="1030", top=3, out=tmp_path / "mixed")
    assert len(mixed.info.like) == 2 and 1030 not in set(mixed.candidates["objid"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no.png", None), ("text.txt", b"galaxy"), ("broken.jpg", b"\xff\xd8\xff nothing"),
        ("broken.fits", b"SIMPLE  ="), ("wide.png", (40, 60, 3)), ("flat.png", (40, 40, 3)),
    ],
)  # fmt: skip
def test_invalid_images(name, content, source, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        Image.fromarray(np.full(content, 7, np.uint8)).save(path)
    with pytest.raises(InputError, match=f"--image .*{name}"):
        similar(run=source, image=path, out=tmp_path / "like")
    assert not (tmp_path / "like").exists()


def test_finished_list_is_reused_and_another_is_rejected(source, like, capsys):
    before = (like / "run.json").read_bytes()
    options = {"run": source, "like": ["1020", "1007"], "out": like}
    assert len(similar(**options, top=80).candidates) == 80
    assert "nothing to do" in capsys.readouterr().err and (like / "run.json").read_bytes() == before
    (like / "candidates.parquet").unlink()
    assert len(similar(**options, top=80).candidates) == 80
    with pytest.raises(ConflictError, match="top was 80, now 81"):
        similar(**options, top=81)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("similar --run {run}", "--like"),
        ("similar --run {run} --like 1007,", "no examples"),
        ("similar --run {run} --like 5", "--like 5"),
        ("similar --run {run} --like 1699", "--like 1699"),
        ("similar --run {run} --like 1007 --model {model}", "--run"),
        ("similar --run {run} --like 1007 --top 0", "--top"),
        ("similar --run {model} --like 1007", "is not the folder of a scan"),
        ("similar --like 1007", "nothing to scan"),
        ("vet {like} --width 0.1", "purity"),
        ("export {like} --min-purity 0.5 --out x.fits", "--top"),
        ("purity {like}", "train-rare"),
    ],
)
def test_invalid_options(line, words, source, like, shared_model, capsys):
    assert main.run(line.format(run=source, like=like, model=shared_model.path).split()) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_missing_model(source, tmp_path):
    run = shutil.copytree(source, tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"model": str(tmp_path / "gone")}))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="gone"):
        similar(run=run, image=tmp_path / "a.png", out=tmp_path / "x")
    assert not similar(run=run, like=1007, top=9, out=tmp_path / "y").candidates["in_train"].any()


def test_a_store_of_larger_images_is_scanned_once(shared_model, scans_here, no_pages, galscan_home, tmp_path, capsys):
    store = tiny_store(tmp_path / "large.zarr", 60, 48, survey="large")
    Image.fromarray(store.images(slice(30, 31))[0]).save(tmp_path / "mine.png")
    options = {"store": store.path, "model": shared_model.path, "top": 3}
    first = similar(**options, image=tmp_path / "mine.png")
    assert first.candidates["objid"][0] == 1030 and first.candidates["score"][0] == pytest.approx(1, abs=1e-3)
    assert first.path.parent == galscan_home / "runs" and "scanning 60 objects" in capsys.readouterr().err
    second = similar(**options, like=1008)
    assert "scanning" not in capsys.readouterr().err and second.path != first.path
    assert len(list((galscan_home / "runs").iterdir())) == 3


def test_removed_embeddings_are_recomputed_by_the_same_scan(source, shared_store, shared_model, tmp_path):
    run = shutil.copytree(source, tmp_path / "run")
    path = embeddings_path(run, 1)
    before, candidates = path.read_bytes(), (run / "candidates.parquet").read_bytes()
    path.unlink()
    with pytest.raises(InputError, match=path.name):
        similar(run=run, like=1007, out=tmp_path / "like")
    scan(store=shared_store.path, model=shared_model.path, top=60, workers=1, embeddings=True, out=run)
    assert path.read_bytes() == before and (run / "candidates.parquet").read_bytes() == candidates


def test_grades_of_a_list_are_labels_for_any_target(like):
    sample = vet(like, serve=False, best=20, size=40)
    assert sum(stratum["objects"] for stratum in sample["sample"]) == 695
    assert sample["controls"] == {"positive": 2, "blank": 4} and "train-rare --target NEW.toml" in sample["text"]
    with book(like) as grades:
        items = grades.items()
        assert set(items.loc[items["kind"] == POSITIVE, "id"]) == {"1007", "1020"}
        assert (items["kind"] == BLANK).sum() == 4
        for item in items["item"]:
            grades.record(f"key-{item:05d}", int(item), "ann", "A" if item % 3 else "not")
    labels = read_labels(like)
    assert labels.target is None and len(labels.held_out) == 0 and len(labels.table) == len(items) - 6
    with pytest.raises(InputError, match="similarity"):
        purity(like)


def test_exports(like, tmp_path):
    header = fits.getheader(export(like, tmp_path / "x.fits"), 1)
    assert "PURMETH" not in header and "ranked by similarity to examples" in str(header["HISTORY"])
    assert header["NAXIS2"] == 80
    for name in ("x.pdf", "x.moc.json"):
        assert export(like, tmp_path / name).path.stat().st_size > 100
    known = tmp_path / "known.csv"
    open_run(like).candidates[["ra", "dec"]].head(1).assign(name="mine").to_csv(known)
    assert export(like, tmp_path / "k.csv", known=known).known == 1


def test_a_list_can_be_searched(like, tmp_path):
    again = similar(run=like, like=int(open_run(like).candidates["objid"][0]), top=5, out=tmp_path / "again")
    assert len(again.candidates) == 5 and again.info.scanned == 696  # without its own example
