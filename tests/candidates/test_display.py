from __future__ import annotations

import json
import shutil

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from galscan.candidates import display
from galscan.candidates.run import Run, open_run
from galscan.core.errors import InputError
from tests.candidate_tables import candidates, info, write_run
from tests.helpers import tiny_store

matplotlib.use("agg")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a run of 60 candidates, and the store they are in."""
    place = tmp_path_factory.mktemp("display")
    store = tiny_store(place / "sky.zarr", 80, 32, survey="sdss")
    entry = {"name": "sdss", "path": str(store.path), "content_hash": store.content_hash, "count": 80}
    write_run(place / "run", candidates(60), stores=[entry], target="<dust>", candidates=60)
    return place


def test_html(place):
    text = open_run(place / "run")._repr_html_()
    assert text.count("<img") == 12 and "Run &lt;dust&gt;" in text and "<dust>" not in text
    assert "polyline" in text and "16,753" in text and "0.4 % (0.1 to 1)" in text and "90 % (60 to 100)" in text


def test_html_of_a_run_whose_store_is_gone_or_whose_purity_is_unknown(place, tmp_path):
    gone = write_run(tmp_path / "gone", candidates(5))
    assert "<img" not in open_run(gone)._repr_html_()
    unknown = dict.fromkeys(("purity", "purity_lo", "purity_hi"), np.nan)
    purity = {"unknown": "the survey is <another>", "notes": [], "confidence": 0.95, "at": {}}
    path = write_run(tmp_path / "unknown", candidates(5).assign(**unknown), purity=purity)
    text = open_run(path)._repr_html_()
    assert "polyline" not in text and "the survey is &lt;another&gt;" in text and "prevalence" not in text
    axes = open_run(path).plot_purity(Figure().add_subplot())
    assert "another" in axes.texts[0].get_text()
    path = write_run(tmp_path / "empty", candidates(5).head(0), candidates=0)
    assert "Run dustlane" in open_run(path)._repr_html_()
    assert open_run(path).plot_purity(Figure().add_subplot()).get_xlabel() == "rank"


def test_plans_and_scans_for_several_targets(place, tmp_path):
    plan = Run(tmp_path, open_run(place / "run").info.updated(status="planned"))
    assert "planned" in plan._repr_html_() and "planned" in repr(plan)
    with pytest.raises(InputError, match="planned"):
        plan.table()
    several = tmp_path / "several"
    write_run(several, targets=["a", "b"], target="a+b")
    for target in "ab":
        shutil.copytree(place / "run", several / target)
        changes = json.loads((several / target / "run.json").read_text())
        changes |= {"target": target, "targets": ["a", "b"], "tables": ".."}
        (several / target / "run.json").write_text(json.dumps(info(**changes)))
    run = open_run(several)
    assert run._repr_html_().count("<img") == 12 and type(run.of("a")) is Run
    assert len(run.table("b")) == 60 and run.table("b").meta["TARGET"] == "b"
    with pytest.raises(InputError, match="several targets"):
        run.table()
    assert "Run a<" in run.of("a")._repr_html_()
    with pytest.raises(InputError, match="not for 'b'"):
        run.of("a").table("b")
    with pytest.raises(InputError, match="'c'"):
        run.plot_purity(target="c")


def test_plot_with_and_without_grades(place, tmp_path):
    run = open_run(place / "run")
    axes = run.plot_purity(Figure().add_subplot())
    line = axes.lines[0]
    assert (line.get_ydata() == run.candidates["purity"]).all() and axes.get_xscale() == "log"
    path = shutil.copytree(place / "run", tmp_path / "graded")
    run.candidates.assign(purity=0.25, grade="A").to_parquet(path / "candidates-graded.parquet", index=False)
    (path / "purity.json").write_text(json.dumps({"after": run.info.purity}))
    graded = open_run(path).plot_purity(Figure().add_subplot())
    drawn = {float(line.get_ydata()[0]) for line in graded.lines}
    assert drawn == {0.25, float(run.candidates["purity"][0])}
    assert "grade" in open_run(path).table().colnames


def test_a_long_list_is_drawn_at_a_subset_of_its_ranks(tmp_path):
    path = write_run(tmp_path / "run", candidates(30_000))
    frame = display._rows(path / "candidates.parquet", display.CURVE)
    assert 1000 < len(frame) < 10_000 and frame["rank"].iloc[-1] == 30_000
