"""Which Galaxy10 a table is of; files of both are in tests/strangers/test_galaxy10.py."""

from __future__ import annotations

import pytest

from galscan.core.errors import InputError
from galscan.labels.galaxy10 import check_galaxy10


@pytest.mark.parametrize(
    ("schema", "columns", "side", "right"),
    [
        ("gz10", ["ans"], 256, True), ("gz10", ["ans"], 69, False), ("gz10", ["Ans", "redshift"], None, True),
        ("gz10", ["ans"], None, False), ("gz10", ["gz10_label"], 69, True), ("gz10_sdss", ["ans"], 69, True),
        ("gz10_sdss", ["ans", "pxscale"], None, False), ("gz10_sdss", ["ans"], 32, False), ("efigi", ["ans"], 69, True),
    ],
)  # fmt: skip
def test_which(schema: str, columns: list[str], side: int | None, right: bool) -> None:
    if right:
        check_galaxy10([schema], columns, side, "t.h5")
    else:
        with pytest.raises(InputError, match=r"t\.h5"):
            check_galaxy10([schema], columns, side, "t.h5")
