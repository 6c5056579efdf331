from __future__ import annotations

import builtins

import numpy as np
import pytest

from galscan.candidates import table_stream
from galscan.candidates.export.hats import hats
from galscan.core.errors import ConflictError, InputError
from tests.candidate_tables import PROVENANCE, candidates


def test_lsdb_reads_the_catalogue_back(tmp_path):
    lsdb = pytest.importorskip("lsdb", reason="needs the extra lsdb")
    from hats.io.validation import is_valid_catalog

    frame = candidates(50)
    for _ in range(2):  # an earlier export is replaced
        told = hats(table_stream.from_frame(frame), tmp_path / "c", PROVENANCE)
    assert told["left_out"] == 2 and told["partitions"] >= 1 and [*tmp_path.iterdir()] == [tmp_path / "c"]
    assert is_valid_catalog(tmp_path / "c", strict=True)
    back = lsdb.open_catalog(tmp_path / "c").compute().sort_values("rank")
    for name in ("objid", "ra", "dec", "score", "in_train", "designation", "purity"):
        assert back[name].tolist() == frame[name].head(48).tolist(), name
    assert "galscan_fingerprint=" + "c" * 64 in (tmp_path / "c" / "hats.properties").read_text()


def test_what_cannot_be_written(tmp_path):
    pytest.importorskip("lsdb", reason="needs the extra lsdb")
    with pytest.raises(InputError, match="none of the 5 candidates has a position"):
        hats(table_stream.from_frame(candidates(5).assign(ra=np.nan)), tmp_path / "c", PROVENANCE)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "x").touch()
    with pytest.raises(ConflictError, match="not of this kind"):
        hats(table_stream.from_frame(candidates()), tmp_path / "thesis", PROVENANCE)


def test_without_lsdb_the_line_that_installs_it_is_told(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *more):
        if name == "lsdb":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"pip install 'galscan\[lsdb\]'"):
        hats(table_stream.from_frame(candidates()), tmp_path / "c", PROVENANCE)
    assert list(tmp_path.iterdir()) == []
