"""A list of chosen objects of a scan, as a run that can be graded and exported.

The objects of a table of ids, for example of a lasso on the page of ``galscan map``, are no random sample of the
survey, so purity is not estimated from their grades. Like a list of similar objects (`galscan.similar`) they are a run
of their own, with unknown purity; their grades may train a model of any target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from galscan.candidates import columns, ranking
from galscan.candidates.embeddings import object_list
from galscan.candidates.run import provenance
from galscan.core import files, home
from galscan.core.version import __version__
from galscan.scanning.partitions import scores_path
from galscan.scanning.run import Run, open_run
from galscan.scanning.run_info import CANDIDATES, FORMAT, RunInfo, claim
from galscan.store import identity

_KEPT = {"stores", "objects", "parts", "size", "answers", "precision", "device", "batch", "selection", "embedding"}
_NOTE = "The objects were chosen by hand: they are no random sample, and how many of them are targets is not known."


@dataclass(frozen=True)
class _Request:
    """A requested list; equal fingerprints give equal lists."""

    source: Run
    objects: Sequence[tuple[str, int]]

    @property
    def scan(self) -> str:
        return self.source.info.scan or self.source.info.fingerprint

    @cached_property
    def identity(self) -> dict[str, Any]:
        info = self.source.info
        first = {key: v[0] if isinstance(v := info.identity.get(key), list) else v for key in ("model", "recipe")}
        return info.identity | first | {"scan": self.scan, "objects": sorted(map(list, self.objects))}

    @cached_property
    def fingerprint(self) -> str:
        return files.digest(self.identity)

    @property
    def out(self) -> Path:
        return home.run_path(f"objects-{self.source.path.name[:40].strip('-.')}-{self.fingerprint[:8]}")


def list_of(run: Run, table: Path) -> Run:
    """Return the list of the objects in a table of ids, in order of their scores; it is written once.

    Parameters
    ----------
    run : Run
        The scan that scored them.
    table : path
        As of `galscan.candidates.embeddings.object_list.read_object_list`.

    Raises
    ------
    NotFoundError, InputError
        If the table cannot be read, or an object was not scored.
    """
    places = object_list.locate(run, object_list.read_object_list(table), "--objects")
    request = _Request(run, [*zip(places["store"], map(int, places["index"]), strict=True)])
    with claim(request) as previous:
        if previous is None or previous.status != "done":
            _write(request, places)
        return open_run(request.out)


def _write(request: _Request, places: pd.DataFrame) -> None:
    run, info = request.source, request.source.info
    names = set(pq.read_schema(scores_path(run.tables, 0)).names)
    score = next((name for name in (f"score_{info.target}", "score") if name in names), None)
    wanted = [*object_list.POSITION, "flags", *info.answers, *([score] if score else [])]
    frame = object_list.rows(run, places, wanted).assign(score_std=np.nan)
    frame = frame.rename(columns={score: "score"}) if score else frame.assign(score=np.nan)
    frame = frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    answers = frame[info.answers]
    frame = frame.drop(columns=info.answers).assign(lineage=frame["store"].map(info.lineages)).join(answers)
    model = run.model_if_unchanged()
    radius = max(info.astrometry, identity.RADIUS)
    in_train = model.in_train(frame, radius) if model else np.zeros(len(frame), bool)
    ranked = ranking.rank(frame, None, in_train, radius)
    result = RunInfo(
        format=FORMAT, status="running", target="chosen", targets=["chosen"], run=str(request.out),
        fingerprint=request.fingerprint, identity=request.identity, scan=request.scan,
        tables=str(run.tables.absolute()), model=info.models[0], **info.model_dump(include=_KEPT), top=len(ranked),
        seed=int(request.fingerprint[:8], 16), versions={"galscan": __version__}, like=[], scanned=len(ranked),
        candidates=len(ranked), first_look=None,
        purity={"confidence": None, "prevalence": dict.fromkeys(("value", "low", "high")), "at": {}, "notes": [_NOTE]},
    )  # fmt: skip
    result.write(request.out)
    with files.atomic_path(request.out / CANDIDATES) as temporary:
        ranked.to_parquet(temporary, index=False)
    columns.write_fits(ranked, request.out / "candidates.fits", provenance(result), result.answers)
    result.updated(status="done").write(request.out)
