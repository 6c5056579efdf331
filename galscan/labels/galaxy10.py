"""Galaxy10 of SDSS or of DECaLS: the column ``ans`` of both has classes 0 to 9, but of other meaning.

Galaxy10 SDSS has images of 69 x 69 pixels and nothing else; Galaxy10 DECaLS images of 256 x 256 pixels, and ``ra, dec,
redshift, pxscale`` (astronn.readthedocs.io, galaxy10 and galaxy10sdss).
"""

from __future__ import annotations

from collections.abc import Iterable

from galscan.core.errors import InputError

COLUMN = "ans"
SIDES = {69: "gz10_sdss", 256: "gz10"}
ONLY_DECALS = ("pxscale", "redshift", "ra", "dec")
OWN_COLUMNS = {"gz10": "gz10_label", "gz10_sdss": "gz10_sdss_label"}


def check_galaxy10(schemas: Iterable[str], columns: Iterable[str], side: int | None, where: str) -> None:
    """Raise `InputError` if ``ans`` in `columns` is not, or may not be, of the schema that is to be read.

    Parameters
    ----------
    schemas : iterable of str
        Names of the label schemas to be read.
    columns : iterable of str
        Columns of the table.
    side : int, optional
        Pixels on a side of the original images, if known.
    where : str
        The file, for messages.
    """
    lower = {str(c).strip().lower() for c in columns}
    wanted = [name for name in schemas if name in OWN_COLUMNS and OWN_COLUMNS[name] not in lower]
    if not wanted or COLUMN not in lower:
        return
    found = SIDES.get(side or 0) or ("gz10" if lower & {*ONLY_DECALS} else None)
    for name in wanted:
        if found is None:
            raise InputError(
                f"{where}: '{COLUMN}' may be of Galaxy10 DECaLS or of Galaxy10 SDSS, whose classes differ; rename it "
                f"{OWN_COLUMNS['gz10']} or {OWN_COLUMNS['gz10_sdss']}"
            )
        if found != name:
            raise InputError(
                f"{where} is of the other Galaxy10, and '{COLUMN}' has other classes: use --labels {found}"
            )
