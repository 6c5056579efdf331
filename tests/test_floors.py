"""A module imports only from its own floor or lower ones (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "galscan"
FLOORS = {
    "cli": 5, "cli_learn": 5, "cli_options": 5, "cli_output": 5, "cli_survey": 5, "__main__": 5,
    "report": 5, "report_ablation": 5, "report_judge": 5, "plots": 5, "plots_ablation": 5,
    "plots_judge": 5, "plots_sky": 5, "report_facts": 5, "report_model": 5, "report_scan": 5, "verbs": 5,
    "vetting": 4,
    "candidates": 3, "scanning": 3,
    "generate": 2, "classify": 2, "store": 2,
    "surveys": 1, "store.layout": 1,
    "errors": 0, "files": 0, "home": 0, "progress": 0, "pictures": 0, "recipe": 0, "labels": 0, "label_columns": 0,
    "rules": 0, "settings": 0, "starter": 0, "unfinished": 0, "sky": 0, "device": 0,
    "resampling": 0, "memory": 0,
}  # fmt: skip
TORCH = ("generate", "classify", "scanning.worker", "device")
MODULES = sorted(".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in PACKAGE.rglob("*.py"))
LAZY = {"__init__"}  # the package itself names everything, and loads nothing before it is used


def floor(module: str) -> int:
    parts = module.removesuffix(".__init__").split(".")
    for length in range(len(parts), 0, -1):
        if (found := FLOORS.get(".".join(parts[:length]))) is not None:
            return found
    raise AssertionError(f"galscan.{module} is on no floor: give it one in FLOORS and in CONTRIBUTING.md")


def imports(module: str) -> Iterator[str]:
    """Yield the full names of everything a module imports, also inside functions, but for the type checker's."""
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    package = ["galscan", *module.split(".")[:-1]]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant))


def inside(name: str) -> str | None:
    """Return the module of galscan that an imported name belongs to; None for the bare package and others."""
    parts = name.split(".")
    if parts[0] != "galscan":
        return None
    for length in range(len(parts), 1, -1):
        module = ".".join(parts[1:length])
        if module in MODULES or f"{module}.__init__" in MODULES:
            return module
    return None


def climbs(module: str, names: Iterator[str] | list[str]) -> list[str]:
    return [n for n in names if (target := inside(n)) is not None and floor(target) > floor(module)]


@pytest.mark.parametrize("module", [m for m in MODULES if m not in LAZY])
def test_no_climb(module):
    assert climbs(module, imports(module)) == []


@pytest.mark.parametrize("module", MODULES)
def test_torch_and_dask_cuda_stay_in_their_places(module):
    tops = {n.split(".")[0] for n in imports(module)}
    if not any(module == place or module.startswith(place + ".") for place in TORCH):
        assert not tops & {"torch", "diffusers", "safetensors"}
    if module != "scanning.cluster":
        assert "dask_cuda" not in tops


def test_the_package_itself_imports_nothing_when_loaded():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    loaded = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(n) for n in loaded if "galscan" in ast.unparse(n)] == []


def test_every_package_is_shipped():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = {
        name for name in project["tool"]["setuptools"]["packages"] if (PACKAGE.parent / name.replace(".", "/")).is_dir()
    }
    lying = {".".join(p.parent.relative_to(PACKAGE.parent).parts) for p in PACKAGE.rglob("__init__.py")}
    assert shipped == lying


def test_a_climb_would_be_seen():
    assert climbs("labels", ["galscan.surveys.base.Cutout", "galscan.core.errors.InputError", "numpy"]) == [
        "galscan.surveys.base.Cutout"
    ]
    assert climbs("store.layout", ["galscan.store.build.ingest_survey"]) == ["galscan.store.build.ingest_survey"]
    with pytest.raises(AssertionError, match="on no floor"):
        floor("attic")
