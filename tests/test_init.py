from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import galscan


def test_every_public_name_is_there():
    for name in galscan.__all__:
        assert getattr(galscan, name) is not None
    assert set(galscan.__all__) <= set(dir(galscan))


def test_the_lazy_names_are_those_of_the_type_checker():
    tree = ast.parse(Path(galscan.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    declared = {alias.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert declared == galscan._HOMES
    assert set(galscan.__all__) == {*declared, "__version__"}


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'scam'"):
        galscan.scam  # noqa: B018


def test_public_functions_are_documented():
    verbs = (
        "demo",
        "doctor",
        "generate",
        "export",
        "info",
        "ingest",
        "evaluate",
        "scan",
        "train_generator",
        "train_rare",
    )
    for name in (*verbs, "ablate", "new_target", "check_target", "list_targets"):
        assert len(getattr(galscan, name).__doc__) > 80


def test_importing_galscan_is_light():
    heavy = (
        "{'torch','numpy','pandas','zarr','dask','astropy','matplotlib','pydantic','diffusers','scipy','PIL','rich'}"
    )
    code = f"import sys, galscan; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_shipped_data_is_found_from_anywhere(tmp_path):
    root = Path(galscan.__file__).parent.parent
    code = (
        "from galscan.labels.schema import schema_names; from galscan.labels.recipe import recipe_names; "
        "print(schema_names(), recipe_names())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "'efigi'" in out and "'dustlane'" in out
