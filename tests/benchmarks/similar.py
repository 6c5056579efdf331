"""How long a search for what is alike takes in a million galaxies, and how much of what is alike it finds.

    python -m tests.benchmarks.similar [--quick] [--json] [--model MODEL]

The million are fabricated: 128 numbers each, in the files that a scan writes, five of them the examples. What is timed
is all of the search in a process of its own: ids looked up, the survey's mean, the thousand nearest and their rows;
neither the start of Python nor pictures. Memory is the most that was resident (VmHWM), Python and libraries included.

With a model (that of ``galscan demo``, say, which never saw a real galaxy) the real galaxies of ``ngc-sdss`` are
searched: five of a kind drawn at random as examples, a hundred times. Figures are the fraction of the kind among the
twenty nearest of all that have EFIGI labels and did not train the model, beside the fraction at random, and that of
other ways of comparing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import galscan
from galscan.candidates.embeddings.similar import EmbeddingSpace, similarity, unit
from galscan.scanning.partitions import EMBEDDING, FINGERPRINT, as_bytes, embeddings_path, scores_path, write_rows
from tests.benchmarks._processes import run_measured
from tests.benchmarks._record import DATA, arguments, record, work_folder
from tests.candidate_tables import info

PART, NUMBERS, CLUSTERS, EXAMPLES, NEAREST = 4096, 128, 20, 5, 20
KINDS = {
    "dusty_early": "t <= 0 and visible_dust >= 0.5", "ring": "inner_ring >= 0.5", "edge_on": "inclination >= 0.95",
    "perturbed": "perturbation >= 0.75",
}  # fmt: skip
SEARCH = """
import sys, time
from pathlib import Path
import pandas as pd
from galscan.candidates.embeddings.similar import EmbeddingSpace
from galscan.scanning.run import Run
from galscan.scanning.run_info import read_info
path = Path(sys.argv[1])
started = time.perf_counter()
space = EmbeddingSpace(Run(path, read_info(path)))
places = space.locate(pd.DataFrame({"id": sys.argv[2].split(","), "store": ""}))
best = space.nearest(space.at(places), 1000)
rows = space.rows(best)
seconds = time.perf_counter() - started
assert len(rows) == 1000 and (rows["id"] % int(sys.argv[3]) == 0).all(), "what was found is of another cluster"
print(seconds)
"""


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    parser = arguments("similar", __doc__ or "")
    parser.add_argument("--model", type=Path, help="look for real galaxies as this model sees them")
    options = parser.parse_args(argv)
    work = work_folder("similar", options, new=True)
    figures = searches(work, 250_000 if options.quick else 1_000_000, options.seed)
    if options.model:
        figures |= neighbours(work, options.model, options.seed)
    shutil.rmtree(work)
    record("similar", options, figures)
    return figures


def searches(work: Path, rows: int = 1_000_000, seed: int = 0) -> dict[str, Any]:
    """Return seconds and memory of a search in so many galaxies, and in a tenth of them."""
    figures: dict[str, Any] = {"rows": rows, "numbers": NUMBERS}
    for name, count in (("tenth", rows // 10), ("million", rows)):
        run = fabricate(work / name, count, seed)
        ids = ",".join(str(count // EXAMPLES // CLUSTERS * CLUSTERS * k) for k in range(EXAMPLES))  # of one cluster
        seconds, peaks, _ = zip(*(run_measured(SEARCH, run, ids, CLUSTERS) for _ in range(3)), strict=True)
        seconds = round(float(np.median(np.array(seconds, float))), 2)
        figures |= {f"similar_{name}_s": seconds, f"similar_{name}_mb": max(peaks)}
        shutil.rmtree(run)
    return figures | {"similar_peak_mb": figures["similar_million_mb"]}


def fabricate(run: Path, rows: int, seed: int) -> Path:
    """Write what a search reads of a scan: embeddings that are clustered, as those of galaxies, and scores."""
    rng = np.random.default_rng(seed)
    parts = -(-rows // PART)
    results = info(embedding=NUMBERS, parts=parts, objects=rows, scanned=rows)
    (run / "scores").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(results))
    marks = {FINGERPRINT: results["fingerprint"].encode()}
    kinds = rng.gamma(1.0, 1.0, (CLUSTERS, NUMBERS))
    for part in range(parts):
        index = np.arange(part * PART, min(part * PART + PART, rows))
        vectors = kinds[index % CLUSTERS] + np.abs(rng.normal(0, 0.5, (len(index), NUMBERS)))
        embedding = as_bytes(vectors.astype(np.float16))
        every = np.ones(len(index), bool)
        write_rows(embeddings_path(run, part), marks, {EMBEDDING: embedding}, every)
        columns = {
            "store": pa.DictionaryArray.from_arrays(np.zeros(len(index), np.int32), ["sdss"]),
            "index": index, "id": index,
            "ra": rng.uniform(0, 360, len(index)), "dec": rng.uniform(-60, 60, len(index)),
            "flags": np.zeros(len(index), np.uint8),
            **{name: rng.random(len(index)).astype(np.float32) for name in results["answers"]},
        }  # fmt: skip
        write_rows(scores_path(run, part), marks, columns, every)
    return run


def neighbours(work: Path, model: Path, seed: int) -> dict[str, Any]:
    """Return how many of a kind are near five of it, as `galscan similar` compares and as others do."""
    from galscan.labels.rules import parse_rule

    bundle = galscan.open(model)
    store = galscan.ingest("local", path=DATA / "ngc-sdss", labels=["efigi"], size=bundle.size, out=work / "ngc.zarr")
    run = galscan.scan(store=store.path, model=model, out=work / "run", embeddings=True)
    space = EmbeddingSpace(run)
    tables = [pq.read_table(scores_path(run.path, k), columns=["index"]) for k in range(space.parts)]
    index = pa.concat_tables(tables)["index"].to_numpy()
    vectors = np.concatenate([space.read(k) for k in range(space.parts)]).astype(np.float64)
    labels = store.labels("efigi").iloc[index].reset_index(drop=True)
    fair = labels["t"].notna().to_numpy() & ~np.isin(
        store.column("id")[index].astype(str), list(bundle.objects("train").id)
    )
    away = vectors - vectors.mean(0)
    spread, axes = np.linalg.eigh(np.cov(away.T))
    used = spread > 1e-6 * spread.max()
    ways = {
        "plain": vectors, "centred": away, "standard": away / np.maximum(vectors.std(0), 1e-6),
        "whitened": away @ axes[:, used] / np.sqrt(spread[used]),
    }  # fmt: skip
    centre = space.centre()
    rng = np.random.default_rng(seed)
    figures: dict[str, Any] = {"model": bundle.model_hash, "labelled": int(fair.sum()), "nearest": NEAREST}
    for kind, rule in KINDS.items():
        columns = {name: labels[name].to_numpy() for name in labels}
        is_kind = fair & np.asarray(parse_rule(rule, list(columns)).evaluate(columns)[0], bool)
        found: dict[str, list[float]] = {}
        for _ in range(100):
            drawn = rng.choice(np.flatnonzero(is_kind), EXAMPLES, replace=False)
            towards = unit(vectors[drawn] - centre).mean(0)
            orders = {"galscan": similarity(vectors, centre, towards)}
            for way, values in ways.items():
                cosines = unit(values) @ unit(values)[drawn].T
                orders |= {f"{way}_mean": cosines.mean(1), f"{way}_best": cosines.max(1)}
            for way, values in orders.items():
                values = np.where(fair, values, -9.0)
                values[drawn] = -9.0
                found.setdefault(way, []).append(float(is_kind[np.argsort(-values)[:NEAREST]].mean()))
        figures[kind] = {
            "of": int(is_kind.sum()), "random": round(float((is_kind.sum() - EXAMPLES) / (fair.sum() - EXAMPLES)), 3),
            **{way: round(float(np.mean(fractions)), 3) for way, fractions in found.items()},
        }  # fmt: skip
    return figures


if __name__ == "__main__":
    main()
