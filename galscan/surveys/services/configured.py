"""Configuration of surveys (``catalogs/surveys/*.toml``): URLs, request policy, framing and rendering."""

from __future__ import annotations

import os
import re
import string
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from galscan.core.errors import InputError, nearest
from galscan.core.home import cache_home, find_toml, toml_names
from galscan.labels.recipe import validated
from galscan.surveys.files.images import Rendering
from galscan.surveys.services.client import Client, RequestPolicy
from galscan.surveys.services.rate_limit import SLACK

SURVEYS = "catalogs/surveys"
Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Framing(_Section):
    """Angular size of a cutout."""

    radii: Positive = 8.48
    """Side of a cutout over the object's radius, where the catalog has radii."""
    pixel_scale: Positive
    """Arcsec per stored pixel, where the catalog has no radii."""


class Colours(_Section):
    """Combination of FITS bands to an RGB image; see `galscan.surveys.files.images.Rendering`."""

    red: str
    green: str = ""
    blue: str
    unit: dict[str, Positive]
    stretch: Positive = 8.0
    softening: Positive = 10.0
    subtract_sky: bool = False

    @property
    def used(self) -> set[str]:
        """The bands of the image."""
        return {self.red, self.green, self.blue} - {""}

    def rendering(self) -> Rendering:
        """Return the settings as a `Rendering`."""
        subtract = dict.fromkeys(self.unit, self.subtract_sky)
        return Rendering(self.red, self.green, self.blue, self.unit, subtract, self.stretch, self.softening)


class Objects(_Section):
    """The database that --query uses."""

    skyserver: str
    release: Annotated[int, Field(ge=8)]
    vizier: str = "vizier.cds.unistra.fr"
    per_minute: Annotated[float, Field(gt=0, le=60_000)] = 20.0
    page: Annotated[int, Field(ge=1, le=500_000)] = 20_000


class _Configured(RequestPolicy):
    """Settings common to all configured surveys: request policy and provenance."""

    title: str
    release: str
    url: str
    bands: str
    native_scale: Positive
    """Arcsec per pixel of the survey's images; finer sampling adds no detail."""
    astrometry: Annotated[float, Field(gt=0, le=60)] | None = None
    """Arcsec to which positions of one object agree, if more than 1.5 (`galscan.store.identity`)."""
    answer_kb: Positive = 10.0
    """Typical size of a response in kB."""
    token: str = ""
    """Environment variable that holds the token, for services that require one."""
    needs_contact: bool = False
    licence: str = ""
    acknowledgement: str = ""
    rendering: Colours | None = None
    objects: Objects | None = None

    @model_validator(mode="after")
    def _check_common(self) -> Self:
        for band in sorted(self.rendering.used if self.rendering else ()):
            if band not in self.bands or band not in self.rendering.unit:  # type: ignore[union-attr]
                raise ValueError(f"rendering uses band '{band}', which is not in bands and rendering.unit")
        if self.token and not (self.url.startswith("https://") or is_local(self.url)):
            raise ValueError("a token is sent over https only")
        return self

    def metadata(self) -> dict[str, Any]:
        """Return provenance: release, URL, licence, and the astrometric tolerance if it is configured."""
        names = ("title", "release", "url", "licence", "acknowledgement")
        astrometry = {} if self.astrometry is None else {"astrometry": self.astrometry}
        return {name: getattr(self, name) for name in names} | astrometry

    def plan(self, requests: int) -> dict[str, Any]:
        """Return the cost of so many requests: host, rate, seconds at that rate, megabytes."""
        return {
            "host": self.hosts[0], "per_minute": self.per_minute, "requests": requests,
            "seconds": requests * 60 * (1 + SLACK) / self.per_minute, "megabytes": requests * self.answer_kb / 1e3,
        }  # fmt: skip

    def client(self, contact: str, **options: Any) -> Client:
        """Return a client for the service."""
        return Client(self, cache=cache_home(), contact=contact, token=self.secret(), **options)

    def secret(self) -> str:
        """Return the value of the token, "" if the service needs none; raise `InputError` if it is not set."""
        value = os.environ.get(self.token, "") if self.token else ""
        if self.token and not value:
            raise InputError(f"this survey needs a token; set it: export {self.token}=...")
        return value


class ConfiguredSurvey(_Configured):
    """A survey of cutouts. Fields of `url`: ``{ra} {dec} {scale} {pixels} {fov} {native} {layer} {bands}``."""

    service: Literal["picture", "panstarrs"]
    """picture: one request per cutout. panstarrs: one request for the names of the files at a position, then one for
    the cutout from ``{red} {green} {blue}``, or for FITS one per band for ``{native}`` pixels of its ``{file}``."""
    files: str = ""
    zero_point: float | None = None
    """Magnitude of one count per second, for FITS files in counts per exposure (panstarrs)."""
    format: Literal["jpeg", "png", "fits"]
    pixels: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """Minimum and maximum pixels on a side that the service delivers."""
    layer: str = ""
    layers: tuple[str, ...] = ()
    """Allowed layers; empty: any."""
    stretch: str = ""
    framing: Framing

    @model_validator(mode="after")
    def _check_cutouts(self) -> ConfiguredSurvey:
        common = {"ra", "dec", "scale", "pixels", "fov", "native", "layer", "bands"}
        stacks = self.service == "panstarrs" and self.format == "fits"
        extra = {"file"} if stacks else {"red", "green", "blue"} if self.service == "panstarrs" else set()
        for key, text, allowed in (("url", self.url, common | extra), ("files", self.files, common)):
            if unknown := _fields(text) - allowed:
                raise ValueError(f"{key} has the field {{{sorted(unknown)[0]}}}{nearest(sorted(unknown)[0], allowed)}")
            if text and urlsplit(text).netloc.lower() not in self.hosts:
                raise ValueError(f"{key} is at {urlsplit(text).netloc or text[:40]}, which is not among hosts")
        if not {"ra", "dec"} <= _fields(self.url):
            raise ValueError("url must have the fields {ra} and {dec}")
        if (self.service == "panstarrs") != bool(self.files):
            raise ValueError("files is required with service = 'panstarrs' and not allowed otherwise")
        if stacks and not {"file", "native"} <= _fields(self.url):
            raise ValueError("url must have the fields {file} and {native}")
        if stacks != (self.zero_point is not None):
            raise ValueError(
                "zero_point is required with service = 'panstarrs' and format = 'fits' and not allowed otherwise"
            )
        if (self.format == "fits") != (self.rendering is not None):
            raise ValueError("a table [rendering] is required with format = 'fits' and not allowed otherwise")
        if self.pixels[0] > self.pixels[1]:
            raise ValueError(f"pixels = {list(self.pixels)} must increase")
        return self

    def with_layer(self, layer: str | None) -> ConfiguredSurvey:
        """Return the survey with another layer; raise `InputError` if it does not have this one."""
        if layer is None:
            return self
        if "layer" not in _fields(self.url + self.files):
            raise InputError(f"--layer {layer}: this survey has no layers; leave it out")
        if self.layers and layer not in self.layers:
            raise InputError(f"--layer {layer} is unknown{nearest(layer, self.layers)}")
        return self.model_copy(update={"layer": layer})


class ConfiguredFrames(_Configured):
    """A survey of frames, one file per band. Fields of `url`: ``{band}``, and columns of the table of objects.

    Numbers may be padded, ``{run:06d}``, and text truncated, ``{brickname:.3}``.
    """

    service: Literal["frames"]
    rendering: Colours
    defaults: Annotated[dict[str, int | str], Field(default_factory=dict)]
    """Values of columns that the table may lack."""
    advice: str
    """How to obtain the columns, for error messages."""

    @model_validator(mode="after")
    def _check_frames(self) -> ConfiguredFrames:
        parts = urlsplit(self.url)
        if parts.netloc.lower() not in self.hosts:
            raise ValueError(f"url is at {parts.netloc or self.url[:40]}, which is not among hosts")
        if parts.query or parts.fragment or ".." in self.url:
            raise ValueError("url must be the path of a file, without ? # and ..")
        for name, spec in self._format_fields():
            if not name.isidentifier() or not re.fullmatch(r"(0\d{1,2}d|\.\d{1,2})?", spec):
                raise ValueError(
                    f"url has the field {{{name}{':' * bool(spec)}{spec}}}; write {{band}}, {{run:06d}} or {{name:.3}}"
                )
        if "band" not in _fields(self.url) or not self.keys:
            raise ValueError("url must have the field {band}, and columns that identify the frame")
        if unknown := sorted(self.defaults.keys() - set(self.keys)):
            raise ValueError(f"defaults has '{unknown[0]}', which is no field of url{nearest(unknown[0], self.keys)}")
        if set(self.bands) != self.rendering.used:
            used = "".join(sorted(self.rendering.used))
            raise ValueError(f"bands = '{self.bands}' must be those of rendering, {used}")
        return self

    def _format_fields(self) -> list[tuple[str, str]]:
        """Return names and format specs of the fields of `url`."""
        _fields(self.url)  # raises ValueError with the template if it cannot be parsed
        return [(name, spec or "") for _, name, spec, _ in string.Formatter().parse(self.url) if name is not None]

    @property
    def keys(self) -> list[str]:
        """The columns that identify a frame, in the order of the URL."""
        return [name for name in dict.fromkeys(name for name, _ in self._format_fields()) if name != "band"]

    @property
    def integer_keys(self) -> set[str]:
        """Those of `keys` that are integers."""
        return {name for name, spec in self._format_fields() if spec.endswith("d")}

    def file(self, band: str, values: Mapping[str, int | str]) -> str:
        """Return host and path of the file of one band."""
        return self.url.partition("://")[2].format(band=band, **values)


def fill_url(template: str, **values: Any) -> str:
    """Return a URL with its fields filled in and quoted."""
    return template.format(**{k: quote(str(v), safe="/" if k == "layer" else "") for k, v in values.items()})


def _fields(template: str) -> set[str]:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"{template[:60]}: {error}") from None


def is_local(url: str) -> bool:
    """Return whether a URL is of this machine, where http is as safe as https."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def survey_names() -> list[str]:
    """Return the names of the shipped survey files."""
    return toml_names(SURVEYS)


def load_survey(name: str) -> ConfiguredSurvey | ConfiguredFrames:
    """Load a shipped survey file by name, or one from a path ending in ``.toml``; errors name the key."""
    source, where = find_toml(SURVEYS, "survey", name), f"survey file {name}"
    try:
        raw = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{where} cannot be read: {error}") from error
    frames = raw.get("service") == "frames"
    return validated(ConfiguredFrames, where, raw) if frames else validated(ConfiguredSurvey, where, raw)
