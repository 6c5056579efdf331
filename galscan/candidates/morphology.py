"""The morphology of every galaxy that a scan looked at: expected votes with intervals, along the decision tree.

What was scored is on disk, part by part, with the answers (`galscan.scanning.partitions`); here it becomes one table,
read and written piece by piece. Of a tree there are for each answer

    <answer>         expected fraction of those who are asked the question
    <answer>_lo, _hi limits of its 90 % credible interval (`galscan.models.votes`)
    <answer>_joint   times the fractions on the way to the question: of all who look at the galaxy

and of other labels the answer alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from galscan.candidates import scan_tables
from galscan.candidates.table_stream import PIECE, TableStream
from galscan.core.errors import InputError
from galscan.labels.columns import to_cumulative
from galscan.labels.schema import Schema, load_schema
from galscan.models.model import Model, open_model
from galscan.scanning.partitions import FULL, scores_path
from galscan.scanning.run import open_run, tables

LEVEL = 0.9  # of the credible intervals
PLACE = ("store", "id", "ra", "dec")
FORMATS = ("fits", "votable", "parquet", "csv")


def morphology(run: str | Path) -> tuple[TableStream, dict[str, Any]]:
    """Return the morphology of all galaxies that a finished scan looked at in full, and its run.json.

    Raises
    ------
    NotFoundError
        If there is no run.
    InputError
        If it is not finished, its models have gone or predict no morphology, or most of the survey was discarded by a
        first look.
    """
    opened = open_run(run)
    info, answers = opened.info, list(opened.info.get("answers", []))
    models = info["model"] if isinstance(info["model"], list) else [info["model"]]
    bundles = [open_model(path) for path in models]
    if not answers:
        raise InputError(f"the model of {opened.path} predicts no morphology: its recipe names no answers")
    count = _count(opened.path, info)
    schemas = [_tree(bundle) for bundle in bundles]
    trees = {schema.name: schema for schema in schemas if schema is not None}
    folder = tables(opened.path, info)

    def pieces() -> Iterator[pa.Table]:
        for _, part in scan_tables.parts(opened.path, info, [*PLACE, "stage", *answers], "morphology"):
            full = part.filter(pc.equal(part["stage"].cast(pa.string()), FULL))
            for start in range(0, len(full), PIECE):
                yield _piece(full.slice(start, PIECE), answers, trees)

    first = pq.read_schema(scores_path(folder, 0)).empty_table().select([*PLACE, *answers])
    return TableStream(_piece(first, answers, trees).schema, count, pieces), info


def _count(run: Path, info: Mapping[str, Any]) -> int:
    """Return how many objects were scored in full; refuse where a first look let few of them through."""
    full = 0
    for _, part in scan_tables.parts(run, info, ["stage"], "objects"):
        full += int((part["stage"].combine_chunks().to_numpy(zero_copy_only=False) == FULL).sum())
    scored = info["scanned"]
    if full < scored:
        raise InputError(
            f"{scored - full:,} of {scored:,} objects were discarded by the first look and have no morphology; scan "
            "again with --no-cascade"
        )
    return full


def _tree(bundle: Model) -> Schema | None:
    schema = load_schema(bundle.schema)
    return schema if schema.kind == "tree" else None


def _piece(part: pa.Table, answers: Sequence[str], trees: Mapping[str, Schema]) -> pa.Table:
    """Return the columns of the catalog for some rows."""
    from galscan.models import votes

    table = {"store": part["store"].cast(pa.string()), "objid": part["id"], "ra": part["ra"], "dec": part["dec"]}
    voted = {name for schema in trees.values() for name in schema.names}
    plain = [name for name in answers if name not in voted and not name.endswith("_concentration")]
    for schema in trees.values():
        asked = [task for task in schema.tasks if set(task.answers) <= set(answers)]
        fractions = part.select([name for task in asked for name in task.answers]).to_pandas()
        joint = to_cumulative(schema, fractions)  # NaN beyond a question that the model does not know
        for task in asked:
            worth = part[f"{task.id}_concentration"].to_numpy().astype(np.float64)
            for name in task.answers:
                low, high = votes.interval(fractions[name].to_numpy(np.float64), worth, LEVEL)
                columns = {"": fractions[name], "_lo": low, "_hi": high, "_joint": joint[name]}
                table |= {name + end: pa.array(np.asarray(of, np.float32)) for end, of in columns.items()}
            table[f"{task.id}_concentration"] = pa.array(worth.astype(np.float32))
    return pa.table(table | {name: part[name] for name in plain})
