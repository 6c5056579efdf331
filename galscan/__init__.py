"""galscan finds rare galaxies in surveys of millions.

>>> import galscan
>>> model = galscan.train_rare("dustlane", survey="ngc")     # doctest: +SKIP
>>> run = galscan.scan(survey="sdss", target="dustlane")     # doctest: +SKIP
>>> run.candidates.head()                                    # doctest: +SKIP
"""

# ruff: noqa: F401 (names for type checkers)

from __future__ import annotations

import importlib
import os
import warnings
from typing import TYPE_CHECKING, Any

from galscan.core.version import __version__

if TYPE_CHECKING:
    from galscan.candidates.export.formats import export
    from galscan.candidates.export.send import send
    from galscan.candidates.run import Run
    from galscan.commands.ablate import ablate
    from galscan.commands.demo import demo
    from galscan.commands.doctor import doctor
    from galscan.commands.evaluate import evaluate
    from galscan.commands.generate import generate
    from galscan.commands.info import info, open
    from galscan.commands.purity import purity
    from galscan.commands.scan import scan
    from galscan.commands.similar import similar
    from galscan.commands.train_rare import train_rare
    from galscan.commands.vet import vet
    from galscan.core.errors import GalscanError
    from galscan.labels.recipe import Recipe, load_recipe
    from galscan.models.model import Model
    from galscan.reports.map import make_map
    from galscan.store.ingest import ingest
    from galscan.store.layout import Store
    from galscan.synthesis.train_generator import train_generator
    from galscan.training.measure_feature import measure_feature
    from galscan.training.target import check_target, list_targets, new_target

# Waiting OpenMP threads sleep instead of spinning, here and in the worker processes: on a machine that does
# anything else, spinning makes small networks several times slower. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Loaded when first used, so that `galscan --help` and `import galscan` are instant.
_HOMES = {
    **{name: f"galscan.commands.{name}" for name in (
        "ablate", "demo", "doctor", "evaluate", "generate", "info", "purity", "scan", "similar", "train_rare", "vet",
    )},
    **dict.fromkeys(("check_target", "list_targets", "new_target"), "galscan.training.target"),
    **dict.fromkeys(("Recipe", "load_recipe"), "galscan.labels.recipe"),
    "GalscanError": "galscan.core.errors",
    "Model": "galscan.models.model",
    "Run": "galscan.candidates.run",
    "Store": "galscan.store.layout",
    "export": "galscan.candidates.export.formats",
    "ingest": "galscan.store.ingest",
    "make_map": "galscan.reports.map",
    "open": "galscan.commands.info",
    "measure_feature": "galscan.training.measure_feature",
    "send": "galscan.candidates.export.send",
    "train_generator": "galscan.synthesis.train_generator",
}  # fmt: skip
__all__ = ["__version__", *_HOMES]

# Names of version 0.1, for one version more.
_RENAMED = {
    "Bundle": "Model", "dream": "generate", "judge": "evaluate", "open_bundle": "open", "open_model": "open",
    "open_run": "open", "open_store": "open",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"galscan.{name} is called galscan.{_RENAMED[name]} now", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _HOMES:
        raise AttributeError(f"module 'galscan' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
