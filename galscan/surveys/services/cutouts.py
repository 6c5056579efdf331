"""A survey whose cutouts come from a service, one request an object, for training sets and other thousands."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core import home
from galscan.core.concurrency import ordered_map
from galscan.core.errors import InputError, nearest
from galscan.core.files import file_digest
from galscan.core.sky import Cone, check_cone, in_cone
from galscan.surveys import tables
from galscan.surveys.base import Cutout, Failed, Flag, NoCoverage, Outcome
from galscan.surveys.catalog import CatalogSurvey
from galscan.surveys.files.images import FileInMemory, read_fits, read_picture
from galscan.surveys.growth import narrowed
from galscan.surveys.services import panstarrs
from galscan.surveys.services.cache import Response
from galscan.surveys.services.client import Client
from galscan.surveys.services.configured import ConfiguredSurvey, fill, load_survey
from galscan.surveys.services.errors import FetchError
from galscan.surveys.services.rate_limit import SLACK
from galscan.surveys.sizes import DEFAULT_SIZE, check_size

ROLES = ("id", "ra", "dec", "radius")
MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "fits": b"SIMPLE  ="}
OVERSAMPLE = 2  # pixels asked for over pixels stored: services sample coarsely, we average
FRAMES = (1.0, 7200.0)  # arcsec: a cutout of less or more is a mistake in the catalog
BLACK = 2  # a row of pixels no brighter than this lies beyond the survey's edge


class Unusable(FetchError):
    """The service sent something that is no cutout; `flag` says how."""

    def __init__(self, reason: str, flag: Flag = Flag.UNREADABLE):
        super().__init__(reason)
        self.flag = flag


class ServiceSurvey(CatalogSurvey):
    """Cutouts of the objects in a table, from a survey that a file declares.

    Parameters
    ----------
    source : str
        A shipped survey (``sdss``, ``legacy-dr10`` ...) or a path ending in ``.toml``.
    catalog : path
        CSV, FITS, VOTable or Parquet, with a position an object.
    labels, size, columns, name
        As of `galscan.surveys.files.local.LocalSurvey`; roles of columns are ``id ra dec radius``.
    frame : float, optional
        Side of a cutout over the radius (arcsec) of the object; default: the survey's own, 8.48, which on the
        Petrosian radius R90 is the framing of Galaxy Zoo 2.
    pixel_scale : float, optional
        Arcsec per stored pixel, the same for all, instead.
    layer : str, optional
        Layer or HiPS, where the survey has several.
    cone : tuple of float, optional
        Right ascension, declination and radius in degrees: only objects therein.
    contact : str
        Who asks, told to the service.
    remember : path, optional
        Keep what is fetched there, and take nothing from the cache of the data home.

    Raises
    ------
    InputError
        If survey file, catalog or framing cannot be used, or a token or contact is missing.
    """

    def __init__(
        self,
        source: str,
        catalog: str | Path,
        *,
        labels: Sequence[str] = (),
        size: int = DEFAULT_SIZE,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
        frame: float | None = None,
        pixel_scale: float | None = None,
        layer: str | None = None,
        cone: Cone | None = None,
        contact: str = "",
        remember: Path | None = None,
    ):
        columns = dict(columns or {})
        for role in columns:
            if role not in ROLES:
                raise InputError(f"--column {role}=...: there is no role '{role}'{nearest(role, ROLES)}")
        check_size(size)
        self.source, self.size = Path(source).stem, size
        said = load_survey(source)
        if not isinstance(said, ConfiguredSurvey):
            raise InputError(f"survey file {source} is of frames, not of cutouts")
        self.declared = said.with_layer(layer)
        if self.declared.needs_contact and not contact:
            raise InputError(f"survey '{self.source}' wants to know who asks: --contact you@example.org")
        self.declared.secret()
        self.name = name or self.source
        self.contact, self.remember = contact, remember
        self.catalog = Path(catalog).expanduser().absolute()
        self.cone = cone
        table = tables.read_table(self.catalog, columns)
        if cone is not None:
            table = self._within(table, columns, cone)
        self._read_objects(table, columns)
        self._schemas, self.labels = tables.read_labels(table, labels)
        self._frame(table, columns, frame, pixel_scale)
        self._catalog_digest = file_digest(self.catalog)
        self._client: Client | None = None

    # -------------------------------------------------------------------------------------------- the catalog

    def _read_objects(self, table: pd.DataFrame, columns: Mapping[str, str]) -> None:
        self._read_places(table, columns)
        if len(self.ra) >= 50 and np.nanmax(self.ra) <= 24:
            # Real surveys may lie there, so it is no error.
            print(f"warning: no ra of {self.catalog} is above 24; hours must be given as degrees", file=sys.stderr)

    def _within(self, table: pd.DataFrame, columns: Mapping[str, str], cone: Cone) -> pd.DataFrame:
        check_cone(cone)
        self._read_objects(table, columns)
        inside = in_cone(self.ra, self.dec, cone)
        if not inside.any():
            raise InputError(f"no object of {self.catalog} lies in --cone {','.join(f'{c:g}' for c in cone)}")
        return table[inside].reset_index(drop=True)

    def _frame(
        self, table: pd.DataFrame, columns: Mapping[str, str], frame: float | None, pixel_scale: float | None
    ) -> None:
        """Set the side of each cutout in arcsec, NaN where the radius is not known."""
        if frame is not None and pixel_scale is not None:
            raise InputError("--frame and --pixel-scale exclude each other; give one")
        for option, value in (("--frame", frame), ("--pixel-scale", pixel_scale)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"{option} {value:g}: give a number above 0")
        column = tables.find_column(table, "radius", columns, str(self.catalog))
        if frame is not None and column is None:
            raise InputError(
                f"--frame needs a column of radii (arcsec) in {self.catalog}; name it: --column radius=..."
            )
        if column is None or pixel_scale is not None:
            scale = pixel_scale or self.declared.framing.pixel_scale
            self.sides = np.full(len(self), scale * self.size)
            self.framing: dict[str, Any] = {"pixel_scale": scale}
        else:
            frame = frame or self.declared.framing.radii
            self.sides = frame * tables.numbers(table[column], str(self.catalog))
            self.framing = {"radii": frame, "column": column}

    # --------------------------------------------------------------------------------------- what a survey is

    def describe(self) -> dict[str, Any]:
        """Return provenance: where pixels come from, and how they were framed and coloured."""
        said = self.declared
        return {
            "survey": self.source, "title": said.title, "release": said.release, "url": said.url,
            "layer": said.layer or None, "format": said.format, "bands": said.bands, "framing": self.framing,
            "catalog": str(self.catalog), "catalog_sha256": self._catalog_digest,
            "cone": list(self.cone) if self.cone else None, "objects": len(self),
            "size": self.size, "resize": "hamming, bilinear when enlarging", "orientation": "north up, east left",
            "labels": list(self._schemas), "stretch": said.stretch or None,
            "rendering": said.rendering.rendering().describe() if said.rendering else None,
            "licence": said.licence, "acknowledgement": said.acknowledgement, **said.places(),
        }  # fmt: skip

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one cutout, or the reason for none, a row, fetched a few at a time.

        Raises
        ------
        HostDown
            If the service is to be left alone.
        """
        if self._client is None:
            self._client = self._open()
        client, rows = self._client, range(start, min(stop, len(self)))
        try:
            yield from ordered_map(lambda n: self._outcome(client, n), rows, self.declared.connections)
        except GeneratorExit:  # whoever asked has enough
            raise
        except BaseException:
            self._client = None
            client.stop()
            raise

    def take(self, rows: np.ndarray) -> ServiceSurvey:
        """Return the survey of these rows alone."""
        part: ServiceSurvey = narrowed(self, rows, "ids", "ra", "dec", "sides", "labels")
        part._client = None
        return part

    def plan(self) -> dict[str, Any]:
        """Return what fetching all of it costs: whom, how fast, requests, seconds at that rate, megabytes."""
        said = self.declared
        each = 1 if said.service == "picture" else 1 + (len(said.bands) if said.format == "fits" else 1)
        requests = each * int(np.isfinite(self.ra + self.dec + self.sides).sum())
        return {
            "host": said.hosts[0], "per_minute": said.per_minute, "requests": requests,
            "seconds": requests * 60 * (1 + SLACK) / said.per_minute, "megabytes": requests * said.answer_kb / 1e3,
        }  # fmt: skip

    # ---------------------------------------------------------------------------------------------- one cutout

    def _open(self) -> Client:
        said = self.declared
        client = Client(
            said.policy(), cache=home.cache_home(), contact=self.contact, token=said.secret(), remember=self.remember
        )
        client.answers.prune()
        return client

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def _outcome(self, client: Client, n: int) -> Outcome:
        side = float(self.sides[n])
        if not np.isfinite(self.ra[n] + self.dec[n]):
            return Failed("no position", Flag.MISSING)
        if not FRAMES[0] <= side <= FRAMES[1]:
            what = "no radius" if np.isnan(side) else f"a frame of {side:g} arcsec"
            return Failed(f"{what}; it must be {FRAMES[0]:g} to {FRAMES[1]:g} arcsec", Flag.MISSING)
        native = max(1, round(side / self.declared.native_scale))
        try:
            outcome = self._fetch(client, float(self.ra[n]), float(self.dec[n]), side, native)
        except FetchError as error:
            return Failed(str(error), getattr(error, "flag", Flag.UNREADABLE))
        if isinstance(outcome, Cutout) and native < self.size:
            return dataclasses.replace(outcome, flags=outcome.flags | Flag.UPSCALED)
        return outcome

    def _fetch(self, client: Client, ra: float, dec: float, side: float, native: int) -> Outcome:
        said = self.declared
        pixels = int(np.clip(min(OVERSAMPLE * self.size, native), *said.pixels))
        values = {
            "ra": f"{ra:.7f}", "dec": f"{dec:.7f}", "scale": f"{side / pixels:.6f}", "pixels": pixels,
            "fov": f"{side / 3600:.8f}", "native": native, "layer": said.layer, "bands": said.bands,
        }  # fmt: skip
        if said.service == "panstarrs":
            files = client.get(fill(said.files, **values), lambda answer: panstarrs.files(answer, said.bands))
            if files is None:
                return NoCoverage("no file of the survey covers it")
            if said.format == "fits":
                return self._stacks(client, files, values, native)
            blue, red = said.bands[0], said.bands[-1]
            values |= {"red": files[red], "green": files[said.bands[len(said.bands) // 2]], "blue": files[blue]}
        return client.get(fill(said.url, **values), lambda answer: self._read(answer, side, pixels))

    def _stacks(self, client: Client, files: dict[str, str], values: dict[str, Any], native: int) -> Outcome:
        """Return what one request a band gives: the survey's own pixels, the nearest whole number of them."""
        said = self.declared
        if not said.pixels[0] <= native <= said.pixels[1]:
            return Failed(f"{native:,} pixels across, {said.pixels[0]} to {said.pixels[1]:,} are cut", Flag.WRONG_SHAPE)
        planes = []
        for band in said.bands:
            url = fill(said.url, file=files[band], **values)
            plane = client.get(url, partial(self._plane, band, native))
            if plane is None:
                return NoCoverage("the service has nothing there")
            planes.append(plane)
        return self._judged(self._coloured(planes, said.native_scale), native * said.native_scale, native)

    def _plane(self, band: str, pixels: int, answer: Response) -> FileInMemory | None:
        if answer.absent:
            return None
        self._check_kind(answer)
        return FileInMemory(
            panstarrs.nanomaggies(answer.body, float(self.declared.zero_point or 0), pixels), f"plane_{band}"
        )

    def _read(self, answer: Response, side: float, pixels: int) -> Outcome:
        """Return what an answer holds.

        Raises
        ------
        Unusable
            If it is not what was asked for; such an answer is not kept.
        """
        if answer.absent:
            return NoCoverage("the service has nothing there")
        said = self.declared
        self._check_kind(answer)
        file = FileInMemory(answer.body, f"answer_{said.bands}" if len(said.bands) == 1 else "answer")
        outcome = (
            read_picture(file, self.size, side / pixels)
            if said.rendering is None
            else self._coloured([file], side / pixels)
        )
        return self._judged(outcome, side, pixels)

    def _check_kind(self, answer: Response) -> None:
        if not answer.body.startswith(MAGIC[self.declared.format]):
            kind = self.declared.format.upper()
            raise Unusable(f"no {kind} but {answer.kind or 'something'}: {answer.words()}")

    def _coloured(self, files: list[FileInMemory], scale: float) -> Outcome:
        assert self.declared.rendering is not None
        return read_fits(files, self.size, scale, self.declared.rendering.rendering())

    def _judged(self, outcome: Outcome, side: float, pixels: int) -> Outcome:
        if isinstance(outcome, Cutout):
            if not np.isclose(outcome.pixel_scale * self.size, side, rtol=1e-6):
                got = round(pixels * outcome.pixel_scale * self.size / side)
                raise Unusable(f"{got} x {got} pixels, not the {pixels} asked for", Flag.WRONG_SHAPE)
            if self.declared.rendering is None and _black_edge(outcome.image):
                return dataclasses.replace(outcome, flags=outcome.flags | Flag.EDGE)
            return outcome
        if isinstance(outcome, Failed) and outcome.flag in (Flag.BLANK, Flag.NONFINITE):
            return NoCoverage(f"a blank picture ({outcome.reason})")
        reason, flag = (outcome.reason, outcome.flag) if isinstance(outcome, Failed) else ("no cutout", Flag.UNREADABLE)
        raise Unusable(reason, flag)


def _black_edge(image: np.ndarray) -> bool:
    """Return whether a whole row or column at the border is black, as beyond the edge of a survey."""
    borders = (image[0], image[-1], image[:, 0], image[:, -1])
    return any(int(border.max()) <= BLACK for border in borders)
