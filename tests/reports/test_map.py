"""The map of a scan: its data read back from the page, and the page used in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from galscan.cli import main
from galscan.commands.scan import scan
from galscan.commands.similar import similar
from galscan.commands.vet import vet
from galscan.core.errors import ConflictError, InputError
from galscan.reports.map import make_map
from galscan.scanning.run import open_run
from tests.chromium import chromium
from tests.json_page import undocumented
from tests.pages import check_page, contrast


@pytest.fixture(scope="module")
def scanned(tmp_path_factory, shared_store, shared_model, scans_here, no_pages):
    """Return a scan with embeddings of 700 objects, three of them unusable: 60 candidates."""
    out = tmp_path_factory.mktemp("map") / "run"
    return scan(store=shared_store.path, model=shared_model.path, embeddings=True, workers=1, top=60, out=out).path


@pytest.fixture(scope="module")
def page(scanned):
    """Return the text of its map."""
    make_map(scanned, thumbnails=40)
    return (scanned / "map.html").read_text(encoding="utf-8")


def element(page: str, name: str) -> str:
    return re.search(rf'<script [^>]*id="{name}">(.*?)</script>', page, re.DOTALL)[1].strip()


def arrays(page: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Return the settings and the arrays of a page, read as its script does."""
    settings = json.loads(element(page, "settings"))
    data = zlib.decompress(base64.b64decode(element(page, "points")))
    found = {}
    for name, kind, offset, length in settings["arrays"]:
        assert offset % np.dtype(kind).itemsize == 0
        found[name] = np.frombuffer(data, np.dtype(kind).newbyteorder("<"), length, offset)
    return settings, found


def test_the_page_holds_all_objects(page, scanned, shared_store):
    settings, data = arrays(page)
    assert settings["count"] == 697 and settings["stores"] == ["sky"]
    np.testing.assert_array_equal(data["id"], shared_store.column("id")[:697])
    np.testing.assert_allclose(data["ra"] * 1e-7, shared_store.column("ra")[:697], atol=1e-7)
    np.testing.assert_allclose(data["dec"] * 1e-7, shared_store.column("dec")[:697], atol=1e-7)
    frame = open_run(scanned).candidates
    row = {int(i): k for k, i in enumerate(data["id"])}
    assert [int(data["rank"][row[i]]) for i in frame["objid"]] == [*range(1, 61)] and (data["rank"] > 0).sum() == 60
    np.testing.assert_allclose(data["score"][[row[i] for i in frame["objid"]]], frame["score"])
    tiles = np.sort(data["tile"][data["tile"] > 0])
    assert list(tiles) == [*range(1, 41)] and (data["tile"][[row[i] for i in frame["objid"][:20]]] > 0).all()
    low, high = settings["answers"]["visible_dust" if "visible_dust" in settings["answers"] else "dusty"]
    assert low < high
    jpeg = base64.b64decode(re.search(r'src="data:image/jpeg;base64,([^"]+)', page)[1])
    sheet = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L")).astype(float)
    best = row[int(frame["objid"][0])]
    top, left = (
        (data["tile"][best] - 1) // settings["sprite"]["columns"],
        (data["tile"][best] - 1) % settings["sprite"]["columns"],
    )
    shown = sheet[top * 64 :, left * 64 :][:64, :64]
    image = Image.fromarray(shared_store.images(slice(int(frame["index"][0]), int(frame["index"][0]) + 1))[0])
    expected = np.asarray(image.resize((64, 64)).convert("L")).astype(float)
    assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.9


def test_the_page_is_self_contained_and_accessible(page):
    check_page(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    assert not re.search(r"(src|href)=.(https?:)?//(?!arxiv)", page)
    dark = re.search(r"prefers-color-scheme: dark.*?:root \{(.*?)\}", page, re.DOTALL)[1]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", dark))
    for ink in ("ink", "soft", "accent"):
        assert contrast(colours[ink], colours["ground"]) >= 4.5 and contrast(colours[ink], colours["wash"]) >= 4.5


def test_json_and_the_plan(scanned, tmp_path, capsys):
    out = tmp_path / "m.html"
    assert main.run(["map", str(scanned), "--out", str(out), "--max-points", "100", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["dry_run"] and plan["points"] == 100 and not out.exists()
    assert main.run(["map", str(scanned), "--out", str(out), "--max-points", "100", "--thumbnails", "9", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["points"], done["of"], done["images"], done["candidates"]) == (100, 697, 9, 60)
    assert done["bytes"] == out.stat().st_size and sum(done["explained"]) <= 1
    for summary in (plan, done):
        assert undocumented("map", summary) == set()


def test_objects_without_images_or_positions_and_with_text_ids(scanned, tmp_path):
    """Without its store a run has no images; ids may be text of any kind."""
    from galscan.reports import map as module

    run = Path(shutil.copytree(scanned, tmp_path / "run"))
    content = json.loads((run / "run.json").read_text())
    content["stores"][0]["path"] = str(tmp_path / "gone.zarr")
    (run / "run.json").write_text(json.dumps(content))
    assert make_map(run)["images"] == 0
    points = module.make_points(module.EmbeddingSpace(open_run(run)), max_points=9, method="pca", seed=0).table
    points = points.assign(id=[f"</script> é {k}" for k in range(9)], ra=np.nan)
    data, ranges, _ = module._arrays(points, [], np.zeros(9, np.uint16))
    assert data["id"].tobytes().decode().split("\0") == list(points["id"]) and ranges == {}
    assert (data["ra"] == module.NO_POSITION).all()
    assert "<" not in module._packed(data)[1]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_points": 2}, "--max-points 2"),
        ({"max_points": 2_000_000}, "1,000,000"),
        ({"thumbnails": -1}, "--thumbnails"),
        ({"method": "tsne"}, "did you mean|known"),
        ({"target": "ring"}, "'ring'"),
        ({"out": "map.png"}, ".html"),
    ],
)
def test_invalid_options(options, word, scanned):
    with pytest.raises(InputError, match=word):
        make_map(scanned, **options)


def test_runs_that_have_no_map(scanned, shared_run, tmp_path, capsys):
    assert main.run(["map", str(shared_run.path)]) == 2
    assert "--embeddings" in capsys.readouterr().err
    report = tmp_path / "report.html"
    report.write_text("kept")
    with pytest.raises(ConflictError, match="report"):
        make_map(scanned, out=report)
    assert report.read_text() == "kept"


# In a browser


def drag(page, points, modifiers=0):
    """Press, move and release the mouse along a path of positions in the map."""
    left, top = page.run("(() => { const b = stage.getBoundingClientRect(); return [b.left, b.top]; })()")
    events = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
    for kind, (x, y) in zip(events, [*points, points[-1]], strict=True):
        page.command(
            "Input.dispatchMouseEvent", type=kind, x=left + x, y=top + y, button="left", buttons=1,
            clickCount=int(kind != "mouseMoved"), modifiers=modifiers,
        )  # fmt: skip


def test_select_save_and_use_the_selection(page, scanned, tmp_path):
    with chromium(tmp_path / "profile") as browser:
        browser.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        # All of the map must be in the window: the mouse reaches nothing outside it.
        browser.command(
            "Emulation.setDeviceMetricsOverride", width=1300, height=1200, deviceScaleFactor=1, mobile=False
        )
        browser.open((scanned / "map.html").as_uri())
        browser.wait("document.body.dataset.ready === 'yes'")
        assert browser.run("count") == 697
        browser.wait("!pending && new Set(pixels).size > 50")  # the browser draws when it has time for a frame
        # The wheel zooms at the pointer, dragging moves the map.
        before = browser.run("view.scale")
        box = browser.run(
            "(() => { const b = stage.getBoundingClientRect(); return [b.left, b.top, width, height]; })()"
        )
        browser.command(
            "Input.dispatchMouseEvent", type="mouseWheel", x=box[0] + 80, y=box[1] + 80, deltaX=0, deltaY=-200
        )
        browser.wait(f"view.scale > {before} * 1.2")
        x = browser.run("view.x")
        drag(browser, [(100, 100), (150, 100), (200, 100)])
        assert browser.run("view.x") == pytest.approx(x - 100 / browser.run("view.scale"))
        browser.run("reset()")
        # A lasso around the left half selects what is there, and Ctrl adds.
        browser.run("use('lasso')")
        width, height, edge = box[2], box[3], 9  # the corners are round
        middle, right, bottom = width / 2, width - edge, height - edge
        drag(browser, [(edge, edge), (middle, edge), (middle, bottom), (edge, bottom)])
        inside = browser.run("Array.from(data.x).filter((x) => x < view.x).length")
        assert browser.run("selectedCount") == inside > 10
        drag(browser, [(middle, edge), (right, edge), (right, bottom), (middle, bottom)], modifiers=2)
        assert browser.run("selectedCount") == 697
        # By keyboard: clear, select the object at the centre.
        browser.run("stage.focus()")
        browser.press("Escape")
        assert browser.run("selectedCount") == 0
        browser.run("view = { ...view, x: data.x[17], y: data.y[17], scale: view.scale * 40 }, 0")
        browser.press("Enter")
        assert browser.run("selected[17]") == 1 and "1017" in browser.run("document.getElementById('card').innerText")
        browser.run("reset()")
        drag(browser, [(edge, edge), (middle, edge), (middle, bottom), (edge, bottom)], modifiers=2)
        count = browser.run("selectedCount")
        browser.run("document.getElementById('save').click()")
        saved, until = tmp_path / "selection.csv", time.monotonic() + 20
        while not saved.exists() and time.monotonic() < until:
            time.sleep(0.05)
        # Colours by category: a button hides its points.
        browser.run("colourBy('rank')")
        browser.run("document.querySelector('#legend button').click()")
        assert browser.run("hidden.has(0)") and browser.run("nearest(0, 0) < 0 || data.rank[nearest(0, 0)] > 0")
        for feature in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": feature}]
            browser.command("Emulation.setEmulatedMedia", features=features)
            light = "true" if feature == "light" else "false"
            browser.wait(f"!pending && (pixels[0] >>> 0 === 0xFFFFFFFF) === {light}")
        browser.command("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=2, mobile=True)
        browser.wait("width < 400 && map.width === 2 * width")
        assert browser.run("document.documentElement.scrollWidth") <= 400
        assert browser.log == []
    lines = saved.read_text().splitlines()
    assert lines[0].startswith("id,store,ra,dec,score") and len(lines) == 1 + count
    run = similar(run=scanned, like=str(saved), top=5, out=tmp_path / "like")
    assert len(run.info.like) == count and len(run.candidates) == 5
    graded = vet(scanned, objects=saved, serve=False)
    assert graded["sample"][0]["drawn"] == count
