"""Tables: several in a file, formats of observatories, folders of Parquet, ids in unusual places."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.io.votable import from_table
from astropy.io.votable.tree import Resource, VOTableFile
from astropy.table import Table

from galscan.candidates.reference_catalog import read_known
from galscan.core.errors import InputError
from galscan.surveys import tables
from galscan.surveys.files.local import LocalSurvey
from galscan.surveys.tables import Catalog
from tests.pictures_on_disk import OBJID, picture, write

OBJECTS = Table({"NUMBER": [7, 8, 9], "id": [7, 8, 9], "ra": [10.0, 20.0, 30.0], "dec": [1.0, 2.0, 3.0]})
SETTINGS = Table({"key": ["seeing"], "value": [1.1]})


def as_fits(path: Path, *parts: tuple[str, Table]) -> Path:
    hdus = [fits.PrimaryHDU()]
    for name, table in parts:
        hdus.append(fits.table_to_hdu(table))
        hdus[-1].name = name
    fits.HDUList(hdus).writeto(path)
    return path


def as_votable(path: Path, *parts: tuple[str, Table]) -> Path:
    whole, resource = VOTableFile(), Resource()
    whole.resources.append(resource)
    for name, table in parts:
        part = from_table(table).resources[0].tables[0]
        part.name = name
        resource.tables.append(part)
    whole.to_xml(str(path))
    return path


@pytest.mark.parametrize(("write_it", "suffix"), [(as_fits, "fits"), (as_votable, "vot")])
def test_several_tables(tmp_path: Path, write_it: object, suffix: str) -> None:
    """That with the objects is taken, wherever it is; of two with objects one must be named."""
    make = write_it  # type: ignore[assignment]
    found = read_known(make(tmp_path / f"a.{suffix}", ("SETTINGS", SETTINGS), ("OBJECTS", OBJECTS)))  # type: ignore
    assert found.ra.tolist() == [10, 20, 30]
    stars = Table({"id": [1], "ra": [5.0], "dec": [6.0]})
    path = make(tmp_path / f"b.{suffix}", ("STARS", stars), ("GALAXIES", OBJECTS))  # type: ignore[operator]
    with pytest.raises(InputError, match=r"--table.*STARS.*GALAXIES"):
        read_known(path)
    assert len(read_known(Catalog(path, table="galaxies"))) == 3
    assert len(read_known(Catalog(path, table="1"))) == 1
    with pytest.raises(InputError, match="'QUASARS'"):
        read_known(Catalog(path, table="QUASARS"))


@pytest.mark.parametrize("suffix", ["fits", "cat", "ldac"])
def test_fits_ldac(tmp_path: Path, suffix: str) -> None:
    header = Table({"Field Header Card": np.array([["SIMPLE  =                    T" + " " * 50] * 30])})
    sources = Table({"NUMBER": [1, 2], "ALPHA_J2000": [150.0, 150.1], "DELTA_J2000": [2.0, 2.1],
                     "VIGNET": np.zeros((2, 5, 5))})  # fmt: skip
    path = as_fits(tmp_path / f"ldac.{suffix}", ("LDAC_IMHEAD", header), ("LDAC_OBJECTS", sources))
    assert read_known(path).ra.tolist() == [150, 150.1]
    for i in (1, 2):
        picture(tmp_path / "images" / f"{i}.png", (16, 16))
    assert LocalSurvey(tmp_path / "images", path, size=16, columns={"id": "NUMBER"}).ids.tolist() == [1, 2]


def test_ldac_of_a_camera(tmp_path: Path) -> None:
    """One table a chip, all of one name: none is chosen silently, and a number is a way out."""
    parts = [("LDAC_OBJECTS", Table({"ALPHA_J2000": [150.0 + k], "DELTA_J2000": [2.0]})) for k in range(2)]
    path = as_fits(tmp_path / "chips.cat", *parts)
    for wanted in (None, "LDAC_OBJECTS"):
        with pytest.raises(InputError, match=r"1 LDAC_OBJECTS.*2 LDAC_OBJECTS"):
            read_known(Catalog(path, table=wanted))
    assert read_known(Catalog(path, table="2")).ra.tolist() == [151]


def test_an_image_is_no_table(tmp_path: Path) -> None:
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "t.fits")
    with pytest.raises(InputError, match=r"t\.fits has no table"):
        read_known(tmp_path / "t.fits")


def test_names_of_a_votable_come_before_its_ids(tmp_path: Path) -> None:
    write(tmp_path / "t.vot", """<?xml version="1.0"?><VOTABLE version="1.3"><RESOURCE><TABLE>
        <FIELD ID="col1" name="ra" datatype="double"/><FIELD ID="col2" name="dec" datatype="double"/>
        <DATA><TABLEDATA><TR><TD>10</TD><TD>20</TD></TR></TABLEDATA></DATA></TABLE></RESOURCE>
        </VOTABLE>""")  # fmt: skip
    assert read_known(tmp_path / "t.vot").dec.tolist() == [20]


@pytest.mark.parametrize(
    ("name", "form"),
    [("t.ecsv", "ascii.ecsv"), ("t.tbl", "ascii.ipac"), ("t.txt", "ascii.ipac"), ("t.csv", "ascii.ecsv")],
)
def test_ecsv_and_ipac(tmp_path: Path, name: str, form: str) -> None:
    table = Table({"id": [OBJID, OBJID + 1], "ra": [0.1, 0.2], "dec": [1.0, 2.0]})
    table["ra"].unit = "rad"
    table.write(tmp_path / name, format=form)
    found = read_known(tmp_path / name)
    np.testing.assert_allclose(found.ra, np.degrees([0.1, 0.2]))
    assert found.names.tolist() == [str(OBJID), str(OBJID + 1)] and found.dec.tolist() == [1, 2]


def test_text_of_sextractor(tmp_path: Path) -> None:
    write(
        tmp_path / "t.cat",
        """#   1 NUMBER       Running object number
#   2 ALPHA_J2000  Right ascension  [deg]
#   3 DELTA_J2000  Declination      [deg]
         1 150.1  2.2
         2 150.3 -2.4
""",
    )
    assert read_known(tmp_path / "t.cat").dec.tolist() == [2.2, -2.4]


def test_bytes_of_fits_that_are_no_text(tmp_path: Path) -> None:
    table = Table({"id": [b"a", b"b"], "ra": [1.0, 2.0], "dec": [3.0, 4.0], "by": [b"Chr\xe9tien", b"x"]})
    table.write(tmp_path / "t.fits")
    assert read_known(tmp_path / "t.fits").names.tolist() == ["a", "b"]


# ----------------------------------------------------------------------------------------------------------- Parquet

FRAME = pd.DataFrame({"objid": [OBJID, OBJID + 1], "ra": [10.0, 20.0], "dec": [1.0, 2.0]})


def images(folder: Path) -> Path:
    for i in FRAME["objid"]:
        picture(folder / "images" / f"{i}.png", (16, 16))
    return folder / "images"


@pytest.mark.parametrize("kind", ["index", "two levels", "unnamed", "range"])
def test_the_id_is_the_index_of_pandas(tmp_path: Path, kind: str) -> None:
    frame = {
        "index": FRAME.set_index("objid"), "two levels": FRAME.assign(tile=1).set_index(["tile", "objid"]),
        "unnamed": FRAME.set_index("objid").rename_axis(None), "range": FRAME,
    }[kind]  # fmt: skip
    frame.to_parquet(tmp_path / "t.parquet")
    columns = {"id": "index"} if kind == "unnamed" else {}
    survey = LocalSurvey(images(tmp_path), tmp_path / "t.parquet", size=16, columns=columns)
    assert survey.ids.tolist() == FRAME["objid"].tolist() and survey.ra.tolist() == [10, 20]


def hats(folder: Path, nested: bool = True) -> Path:
    """A collection as written by hats-import: partitions, margin, thumbnail, index of HEALPix, nested columns."""
    main, margin = folder / "objects", folder / "objects_10arcs"
    for root, kind in ((main, "object"), (margin, "margin")):
        for k in range(2):
            table = pa.Table.from_pandas(
                FRAME.iloc[[k]].rename(columns={"ra": "RA_best", "dec": "DEC_best"}), preserve_index=False
            )
            table = table.append_column("_healpix_29", pa.array([k], pa.int64()))
            if nested:
                table = table.append_column("lightcurve", pa.array([{"mjd": [1.0]}]))
            path = root / "dataset" / "Norder=1" / "Dir=0" / f"Npix={k}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
        pq.write_table(table, root / "dataset" / "data_thumbnail.parquet")
        pq.write_table(table, root / "dataset" / "_metadata")
        write(root / "hats.properties", f"dataproduct_type={kind}\nhats_col_ra=RA_best\nhats_col_dec=DEC_best\n")
    write(folder / "collection.properties", "hats_primary_table_url=objects\nall_margins=objects_10arcs\n")
    return folder


def test_hats(tmp_path: Path) -> None:
    folder = hats(tmp_path / "hats")
    for path in (folder, folder / "objects"):
        survey = LocalSurvey(images(tmp_path), path, size=16)
        assert survey.ids.tolist() == FRAME["objid"].tolist() and survey.dec.tolist() == [1, 2]
        assert len(read_known(path)) == 2
    assert len(survey.describe()["catalog_sha256"]) == 64
    with pytest.raises(InputError, match="margin"):
        read_known(folder / "objects_10arcs")
    before = tables.digest(folder)
    FRAME.to_parquet(folder / "objects" / "dataset" / "Norder=1" / "Dir=0" / "Npix=1.parquet")
    assert tables.digest(folder) != before


def test_hipscat(tmp_path: Path) -> None:
    write(tmp_path / "catalog_info.json", json.dumps({"catalog_type": "object", "ra_column": "a", "dec_column": "b"}))
    path = tmp_path / "Norder=0" / "Dir=0" / "Npix=0.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame({"id": [1], "a": [10.0], "b": [20.0]}).to_parquet(path)
    assert read_known(tmp_path).dec.tolist() == [20]


def test_a_folder_of_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    for k in range(2):
        path = folder / f"year={k}" / f"part-{k}.snappy.parquet"
        path.parent.mkdir(parents=True)
        FRAME.iloc[[k]].to_parquet(path)
    (folder / "_SUCCESS").touch()
    (folder / "_temporary").mkdir()
    FRAME.to_parquet(folder / "_temporary" / "part-0.parquet")
    assert read_known(folder).ra.tolist() == [10, 20]
    FRAME.drop(columns="dec").to_parquet(folder / "part-9.parquet")
    with pytest.raises(InputError, match="'dec'"):
        read_known(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        read_known(tmp_path / "empty")


# --------------------------------------------------------------------------------------------------------------- ids


@pytest.mark.parametrize("form", ["fits", "csv", "parquet"])
@pytest.mark.parametrize(
    "names", [("RELEASE", "BRICKID", "OBJID"), ("release", "brickid", "objid"), ("BRICKNAME", "OBJID")]
)
def test_objid_of_the_legacy_surveys(tmp_path: Path, form: str, names: tuple[str, ...]) -> None:
    values = {
        "release": [9010, 9010],
        "brickid": [330368, 330369],
        "brickname": ["0001m002", "0001m005"],
        "objid": [5, 5],
    }
    frame = pd.DataFrame({n: values[n.lower()] for n in names} | {"ra": [1.0, 2.0], "dec": [3.0, 4.0]})
    path = tmp_path / f"sweep.{form}"
    if form == "fits":
        Table.from_pandas(frame).write(path)
    else:
        frame.to_csv(path, index=False) if form == "csv" else frame.to_parquet(path)
    ids = ["-".join(str(values[n.lower()][k]) for n in names) for k in range(2)]
    for i in ids:
        picture(tmp_path / "images" / f"{i}.png", (16, 16))
    survey = LocalSurvey(tmp_path / "images", path, size=16)
    assert survey.ids.tolist() == ids and survey.ra.tolist() == [1, 2]
    with pytest.raises(InputError, match=r"--column id=A\+B"):
        LocalSurvey(tmp_path / "images", path, size=16, columns={"id": names[-1]})


def test_any_columns_may_be_an_id_together(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", "tile,number,ra,dec\n007,1,1,2\n008,1,3,4\n")
    for i in ("007-1", "008-1"):
        picture(tmp_path / "images" / f"{i}.png", (16, 16))
    survey = LocalSurvey(tmp_path / "images", tmp_path / "t.csv", size=16, columns={"id": "tile+number"})
    assert survey.ids.tolist() == ["007-1", "008-1"]
    with pytest.raises(InputError, match="'chip'"):
        LocalSurvey(tmp_path / "images", tmp_path / "t.csv", size=16, columns={"id": "tile+chip"})
