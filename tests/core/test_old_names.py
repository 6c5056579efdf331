"""Files that version 0.1 wrote, with its names, are still read."""

from __future__ import annotations

import numpy as np
import pytest

from galscan.commands.info import info
from galscan.core.files import read_json, write_json
from galscan.core.old_names import existing, renamed
from galscan.core.staging import finished
from galscan.core.thumbnails import contact_sheet
from galscan.models.model import open_model
from galscan.reports.model import write_model_report
from tests.helpers import tiny_bundle, tiny_store


def test_old_keys_and_names_become_the_present_ones_at_any_depth():
    old = {"chosen": "real_plus_dreamt", "real_plus_dreamt": {"ap": [0.5]}, "dreams": {"all": 3}, "n": [{"drawn": 2}]}
    assert renamed(old) == {
        "chosen": "real_plus_synthetic", "real_plus_synthetic": {"ap": [0.5]}, "synthetic": {"all": 3},
        "n": [{"generated": 2}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ("synthetic.zarr", "dreams.zarr"), ("synthetic.png", "dreams.png"),
        ("real_plus_synthetic-0.safetensors", "real_plus_dreamt-0.safetensors"),
    ],
)  # fmt: skip
def test_a_file_of_the_old_name_is_found_where_there_is_no_new_one(tmp_path, new, old):
    assert existing(tmp_path / new) == tmp_path / new
    (tmp_path / old).touch()
    assert existing(tmp_path / new) == tmp_path / old
    (tmp_path / new).touch()
    assert existing(tmp_path / new) == tmp_path / new


def test_a_model_with_the_old_names_opens_with_its_report_and_its_synthetic_galaxies(tmp_path):
    path = tiny_bundle(tmp_path / "model").path
    content = read_json(path / "model.json")
    summary = {"all": 4, "kept": 4, "kept_positive": 2, "dropped": {}}
    content["metrics"] = {"real_only": None, "real_plus_dreamt": None, "chosen": "real_plus_dreamt", "dreams": summary}
    write_json(path / "model.json", content)
    contact_sheet(np.zeros((4, 16, 16, 3), np.uint8), path / "dreams.png")
    metrics = open_model(path).metrics
    assert metrics["chosen"] == "real_plus_synthetic" and metrics["synthetic"] == summary
    assert "data:image" in write_model_report(path).read_text(encoding="utf-8")
    tiny_store(path / "dreams.zarr", count=4)
    with pytest.raises(KeyError, match="target"):  # the store was found; it is none of synthetic galaxies
        info(path, sheet=tmp_path / "sheet.png")


def test_a_finished_evaluation_with_the_old_names_is_found_again(tmp_path):
    write_json(tmp_path / "evaluation.json", {"request": {"dreams": ["a", "hash", 3]}, "screen": {"n": 3}})
    assert finished(tmp_path, "evaluation.json", {"synthetic": ["a", "hash", 3]}, "evaluation")["filter"] == {"n": 3}
