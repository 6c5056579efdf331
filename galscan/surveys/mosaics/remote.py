"""Frames and bricks over the network: each is fetched once, while another is cut, and dropped unless it is to be kept.

Which frame an object is on is told by the table of objects, so that no index of frames is needed.
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

from galscan.core import home
from galscan.core.errors import InputError, nearest
from galscan.core.files import digest, file_digest
from galscan.core.sky import Cone, check_cone, in_cone
from galscan.surveys import tables
from galscan.surveys.base import Failed, Flag, Outcome
from galscan.surveys.mosaics.cutting import ROLES, FrameCutouts, check_framing
from galscan.surveys.mosaics.download import Fetched
from galscan.surveys.mosaics.footprints import Frame
from galscan.surveys.services.client import Client
from galscan.surveys.services.configured import ConfiguredFrames, load_survey
from galscan.surveys.services.rate_limit import SLACK
from galscan.surveys.sizes import DEFAULT_SIZE

WORD = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")  # what a table may put into an address


class RemoteFrames(FrameCutouts):
    """Objects of a table, cut from the frames of a survey that a file declares.

    Cutouts are framed as by `galscan.surveys.mosaics.frames.FramesSurvey`. Their stretch is that of the survey's
    file, so that no frame need be fetched to set it.

    Parameters
    ----------
    survey : str
        A shipped survey (``sdss-frames``, ``legacy-bricks``) or a path ending in ``.toml``.
    catalog : path
        CSV, FITS, VOTable or Parquet, with id, ra, dec and the columns that tell the frame.
    folder : path
        Where frames go.
    keep : bool
        Leave them there, to be found again.
    labels, size, columns, name, pixel_scale, frame
        As of `galscan.surveys.mosaics.frames.FramesSurvey`; `columns` may also name the one of the frame, as
        ``run=RUN``.
    cone : tuple of float, optional
        Right ascension, declination and radius in degrees: only objects therein.
    contact : str
        Who asks, told to the host.

    Raises
    ------
    InputError
        If survey file, catalog or framing cannot be used, or the catalog does not tell the frames.
    """

    def __init__(
        self,
        survey: str,
        catalog: str | Path,
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
        super().__init__()
        columns, self.survey = dict(columns or {}), Path(survey).stem
        said = load_survey(survey)
        if not isinstance(said, ConfiguredFrames):
            raise InputError(f"survey file {survey} is of cutouts, not of frames")
        check_framing(size, columns, (*ROLES, *said.keys), pixel_scale, frame)
        if said.needs_contact and not contact:
            raise InputError(f"survey '{self.survey}' wants to know who asks: --contact you@example.org")
        said.secret()
        self.declared, self.name, self.size, self.cone = said, name or self.survey, size, cone
        self.pixel_scale, self.framing = pixel_scale, frame
        self.bands, self.rendering = list(said.bands), said.rendering.rendering()
        self.root = folder.expanduser().absolute()
        self._fetched = Fetched(self.root, urlsplit(said.url).scheme, partial(_client, said, contact), keep=keep)
        self.source = self._fetched

        self.catalog = Path(catalog).expanduser().absolute()
        table = tables.read_table(self.catalog, columns)
        self._catalog_digest = file_digest(self.catalog)
        self._read_objects(table, columns, ())
        if cone is not None:
            check_cone(cone)
            inside = in_cone(self.ra, self.dec, cone)
            if not inside.any():
                raise InputError(f"no object of {self.catalog} lies in --cone {','.join(f'{c:g}' for c in cone)}")
            table = table[inside].reset_index(drop=True)
        self._read_objects(table, columns, labels)
        self._group(table, columns)
        self._check_scale({self._frame(0).name: said.native_scale})

    # ------------------------------------------------------------------------------------ the frames of objects

    def _group(self, table: pd.DataFrame, columns: Mapping[str, str]) -> None:
        """Number the frames, and put the objects in their order."""
        keys = pd.DataFrame(self._keys(table, columns))
        keys[~np.isfinite(self.ra + self.dec)] = pd.NA
        number = keys.groupby(list(keys), sort=True).ngroup()
        number = number.where(keys.notna().all(axis=1), -1).to_numpy().astype(int)
        self.count = int(number.max()) + 1
        if self.count == 0:
            raise InputError(f"no object of {self.catalog} has a position and {', '.join(keys)}; fill these columns")
        first = np.unique(number, return_index=True)[1][-self.count :]
        self._values = list(zip(*(keys[k].iloc[first].tolist() for k in keys), strict=True))
        self._in_order(np.where(number < 0, self.count, number).astype(np.int32))
        unknown = int((number < 0).sum())
        self.notes = [f"{unknown:,} of {len(self):,} objects have no position or no frame"] if unknown else []
        names = [list(v) for v in self._values]
        self._about = {"frames": self.count, "frames_sha256": digest([names, np.bincount(self.number).tolist()])}

    def _keys(self, table: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Any]:
        where, lower = str(self.catalog), {str(c).lower(): str(c) for c in reversed(table.columns)}
        absent, keys = [], {}
        for key in self.declared.keys:
            column = columns.get(key) or lower.get(key.lower())
            if column in table.columns:
                keys[key] = self._column(table[column], key in self.declared.whole)
            elif key in columns:
                near = nearest(columns[key], map(str, table.columns))
                raise InputError(f"{where} has no column '{columns[key]}' for {key}{near}")
            elif key in self.declared.defaults:
                keys[key] = pd.array([self.declared.defaults[key]] * len(table))
            else:
                absent.append(key)
        if absent:
            raise InputError(
                f"{where} has no {' and no '.join(absent)} column, which survey '{self.survey}' finds frames by: "
                f"{self.declared.advice}; or name it: --column {absent[0]}=..."
            )
        return keys

    def _column(self, column: pd.Series, whole: bool) -> Any:
        """Return whole numbers, or words that are safe in an address; missing where there is none."""
        what = f"column '{column.name}' of {self.catalog}"
        if whole or pd.api.types.is_numeric_dtype(column.dtype):
            values = tables.numbers(column, str(self.catalog))
            bad = np.flatnonzero(np.isfinite(values) & ((values < 0) | (values % 1 != 0)))
            if len(bad):
                raise InputError(
                    f"{what} is {values[bad[0]]:g} for {self.ids[bad[0]]}; it must be a whole number from 0"
                )
            return pd.array(np.where(np.isfinite(values), values, np.nan), dtype="Int64")
        words = column.astype("string").str.strip().replace("", pd.NA).reset_index(drop=True)
        bad = np.flatnonzero(~words.str.fullmatch(WORD).fillna(True).astype(bool))
        if len(bad):
            raise InputError(f"{what} is '{words[bad[0]]}' for {self.ids[bad[0]]}, which is no name of a frame")
        return words

    def _frame(self, number: int) -> Frame:
        values = self._values[number]
        named = dict(zip(self.declared.keys, values, strict=True))
        return Frame("-".join(map(str, values)), {band: self.declared.file(band, named) for band in self.bands})

    def _beyond(self, rows: slice) -> Iterator[Outcome]:
        known = np.isfinite(self.ra[rows] + self.dec[rows])
        words = ("no position in the catalog", f"no {' or '.join(self.declared.keys)} in the catalog")
        yield from (Failed(words[int(k)], Flag.MISSING) for k in known)

    # ---------------------------------------------------------------------------------------- what a survey is

    def plan(self) -> dict[str, Any]:
        """Return what fetching costs if no frame is there yet: whom, how fast, requests, seconds at that rate, MB."""
        said, frames = self.declared, len(self._used())
        requests = frames * len(self.bands)
        return {
            "frames": frames, "host": said.hosts[0], "per_minute": said.per_minute, "requests": requests,
            "seconds": requests * 60 * (1 + SLACK) / said.per_minute, "megabytes": requests * said.answer_kb / 1e3,
        }  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Return provenance: frames, catalog, and how pixels were made."""
        said = self.declared
        return {
            "survey": self.survey, "title": said.title, "release": said.release, "url": said.url,
            "catalog": str(self.catalog), "catalog_sha256": self._catalog_digest,
            "cone": list(self.cone) if self.cone else None, "objects": len(self), **self._about, **self._how(),
            "stretch": "declared in the survey's file", "licence": said.licence,
            "acknowledgement": said.acknowledgement, **said.places(),
        }  # fmt: skip

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one cutout, or the reason for none, a row.

        Raises
        ------
        HostDown
            If the host is to be left alone.
        """
        try:
            yield from super().cutouts(start, stop)
        except GeneratorExit:  # whoever asked has enough
            raise
        except BaseException:
            self._fetched.stop()
            raise


def _client(said: ConfiguredFrames, contact: str) -> Client:
    return Client(said.policy(), cache=home.cache_home(), contact=contact, token=said.secret())
