"""Readers of tables by astropy: FITS, VOTable, ECSV, IPAC, SExtractor and the tables of journals; SkyCoord columns."""

from __future__ import annotations

import bz2
import gzip
import lzma
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.surveys.table_files.choice import Choose, Listed

# Tables that describe others: headers of images in FITS_LDAC, history and masks.
NOT_OBJECTS = ("LDAC_IMHEAD",)
ICRS_LIKE = ("", "icrs", "fk5", "eq_fk5", "eq fk5", "icrf", "gaia")
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def read_fits(path: Path, choose: Choose) -> pd.DataFrame:
    """Read a table of a FITS file, also of FITS_LDAC; `choose` picks one of several."""
    from astropy.io import fits
    from astropy.table import Table

    with fits.open(path) as hdus:
        found = [
            (number, hdu)
            for number, hdu in enumerate(hdus)
            if type(hdu) in (fits.BinTableHDU, fits.TableHDU) and hdu.name not in NOT_OBJECTS
        ]
        if not found:
            raise InputError(f"catalog {path} has no table, only images; give a table of objects")
        listed = [Listed(hdu.name, number, list(hdu.columns.names), len(hdu.data)) for number, hdu in found]
        number, hdu = found[choose(listed)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # units that astropy does not know do no harm
            table = Table.read(hdus, hdu=number, format="fits")
        system = str(hdu.header.get("RADESYS", hdu.header.get("RADECSYS", ""))).strip()
        if str(hdu.header.get("EQUINOX", "")).startswith(("1950", "B1950")):
            system = system or "B1950"
        frame = from_astropy(table)
    if system.lower() not in ICRS_LIKE:
        frame.attrs["system"] = dict.fromkeys(map(str, frame.columns), system) | frame.attrs["system"]
    return frame


def read_votable(path: Path, choose: Choose) -> pd.DataFrame:
    """Read a table of a VOTable; `choose` picks one of several."""
    from astropy.io import votable

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = votable.parse(str(path), verify="ignore")
        found = [table for table in tree.iter_tables() if len(table.fields)]
        if not found:
            raise InputError(f"catalog {path} has no table; the service that wrote it may have failed")
        listed = [
            Listed(table.name or table.ID or "", k, [field.name for field in table.fields], len(table.array))
            for k, table in enumerate(found, 1)
        ]
        chosen = found[choose(listed)]
        systems = {c.ID: f"{c.system} {c.equinox or ''}".strip() for c in tree.iter_coosys() if c.ID}
        table = chosen.to_table(use_names_over_ids=True)
        names = dict(zip([f.name for f in chosen.fields], chosen.fields, strict=True))
        frame = from_astropy(table)
    for name, field in names.items():
        system = systems.get(field.ref or "", "")
        if name in frame.columns and system.lower().removesuffix("j2000").removesuffix("2000").strip() not in ICRS_LIKE:
            frame.attrs["system"][name] = system
    return frame


def read_ascii(path: Path, form: str) -> pd.DataFrame:
    """Read a text table of one of astropy's formats: ``ascii.ecsv``, ``ascii.ipac``, ``ascii.sextractor`` ..."""
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = _OPENERS.get(path.suffix.lower(), open)(path, "rb").read()
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        return from_astropy(Table.read(text.splitlines(), format=form))


def read_astropy_parquet(path: Path) -> pd.DataFrame:
    """Read Parquet that astropy wrote, with units and SkyCoord columns in its metadata."""
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_astropy(Table.read(path, format="parquet"))


def from_astropy(table: Any) -> pd.DataFrame:
    """Return an astropy table as a data frame; columns of arrays are left out.

    ``attrs`` has ``ucd``, ``unit`` and ``system`` (coordinate systems other than ICRS and FK5) by column. A SkyCoord
    column ``c`` becomes the columns ``c.ra`` and ``c.dec`` in degrees, ICRS.
    """
    from astropy.coordinates import SkyCoord

    places = []
    ucd: dict[str, str] = {}
    unit: dict[str, str] = {}
    for k, c in enumerate(list(table.colnames), 1):
        column = table[c]
        if isinstance(column, SkyCoord):
            places.append(c)
            _replace_sky(table, c)
            unit |= {f"{c}.ra": "deg", f"{c}.dec": "deg"}
            continue
        # astropy parses the UCDs of a VOTable; those of FITS are in header keywords.
        meta = getattr(column, "meta", None) or getattr(getattr(column, "info", None), "meta", None) or {}
        ucd[c] = str(meta.get("ucd") or table.meta.get(f"TUCD{k}") or "").lower()
        unit[c] = str(getattr(column, "unit", None) or "").strip()
    table.keep_columns([c for c in table.colnames if np.ndim(table[c]) == 1])
    for c in table.colnames:
        if getattr(table[c], "dtype", np.dtype(float)).kind == "S":
            table[c] = _decoded(table[c])
    frame = table.to_pandas(index=False)
    frame.attrs = {"ucd": ucd, "unit": unit, "system": {}}
    if len(places) == 1:
        frame.attrs["positions"] = (f"{places[0]}.ra", f"{places[0]}.dec")
    return frame


def _replace_sky(table: Any, name: str) -> None:
    position = table[name].icrs
    table.remove_column(name)
    table[f"{name}.ra"], table[f"{name}.dec"] = np.asarray(position.ra.deg), np.asarray(position.dec.deg)


def _decoded(column: Any) -> Any:
    """Return a column of bytes as text. Bytes that are not UTF-8 are read as Latin-1, which has all of them."""
    decode: Callable[[str], Any] = lambda encoding: np.char.decode(np.asarray(column), encoding)  # noqa: E731
    try:
        text = decode("utf-8")
    except UnicodeDecodeError:
        text = decode("latin-1")
    mask = getattr(column, "mask", None)
    if mask is None:
        return text
    from astropy.table import MaskedColumn

    return MaskedColumn(text, mask=mask)
