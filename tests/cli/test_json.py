"""docs/reference/json.md names the keys of each command: of its result, or of code whose result takes long."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import galscan
from galscan.candidates.export.send import Recipient, Sent
from galscan.cli import main
from galscan.commands.info import summarize
from galscan.scanning.run_info import RunInfo
from tests.json_page import documented, undocumented


@pytest.mark.parametrize("command", main.COMMANDS, ids=lambda command: command.name)
def test_every_command_has_a_section(command):
    assert documented(command.name.split()[0])


def test_keys_of_stores_and_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"out": tmp_path / "s.zarr", "count": 60, "size": 32, "rare_fraction": 0.1, "workers": 1}
    for dry_run in (True, False):
        ingested = galscan.ingest("simulated", dry_run=dry_run, **settings)
        assert undocumented("ingest", summarize(ingested)) == set()
    assert undocumented("info", galscan.info(ingested.path)) == set()
    for result in (
        galscan.new_target("odd"),
        galscan.check_target("dustlane", store=ingested.path, sheet=tmp_path / "sheet.png"),
        galscan.list_targets(),
    ):
        assert undocumented("target", result) == set()


def test_keys_of_models_and_runs(shared_store, shared_model, run_copy, tmp_path):
    assert undocumented("train-rare", shared_model.summary()) == set()
    plan = galscan.scan(store=shared_store.path, model=shared_model.path, out=tmp_path / "new", dry_run=True)
    for run in (plan, galscan.open(run_copy)):
        assert undocumented("scan", run.summary()) == set()
    for out in ("c.fits", "c.moc.fits"):
        assert undocumented("export", galscan.export(run_copy, tmp_path / out).summary()) == set()
    sent = Sent([tmp_path / "c.vot"], 3, 9, [Recipient("topcat", "table.load.votable", True)])
    assert undocumented("send", sent.summary()) == set()
    assert undocumented("vet", galscan.vet(run_copy, size=20, serve=False)) == set()


SOURCE = Path(galscan.__file__).parent
RESULTS = [  # command, module and functions whose results are dictionaries, keys that are removed before the output
    ("evaluate", "synthesis/evaluation.py", ["evaluate"], {"each"}),
    ("evaluate", "commands/evaluate.py", ["_evaluate", "_result"], set()),
    ("ablate", "training/ablation/arms.py", ["evaluate"], {"curves", "detections"}),
    ("ablate", "commands/ablate.py", ["_run"], set()),
    ("generate", "commands/generate.py", ["generate"], set()),
    ("generate", "commands/generate_injected.py", ["describe", "make_injected"], set()),
    ("purity", "commands/purity.py", ["purity"], set()),
    ("feature", "training/measure_feature.py", ["measure_feature"], set()),
]


def literal_keys(node: ast.AST) -> set[str]:
    """Return the keys of the dictionary that an expression of dictionaries, joined by ``|``, makes."""
    if isinstance(node, ast.Dict):
        return {key.value for key in node.keys if isinstance(key, ast.Constant)}
    if isinstance(node, ast.BinOp | ast.Tuple):
        return set().union(*map(literal_keys, ast.iter_child_nodes(node)))
    return set()


@pytest.mark.parametrize(("command", "module", "functions", "removed"), RESULTS)
def test_keys_in_the_code(command, module, functions, removed):
    tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    found = set()
    for function in (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in functions):
        for node in ast.walk(function):
            target = getattr(node, "target", None) or (getattr(node, "targets", None) or [None])[0]
            if isinstance(node, ast.Return) or getattr(target, "id", "") in ("plan", "result", "summary"):
                found |= literal_keys(node.value or node)
    outermost = {key.split(".")[0].removesuffix("[]") for key in documented(command)}
    assert found and found - removed - {"text"} <= outermost


def test_keys_of_a_run():
    outermost = {key.split(".")[0].removesuffix("[]") for key in documented("similar")}
    assert (
        RunInfo.model_fields.keys() - {"identity", "histogram", "histogram_discarded", "completeness_limits"}
        <= outermost
    )


@pytest.mark.parametrize("name", ["diffusion/base.json", "features/dust_lane.json"])
def test_keys_of_trained_weights(name):
    result = json.loads((SOURCE / "synthesis" / name).read_text(encoding="utf-8"))
    assert undocumented("train-generator", result) <= {"note"}


def test_an_undocumented_key_is_found():
    assert undocumented("scan", {"run": "x", "odd": 1, "purity": {"at": {}, "odd": 1}}) == {"odd", "purity.odd"}
    assert undocumented("vet", {"sample": [{"graded": 1, "odd": 1}]}) == {"sample[].odd"}
