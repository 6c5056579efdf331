"""Points of a map of a scan: which objects are shown, their scores and labels, and their projected embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from galscan.candidates.embeddings.object_list import POSITION, each
from galscan.candidates.embeddings.similar import EmbeddingSpace
from galscan.core import progress
from galscan.core.errors import InputError
from galscan.scanning import known_labels
from galscan.scanning.partitions import scores_path
from galscan.scanning.run import Run
from galscan.scanning.run_info import CANDIDATES
from galscan.stats import projection
from galscan.stats.purity import AMBIGUOUS

Label = Callable[[pd.DataFrame], np.ndarray]


@dataclass(frozen=True, eq=False)
class MapPoints:
    """The points of a map.

    Attributes
    ----------
    table : DataFrame
        One row per point, in the order of the survey: part, row, store, index, id, ra, dec, x, y, score (NaN where
        unknown), rank (0 where not ranked), known (target, ambiguous, negative or ''), grade ('' where not graded) and
        the predicted answers.
    explained : tuple of float, optional
        Fraction of the variance along x and y; None for UMAP.
    scored : int
        Number of objects in the scan.
    random : int
        Number of points that are only there as part of the random sample.
    """

    table: pd.DataFrame
    explained: tuple[float, float] | None
    scored: int
    random: int


def make_points(
    space: EmbeddingSpace, *, max_points: int, method: str, seed: int, grades: pd.DataFrame | None = None
) -> MapPoints:
    """Choose the objects of a map and project their embeddings.

    Where the scan has more than `max_points` objects, the map has the candidates, the objects of known label and the
    graded ones, and a random sample of the others. The projection is fitted on a random sample of all objects.

    Parameters
    ----------
    grades : DataFrame, optional
        Columns store, index and grade.

    Raises
    ------
    InputError
        If a table of the scan is damaged, or the embeddings cannot be projected.
    """
    run = space.run
    rng = np.random.default_rng(seed)
    sizes = [_rows(run, part) for part in range(run.info.parts)]
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    scored = int(starts[-1])
    if scored < projection.LEAST:
        raise InputError(f"{run.path} has {scored} scored objects; a map needs at least {projection.LEAST}")
    drawn = np.arange(scored) if scored <= max_points else np.sort(rng.choice(scored, max_points, replace=False))
    table = pd.concat(_chosen(run, starts, drawn, grades), ignore_index=True)
    sample = np.flatnonzero(table["drawn"])
    most = projection.SAMPLE[method]
    if len(sample) > most:
        sample = np.sort(rng.choice(sample, most, replace=False))
    fitted = projection.fit(space.at(table.iloc[sample]), method, seed=seed)
    if len(table) > max_points:
        table = _limited(table, max_points, rng)
    table[["x", "y"]] = _project(space, table, fitted)
    only_drawn = int((~_is_special(table)).sum())
    return MapPoints(table.drop(columns="drawn"), fitted.explained, scored, only_drawn)


def _rows(run: Run, part: int) -> int:
    try:
        return int(pq.read_metadata(scores_path(run.tables, part)).num_rows)
    except (OSError, pa.ArrowException):
        return len(run.partition(part, ["index"]))  # raises the error that names the remedy


def _chosen(run: Run, starts: np.ndarray, drawn: np.ndarray, grades: pd.DataFrame | None) -> list[pd.DataFrame]:
    """Return the rows of each partition that are in the random sample, ranked, labelled or graded."""
    info = run.info
    names = set(pq.read_schema(scores_path(run.tables, 0)).names)
    score = next((name for name in (f"score_{info.target}", "score") if name in names), None)
    columns = [*POSITION, *info.answers, *([score] if score and not info.is_similarity_list else [])]
    ranked = pd.read_parquet(run.path / CANDIDATES, columns=["store", "index", "rank", "score"])
    rank_of, label_of, grade_of = _lookup(ranked, "rank"), _labels(run), _lookup(grades, "grade")
    of_rank = np.append(np.nan, ranked.sort_values("rank")["score"].to_numpy(np.float64))

    def take(part: int) -> pd.DataFrame:
        table = run.partition(part, columns).to_pandas().astype({"store": str})
        table["rank"] = rank_of(table).fillna(0).astype(np.int64)
        table["known"] = known_labels.names(label_of(table))
        table["grade"] = grade_of(table).fillna("").astype(str)
        if score and score in table:
            table = table.rename(columns={score: "score"})
        else:  # similarity is known for the ranked objects only
            table["score"] = of_rank[table["rank"]]
        low, high = np.searchsorted(drawn, starts[part : part + 2])
        table["drawn"] = np.isin(np.arange(len(table)), drawn[low:high] - starts[part])
        table = table.assign(part=part, row=np.arange(len(table)))
        return table[table["drawn"] | _is_special(table)]

    return list(each(run, take, "objects of the map"))


def _is_special(table: pd.DataFrame) -> pd.Series:
    return (table["rank"] > 0) | (table["known"] != "") | (table["grade"] != "")


def _lookup(values: pd.DataFrame | None, column: str) -> Callable[[pd.DataFrame], pd.Series]:
    """Return a function that finds the value of a column for objects by store and index, NaN where there is none."""
    by_store: dict[str, pd.Series] = {}
    if values is not None:
        unique = values.drop_duplicates(["store", "index"])
        by_store = {str(store): rows.set_index("index")[column] for store, rows in unique.groupby("store")}

    def find(table: pd.DataFrame) -> pd.Series:
        found = pd.Series(np.nan, table.index, dtype=object)
        for store, rows in table.groupby("store"):
            if store in by_store:
                found[rows.index] = by_store[str(store)].reindex(rows["index"]).to_numpy(object)
        return found

    return find


def _labels(run: Run) -> Label:
    """Return a function that finds the labels that the model of a scan knows, NaN where unknown."""
    model = None if run.info.is_similarity_list else run.model_if_unchanged()
    if model is None:
        return lambda table: np.full(len(table), np.nan)
    splits, objects = model.splits(), model.objects(radius=run.info.astrometry)
    values = np.append(splits["target"].fillna(AMBIGUOUS).to_numpy(np.float64), np.nan)  # the last is for no object
    stores = None if "ra" in splits else set(splits["store"])  # an id alone means nothing in another store

    def find(table: pd.DataFrame) -> np.ndarray:
        found = objects.find_in(table.assign(lineage=table["store"].map(run.info.lineages)))
        labels = values[found]
        return labels if stores is None else np.where(table["store"].isin(stores), labels, np.nan)

    return find


def _limited(table: pd.DataFrame, most: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return at most so many rows: the candidates by rank, then labelled and graded objects, then random ones."""
    rank = table["rank"].to_numpy()
    order = np.lexsort([rng.random(len(table)), rank, ~_is_special(table).to_numpy(), rank == 0])
    return table.iloc[np.sort(order[:most])].reset_index(drop=True)


def _project(space: EmbeddingSpace, table: pd.DataFrame, fitted: projection.Projection) -> np.ndarray:
    positions = np.empty((len(table), 2), np.float32)
    by_part = table.groupby("part")
    with progress.track("projection", len(by_part), "partitions") as advance:
        for part, rows in by_part:
            positions[rows.index] = fitted.apply(space.read(int(part))[rows["row"].to_numpy()])
            advance()
    return positions
