"""Survey of cutouts from remote frames: each is downloaded once, ahead of its use, and deleted unless kept.

The table of objects has the columns that identify the frame of each object, so that no index of frames is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from galscan.core.errors import InputError, nearest
from galscan.core.files import digest
from galscan.core.sky import Cone
from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.columns.values import numbers
from galscan.surveys.mosaics.cutting import ROLES, FrameCutouts
from galscan.surveys.mosaics.download import DownloadedFiles
from galscan.surveys.mosaics.footprints import Frame
from galscan.surveys.services.configured import ConfiguredFrames, load_survey
from galscan.surveys.sizes import DEFAULT_SIZE
from galscan.surveys.tables import Catalog

SAFE_TEXT = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")  # allowed text of table columns in a URL


class RemoteFrames(FrameCutouts):
    """Cutouts of the objects of a catalog from the frames of a configured survey.

    Cutouts are framed as by `galscan.surveys.mosaics.frames.FramesSurvey`. The stretch is set in the survey file, so
    that it need not be measured on downloaded frames.

    Parameters
    ----------
    survey : str
        A shipped survey (``sdss-frames``, ``legacy-bricks``) or a path ending in ``.toml``.
    catalog : path or `galscan.surveys.tables.Catalog`
        A table with id, ra, dec and the columns that identify the frame.
    folder : path
        Folder of downloaded frames.
    keep : bool
        Do not delete frames after use.
    labels, size, columns, name, frame, pixel_scale
        As for `galscan.surveys.mosaics.frames.FramesSurvey`; `columns` may also name those of the frame: ``run=RUN``.
    cone : tuple of float, optional
        Right ascension, declination and radius in degrees: only objects inside are used.
    contact : str
        Contact e-mail, sent in the User-Agent.

    Raises
    ------
    InputError
        If survey file, catalog or framing cannot be used, or the catalog does not identify the frames.
    """

    def __init__(
        self,
        survey: str,
        catalog: Catalog | str | Path,
        folder: Path,
        *,
        keep: bool = False,
        labels: Sequence[str] = (),
        size: int = DEFAULT_SIZE,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
        frame: float | None = None,
        pixel_scale: float | None = None,
        cone: Cone | None = None,
        contact: str = "",
    ):
        columns, self.survey = dict(columns or {}), Path(survey).stem
        config = load_survey(survey)
        if not isinstance(config, ConfiguredFrames):
            raise InputError(f"survey file {survey} describes cutouts, not frames; choose another survey")
        if config.needs_contact and not contact:
            raise InputError(f"survey '{self.survey}' needs a contact e-mail: --contact you@example.org")
        config.secret()
        self.config, self.name, self.cone = config, name or self.survey, cone
        self.bands, self.rendering = list(config.bands), config.rendering.rendering()
        self.root = folder.expanduser().absolute()
        scheme = urlsplit(config.url).scheme
        self.source = self._downloads = DownloadedFiles(self.root, scheme, partial(config.client, contact), keep=keep)
        roles = (*ROLES, *config.keys)
        table = self._read_catalog(Catalog.of(catalog), labels, size, columns, roles, pixel_scale, frame, cone)
        self._group(table, columns)
        self._check_scale({self._frame(0).name: config.native_scale})

    # ------------------------------------------------------------------------------------ the frames of objects

    def _group(self, table: pd.DataFrame, columns: Mapping[str, str]) -> None:
        """Number the frames, and sort the objects by frame."""
        keys = pd.DataFrame(self._keys(table, columns))
        keys[~np.isfinite(self.ra + self.dec)] = pd.NA
        number = keys.groupby(list(keys), sort=True).ngroup()
        number = number.where(keys.notna().all(axis=1), -1).to_numpy().astype(int)
        self.count = int(number.max()) + 1
        if self.count == 0:
            raise InputError(f"no object of {self.catalog} has a position and {', '.join(keys)}; fill these columns")
        first = np.unique(number, return_index=True)[1][-self.count :]
        self._values = list(zip(*(keys[k].iloc[first].tolist() for k in keys), strict=True))
        self._sort_by_frame(np.where(number < 0, self.count, number).astype(np.int32))
        unknown = int((number < 0).sum())
        self.notes = [f"{unknown:,} of {len(self):,} objects have no position or no frame"] if unknown else []
        names = [list(v) for v in self._values]
        self._frame_metadata = {
            "frames": self.count,
            "frames_sha256": digest([names, np.bincount(self.number).tolist()]),
        }

    def _keys(self, table: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Any]:
        where, lower = str(self.catalog), {str(c).lower(): str(c) for c in reversed(table.columns)}
        absent, keys = [], {}
        for key in self.config.keys:
            column = columns.get(key) or lower.get(key.lower())
            if column in table.columns:
                keys[key] = self._column(table[column], key in self.config.integer_keys)
            elif key in columns:
                near = nearest(columns[key], map(str, table.columns))
                raise InputError(f"{where} has no column '{columns[key]}' for {key}{near}")
            elif key in self.config.defaults:
                keys[key] = pd.array([self.config.defaults[key]] * len(table))
            else:
                absent.append(key)
        if absent:
            raise InputError(
                f"{where} has no {' and no '.join(absent)} column, which identifies the frames of survey "
                f"'{self.survey}': {self.config.advice}; or name it: --column {absent[0]}=..."
            )
        return keys

    def _column(self, column: pd.Series, integer: bool) -> Any:
        """Return a column as integers, or as text that is safe in a URL; empty values are missing."""
        if integer or pd.api.types.is_numeric_dtype(column.dtype):
            found = numbers(column, str(self.catalog))
            values, rule = pd.Series(found), "must be an integer of at least 0"
            bad = np.isfinite(found) & ((found < 0) | (found % 1 != 0))
        else:
            values = column.astype("string").str.strip().replace("", pd.NA).reset_index(drop=True)
            rule = "is not the name of a frame; use letters, digits and _.+-"
            bad = ~values.str.fullmatch(SAFE_TEXT).fillna(True).to_numpy(bool)
        if bad.any():
            k = int(bad.argmax())
            value = values[k] if values.dtype == "string" else f"{values[k]:g}"
            raise InputError(f"column '{column.name}' of {self.catalog}: '{value}' of {self.ids[k]} {rule}")
        return values if values.dtype == "string" else values.where(np.isfinite(values)).astype("Int64")

    def _frame(self, number: int) -> Frame:
        values = self._values[number]
        named = dict(zip(self.config.keys, values, strict=True))
        return Frame("-".join(map(str, values)), {band: self.config.file(band, named) for band in self.bands})

    def _beyond(self, rows: slice) -> Iterator[Outcome]:
        known = np.isfinite(self.ra[rows] + self.dec[rows])
        reasons = ("no position in the catalog", f"no {' or '.join(self.config.keys)} in the catalog")
        yield from (Failed(reasons[int(k)], Flag.MISSING) for k in known)

    # ---------------------------------------------------------------------------------------- Survey protocol

    def plan(self) -> dict[str, Any]:
        """Return the cost of all cutouts if no frame is downloaded yet: host, rate, requests, seconds, MB."""
        frames = len(self._used_frames())
        return {"frames": frames} | self.config.plan(frames * len(self.bands))

    def describe(self) -> dict[str, Any]:
        """Return provenance: frames, catalog, cutting and rendering."""
        return {
            "survey": self.survey, **self.config.metadata(),
            "cone": list(self.cone) if self.cone else None, **self._metadata(),
            "stretch": "declared in the survey's file",
        }  # fmt: skip

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one outcome per object; raise `ServiceUnavailableError` if the circuit breaker of the host is open."""
        try:
            yield from super().cutouts(start, stop)
        except GeneratorExit:  # closed by the caller
            raise
        except BaseException:
            self._downloads.stop()
            raise
