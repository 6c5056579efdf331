"""Model folder written by train-rare and loaded by scan: no pickle, every file hashed.

    model.json               target, schema, size, calibration, metrics, hashes, versions
    recipe.toml              the recipe as it was used
    classifier-<k>.safetensors                 networks of the ensemble
    prefilter.safetensors  generator.safetensors        first stage of the cascade; generator of synthetic galaxies
    encoder-<hash>.safetensors                 a frozen encoder shared by the networks
    splits.parquet           name, position, split or fold, and target of every labelled object
    schema.toml              of a label schema that is not shipped with galscan
    synthetic.png  report.html                 sheet of synthetic galaxies; page

Opening a model does not import torch; only `galscan.models.ensemble.load_scorer` loads the networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from galscan.core.display.figures import given_or_new
from galscan.core.errors import InputError, NotFoundError, first_line
from galscan.core.files import file_digest, read_json, read_text, write_json
from galscan.core.home import is_name
from galscan.core.old_names import existing, renamed
from galscan.labels.recipe import Recipe, recipe_from_text
from galscan.labels.schema import SCHEMA, Schema, save_schema, saved_schema
from galscan.models import roles
from galscan.models.display import draw_calibration, model_card
from galscan.models.roles import one_row_per_object
from galscan.models.weights import save_network
from galscan.stats.calibration import Calibration
from galscan.store import identity
from galscan.store.identity import Objects

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from galscan.models.network import Network

FORMAT = 1
PREFILTER_FILE = "prefilter.safetensors"
MODELS_INDEX = "models.json"  # index of a folder with the models of several targets, trained jointly


class _Info(BaseModel, strict=True):
    """Schema of ``model.json``, validated strictly because models may come from untrusted sources."""

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


_MINIMAL_SPLITS = ["store", "id", "split", "target"]  # the only columns of early versions
_USES = {
    "train": roles.trains, "calibration": roles.calibrates, "test": roles.tests,
    "held_out": lambda split: ~roles.trains(split),
}  # fmt: skip
SPLITS = [*_MINIMAL_SPLITS, "ra", "dec", "lineage", "object"]


@dataclass(frozen=True)
class Model:
    """A trained model, opened with `galscan.open`."""

    path: Path
    info: dict[str, Any]
    recipe: Recipe
    schema: Schema
    """Label schema it was trained on."""
    calibration: Calibration

    @property
    def target(self) -> str:
        return str(self.info["target"])

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
    def prefilter(self) -> Path | None:
        """Path of the prefilter's file, checked against its hash; None if the model has no prefilter.

        Raises
        ------
        InputError
            If it is not the file the model was written with.
        """
        sha, path = self.info.get("first_look"), existing(self.path / PREFILTER_FILE)
        if sha is not None and not (path.is_file() and file_digest(path) == sha):
            raise InputError(f"{path} is not the file the model was written with; restore it or train again")
        return path if sha is not None else None

    def splits(self) -> pd.DataFrame:
        """Return the labelled objects, one row for each store that contains them.

        Returns
        -------
        DataFrame
            Columns store, id (text), split, target (1, 0, NaN = ambiguous) and, except for models of early versions,
            ra, dec (deg), lineage and object, as of `galscan.training.dataset.read_table`. The split is train,
            calibration or test or, where the model is cross-fitted, "fold 0", "fold 1"... and train for graded objects;
            see `galscan.stats.crossfit`.

        Raises
        ------
        InputError
            If the file is missing or damaged.
        """
        import pandas as pd

        path = self.path / "splits.parquet"
        try:
            table = pd.read_parquet(path)
            return table[SPLITS if {*SPLITS} <= {*table.columns} else _MINIMAL_SPLITS]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{path} is missing or damaged ({first_line(error)}); restore it, or train again"
            ) from error

    def objects(self, use: str | None = None, *, targets: bool = False, radius: float = 0.0) -> Objects:
        """Return the labelled objects, for matching.

        Objects of a model without positions are matched by id alone.

        Parameters
        ----------
        use : {"train", "calibration", "test", "held_out"}, optional
            Only objects of this use; "held_out" objects trained no network.
        targets : bool
            Only objects labelled as targets.
        radius : float
            Matching radius (arcsec), used if it is larger than the model's.
        """
        table = self.splits()
        keep = (True if use is None else _USES[use](table["split"])) & ((table["target"] == 1) | (not targets))
        return Objects.of(table[keep], radius=max(radius, self.radius))

    def split_of(self, table: pd.DataFrame, radius: float = 0.0) -> np.ndarray:
        """Return the split of each object of a table, '' for objects that are not among the labelled objects.

        Parameters
        ----------
        table : DataFrame
            Columns ra, dec, lineage (`galscan.store.identity.lineage_of`) and id.
        radius : float
            Arcsec, used if it is larger than the model's: `galscan.store.identity.radius_of` the stores of the table.
        """
        splits = self.splits()["split"].to_numpy(object)
        found = self.objects(radius=radius).find_in(table)
        return np.where(found < 0, "", splits[found] if len(splits) else "")

    def in_train(self, table: pd.DataFrame, radius: float = 0.0) -> np.ndarray:
        """Return which objects of a table (bool) trained a network; parameters as of `split_of`."""
        import pandas as pd

        return roles.trains(pd.Series(self.split_of(table, radius)))

    @property
    def radius(self) -> float:
        """Matching radius (arcsec): positions closer than this are one object."""
        return float(self.info.get("radius", identity.RADIUS))

    @property
    def folds(self) -> int:
        """Number of cross-fitting folds; 0 where the split was fixed."""
        return int(self.info.get("folds", 0))

    def plot_calibration(self, ax: Axes | None = None) -> Axes:
        """Draw the observed fraction of targets against the predicted probability, with 95 % intervals.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw in; those of a new figure by default.

        Returns
        -------
        Axes
        """
        axes = given_or_new(ax)
        draw_calibration(axes, self.calibration.reliability())
        return axes

    def __repr__(self) -> str:
        return (
            f"<Model {self.target}: {self.members} networks, {self.size} px, {self.schema.name} labels, in {self.path}>"
        )

    def _repr_html_(self) -> str:
        return model_card(self.path, self.info, self.recipe.title, self.calibration)

    def summary(self) -> dict[str, Any]:
        """Return a JSON-able summary; ``text`` is the same in a few lines for people."""
        keys = ("target", "schema", "size", "seed", "model_hash", "splits")
        metrics = {
            name: {k: v for k, v in value.items() if k != "pr_curve"} if isinstance(value, dict) else value
            for name, value in self.metrics.items()
        }
        result = {"model": str(self.path), "members": self.members} | {k: self.info[k] for k in keys}
        network = self.recipe.classifier.network
        lines = [f"model        {self.path}  ({self.target}, {self.size} px, {self.members} networks)"]
        lines += [f"encoder      {network}"] if network else []
        try:
            lines += [_results(self.metrics)] if self.metrics.get("test") else []
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the metrics in {self.path / 'model.json'} are damaged; train the model again") from error
        return result | {"metrics": metrics, "text": "\n".join([*lines, f"report       {self.path / 'report.html'}"])}


def _results(report: dict[str, Any]) -> str:
    """Return text lines that compare the classifiers trained on real only and on real + synthetic galaxies."""
    test = report["test"]
    lines = [
        f"average precision on {test['positives']} positives, {test['negatives']} negatives and "
        f"{test.get('ambiguous', 0)} ambiguous (counted as no targets), real, "
        f"{'out-of-fold' if report.get('crossfit') else 'held out'}:"
    ]
    for name, label in (("real_only", "real only"), ("real_plus_synthetic", "real + synthetic")):
        if (m := report[name]) is not None:
            per_seed = " ".join(f"{ap:.3f}" for ap in m["ap"])
            mark = "  <- chosen" if report["chosen"] == name else ""
            lines.append(
                f"  {label:<16} {m['ap_mean']:.3f}  [{m['ap_lo']:.3f}, {m['ap_hi']:.3f}]  seeds: {per_seed}{mark}"
            )
    if report["gain"] is not None:
        gain = report["gain"]
        lines.append(f"  {'gain':<16} {gain['mean']:+.3f}  [{gain['lo']:+.3f}, {gain['hi']:+.3f}]")
    return "\n".join(lines)


def open_model(path: str | Path, model_hash: str | None = None) -> Model:
    """Open a model folder; with `model_hash` of a scan, only if it is still the model of that scan.

    Raises
    ------
    NotFoundError
        If there is no model at `path`.
    InputError
        If this version cannot read it, or it has another hash.
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
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(f"{path / 'model.json'} is damaged ({problem:.200}); restore it, or train again") from None
    info["metrics"] = renamed(info["metrics"])
    if model_hash is not None and info["model_hash"] != model_hash:
        raise InputError(f"{path} changed since the scan, so its calibration does not apply; restore it, or scan again")
    schema = saved_schema(path, info["schema"])
    source = path / "recipe.toml"
    recipe = recipe_from_text(read_text(source, str(source)), str(source), schema)
    return Model(path, info, recipe, schema, Calibration.from_dict(info["calibration"]))


def open_models(path: str | Path) -> list[Model]:
    """Open a model folder, or a folder with the models of several targets that were trained jointly.

    Raises `NotFoundError` if there is no model at `path`; `InputError` if this version cannot read it.
    """
    path = Path(path)
    if not (path / MODELS_INDEX).is_file():
        return [open_model(path)]
    index = read_json(path / MODELS_INDEX)
    names = index.get("targets") if isinstance(index, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and is_name(n) for n in names):
        raise InputError(f"{path / MODELS_INDEX} is damaged; restore it, or train again")
    return [open_model(path / name) for name in names]


def write_model(
    path: Path,
    *,
    recipe: Recipe,
    target: str,
    schema: Schema,
    size: int,
    seed: int,
    answers: list[str],
    networks: list[Network],
    calibration: Calibration,
    splits: pd.DataFrame,
    metrics: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> Model:
    """Write weights, recipe, splits and (last) model.json into `path`; return the opened model.

    A prefilter file that is already in the folder becomes part of the model.
    """
    import torch

    from galscan.core.files import atomic_path, digest, write_text
    from galscan.core.version import __version__

    write_text(path / "recipe.toml", recipe.text)
    save_schema(schema, path)
    weights = {}
    for k, network in enumerate(networks):
        name = f"classifier-{k}.safetensors"
        save_network(network, path / name)
        weights[name] = file_digest(path / name)
    with atomic_path(path / "splits.parquet") as temporary:
        splits.to_parquet(temporary, index=False)
    objects = splits[one_row_per_object(splits)] if "object" in splits else splits
    target_of = objects["target"]
    classes = {"positive": target_of == 1, "negative": target_of == 0, "ambiguous": target_of.isna()}
    info = {
        "format": FORMAT, "target": target, "schema": schema.name, "size": size, "seed": seed, "answers": answers,
        "weights": weights, "calibration": calibration.to_dict(), "metrics": metrics, "recipe_hash": recipe.hash,
        "splits": {
            name: {k: int((in_class & use(objects["split"])).sum()) for k, in_class in classes.items()}
            for name, use in _USES.items() if name != "held_out"
        },
        "folds": int(roles.fold_numbers(splits["split"]).max(initial=-1)) + 1,
        "versions": {"galscan": __version__, "torch": torch.__version__},
        **(extra or {}),
    }  # fmt: skip
    if (path / PREFILTER_FILE).is_file():
        info["first_look"] = file_digest(path / PREFILTER_FILE)
    info["model_hash"] = digest(
        [weights, info.get("first_look"), recipe.hash, info["calibration"], schema.name, size, answers]
        + [file_digest(file) for file in [path / SCHEMA] if file.is_file()]
    )
    write_json(path / "model.json", info)
    return open_model(path)
