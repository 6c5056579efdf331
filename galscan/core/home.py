"""The data home, the default folder of surveys, models and runs; and the data shipped with galscan.

``GALSCAN_HOME`` moves the data home; the default is the platform's user data folder.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import tomllib
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

from galscan.core.errors import InputError, NotFoundError, nearest

ENVIRONMENT = {
    "GALSCAN_HOME": "Data home: surveys, models and runs without a given path, and the cache; default: the platform's.",
    "GALSCAN_CONTACT": "Contact e-mail, sent to survey services in the User-Agent.",
    "GALSCAN_CACHE_GB": "Maximum size of the cache of HTTP responses in gigabytes; default: 20.",
    "GALSCAN_WORKERS": "Number of processes that ingest, training and ablation use; default: the number of cores.",
    "GALSCAN_TRACEBACK": "If not empty or 0: show where an unexpected error comes from, as --traceback does.",
}
"""Environment variables of galscan, with their meaning."""

LIBRARY_ENVIRONMENT = {
    "OMP_NUM_THREADS": "Threads of the networks in the process of a command; worker processes use one each.",
    "HTTP_PROXY, HTTPS_PROXY, NO_PROXY": "Proxy for requests to survey services.",
    "AWS_ACCESS_KEY_ID, AWS_PROFILE, ...": "Credentials for stores at s3:// URLs; without any, S3 is read anonymously.",
    "AWS_ENDPOINT_URL": "Another S3 server than that of AWS.",
    "HF_HOME": "Folder of weights downloaded from the Hugging Face hub.",
    "DASK_...": "Configuration of Dask; for the processes that galscan starts, it sets what it needs itself.",
    "SOURCE_DATE_EPOCH": "Seconds since 1970, written as the date of FITS files: equal input gives equal bytes.",
}
"""Environment variables of libraries and conventions that galscan respects."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def data_home() -> Path:
    """Return the data home (it may not exist yet)."""
    if home := os.environ.get("GALSCAN_HOME"):
        return Path(home).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("galscan"))


def cache_home() -> Path:
    """Return the folder of cached HTTP responses; it may be deleted at any time."""
    return data_home() / "cache"


def contact(given: str | None) -> str:
    """Return the contact e-mail for the User-Agent: `given`, or the environment variable ``GALSCAN_CONTACT``."""
    return os.environ.get("GALSCAN_CONTACT", "") if given is None else given


def is_name(name: str) -> bool:
    """Return whether `name` is a valid name: not a path, not hidden."""
    return _NAME.fullmatch(name) is not None


def _checked(kind: str, name: str) -> str:
    if not is_name(name):
        raise InputError(f"{kind} name {name!r}: use 1-64 letters, digits, dots, dashes and underscores")
    return name


def survey_path(name: str) -> Path:
    """Return the path of the store of survey `name`, existing or not."""
    return data_home() / "surveys" / f"{_checked('survey', name)}.zarr"


def model_path(target: str) -> Path:
    """Return the path of the model of `target`, existing or not."""
    return data_home() / "models" / _checked("target", target)


def run_path(name: str) -> Path:
    """Return the path of the run `name`, existing or not."""
    return data_home() / "runs" / _checked("run", name)


def labels_path(schema: str) -> Path:
    """Return the path of the user's label schema of this name, existing or not."""
    return data_home() / "labels" / f"{_checked('label schema', schema)}.toml"


def find_survey(name: str) -> Path:
    """Return the path of the store of survey `name`.

    Raises `NotFoundError` if no such store is in the data home; the message has the command that builds it: for a
    survey by service or by frames, the one that downloads it.
    """
    path = survey_path(name)
    if path.is_dir():
        return path
    present = [p.stem for p in sorted((data_home() / "surveys").glob("*.zarr"))]
    raise NotFoundError(f"survey '{name}' has no store at {path}{nearest(name, present)}; {_how_to_build(name)}")


def _how_to_build(name: str) -> str:
    """Return the command that builds the store of survey `name`."""
    local = f"galscan ingest --survey local --path IMAGES --catalog TABLE --out {survey_path(name)}"
    if name in toml_names("catalogs/surveys"):
        config = tomllib.loads((shipped("catalogs/surveys") / f"{name}.toml").read_text(encoding="utf-8"))
        # Frames without a database of objects can only be found by a table that names them.
        by_table = config["service"] == "frames" and "objects" not in config
        objects = "--catalog TABLE" if by_table else "--cone RA,DEC,RADIUS (or --catalog TABLE)"
        return f"download it: galscan ingest --survey {name} {objects}; or, from your own images: {local}"
    if name == "simulated":
        return "simulate it: galscan ingest --survey simulated"
    if name == "frames":
        return f"cut it: galscan ingest --survey frames --path FRAMES --catalog TABLE --out {survey_path(name)}"
    return f"build it: {local}"


def find_stores(survey: str | Sequence[str], store: str | Path | Sequence[str | Path]) -> list[Path | str]:
    """Return the paths of the surveys `survey`, given by name, then the stores `store`, given by path or URL.

    Raises `NotFoundError` if a survey is not in the data home.
    """
    names = [survey] if isinstance(survey, str) else list(survey)
    stores = [store] if isinstance(store, str | Path) else store
    return [find_survey(n) for n in names] + [s if "://" in str(s) else Path(s) for s in stores]


def find_model(target: str) -> Path:
    """Return the path of the model of `target`, trained alone or together with other targets.

    Raises `NotFoundError` if no such model is in the data home; the message has the command that trains it.
    """
    path = model_path(target)
    if (path / "model.json").is_file():
        return path
    if together := _trained_together([target]):
        return together[0]
    known = {*toml_names("pipelines"), *(p.parent.name for p in path.parent.glob("*/model.json"))}
    if target not in known:
        raise NotFoundError(f"unknown target '{target}'{nearest(target, known)}, and no model at {path}")
    raise NotFoundError(f"no model for target '{target}' at {path}; train it: galscan train-rare --target {target}")


def find_models(targets: Sequence[str]) -> list[Path]:
    """Return the paths of the models of `targets`, preferring models that were trained together.

    Raises `NotFoundError` if one of them has no model.
    """
    together = _trained_together(targets) if len(targets) > 1 else []
    return together or [find_model(target) for target in targets]


def _trained_together(targets: Sequence[str]) -> list[Path]:
    """Return the models of `targets` in the smallest folder of models trained together that has all of them."""
    folders = []
    for marker in (data_home() / "models").glob("*/models.json"):
        paths = [marker.parent / target for target in targets]
        if marker.parent.suffix != ".partial" and all((path / "model.json").is_file() for path in paths):
            folders.append((sum(1 for _ in marker.parent.glob("*/model.json")), marker.parent.name, paths))
    return min(folders)[2] if folders else []


def shipped(kind: str) -> Traversable:
    """Return the folder of shipped TOML files, ``catalogs``, ``catalogs/surveys`` or ``pipelines``."""
    package, *folders = kind.split("/")
    try:
        found = importlib.resources.files(f"galscan.{package}")
    except ModuleNotFoundError:  # run from the repository, where the folder is beside the package
        return Path(__file__).resolve().parents[2] / kind
    for folder in folders:  # one by one, and not at all if there is none: before Python 3.12 joinpath needs one name
        found = found / folder
    return found


def find_toml(kind: str, what: str, name: str, extra: Sequence[str] = ()) -> Traversable:
    """Return the file of `name`, a shipped name or a path ending in .toml; `extra` names are listed in errors, too."""
    names = sorted({*toml_names(kind), *extra})
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise NotFoundError(f"{what} file {name} does not exist; give its path, or one of {', '.join(names)}")
        return Path(name)
    if name not in toml_names(kind):
        raise NotFoundError(f"unknown {what} '{name}'{nearest(name, names)}")
    return shipped(kind) / f"{name}.toml"


def toml_names(kind: str) -> list[str]:
    """Return the names of the shipped TOML files of a kind, sorted."""
    return sorted(p.name.removesuffix(".toml") for p in shipped(kind).iterdir() if p.name.endswith(".toml"))
