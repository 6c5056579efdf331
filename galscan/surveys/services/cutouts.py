"""Survey of cutouts from a web service, one or a few requests per object; for samples of thousands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.concurrency import ordered_map
from galscan.core.errors import InputError
from galscan.core.sky import Cone
from galscan.surveys import tables
from galscan.surveys.base import NOT_FOUND, Cutout, Failed, Flag, NoCoverage, Outcome
from galscan.surveys.catalog import CatalogSurvey, check_roles
from galscan.surveys.columns.values import arcseconds
from galscan.surveys.files.images import FileInMemory, read_fits, read_picture
from galscan.surveys.services import panstarrs
from galscan.surveys.services.cache import Response
from galscan.surveys.services.client import Client
from galscan.surveys.services.configured import ConfiguredSurvey, fill_url, load_survey
from galscan.surveys.services.errors import FetchError
from galscan.surveys.sizes import DEFAULT_SIZE, check_framing, check_size
from galscan.surveys.subsets import select_rows
from galscan.surveys.tables import Catalog

ROLES = ("id", "ra", "dec", "radius")
MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "fits": b"SIMPLE  ="}
OVERSAMPLE = 2  # requested over stored pixels: services interpolate coarsely, averaging afterwards is better
SIDE_LIMITS = (1.0, 7200.0)  # arcsec: cutouts outside these limits are taken as errors in the catalog
BLACK = 2  # a border with no brighter pixel lies beyond the survey's edge


class UnusableError(FetchError):
    """The response is not a usable cutout; `flag` is the reason."""

    def __init__(self, reason: str, flag: Flag = Flag.UNREADABLE):
        super().__init__(reason)
        self.flag = flag


class ServiceSurvey(CatalogSurvey):
    """Cutouts of the objects of a catalog from the service of a configured survey.

    Parameters
    ----------
    source : str
        A shipped survey (``sdss``, ``legacy-dr10`` ...) or a path ending in ``.toml``.
    catalog : path or `galscan.surveys.tables.Catalog`
        A table with positions.
    labels, size, columns, name
        As for `galscan.surveys.files.local.LocalSurvey`; roles of columns are ``id ra dec radius``.
    frame : float, optional
        Side of a cutout over the radius (arcsec) of the object; default: that of the survey, 8.48, which with the
        Petrosian radius R90 is the framing of Galaxy Zoo 2.
    pixel_scale : float, optional
        Instead: arcsec per stored pixel, the same for all objects.
    layer : str, optional
        Layer or HiPS, for surveys with several.
    cone : tuple of float, optional
        Right ascension, declination and radius in degrees: only objects inside are used.
    contact : str
        Contact e-mail, sent in the User-Agent.
    response_folder : path, optional
        Folder of cached responses, instead of the cache of the data home.
    retry_not_found : bool
        Request again what a cached response says does not exist (HTTP 404).
    """

    def __init__(
        self, source: str, catalog: Catalog | str | Path, *, labels: Sequence[str] = (), size: int = DEFAULT_SIZE,
        columns: Mapping[str, str] | None = None, name: str | None = None, frame: float | None = None,
        pixel_scale: float | None = None, layer: str | None = None, cone: Cone | None = None, contact: str = "",
        response_folder: Path | None = None, retry_not_found: bool = False,
    ):  # fmt: skip
        columns = dict(columns or {})
        check_roles(columns, ROLES)
        check_size(size)
        check_framing(pixel_scale, frame)
        self.source, self.size = Path(source).stem, size
        config = load_survey(source)
        if not isinstance(config, ConfiguredSurvey):
            raise InputError(f"survey file {source} describes frames, not cutouts; choose another survey")
        self.config = config.with_layer(layer)
        if self.config.needs_contact and not contact:
            raise InputError(f"survey '{self.source}' needs a contact e-mail: --contact you@example.org")
        self.config.secret()
        self.name = name or self.source
        self.contact, self.response_folder, self.retry_not_found = contact, response_folder, retry_not_found
        self._source = Catalog.of(catalog)
        self.catalog = Path(self._source.path or "")
        self.cone = cone
        table = tables.read_table(self._source, columns)
        if cone is not None:
            table = self._within(table, columns, cone)
        self._read_positions(table, columns)
        self._schemas, self.labels = tables.read_labels(table, labels)
        self._frame(table, columns, frame, pixel_scale)
        self._catalog_digest = tables.digest(self.catalog)
        self._client: Client | None = None

    # -------------------------------------------------------------------------------------------- the catalog

    def _frame(
        self, table: pd.DataFrame, columns: Mapping[str, str], frame: float | None, pixel_scale: float | None
    ) -> None:
        """Set the side of each cutout in arcsec, NaN where the radius is unknown."""
        column = tables.find_column(table, "radius", columns, str(self.catalog))
        if frame is not None and column is None:
            raise InputError(
                f"--frame needs a column of radii (arcsec) in {self.catalog}; name it: --column radius=..."
            )
        if column is None or pixel_scale is not None:
            scale = pixel_scale or self.config.framing.pixel_scale
            self.sides = np.full(len(self), scale * self.size)
            self.framing: dict[str, Any] = {"pixel_scale": scale}
        else:
            frame = frame or self.config.framing.radii
            self.sides = frame * arcseconds(table, column, "radius", str(self.catalog))
            self.framing = {"radii": frame, "column": column}

    # --------------------------------------------------------------------------------------- Survey protocol

    def describe(self) -> dict[str, Any]:
        """Return provenance: source of the pixels, framing and rendering."""
        config = self.config
        return {
            "survey": self.source, **config.metadata(),
            "layer": config.layer or None, "format": config.format, "bands": config.bands, "framing": self.framing,
            "catalog": str(self.catalog), "catalog_sha256": self._catalog_digest,
            **self._source.describe(),
            "cone": list(self.cone) if self.cone else None, "objects": len(self),
            "size": self.size, "resize": "hamming, bilinear when enlarging", "orientation": "north up, east left",
            "labels": list(self._schemas), "stretch": config.stretch or None,
            "rendering": config.rendering.rendering().describe() if config.rendering else None,
        }  # fmt: skip

    def cutouts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield one outcome per object, of `connections` requests at a time.

        `ServiceUnavailableError` is raised if the circuit breaker of the service is open.
        """
        if self._client is None:
            self._client = self.config.client(
                self.contact, response_folder=self.response_folder, retry_not_found=self.retry_not_found
            )
            self._client.cache.prune()
        client, rows = self._client, range(start, min(stop, len(self)))
        try:
            yield from ordered_map(lambda n: self._outcome(client, n), rows, self.config.connections)
        except GeneratorExit:  # closed by the caller
            raise
        except BaseException:
            self._client = None
            client.stop()
            raise

    def take(self, rows: np.ndarray) -> ServiceSurvey:
        """Return the survey of these rows only."""
        selected: ServiceSurvey = select_rows(self, rows, "ids", "ra", "dec", "sides", "labels")
        selected._client = None
        return selected

    def plan(self) -> dict[str, Any]:
        """Return the cost of all cutouts: host, rate, requests, seconds at that rate, megabytes."""
        config = self.config
        each = 1 if config.service == "picture" else 1 + (len(config.bands) if config.format == "fits" else 1)
        return config.plan(each * int(np.isfinite(self.ra + self.dec + self.sides).sum()))

    # ---------------------------------------------------------------------------------------------- one cutout

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def _outcome(self, client: Client, n: int) -> Outcome:
        side = float(self.sides[n])
        if not np.isfinite(self.ra[n] + self.dec[n]):
            return Failed("no position", Flag.MISSING)
        if not SIDE_LIMITS[0] <= side <= SIDE_LIMITS[1]:
            what = "no radius" if np.isnan(side) else f"a cutout of {side:g} arcsec"
            return Failed(f"{what}; it must be {SIDE_LIMITS[0]:g} to {SIDE_LIMITS[1]:g} arcsec", Flag.MISSING)
        native = max(1, round(side / self.config.native_scale))
        try:
            outcome = self._fetch(client, float(self.ra[n]), float(self.dec[n]), side, native)
        except FetchError as error:
            return Failed(str(error), getattr(error, "flag", Flag.UNREADABLE))
        if isinstance(outcome, Cutout) and native < self.size:
            return dataclasses.replace(outcome, flags=outcome.flags | Flag.UPSCALED)
        return outcome

    def _fetch(self, client: Client, ra: float, dec: float, side: float, native: int) -> Outcome:
        config = self.config
        pixels = int(np.clip(min(OVERSAMPLE * self.size, native), *config.pixels))
        values = {
            "ra": f"{ra:.7f}", "dec": f"{dec:.7f}", "scale": f"{side / pixels:.6f}", "pixels": pixels,
            "fov": f"{side / 3600:.8f}", "native": native, "layer": config.layer, "bands": config.bands,
        }  # fmt: skip
        if config.service == "panstarrs":
            files = client.get(fill_url(config.files, **values), lambda r: panstarrs.files(r, config.bands))
            if files is None:
                return NoCoverage("no file of the survey covers it")
            if config.format == "fits":
                return self._stacks(client, files, values, native)
            blue, red = config.bands[0], config.bands[-1]
            values |= {"red": files[red], "green": files[config.bands[len(config.bands) // 2]], "blue": files[blue]}
        return client.get(fill_url(config.url, **values), lambda r: self._read(r, side, pixels))

    def _stacks(self, client: Client, files: dict[str, str], values: dict[str, Any], native: int) -> Outcome:
        """Request one cutout per band, in native pixels, and combine them."""
        config = self.config
        low, high = config.pixels
        if not low <= native <= high:
            return Failed(f"{native:,} pixels across; the service delivers {low} to {high:,}", Flag.WRONG_SHAPE)
        planes = []
        for band in config.bands:
            url = fill_url(config.url, file=files[band], **values)
            plane = client.get(url, partial(self._plane, band, native))
            if plane is None:
                return NoCoverage(NOT_FOUND)
            planes.append(plane)
        return self._checked(self._coloured(planes, config.native_scale), native * config.native_scale, native)

    def _plane(self, band: str, pixels: int, response: Response) -> FileInMemory | None:
        if response.absent:
            return None
        self._check_format(response)
        zero_point = float(self.config.zero_point or 0)
        return FileInMemory(panstarrs.nanomaggies(response.body, zero_point, pixels), f"plane_{band}")

    def _read(self, response: Response, side: float, pixels: int) -> Outcome:
        """Return the outcome of a response; raise `UnusableError`, so that it is not cached, if it is not a cutout."""
        if response.absent:
            return NoCoverage(NOT_FOUND)
        config = self.config
        self._check_format(response)
        file = FileInMemory(response.body, f"answer_{config.bands}" if len(config.bands) == 1 else "answer")
        if config.rendering is None:
            outcome = read_picture(file, self.size, side / pixels)
        else:
            outcome = self._coloured([file], side / pixels)
        return self._checked(outcome, side, pixels)

    def _check_format(self, response: Response) -> None:
        if not response.body.startswith(MAGIC[self.config.format]):
            expected = self.config.format.upper()
            raise UnusableError(f"expected {expected}, got {response.kind or 'no type'}: {response.excerpt()}")

    def _coloured(self, files: list[FileInMemory], scale: float) -> Outcome:
        assert self.config.rendering is not None
        return read_fits(files, self.size, scale, self.config.rendering.rendering())

    def _checked(self, outcome: Outcome, side: float, pixels: int) -> Outcome:
        """Check the size of a cutout and its edges; a blank image means no coverage."""
        if isinstance(outcome, Cutout):
            if not np.isclose(outcome.pixel_scale * self.size, side, rtol=1e-6):
                found = round(pixels * outcome.pixel_scale * self.size / side)
                raise UnusableError(f"{found} x {found} pixels, not the {pixels} requested", Flag.WRONG_SHAPE)
            if self.config.rendering is None and _black_edge(outcome.image):
                return dataclasses.replace(outcome, flags=outcome.flags | Flag.EDGE)
            return outcome
        if isinstance(outcome, Failed) and outcome.flag in (Flag.BLANK, Flag.NONFINITE):
            return NoCoverage(f"blank image ({outcome.reason})")
        reason, flag = (outcome.reason, outcome.flag) if isinstance(outcome, Failed) else ("no cutout", Flag.UNREADABLE)
        raise UnusableError(reason, flag)


def _black_edge(image: np.ndarray) -> bool:
    """Return whether a row or column at the border is black, as beyond the edge of a survey."""
    borders = (image[0], image[-1], image[:, 0], image[:, -1])
    return any(int(border.max()) <= BLACK for border in borders)
