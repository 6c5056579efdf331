"""Galaxy10 SDSS and Galaxy10 DECaLS: one file layout, other classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from galscan.core.errors import InputError
from galscan.surveys.files.local import LocalSurvey
from galscan.surveys.files.multimodal import MultimodalSurvey
from tests.packed_on_disk import pictures, sky, write_multimodal
from tests.pictures_on_disk import picture, write

pytest.importorskip("h5py", reason="needs the extra hdf5")


def galaxy10(path: Path, side: int, **columns: object) -> Path:
    return write_multimodal(path, {"images": pictures(10, side), "ans": np.arange(10)} | columns)


def test_sdss_is_not_decals(tmp_path: Path) -> None:
    path = galaxy10(tmp_path / "Galaxy10.h5", 69)
    with pytest.raises(InputError, match="gz10_sdss"):
        MultimodalSurvey(path, labels=("gz10",), size=16)
    survey = MultimodalSurvey(path, labels=("gz10_sdss",), size=16)
    assert survey.objects(3, 4)["gz10_sdss/cigar_smooth"].item() == 1
    assert survey.objects(5, 6)["gz10_sdss/edge_on_boxy_bulge"].item() == 1
    assert survey.labels.to_numpy().sum() == 10


@pytest.mark.parametrize(("side", "with_positions"), [(256, False), (48, True)])
def test_decals_is_not_sdss(tmp_path: Path, side: int, with_positions: bool) -> None:
    ra, dec = sky(10)
    path = galaxy10(tmp_path / "Galaxy10_DECals.h5", side, **({"ra": ra, "dec": dec} if with_positions else {}))
    with pytest.raises(InputError, match="--labels gz10"):
        MultimodalSurvey(path, labels=("gz10_sdss",), size=16)
    assert MultimodalSurvey(path, labels=("gz10",), size=16).objects(4, 5)["gz10/cigar_smooth"].item() == 1


def test_classes_that_may_be_of_either(tmp_path: Path) -> None:
    """Cut to another size, and as a table: the name of the column is the way out."""
    path = galaxy10(tmp_path / "small.h5", 32)
    for schema in ("gz10", "gz10_sdss"):
        with pytest.raises(InputError, match="gz10_label or gz10_sdss_label"):
            MultimodalSurvey(path, labels=(schema,), size=16)
    picture(tmp_path / "images" / "1.png")
    write(tmp_path / "t.csv", "id,ans\n1,3\n")
    with pytest.raises(InputError, match="gz10_label"):
        LocalSurvey(tmp_path / "images", tmp_path / "t.csv", labels=("gz10",), size=16)
    write(tmp_path / "t.csv", "id,gz10_sdss_label\n1,3\n")
    survey = LocalSurvey(tmp_path / "images", tmp_path / "t.csv", labels=("gz10_sdss",), size=16)
    assert survey.labels["gz10_sdss/cigar_smooth"].item() == 1
