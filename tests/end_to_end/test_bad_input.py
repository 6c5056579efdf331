"""What people really give, through the real command line: one line that names the thing and the remedy.

Nothing half-written is left, and no traceback is shown. Elsewhere, at the command line too: a scan interrupted, killed
or on a full disk (tests/faults/test_scan_faults.py), options of the wrong type (tests/cli/test_main.py).
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from galscan.cli import main
from galscan.labels.schema import load_schema
from galscan.store import layout
from galscan.synthesis.diffusion.galaxy_model import Generator, make_config
from tests.candidate_tables import candidates, write_run
from tests.helpers import tiny_model, tiny_recipe, tiny_store

ROOT = Path(__file__).parents[2]


def picture(path: Path, shape: tuple[int, int] = (32, 32), seed: int = 0) -> Path:
    """Write a picture of a galaxy as a survey would give it."""
    y, x = (np.mgrid[: shape[0], : shape[1]].T - np.array(shape) / 2).T
    blob = 200 * np.exp(-(x**2 + y**2) / 60)[..., None] + np.random.default_rng(seed).normal(20, 4, (*shape, 3))
    Image.fromarray(blob.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a folder with one of everything: images, stores, a model, a run, a recipe, and a data home."""
    place = tmp_path_factory.mktemp("place")
    for name in ("im", "bare", "home/surveys"):
        (place / name).mkdir(parents=True)
    for k in (1, 2, 3):
        picture(place / "im" / f"{k}.jpg", seed=k)
    for name, text in CATALOGS.items():
        (place / name).write_bytes(text.encode("latin-1"))
    sky = "ingest --survey simulated --size 32 --count 300 --workers 1 --rare-fraction"
    assert main.run(shlex.split(f"{sky} 0.1 --out {place}/sky.zarr")) == 0
    assert main.run(shlex.split(f"{sky} 0 --out {place}/plain.zarr")) == 0
    (place / "home" / "surveys" / "sky.zarr").symlink_to(place / "sky.zarr")
    tiny_store(place / "tiny.zarr", 40)
    tiny_store(place / "large.zarr", 20, 48, survey="large")
    tiny_store(place / "small.zarr", 20, 24, survey="small")
    layout.create(place / "none.zarr", survey="none", count=0, size=32, id_dtype="int64", schemas={}, provenance={})
    layout.finish(place / "none.zarr", "x")
    layout.create(place / "half.zarr", survey="half", count=9, size=32, id_dtype="int64", schemas={}, provenance={})
    model = tiny_model(place / "model")
    for name, text in (("cut", "{"), ("lost", json.dumps({k: v for k, v in model.info.items() if k != "weights"}))):
        (place / name).mkdir()
        (place / name / "model.json").write_text(text)
    write_run(place / "run", candidates(2000))
    tiny_recipe(place / "recipe.toml")
    tiny_recipe(place / "whole.toml", whole=True)
    text = (place / "recipe.toml").read_text()
    (place / "both.toml").write_text(text.replace("positives = 0", "positives = 4"))
    (place / "cut.safetensors").write_bytes(b"not weights")
    write_generator(place / "g.safetensors")
    return place


def write_generator(path: Path) -> None:
    """Write a generator with random weights."""
    images = np.random.default_rng(0).integers(0, 255, (1, 16, 16, 3), np.uint8)
    network = Generator(make_config(images, load_schema("simulated"), ["a"], (32, 32)))
    network.save(path)


CATALOGS = {
    "good.csv": "id\n1\n2\n3\n", "twice.csv": "id\n1\n2\n2\n2\n", "nokey.csv": "key,colour\n1,2\n",
    "others.csv": "id\n77\n78\n", "empty.csv": "id\n", "dec.csv": "id,ra,dec\n1,10,95\n",
    "outside.csv": "id,file\n1,../x.jpg\n", "sky.csv": "id,ra,dec\n1,10,2\n",
    "bad.csv": "\xff\xfe\0garbage\x80", "bad.fits": "not FITS", "bad.parquet": "PAR1", "table.xlsx": "PK",
}  # fmt: skip


@pytest.fixture(autouse=True)
def data_home(place, monkeypatch):
    monkeypatch.setenv("GALSCAN_HOME", str(place / "home"))


def tree(*places: Path) -> dict[str, tuple[int, int]]:
    """Return all files below some folders with size and time of change (a run's lock file says nothing)."""
    found = (p for place in places for p in place.rglob("*") if p.name != ".lock")
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) if p.is_file() else (0, 0) for p in found}


def error_line(err: str) -> str:
    """Return the error message, after checking that it is one line and the last one."""
    errors = [line for line in err.splitlines() if "error:" in line.lower()]
    assert len(errors) == 1 and errors[0].startswith("error: ") and err.rstrip().endswith(errors[0]), err
    assert "Traceback" not in err and "unexpected" not in errors[0]
    return errors[0]


LOCAL = "ingest --survey local --workers 1 --size 16 --path {p}/im --out {o}/s.zarr"
TRAIN = "train-rare --target {p}/recipe.toml --store {p}/sky.zarr --device cpu"
TRAIN_GENERATOR = "train-generator --count 16 --steps 1 --device cpu"
GENERATE = "generate --target {p}/whole.toml --count 3 --steps 1 --device cpu"
WITH = " --generator {p}/g.safetensors --store {p}/sky.zarr --out {o}/d"
EVALUATE = "evaluate {p}/sky.zarr --device cpu"
ABLATE = "ablate --target {p}/recipe.toml --store {p}/sky.zarr --device cpu --out {o}/a"
SCAN = "scan --store {p}/tiny.zarr --model {p}/model --workers 1"
MISTAKES = [
    # the catalog
    (LOCAL + " --catalog {p}/no.csv", "no.csv"),
    (LOCAL + " --catalog {p}/im", "/im"),
    *((f"{LOCAL} --catalog {{p}}/bad.{s}", f"bad.{s}") for s in ("csv", "fits", "parquet")),
    (LOCAL + " --catalog {p}/table.xlsx", ".csv"),
    (LOCAL + " --catalog {p}/empty.csv", "empty.csv"),
    (LOCAL + " --catalog {p}/twice.csv", "'2'"),
    (LOCAL + " --catalog {p}/nokey.csv", "--column id="),
    (LOCAL + " --catalog {p}/others.csv", "'77'", "'1.jpg'", "--column id="),
    (LOCAL + " --catalog {p}/dec.csv", "95"),
    (LOCAL + " --catalog {p}/outside.csv", "'../x.jpg'"),
    # the images
    ("ingest --survey local --out {o}/s.zarr", "--path"),
    ("ingest --survey frames --out {o}/s.zarr", "--path"),
    ("ingest --survey frames --path {p}/im --out {o}/s.zarr", "--catalog"),
    ("ingest --survey simulated --bands gri --out {o}/s.zarr", "bands"),
    ("ingest --survey local --path {p}/nowhere --out {o}/s.zarr", "--path"),
    ("ingest --survey local --path {p}/good.csv --out {o}/s.zarr", "good.csv", "--path"),
    ("ingest --survey local --path {p}/bare --out {o}/s.zarr", "/bare"),
    # surveys by service; no request is made
    ("ingest --survey sds --catalog {p}/good.csv --out {o}/s.zarr", "'sds'", "'sdss'"),
    ("ingest --survey {p}/no.toml --catalog {p}/good.csv --out {o}/s.zarr", "no.toml"),
    ("ingest --survey sdss --out {o}/s.zarr", "'sdss'", "--catalog TABLE", "--query gz2"),
    ("ingest --survey sdss --catalog {p}/nokey.csv --out {o}/s.zarr", "--column id="),
    ("ingest --survey sdss --catalog {p}/twice.csv --column ra=id --column dec=id --out {o}/s.zarr", "'2'"),
    ("ingest --survey sdss --query gz3 --out {o}/s.zarr", "'gz3'"),
    ("ingest --survey sdss --cone 1,2 --out {o}/s.zarr", "'1,2'"),
    ("ingest --survey sdss --cone 1,99,2 --out {o}/s.zarr", "1,99,2"),
    ("ingest --survey legacy-dr10 --layer ls-dr11 --catalog {p}/good.csv --out {o}/s.zarr", "ls-dr11"),
    # frames over the network; no request is made
    ("ingest --survey sdss-frames --catalog {p}/sky.csv --out {o}/s.zarr", "--query gz2", "--column"),
    ("ingest --survey sdss-frame --catalog {p}/good.csv --out {o}/s.zarr", "'sdss-frames'"),
    ("ingest --survey legacy-bricks --cone 1,2,3 --out {o}/s.zarr", "--catalog TABLE"),
    ("ingest --survey sdss --keep-frames {o}/f --catalog {p}/good.csv", "keep-frames"),
    ("ingest --survey sdss --path {p}/im --catalog {p}/good.csv --out {o}/s.zarr", "path"),
    # names that do not exist
    ("ingest --survey locl --out {o}/s.zarr", "'locl'", "'local'"),
    (LOCAL + " --catalog {p}/good.csv --labels efigy", "'efigy'", "'efigi'"),
    (LOCAL + " --catalog {p}/good.csv --labels efigi", "'efigi'", "'efigi_t'"),
    (LOCAL + " --catalog {p}/good.csv --column idd=id", "'idd'", "'id'"),
    (LOCAL + " --catalog {p}/good.csv --column id=idx", "'idx'", "'id'"),
    ("train-rare --target dustlan --store {p}/sky.zarr --out {o}/m", "'dustlan'", "'dustlane'"),
    ("train-rare --target {p}/no.toml --store {p}/sky.zarr --out {o}/m", "no.toml"),
    (TRAIN + " --out {o}/m --device cud", "'cud'", "'cuda'"),
    (TRAIN + " --out {o}/m --survey skyy", "'skyy'", "'sky'"),
    (TRAIN + " --out {o}/m --store {p}/no.zarr", "no.zarr"),
    (SCAN + " --out {o}/run --device gpu", "'gpu'"),
    (SCAN + " --out {o}/run --cluster lokal", "'lokal'", "'local'"),
    ("scan --store {p}/tiny.zarr --out {o}/run --target dustlan", "'dustlan'", "'dustlane'"),
    ("scan --store {p}/tiny.zarr --out {o}/run --target ring", "'ring'"),
    ("scan --store {p}/tiny.zarr --out {o}/run --model {p}/im", "/im"),
    ("export {p}/run --out {o}/c.fits --format fit", "'fit'", "'fits'"),
    ("export {p}/run --out {o}/c.fitz", "'.fitz'", "'.fit'", "--format"),
    ("export {p}/model --out {o}/c.fits", "/model"),
    ("export {p}/run --out {o}/c.fits --crossmatch simbat", "'simbat'", "'simbad'"),
    ("export {p}/run --out {o}/c.fits --crossmatch vizier:", "vizier:"),
    ("export {p}/run --out {o}/c.fits --crossmatch ned,ned", "ned"),
    ("export {p}/run --out {o}/c.fits --crossmatch ned --radius 90", "--radius 90"),
    ("export {p}/run --out {o}/c.fits --contact me@example.org", "--contact"),
    ("export {p}/run --out {o}/c.moc.fits --crossmatch ned", "MOC"),
    ("info {p}/no.zarr", "no.zarr"),
    # what does not fit together
    ("train-rare --target {p}/recipe.toml --store {p}/plain.zarr --out {o}/m", "'dustlane'", "--store"),
    ("train-rare --target {p}/recipe.toml --store {p}/tiny.zarr --out {o}/m", "simulated"),
    ("train-rare --target dustlane --store {p}/sky.zarr --out {o}/m", "--size 96"),
    ("train-rare --target {p}/both.toml --store {p}/sky.zarr --out {o}/m", "'maps'", "synthetic.positives"),
    ("train-rare --target {p}/recipe.toml --store {p}/none.zarr --out {o}/m", "none.zarr"),
    (SCAN + " --store {p}/small.zarr --out {o}/run", "--size 32"),
    (SCAN + " --store {p}/none.zarr --out {o}/run", "none.zarr"),
    (SCAN + " --store {p}/half.zarr --out {o}/run", "half.zarr"),
    (SCAN + " --store {p}/im --out {o}/run", "/im"),
    (SCAN + " --target ring --out {o}/run", "'dustlane'", "'ring'", "--model"),
    ("scan --store {p}/tiny.zarr --model {p}/cut --out {o}/run", "cut/model.json"),
    ("scan --store {p}/tiny.zarr --model {p}/lost --out {o}/run", "model.json"),
    # a generator alone
    (TRAIN_GENERATOR + " --out {o}/g.pt", "g.pt", ".safetensors"),
    (TRAIN_GENERATOR + " --out {o}/g.safetensors --schema efigy", "efigy"),
    (TRAIN_GENERATOR + " --out {o}/g.safetensors --store {p}/tiny.zarr", "--schema"),
    (TRAIN_GENERATOR + " --out {o}/g.safetensors --store {p}/sky.zarr --store {p}/large.zarr", "--size"),
    (TRAIN_GENERATOR + " --out {o}/g.safetensors --budget 0", "--budget 0"),
    (TRAIN_GENERATOR + " --out {p}/g.safetensors", "g.safetensors", "--out"),
    # synthetic galaxies
    (GENERATE + WITH.replace("sky.zarr", "tiny.zarr"), "--store"),
    (GENERATE + WITH.replace("g.safetensors", "no.safetensors"), "no.safetensors"),
    (GENERATE + WITH.replace("g.safetensors", "cut.safetensors"), "cut.safetensors"),
    (GENERATE + WITH.replace("g.safetensors", "home"), "/home"),
    (GENERATE + WITH.replace("{p}/g.safetensors", "none"), "--generator none"),
    (GENERATE + WITH + " --model {p}/model", "--model", "--generator"),
    (GENERATE + " --out {o}/d --model {p}/model", "conditions.parquet", "--no-synthetic"),
    (GENERATE + WITH + " --set dust_lan=0:1", "'dust_lan'", "synthetic.set", "'dust_lane'"),
    (GENERATE + WITH + " --set dust_lane", "'dust_lane'", "--set"),
    (GENERATE + WITH + " --set dust_lane=low:1", "'low'", "--set"),
    (GENERATE + WITH + " --set dust_lane=1:0", "synthetic.set.dust_lane"),
    (GENERATE + WITH + " --set dust_lane=0:2", "synthetic.set.dust_lane"),
    (GENERATE + WITH + " --weight dust_lane=much", "'much'", "--weight"),
    (GENERATE + WITH + " --weight dust=2", "'dust'", "synthetic.weights", "'dusty'"),
    (GENERATE + WITH + " --from 'early_typ > 0'", "'early_type'"),
    (GENERATE + WITH + " --from 'early_type > 1'", "early_type"),
    (GENERATE + WITH + " --from 'merger > 0.1 and merger < 0.9'", "merger > 0.1"),
    (GENERATE + WITH.replace("/d", "/no/d"), "/no"),
    *((GENERATE + WITH.replace("{o}/d", f"{{p}}/{x}"), "--out") for x in ("run", "tiny.zarr")),
    # evaluations
    (EVALUATE + " --target {p}/recipe.toml --store {p}/no.zarr", "no.zarr"),
    (EVALUATE + " --target {p}/recipe.toml --store {p}/sky.zarr", "sky.zarr"),
    (EVALUATE.replace("sky.zarr", "im") + " --target {p}/recipe.toml", "/im"),
    # ablations
    (ABLATE + " --prevalence 2", "prevalence"),
    (ABLATE + " --purity 0", "--purity 0"),
    (ABLATE + " --arms map", "'map'", "'maps'"),
    (ABLATE + " --method plain", "--method plain"),
    (ABLATE + " --positives 4000", "--positives 4000"),
    (ABLATE + " --positives 0", "--positives 0", "--negatives"),
    (ABLATE + " --reserved 4000", "--reserved 4000"),
    (ABLATE + " --folds 400", "folds"),
    (ABLATE.replace("{o}/a", "{p}/model"), "--out"),
    # output paths that exist
    *((f"ingest --survey simulated --count 9 --size 32 --out {{p}}/{x}", "--out") for x in ("run", "tiny.zarr")),
    ("ingest --survey simulated --count 9 --size 32 --out {p}/sky.zarr", "--out"),
    *((f"{TRAIN} --out {{p}}/{x}", "--out") for x in ("run", "tiny.zarr", "good.csv")),
    (TRAIN + " --out {p}/model", "--out", "--overwrite"),
    *((f"{SCAN} --out {{p}}/{x}", "--out") for x in ("model", "tiny.zarr", "good.csv")),
    (SCAN + " --out {p}/run", "--out"),
    ("export {p}/run --out {p}/run/candidates.fits", "candidates.fits"),
    ("export {p}/run --out {p}/model --format fits", "/model"),
    # numbers and weights that a generator cannot do with
    (GENERATE + WITH + " --weight dusty=-1", "weights.dusty"),
    (GENERATE + WITH + " --set dusty=nan:1", "set.dusty"),
    (TRAIN_GENERATOR + " --out {o}/g.safetensors --size 17", "17 px"),
    (TRAIN_GENERATOR + " --out {o}/g.safetensors --start {p}/no.safetensors", "no.safetensors"),
    (TRAIN_GENERATOR + " --out {o}/g.safetensors --start {p}/cut.safetensors", "cut.safetensors"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "values"), [(line, values) for line, *values in MISTAKES])
def test_a_mistake_is_one_line_and_changes_nothing(line, values, place, tmp_path, capsys):
    before = tree(place, tmp_path)
    assert main.run(shlex.split(line.format(p=place, o=tmp_path))) == 2
    error = error_line(capsys.readouterr().err)
    assert [value for value in values if value not in error] == []
    assert tree(place, tmp_path) == before


def test_what_may_not_be_read_is_named(place, tmp_path, capsys, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", closed)  # root may read everything
    assert main.run(shlex.split(LOCAL.format(p=place, o=tmp_path))) == 2
    error = error_line(capsys.readouterr().err)
    assert f"no permission to read {place / 'im'}" in error and not list(tmp_path.iterdir())


def test_broken_images_are_counted_quarantined_and_do_not_stop_a_scan(place, tmp_path, capsys, scans_here, no_pages):
    folder = tmp_path / "im"
    folder.mkdir()
    for k, shape in enumerate([(32, 32), (20, 20), (48, 48)]):  # mixed sizes are no mistake
        picture(folder / f"good{k}.jpg", shape, k)
    cut = picture(folder / "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:300])
    (folder / "page.jpg").write_text("<html>404</html>")
    picture(folder / "wide.jpg", (20, 40))
    Image.new("RGB", (32, 32), (9, 9, 9)).save(folder / "even.jpg")
    noise = np.random.default_rng(0).normal(5, 1, (32, 32)).astype(np.float32)
    for name, pixels in {"frame": noise, "nan": noise * np.nan, "flat": noise * 0 + 3, "long": noise[:16]}.items():
        fits.writeto(folder / f"{name}.fits", pixels)
    picture(folder / "norow.jpg")
    names = ["good0", "good1", "good2", "cut", "page", "wide", "even", "frame", "nan", "flat", "long", "noimage"]
    (tmp_path / "c.csv").write_text("\n".join(["id", *names]))
    ingest = f"ingest --survey local --path {folder} --catalog {tmp_path}/c.csv --size 32 --workers 1 --json"
    assert main.run(shlex.split(f"{ingest} --out {tmp_path}/s.zarr")) == 0
    out, err = capsys.readouterr()
    assert "4 cutouts stored" in err and "warning: 1 image(s) have no row" in err and "norow.jpg" in err
    expected = {"unreadable image": 2, "wrong shape": 2, "blank image": 2, "no finite pixels": 1, "no image": 1}
    assert [f"{n} {why}" for why, n in expected.items() if f"{n} {why}" not in err] == []
    facts = json.loads(out.splitlines()[-1])
    assert (facts["objects"], facts["unusable"]) == (12, 8)

    scan = f"scan --store {tmp_path}/s.zarr --model {place}/model --out {tmp_path}/run --json"
    assert main.run(shlex.split(scan)) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (facts["scanned"], facts["quarantined"], facts["quarantine_reasons"]) == (4, 8, expected)
    assert main.run(shlex.split(f"{scan} --top 3")) == 2  # the folder now holds a real run
    assert "top was 1000, now 3" in error_line(capsys.readouterr().err)


@contextmanager
def full_disk(limit: int):
    """Let no file grow beyond `limit` bytes: what a full disk or a quota does, without being root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


INGEST = "ingest --survey simulated --count 300 --size 32 --workers 1 --out {o}/out.zarr"
EXPORTS = [(f"export {{p}}/run --out {{o}}/out.{s}", [5000]) for s in ("fits", "parquet", "csv")]


@pytest.mark.parametrize(
    ("line", "limits"),
    [
        (INGEST, [30_000]),
        (TRAIN + " --out {o}/out", [30_000]),  # at the first weights
        ("info {p}/sky.zarr --sheet {o}/out.png", [5000]),
        *EXPORTS,
    ],
)
def test_a_full_disk_leaves_no_half_file_and_the_same_command_resumes(line, limits, place, tmp_path, capsys):
    line = line.format(p=place, o=tmp_path)
    before = tree(place)
    for limit in limits:
        with full_disk(limit):
            assert main.run(shlex.split(line)) == 1
        error = error_line(capsys.readouterr().err)
        assert f"cannot write {tmp_path}/out" in error and "disk is full" in error and "same command again" in error
        assert [p.name for p in tmp_path.rglob("*") if p.name.endswith(".tmp")] == []
        assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".partial")] == []
    assert tree(place) == before
    if not line.startswith("train-rare"):  # which takes long, and is resumed after Ctrl-C below
        assert main.run(shlex.split(line)) == 0
        assert len(list(tmp_path.iterdir())) == 1


def test_ctrl_c_and_the_same_command_again(place, tmp_path, capsys):
    given = shlex.split((TRAIN + " --no-synthetic --out {o}/out").format(p=place, o=tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-m", "galscan", *given], env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    started, until = tmp_path / "out.partial" / "steps.json", time.monotonic() + 90
    while not started.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "same command" in error_line(err)
    assert not (tmp_path / "out").exists()
    assert main.run(given) == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "out"] and "resuming" in capsys.readouterr().err
