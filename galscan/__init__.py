"""galscan finds rare galaxies in surveys of millions.

>>> import galscan
>>> model = galscan.train_rare("dustlane", survey="ngc")     # doctest: +SKIP
>>> run = galscan.scan(survey="sdss", target="dustlane")     # doctest: +SKIP
>>> run.candidates.head()                                    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from galscan.core.version import __version__

if TYPE_CHECKING:
    from galscan.candidates.export.command import export
    from galscan.commands.ablate import ablate
    from galscan.commands.demo import demo
    from galscan.commands.doctor import doctor
    from galscan.commands.evaluate import evaluate
    from galscan.commands.generate import generate
    from galscan.commands.info import info
    from galscan.commands.purity import purity
    from galscan.commands.scan import scan
    from galscan.commands.similar import similar
    from galscan.commands.train_rare import train_rare
    from galscan.commands.vet import vet
    from galscan.core.errors import GalscanError
    from galscan.labels.recipe import Recipe, load_recipe
    from galscan.models.model import Model, open_model
    from galscan.scanning.run import Run, open_run
    from galscan.store.ingest import ingest
    from galscan.store.layout import Store, open_store
    from galscan.synthesis.train_generator import train_generator
    from galscan.training.target import check_target, list_targets, new_target

# Waiting OpenMP threads sleep instead of spinning, here and in the worker processes: on a machine that does
# anything else, spinning makes small networks several times slower. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = [
    "GalscanError",
    "Model",
    "Recipe",
    "Run",
    "Store",
    "__version__",
    "ablate",
    "check_target",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "generate",
    "info",
    "ingest",
    "list_targets",
    "load_recipe",
    "new_target",
    "open_model",
    "open_run",
    "open_store",
    "purity",
    "scan",
    "similar",
    "train_generator",
    "train_rare",
    "vet",
]

# Loaded when first used, so that `galscan --help` and `import galscan` are instant.
_HOMES = {
    "GalscanError": "galscan.core.errors",
    "Model": "galscan.models.model",
    "Recipe": "galscan.labels.recipe",
    "Run": "galscan.scanning.run",
    "Store": "galscan.store.layout",
    "ablate": "galscan.commands.ablate",
    "check_target": "galscan.training.target",
    "demo": "galscan.commands.demo",
    "doctor": "galscan.commands.doctor",
    "evaluate": "galscan.commands.evaluate",
    "export": "galscan.candidates.export.command",
    "generate": "galscan.commands.generate",
    "info": "galscan.commands.info",
    "ingest": "galscan.store.ingest",
    "list_targets": "galscan.training.target",
    "load_recipe": "galscan.labels.recipe",
    "new_target": "galscan.training.target",
    "open_model": "galscan.models.model",
    "open_run": "galscan.scanning.run",
    "open_store": "galscan.store.layout",
    "purity": "galscan.commands.purity",
    "scan": "galscan.commands.scan",
    "similar": "galscan.commands.similar",
    "train_generator": "galscan.synthesis.train_generator",
    "train_rare": "galscan.commands.train_rare",
    "vet": "galscan.commands.vet",
}


# Names of version 0.1, for one version more.
_RENAMED = {"Bundle": "Model", "dream": "generate", "judge": "evaluate", "open_bundle": "open_model"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        import warnings

        warnings.warn(f"galscan.{name} is called galscan.{_RENAMED[name]} now", DeprecationWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _HOMES:
        raise AttributeError(f"module 'galscan' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
