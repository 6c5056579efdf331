"""Morphology catalog of a scan: expected vote fractions with credible intervals, along the decision tree.

The score tables (`galscan.scanning.partitions`) hold the predicted answers of each galaxy; they are read and written in
pieces. For each answer of a decision tree the catalog has

    <answer>         expected fraction of the volunteers who reach the question
    <answer>_lo, _hi limits of its 90 % credible interval (`galscan.models.votes`)
    <answer>_joint   expected fraction of all volunteers: times the fractions along the path to the question

and for other labels the answer alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from galscan.candidates.table_stream import PIECE, TableStream
from galscan.core.errors import InputError
from galscan.labels.columns import to_cumulative
from galscan.labels.schema import Schema
from galscan.models.model import open_model
from galscan.scanning.partitions import FULL, scores_path
from galscan.scanning.run import Run, open_run

LEVEL = 0.9  # of the credible intervals
IDENTITY_COLUMNS = ("store", "id", "ra", "dec")
FORMATS = ("fits", "votable", "parquet", "csv")


def morphology(run: str | Path) -> tuple[TableStream, Run]:
    """Return the morphology of all galaxies scored by a finished scan, and the run."""
    opened = open_run(run)
    answers = opened.info.answers
    schemas = [open_model(path).schema for path in opened.info.models]
    if not answers:
        raise InputError(
            f"the model of {opened.path} predicts no morphology: its recipe names no answers; use another model"
        )
    count = _count(opened)
    trees = [schema for schema in schemas if schema.kind == "tree"]

    def pieces() -> Iterator[pa.Table]:
        columns = [*IDENTITY_COLUMNS, "stage", *answers]
        for table in opened.scores(columns, "morphology"):
            full = table.filter(pc.equal(table["stage"].cast(pa.string()), FULL))
            for start in range(0, len(full), PIECE):
                yield _piece(full.slice(start, PIECE), answers, trees)

    first = pq.read_schema(scores_path(opened.tables, 0)).empty_table().select([*IDENTITY_COLUMNS, *answers])
    return TableStream(_piece(first, answers, trees).schema, count, pieces), opened


def _count(run: Run) -> int:
    """Return the number of objects scored in full; raise an error if a prefilter discarded any."""
    full = 0
    for table in run.scores(["stage"], "objects"):
        full += pc.sum(pc.equal(table["stage"].cast(pa.string()), FULL)).as_py() or 0
    if full < (scored := run.info.scanned):
        raise InputError(
            f"{scored - full:,} of {scored:,} objects were discarded by the prefilter and have no morphology; scan "
            "again with --no-cascade"
        )
    return full


def _piece(rows: pa.Table, answers: Sequence[str], trees: Sequence[Schema]) -> pa.Table:
    """Return the columns of the catalog for rows of a score table."""
    from galscan.models import votes  # imports torch, which is slow

    table = {"store": rows["store"].cast(pa.string()), "objid": rows["id"], "ra": rows["ra"], "dec": rows["dec"]}
    voted = {name for schema in trees for name in schema.names}
    plain = [name for name in answers if name not in voted and not name.endswith("_concentration")]
    for schema in trees:
        tasks = [task for task in schema.tasks if set(task.answers) <= set(answers)]
        fractions = rows.select([name for task in tasks for name in task.answers]).to_pandas()
        joint = to_cumulative(schema, fractions)  # NaN below a question that the model does not predict
        for task in tasks:
            concentration = rows[f"{task.id}_concentration"].to_numpy().astype(np.float64)
            for name in task.answers:
                low, high = votes.interval(fractions[name].to_numpy(np.float64), concentration, LEVEL)
                columns = {"": fractions[name], "_lo": low, "_hi": high, "_joint": joint[name]}
                table |= {name + end: pa.array(np.asarray(values, np.float32)) for end, values in columns.items()}
            table[f"{task.id}_concentration"] = pa.array(concentration.astype(np.float32))
    return pa.table(table | {name: rows[name] for name in plain})
