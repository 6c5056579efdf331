"""Surveys as data (``catalogs/surveys/*.toml``): where cutouts or frames are, and how to ask for them and show them."""

from __future__ import annotations

import os
import re
import string
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from galscan.core.errors import InputError, NotFoundError, nearest
from galscan.core.home import shipped
from galscan.labels.recipe import validated
from galscan.surveys.files.images import Rendering
from galscan.surveys.services.client import RequestPolicy

Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=60_000)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Framing(_Section):
    """How large a piece of sky a cutout shows."""

    radii: Positive = 8.48
    """Side over radius, where the catalog gives one."""
    pixel_scale: Positive
    """Arcsec per stored pixel, where it gives none."""


class Colours(_Section):
    """How FITS bands become colours; see `galscan.surveys.files.images.Rendering`."""

    red: str
    green: str = ""
    blue: str
    unit: dict[str, Positive]
    stretch: Positive = 8.0
    softening: Positive = 10.0
    subtract_sky: bool = False

    def rendering(self) -> Rendering:
        """Return it as images are coloured by it."""
        subtract = dict.fromkeys(self.unit, self.subtract_sky)
        return Rendering(self.red, self.green, self.blue, self.unit, subtract, self.stretch, self.softening)


class Objects(_Section):
    """The database that --query asks."""

    skyserver: str
    release: Annotated[int, Field(ge=8)]
    vizier: str = "vizier.cds.unistra.fr"
    per_minute: Rate = 20.0
    page: Annotated[int, Field(ge=1, le=500_000)] = 20_000


class _Configured(_Section):
    """What all surveys have in common: whom to ask, in what manner, and what to say of it."""

    title: str
    release: str
    url: str
    hosts: Annotated[tuple[str, ...], Field(min_length=1)]
    per_minute: Rate = 60.0
    connections: Annotated[int, Field(ge=1, le=32)] = 2
    timeout: Positive = 60.0
    tries: Annotated[int, Field(ge=1, le=20)] = 5
    give_up: Annotated[int, Field(ge=1)] = 10
    max_mb: Positive = 50.0
    bands: str
    native_scale: Positive
    """Arcsec per pixel, below which there is nothing more to see."""
    astrometry: Annotated[float, Field(gt=0, le=60)] | None = None
    """Arcsec to which positions of one object agree, where it is more than 1.5 (`galscan.store.identity`)."""
    answer_kb: Positive = 10.0
    """What one answer weighs, about."""
    token: str = ""
    """The environment variable that holds a token, for services that ask for one."""
    needs_contact: bool = False
    licence: str = ""
    acknowledgement: str = ""
    rendering: Colours | None = None
    objects: Objects | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.rendering is not None:
            used = {self.rendering.red, self.rendering.green, self.rendering.blue} - {""}
            for band in sorted(used):
                if band not in self.bands or band not in self.rendering.unit:
                    raise ValueError(f"rendering uses band '{band}', which bands or rendering.unit do not have")
        if self.token and not (self.url.startswith("https://") or _at_home(self.url)):
            raise ValueError("a token is sent over https only")
        return self

    def places(self) -> dict[str, Any]:
        """Return what provenance says of positions: the astrometry, where it is declared."""
        return {} if self.astrometry is None else {"astrometry": self.astrometry}

    def policy(self) -> RequestPolicy:
        """Return how the service wants to be asked."""
        names = ("hosts", "per_minute", "connections", "timeout", "tries", "give_up", "max_mb")
        return RequestPolicy(**{name: getattr(self, name) for name in names})

    def secret(self) -> str:
        """Return the token.

        Raises
        ------
        InputError
            If the environment does not hold it.
        """
        if self.token and not os.environ.get(self.token):
            raise InputError(f"this survey needs a token: export {self.token}=... with the one the service gave you")
        return os.environ.get(self.token, "") if self.token else ""


class ConfiguredSurvey(_Configured):
    """A survey of cutouts. What a request may say: ``{ra} {dec} {scale} {pixels} {fov} {native} {layer} {bands}``."""

    service: Literal["picture", "panstarrs"]
    """picture: one request a cutout. panstarrs: one that names the files of a place, then one that cuts ``{red} {green}
    {blue}`` out of them, or for FITS one a band that cuts ``{native}`` pixels out of its ``{file}``."""
    files: str = ""
    zero_point: float | None = None
    """Magnitude of one count a second, where FITS files count over an exposure (panstarrs)."""
    format: Literal["jpeg", "png", "fits"]
    pixels: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """Least and most pixels on a side that the service gives."""
    layer: str = ""
    layers: tuple[str, ...] = ()
    """Those that are known; empty: any."""
    stretch: str = ""
    framing: Framing

    @model_validator(mode="after")
    def _coherent(self) -> ConfiguredSurvey:
        allowed = {"ra", "dec", "scale", "pixels", "fov", "native", "layer", "bands"}
        stacks = self.service == "panstarrs" and self.format == "fits"
        cut = {"file"} if stacks else {"red", "green", "blue"} if self.service == "panstarrs" else set()
        for key, text, known in (("url", self.url, allowed | cut), ("files", self.files, allowed)):
            if unknown := _fields(text) - known:
                raise ValueError(f"{key} asks for {{{sorted(unknown)[0]}}}{nearest(sorted(unknown)[0], known)}")
            if text and urlsplit(text).netloc.lower() not in self.hosts:
                raise ValueError(f"{key} is at {urlsplit(text).netloc or text[:40]}, which is not among hosts")
        if not {"ra", "dec"} <= _fields(self.url):
            raise ValueError("url must have the places {ra} and {dec}")
        if (self.service == "panstarrs") != bool(self.files):
            raise ValueError("files goes with service = 'panstarrs', and only with it")
        if stacks and not {"file", "native"} <= _fields(self.url):
            raise ValueError("url must have the places {file} and {native}")
        if stacks != (self.zero_point is not None):
            raise ValueError("zero_point goes with service = 'panstarrs' and format = 'fits', and only with them")
        if (self.format == "fits") != (self.rendering is not None):
            raise ValueError("a table [rendering] goes with format = 'fits', and only with it")
        if self.pixels[0] > self.pixels[1]:
            raise ValueError(f"pixels = {list(self.pixels)} must rise")
        return self

    def with_layer(self, layer: str | None) -> ConfiguredSurvey:
        """Return the survey with another layer.

        Raises
        ------
        InputError
            If it has no such layer, or none at all.
        """
        if layer is None:
            return self
        if "layer" not in _fields(self.url + self.files):
            raise InputError(f"--layer {layer}: this survey has no layers; leave it out")
        if self.layers and layer not in self.layers:
            raise InputError(f"--layer {layer} is unknown{nearest(layer, self.layers)}")
        return self.model_copy(update={"layer": layer})


class ConfiguredFrames(_Configured):
    """A survey of frames, one file a band. What `url` may say: ``{band}``, and columns of the table of objects.

    Numbers may be padded, ``{run:06d}``, and words cut off, ``{brickname:.3}``.
    """

    service: Literal["frames"]
    rendering: Colours
    defaults: dict[str, int | str] = {}
    """What a column is where the table has none."""
    advice: str
    """How to come by the columns."""

    @model_validator(mode="after")
    def _coherent(self) -> ConfiguredFrames:
        parts = urlsplit(self.url)
        if parts.netloc.lower() not in self.hosts:
            raise ValueError(f"url is at {parts.netloc or self.url[:40]}, which is not among hosts")
        if parts.query or parts.fragment or ".." in self.url:
            raise ValueError("url must be the path of a file, without ? # and ..")
        for name, spec in self._places():
            if not name.isidentifier() or not re.fullmatch(r"(0\d{1,2}d|\.\d{1,2})?", spec):
                raise ValueError(
                    f"url asks for {{{name}{':' * bool(spec)}{spec}}}; write {{band}}, {{run:06d}} or {{name:.3}}"
                )
        if "band" not in _fields(self.url) or not self.keys:
            raise ValueError("url must have the place {band}, and columns that tell the frame")
        if unknown := sorted(self.defaults.keys() - set(self.keys)):
            raise ValueError(f"defaults has '{unknown[0]}', which url does not ask for{nearest(unknown[0], self.keys)}")
        used = {self.rendering.red, self.rendering.green, self.rendering.blue} - {""}
        if set(self.bands) != used:
            raise ValueError(f"bands = '{self.bands}' must be those that rendering uses, {''.join(sorted(used))}")
        return self

    def _places(self) -> list[tuple[str, str]]:
        _fields(self.url)  # which says so if they cannot be parsed
        return [(name, spec or "") for _, name, spec, _ in string.Formatter().parse(self.url) if name is not None]

    @property
    def keys(self) -> list[str]:
        """The columns that tell the frame, in the order of the address."""
        return [name for name in dict.fromkeys(name for name, _ in self._places()) if name != "band"]

    @property
    def whole(self) -> set[str]:
        """Those of `keys` that are whole numbers."""
        return {name for name, spec in self._places() if spec.endswith("d")}

    def file(self, band: str, values: Mapping[str, int | str]) -> str:
        """Return host and path of the file of one band."""
        return self.url.partition("://")[2].format(band=band, **values)


def fill(template: str, **values: Any) -> str:
    """Return an address with its places filled: what comes from a catalog or a service is quoted."""
    return template.format(**{k: quote(str(v), safe="/" if k == "layer" else "") for k, v in values.items()})


def _fields(template: str) -> set[str]:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"{template[:60]}: {error}") from None


def _at_home(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def survey_names() -> list[str]:
    """Return the names of the shipped survey files."""
    return sorted(p.name.removesuffix(".toml") for p in (shipped("catalogs") / "surveys").iterdir())


def load_survey(name: str) -> ConfiguredSurvey | ConfiguredFrames:
    """Load a shipped survey file by name, or one from a path ending in ``.toml``.

    Raises
    ------
    NotFoundError
        If there is none.
    InputError
        If it is not valid; the message names the key and the remedy.
    """
    if name.endswith(".toml"):
        source: Any = Path(name)
        if not source.is_file():
            raise NotFoundError(
                f"survey file {name} does not exist; give its path, or one of {', '.join(survey_names())}"
            )
    elif name in survey_names():
        source = shipped("catalogs") / "surveys" / f"{name}.toml"
    else:
        raise NotFoundError(f"unknown survey '{name}'{nearest(name, survey_names())}")
    try:
        raw = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"survey file {name} cannot be read: {error}") from error
    where = f"survey file {name}"
    return (
        validated(ConfiguredFrames, where, raw)
        if raw.get("service") == "frames"
        else validated(ConfiguredSurvey, where, raw)
    )
