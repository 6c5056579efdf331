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

if TYPE_CHECKING:
    from galscan.classify.bundle import Bundle, open_bundle
    from galscan.errors import GalscanError
    from galscan.recipe import Recipe, load_recipe
    from galscan.scanning.run import Run, open_run
    from galscan.store.layout import Store, open_store
    from galscan.verbs.ablate import ablate
    from galscan.verbs.demo import demo
    from galscan.verbs.doctor import doctor
    from galscan.verbs.dream import dream
    from galscan.verbs.export import export
    from galscan.verbs.info import info
    from galscan.verbs.ingest import ingest
    from galscan.verbs.judge import judge
    from galscan.verbs.purity import purity
    from galscan.verbs.scan import scan
    from galscan.verbs.similar import similar
    from galscan.verbs.target import check_target, list_targets, new_target
    from galscan.verbs.train_generator import train_generator
    from galscan.verbs.train_rare import train_rare
    from galscan.verbs.vet import vet

__version__ = "0.1.0"

# Waiting OpenMP threads sleep instead of spinning, here and in the worker processes: on a machine that does
# anything else, spinning makes small networks several times slower. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = [
    "Bundle",
    "GalscanError",
    "Recipe",
    "Run",
    "Store",
    "__version__",
    "ablate",
    "check_target",
    "demo",
    "doctor",
    "dream",
    "export",
    "info",
    "ingest",
    "judge",
    "list_targets",
    "load_recipe",
    "new_target",
    "open_bundle",
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
    "Bundle": "galscan.classify.bundle",
    "GalscanError": "galscan.errors",
    "Recipe": "galscan.recipe",
    "Run": "galscan.scanning.run",
    "Store": "galscan.store.layout",
    "ablate": "galscan.verbs.ablate",
    "check_target": "galscan.verbs.target",
    "demo": "galscan.verbs.demo",
    "doctor": "galscan.verbs.doctor",
    "dream": "galscan.verbs.dream",
    "export": "galscan.verbs.export",
    "info": "galscan.verbs.info",
    "ingest": "galscan.verbs.ingest",
    "judge": "galscan.verbs.judge",
    "list_targets": "galscan.verbs.target",
    "load_recipe": "galscan.recipe",
    "new_target": "galscan.verbs.target",
    "open_bundle": "galscan.classify.bundle",
    "open_run": "galscan.scanning.run",
    "open_store": "galscan.store.layout",
    "purity": "galscan.verbs.purity",
    "scan": "galscan.verbs.scan",
    "similar": "galscan.verbs.similar",
    "train_generator": "galscan.verbs.train_generator",
    "train_rare": "galscan.verbs.train_rare",
    "vet": "galscan.verbs.vet",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'galscan' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
