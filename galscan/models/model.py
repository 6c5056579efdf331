"""What train-rare leaves and scan loads: one folder, no pickle, every part hashed.

    model.json               target, schema, size, calibration, metrics, hashes, versions
    recipe.toml              the recipe as it was used
    classifier-<k>.safetensors, first-look.safetensors, generator.safetensors
    encoder-<hash>.safetensors                 a frozen encoder, which the networks have in common
    splits.parquet           name, position, split or fold, and target of every labelled object
    schema.toml              of labels that do not come with galscan
    dreams.png  report.html

Opening one needs no torch; only `load_scorer` loads the networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from galscan.core.errors import InputError, NotFoundError
from galscan.core.files import file_digest, read_json, write_json
from galscan.core.home import is_name
from galscan.labels.recipe import Recipe, recipe_from_text
from galscan.labels.schema import is_shipped, register_schema, schema_text
from galscan.models import roles
from galscan.models.roles import once
from galscan.models.weights import save_network
from galscan.stats.calibration import Calibration
from galscan.store import identity
from galscan.store.identity import Objects

if TYPE_CHECKING:
    from galscan.models.network import Network

FORMAT = 1
FIRST_LOOK = "first-look.safetensors"
SCHEMA = "schema.toml"  # of labels that do not come with galscan
TOGETHER = "models.json"  # of a folder that holds the models of several targets, trained together


class _Info(BaseModel, strict=True):
    """What ``model.json`` must hold. A model may come from a stranger: nothing in it is believed unseen."""

    target: str
    schema_: str = Field(alias="schema")
    size: Annotated[int, Field(ge=8, le=4096)]
    seed: int
    answers: list[str]
    weights: Annotated[
        dict[
            Annotated[str, Field(pattern=r"^classifier-\d+\.safetensors$")],
            Annotated[str, Field(pattern="^[0-9a-f]{64}$")],
        ],
        Field(min_length=1),
    ]
    first_look: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    calibration: dict[str, Any]
    metrics: dict[str, Any]
    model_hash: str
    splits: dict[str, dict[str, int]]
    radius: Annotated[float, Field(gt=0, le=identity.LARGEST)] = identity.RADIUS
    folds: Annotated[int, Field(ge=0)] = 0


_FIRST = ["store", "id", "split", "target"]  # all that early versions kept
_USES = {
    "train": roles.trains, "calibration": roles.calibrates, "test": roles.tests,
    "held_out": lambda split: ~roles.trains(split),
}  # fmt: skip
SPLITS = [*_FIRST, "ra", "dec", "lineage", "object"]


@dataclass(frozen=True)
class Model:
    """A trained model, opened. Build one with `open_model`."""

    path: Path
    info: dict[str, Any]
    recipe: Recipe
    calibration: Calibration

    @property
    def target(self) -> str:
        return str(self.info["target"])

    @property
    def schema(self) -> str:
        """Name of the label schema it was trained on."""
        return str(self.info["schema"])

    @property
    def size(self) -> int:
        """Pixels on a side of the images it takes."""
        return int(self.info["size"])

    @property
    def seed(self) -> int:
        return int(self.info["seed"])

    @property
    def answers(self) -> list[str]:
        """Morphology answers predicted beside the target."""
        return list(self.info["answers"])

    @property
    def members(self) -> int:
        """Number of networks in the ensemble."""
        return len(self.info["weights"])

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.info["metrics"])

    @property
    def model_hash(self) -> str:
        """SHA-256 over weights, recipe and calibration."""
        return str(self.info["model_hash"])

    @property
    def first_look(self) -> Path | None:
        """The first look's file, checked; None where the model has none.

        Raises
        ------
        InputError
            If it is not the one the bundle was written with.
        """
        sha, path = self.info.get("first_look"), self.path / FIRST_LOOK
        if sha is not None and not (path.is_file() and file_digest(path) == sha):
            raise InputError(f"{path} is not the file the model was written with; restore it or train again")
        return path if sha is not None else None

    def splits(self) -> pd.DataFrame:
        """Return the labelled objects, a row for each store that has them.

        Returns
        -------
        DataFrame
            Columns store, id (text), split, target (1, 0, NaN = ambiguous) and, of models that kept them, ra, dec
            (deg), lineage and object, as of `galscan.training.dataset.read_table`. The split is train, calibration or
            test or, where the model is cross-fitted, "fold 0", "fold 1"... and train for graded objects;
            `galscan.stats.crossfit` says what each is used for.

        Raises
        ------
        InputError
            If the file is missing or damaged.
        """
        path = self.path / "splits.parquet"
        try:
            table = pd.read_parquet(path)
            return table[SPLITS if {*SPLITS} <= {*table.columns} else _FIRST]
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path} is missing or damaged ({reason:.200}); restore it, or train again") from error

    def objects(self, use: str | None = None, *, targets: bool = False, radius: float = 0.0) -> Objects:
        """Return the labelled objects, or those of one use; with `targets` only those that the labels call targets.

        A use is "train", "calibration", "test", or "held_out": what trained no network.

        Those of a model that kept no positions are known by their ids alone. `radius` (arcsec) holds where it is larger
        than the model's.
        """
        table = self.splits()
        keep = (True if use is None else _USES[use](table["split"])) & ((table["target"] == 1) | (not targets))
        return Objects.of(table[keep], radius=max(radius, self.radius))

    def split_of(self, table: pd.DataFrame, radius: float = 0.0) -> np.ndarray:
        """Return the split that each object of a table is in, '' for what the model does not know.

        Parameters
        ----------
        table : DataFrame
            Columns ra, dec, lineage (`galscan.store.identity.lineage_of`) and id.
        radius : float
            Arcsec, where it is larger than the model's: `galscan.store.identity.radius_of` the stores of the table.
        """
        splits = self.splits()["split"].to_numpy(object)
        found = self.objects(radius=radius).find_in(table)
        return np.where(found < 0, "", splits[found] if len(splits) else "")

    def in_train(self, table: pd.DataFrame, radius: float = 0.0) -> np.ndarray:
        """Return which objects of a table (bool) a network was trained on; parameters as of `split_of`."""
        return roles.trains(pd.Series(self.split_of(table, radius)))

    @property
    def radius(self) -> float:
        """Arcsec within which two positions are one object."""
        return float(self.info.get("radius", identity.RADIUS))

    @property
    def folds(self) -> int:
        """Folds of cross-fitting; 0 where the split was fixed."""
        return int(self.info.get("folds", 0))

    def summary(self) -> dict[str, Any]:
        """Return what a script wants to know, JSON-able; ``text`` is the same in a few lines for people."""
        keys = ("target", "schema", "size", "seed", "model_hash", "splits")
        metrics = {
            name: {k: v for k, v in value.items() if k != "pr_curve"} if isinstance(value, dict) else value
            for name, value in self.metrics.items()
        }
        told = {"model": str(self.path), "members": self.members, **{k: self.info[k] for k in keys}, "metrics": metrics}
        network = self.recipe.classifier.network
        lines = [f"model        {self.path}  ({self.target}, {self.size} px, {self.members} networks)"]
        lines += [f"encoder      {network}"] if network else []
        try:
            lines += [_results(self.metrics)] if self.metrics.get("test") else []
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the metrics in {self.path / 'model.json'} are damaged; train the model again") from error
        return told | {"text": "\n".join([*lines, f"report       {self.path / 'report.html'}"])}


def _results(report: dict[str, Any]) -> str:
    """Return the comparison of the real-only and the real + synthetic classifier as lines of text."""
    test = report["test"]
    lines = [
        f"average precision on {test['positives']} positives, {test['negatives']} negatives and "
        f"{test.get('ambiguous', 0)} ambiguous (no targets), real, "
        f"{'out-of-fold' if report.get('crossfit') else 'held out'}:"
    ]
    for name, words in (("real_only", "real only"), ("real_plus_dreamt", "real + synthetic")):
        if (m := report[name]) is not None:
            each = " ".join(f"{ap:.3f}" for ap in m["ap"])
            mark = "  <- delivered" if report["chosen"] == name else ""
            lines.append(f"  {words:<16} {m['ap_mean']:.3f}  [{m['ap_lo']:.3f}, {m['ap_hi']:.3f}]  seeds: {each}{mark}")
    if report["gain"] is not None:
        g = report["gain"]
        lines.append(f"  {'gain':<16} {g['mean']:+.3f}  [{g['lo']:+.3f}, {g['hi']:+.3f}]")
    return "\n".join(lines)


def open_model(path: str | Path) -> Model:
    """Open a model folder.

    Raises
    ------
    NotFoundError
        If there is no model at `path`.
    InputError
        If it is not one that this version can read.
    """
    path = Path(path)
    if not (path / "model.json").is_file():
        partial = path.with_name(path.name + ".partial")
        hint = "; training was interrupted: run the same train-rare command again" if partial.is_dir() else ""
        raise NotFoundError(f"no model at {path}{hint or '; train one with: galscan train-rare --target NAME'}")
    info = read_json(path / "model.json")
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise InputError(f"{path} is not a galscan model of format {FORMAT}; train it again with this version")
    try:
        _Info.model_validate(info)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(f"{path / 'model.json'} is damaged ({what:.200}); restore it, or train again") from None
    if (path / SCHEMA).is_file():
        register_schema(path / SCHEMA)
    try:
        recipe = recipe_from_text((path / "recipe.toml").read_text(encoding="utf-8"), str(path / "recipe.toml"))
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} has lost its recipe.toml; train it again") from None
    return Model(path, info, recipe, Calibration.from_dict(info["calibration"]))


def open_models(path: str | Path) -> list[Model]:
    """Open a model folder, or one of several targets that were trained together.

    Raises
    ------
    NotFoundError
        If there is no model at `path`.
    InputError
        If it is not one that this version can read.
    """
    path = Path(path)
    if not (path / TOGETHER).is_file():
        return [open_model(path)]
    told = read_json(path / TOGETHER)
    names = told.get("targets") if isinstance(told, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and is_name(n) for n in names):
        raise InputError(f"{path / TOGETHER} is damaged; restore it, or train again")
    return [open_model(path / name) for name in names]


def write_model(
    path: Path,
    *,
    recipe: Recipe,
    target: str,
    schema: str,
    size: int,
    seed: int,
    answers: list[str],
    networks: list[Network],
    calibration: Calibration,
    splits: pd.DataFrame,
    metrics: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> Model:
    """Write weights, recipe, splits and (last) model.json into `path`; return it opened.

    A first look that lies there already becomes part of it.
    """
    import torch

    from galscan.core.files import atomic_path, digest, write_text
    from galscan.core.version import __version__

    write_text(path / "recipe.toml", recipe.text)
    if not is_shipped(schema):
        write_text(path / SCHEMA, schema_text(schema))
    weights = {}
    for k, network in enumerate(networks):
        name = f"classifier-{k}.safetensors"
        save_network(network, path / name)
        weights[name] = file_digest(path / name)
    with atomic_path(path / "splits.parquet") as temporary:
        splits.to_parquet(temporary, index=False)
    each = splits[once(splits)] if "object" in splits else splits
    kinds = {"positive": each["target"] == 1, "negative": each["target"] == 0, "ambiguous": each["target"].isna()}
    info = {
        "format": FORMAT, "target": target, "schema": schema, "size": size, "seed": seed, "answers": answers,
        "weights": weights, "calibration": calibration.to_dict(), "metrics": metrics, "recipe_hash": recipe.hash,
        "splits": {
            name: {kind: int((of & use(each["split"])).sum()) for kind, of in kinds.items()}
            for name, use in _USES.items() if name != "held_out"
        },
        "folds": int(roles.fold_numbers(splits["split"]).max(initial=-1)) + 1,
        "versions": {"galscan": __version__, "torch": torch.__version__},
        **(extra or {}),
    }  # fmt: skip
    if (path / FIRST_LOOK).is_file():
        info["first_look"] = file_digest(path / FIRST_LOOK)
    info["model_hash"] = digest(
        [weights, info.get("first_look"), recipe.hash, info["calibration"], schema, size, answers]
        + [file_digest(own) for own in [path / SCHEMA] if own.is_file()]
    )
    write_json(path / "model.json", info)
    return open_model(path)
