from __future__ import annotations

import sys

import numpy as np
import pytest

from galscan.candidates import table_stream
from galscan.candidates.export.hats import hats
from galscan.core.errors import ConflictError, InputError
from tests.candidate_tables import PROVENANCE, candidates


def test_round_trip(tmp_path):
    lsdb = pytest.importorskip("lsdb", reason="needs the extra lsdb")
    from hats.io.validation import is_valid_catalog

    frame = candidates(50)
    for _ in range(2):  # an earlier export is replaced
        details = hats(table_stream.from_frame(frame), tmp_path / "c", PROVENANCE)
    assert details["left_out"] == 2 and details["partitions"] >= 1 and [*tmp_path.iterdir()] == [tmp_path / "c"]
    assert is_valid_catalog(tmp_path / "c", strict=True)
    back = lsdb.open_catalog(tmp_path / "c").compute().sort_values("rank")
    for name in ("objid", "ra", "dec", "score", "in_train", "designation", "purity"):
        assert back[name].tolist() == frame[name].head(48).tolist(), name
    assert "galscan_fingerprint=" + "c" * 64 in (tmp_path / "c" / "hats.properties").read_text()


def test_no_positions_and_another_folder(tmp_path):
    pytest.importorskip("lsdb", reason="needs the extra lsdb")
    with pytest.raises(InputError, match="none of the 5"):
        hats(table_stream.from_frame(candidates(5).assign(ra=np.nan)), tmp_path / "c", PROVENANCE)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "x").touch()
    with pytest.raises(ConflictError, match="thesis"):
        hats(table_stream.from_frame(candidates()), tmp_path / "thesis", PROVENANCE)


def test_missing_lsdb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lsdb", None)
    with pytest.raises(InputError, match=r"galscan\[lsdb\]"):
        hats(table_stream.from_frame(candidates()), tmp_path / "c", PROVENANCE)
    assert list(tmp_path.iterdir()) == []
