from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import galscan


def test_public_names_are_loaded_when_used_and_functions_are_documented():
    tree = ast.parse(Path(galscan.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    declared = {alias.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert declared == galscan._HOMES, "the lazy names are those of the type checker"
    assert set(galscan.__all__) == {*declared, "__version__"} <= set(dir(galscan))
    assert [name for name in declared if len(getattr(galscan, name).__doc__ or "") < 40] == []


def test_unknown_name():
    with pytest.raises(AttributeError, match="'scam'"):
        galscan.scam  # noqa: B018


@pytest.mark.parametrize("installed", [False, True])
def test_importing_is_light_and_shipped_data_is_found_from_anywhere(tmp_path, installed):
    """From a checkout; and as the wheel installs it, where the data are folders of the package."""
    code = (
        "import sys, galscan; heavy = {'torch', 'numpy', 'pandas', 'zarr', 'dask', 'astropy', 'pydantic', 'rich'}; "
        "assert not heavy & set(sys.modules); "
        "from galscan.labels.schema import schema_names; from galscan.labels.recipe import recipe_names; "
        "from galscan.surveys.services.configured import survey_names; "
        "assert 'efigi' in schema_names() and 'dustlane' in recipe_names() and 'sdss' in survey_names()"
    )
    root = Path(galscan.__file__).parent.parent
    if installed:
        (tmp_path / "site" / "galscan").mkdir(parents=True)
        for path in [*(root / "galscan").iterdir(), root / "pipelines", root / "catalogs"]:
            (tmp_path / "site" / "galscan" / path.name).symlink_to(path)
        root = tmp_path / "site"
    environment = {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
