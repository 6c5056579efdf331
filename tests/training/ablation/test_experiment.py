"""Parts of a repeat; complete repeats run in tests/commands/test_ablate.py."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from galscan.core.errors import GalscanError
from galscan.core.files import write_json
from galscan.labels.settings import ClassifierSettings
from galscan.training.ablation import experiment
from galscan.training.ablation.arms import Repeat
from galscan.training.dataset import Galaxies

REPEAT = Repeat(3, 0, 0, pd.Series({"a": "train", "b": "test"}, dtype=object), {})


def test_training_on_a_test_object_is_refused():
    experiment.check_disjoint(pd.Series(["a", "c"]), REPEAT)
    with pytest.raises(GalscanError, match=r"repeat 3: 1 test objects \(first b\)"):
        experiment.check_disjoint(pd.Series(["a", "b"]), REPEAT)


def test_an_object_labelled_in_another_store_is_not_without_labels():
    labels = pd.DataFrame({"t": [1.0, np.nan, np.nan]})
    galaxies = Galaxies(np.zeros((3, 2, 2, 3), np.uint8), pd.DataFrame({"object": ["a", "a", "c"]}), labels)
    assert experiment.without_labels(galaxies).tolist() == [False, False, True]


def test_seconds_add_up_over_calls(tmp_path):
    write_json(tmp_path / "seconds.json", {"synthetic": 100.0})
    with experiment._timed(tmp_path, "synthetic"):
        pass
    assert experiment.seconds(tmp_path)["synthetic"] == pytest.approx(100, abs=0.2)


def test_networks_of_several_arms_are_trained_in_one_call(tmp_path, monkeypatch):
    calls = []

    def train_networks(jobs, device, workers):
        calls.append((len(jobs), workers))
        return [(job.path.name, job.settings.loss, job.seed) for job in jobs]

    monkeypatch.setattr(experiment, "train_networks", train_networks)
    plan = SimpleNamespace(seed=0, recipe=SimpleNamespace(classifier=ClassifierSettings()))
    repetition = experiment.Repetition(plan, REPEAT, None, (), 2, 0, tmp_path, torch.device("cpu"), workers=3)
    repetition.folder.mkdir()
    found = repetition._networks(["weighted", "focal"], None, None)
    assert calls == [(4, 3)]
    assert found == {
        arm: [(f"{arm}-{member}.safetensors", arm, 300 + member) for member in (0, 1)] for arm in ("weighted", "focal")
    }
