"""Names and UCDs that columns of ids, files, positions, radii and pixel scales have in catalogs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from galscan.surveys.columns.angles import plain

# Columns of right ascension and declination, best first; compared without case, units, blanks and punctuation.
PAIRS: tuple[tuple[str, str], ...] = (
    ("ra", "dec"), ("ra", "decl"), ("ra", "de"), ("ra", "declination"),
    ("ra_icrs", "de_icrs"), ("ra_icrs", "dec_icrs"), ("raj2000", "dej2000"), ("raj2000", "decj2000"),
    ("ra_2000", "dec_2000"), ("ra2000", "de2000"), ("ra2000", "decl2000"), ("rafk5", "decfk5"),
    ("right_ascension", "declination"), ("rightasc", "declin"), ("r_asc", "decl"),
    ("ra_d", "dec_d"), ("ra_dd", "dec_dd"), ("radeg", "dedeg"), ("radeg", "decdeg"), ("radegrees", "decdegrees"),
    ("degra", "degdec"), ("ra_j2000_deg", "dec_j2000_deg"), ("ra_decimal", "dec_decimal"),
    ("alpha_j2000", "delta_j2000"), ("alphawin_j2000", "deltawin_j2000"), ("alphapeak_j2000", "deltapeak_j2000"),
    ("alphapsf_j2000", "deltapsf_j2000"), ("alphamodel_j2000", "deltamodel_j2000"), ("alpha_sky", "delta_sky"),
    ("alphawin_sky", "deltawin_sky"), ("alpha_icrs", "delta_icrs"), ("alpha", "delta"), ("x_world", "y_world"),
    ("xwin_world", "ywin_world"), ("alpha2000", "delta2000"),
    ("coord_ra", "coord_dec"), ("s_ra", "s_dec"), ("ramean", "decmean"), ("ra_mean", "dec_mean"),
    ("meanra", "meandec"), ("rastack", "decstack"), ("ra_best", "dec_best"), ("ra_opt", "dec_opt"),
    ("ra_centroid", "dec_centroid"), ("sky_centroid.ra", "sky_centroid.dec"), ("skycoord.ra", "skycoord.dec"),
    ("sky.ra", "sky.dec"), ("coord.ra", "coord.dec"), ("skycoords.ra", "skycoords.dec"), ("pos.ra", "pos.dec"),
    ("photo_ra", "photo_dec"), ("objra", "objdec"), ("obj_ra", "obj_dec"), ("ra_obj", "dec_obj"),
    ("object_ra", "object_dec"), ("source_ra", "source_dec"), ("src_ra", "src_dec"), ("gal_ra", "gal_dec"),
    ("galaxy_ra", "galaxy_dec"), ("host_ra", "host_dec"), ("ra_gal", "dec_gal"), ("catalog_ra", "catalog_dec"),
    ("cat_ra", "cat_dec"), ("target_ra", "target_dec"), ("fiber_ra", "fiber_dec"), ("plug_ra", "plug_dec"),
    ("plate_ra", "plate_dec"), ("matchra", "matchdec"), ("sourcera", "sourcedec"), ("ra_gaia", "dec_gaia"),
    ("gaia_ra", "gaia_dec"), ("sdss_ra", "sdss_dec"), ("ra_sdss", "dec_sdss"), ("i_ra", "i_dec"),
    ("ra_cen", "dec_cen"), ("cen_ra", "cen_dec"), ("center_ra", "center_dec"), ("centre_ra", "centre_dec"),
    ("ra_center", "dec_center"), ("ra_centre", "dec_centre"), ("sc_ra", "sc_dec"), ("ra_corr", "dec_corr"),
    ("ra_1", "dec_1"), ("ra_hms", "dec_dms"), ("ra_h", "dec_d"), ("raj2000d", "dej2000d"),
)  # fmt: skip
# Names that are something else where they stand alone.
WEAK = {plain(name) for name in ("alpha", "delta", "de", "x_world", "y_world", "i_ra", "i_dec", "ra_d", "dec_d")}

# Usual column names. The first of each is unambiguous and takes precedence over the others.
ROLES: dict[str, tuple[str, ...]] = {
    "id": (
        "id", "id_str", "objid", "dr7objid", "dr8objid", "specobjid", "iauname", "object_id", "source_id", "galaxyid",
        "name",
    ),
    "file": ("file", "file_loc", "filename", "file_name", "path"),
    "ra": tuple(dict.fromkeys(ra for ra, _ in PAIRS)),
    "dec": tuple(dict.fromkeys(dec for _, dec in PAIRS)),
    "pixel_scale": ("pixel_scale", "pixel_scale_arcsec", "pixel_scale_arcsec_per_pixel", "pixscale", "pixelscale"),
    "radius": ("petror90_r", "petro_r90_r", "petror90", "r90"),
}  # fmt: skip
# id_str and file_loc are those of galaxy-datasets, ls_id that of the Legacy Surveys at the Astro Data Lab.
PREFERRED = {"id": ("id", "id_str", "ls_id"), "file": ("file", "file_loc")}
# Columns of the Legacy Surveys that identify an object together: OBJID alone counts within a brick.
COMPOSITE_IDS = (
    ("release", "brickid", "objid"), ("release", "brickname", "objid"), ("brickid", "objid"), ("brickname", "objid"),
)  # fmt: skip
SUBFOLDER = "subfolder"  # column of the folder of a file, in galaxy-datasets
# UCDs of the roles, best first; the first two of a position are of the main ones.
UCDS: dict[str, tuple[str, ...]] = {
    "id": ("meta.id;meta.main", "id_main"),
    "ra": ("pos.eq.ra;meta.main", "pos_eq_ra_main", "pos.eq.ra", "pos_eq_ra"),
    "dec": ("pos.eq.dec;meta.main", "pos_eq_dec_main", "pos.eq.dec", "pos_eq_dec"),
}
MAIN = 2
_MARK = re.compile(r"[^A-Za-z0-9]*")


def columns_of(usual: Iterable[str], columns: Sequence[str]) -> list[str]:
    """Return the columns with one of the usual names, in the order of these."""
    keys: dict[str, list[str]] = {}
    for name in columns:
        keys.setdefault(plain(name), []).append(name)
    return list(dict.fromkeys(name for word in usual for name in keys.get(plain(word), ())))


def find_pairs(columns: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of columns of right ascension and declination, best first.

    Of columns whose names differ in case or punctuation only, those with the same mark before them are pairs:
    ``_RAJ2000`` and ``_DEJ2000``. A single right ascension and a single declination of different kinds are one, too.
    """
    keys: dict[str, list[str]] = {}
    for name in columns:
        keys.setdefault(plain(name), []).append(name)
    found = []
    for pair in PAIRS:
        ra, dec = (keys.get(plain(name), []) for name in pair)
        alike = [(a, d) for a in ra for d in dec if _MARK.match(a)[0] == _MARK.match(d)[0]]  # type: ignore[index]
        found += alike or ([(ra[0], dec[0])] if len(ra) == len(dec) == 1 else [])
    if not found:
        alone = single_coordinates(columns)
        if len(alone["ra"]) == len(alone["dec"]) == 1:
            found = [(alone["ra"][0], alone["dec"][0])]
    return list(dict.fromkeys(found))


def single_coordinates(columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns with a name of right ascension, and those of declination, that mean nothing else."""
    return {role: [c for c in columns_of(ROLES[role], columns) if plain(c) not in WEAK] for role in ("ra", "dec")}


def by_ucd(frame: pd.DataFrame, role: str, first: int = 0, last: int | None = None) -> str | None:
    """Return the column with a UCD of `role`, if there is exactly one; sexagesimal text is not a position.

    `first` and `last` limit the UCDs of the role.
    """
    ucds = {c: u for c, u in frame.attrs.get("ucd", {}).items() if c in frame.columns}
    for wanted in UCDS.get(role, ())[first:last]:
        found = [c for c, ucd in ucds.items() if ucd == wanted]
        if role != "id":
            found = [c for c in found if pd.api.types.is_numeric_dtype(frame[c].dtype)]
        if len(found) == 1:
            return found[0]
    return None
