"""Tables read by astropy; more in tests/strangers/test_tables.py."""

from __future__ import annotations

from pathlib import Path

from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import QTable

from galscan.surveys.table_files.astropy_tables import from_astropy, read_ascii


def test_columns_that_are_not_plain(tmp_path: Path) -> None:
    table = QTable({"a": [1.0, 2.0] * u.arcmin, "b": [[1, 2], [3, 4]], "c": SkyCoord([1, 2], [3, 4], unit="deg")})
    table.write(tmp_path / "t.ecsv")
    for frame in (from_astropy(table), read_ascii(tmp_path / "t.ecsv", "ascii.ecsv")):
        assert frame.columns.tolist() == ["a", "c.ra", "c.dec"]
        assert frame.attrs["unit"]["a"] == "arcmin" and frame.attrs["positions"] == ("c.ra", "c.dec")
