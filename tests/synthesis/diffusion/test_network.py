"""Files of weights of both generators: what does not fit or is damaged is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from galscan.core.errors import InputError
from galscan.synthesis.diffusion.map_model import MapFlow
from tests.synthesis.diffusion.test_map_model import CONFIG, untrained


def damaged(path, **changes) -> None:
    """Write weights with another configuration."""
    network = untrained()
    raw = asdict(replace(network.config)) | changes
    raw = {k: v for k, v in raw.items() if v is not None}
    save_file({k: v.half() for k, v in network.state_dict().items()}, path, metadata={"config": json.dumps(raw)})


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "changes",
    [
        {"widths": [32, 32]}, {"widths": []}, {"widths": [16]}, {"widths": [16, 16]}, {"widths": [10**6, 10**6]},
        {"widths": 32}, {"conditions": ["a"]}, {"low": [0.0]}, {"channels": 3}, {"std": 0.0}, {"std": None},
        {"feature": None}, {"unknown": 1}, {"side": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_that_does_not_fit_the_weights_is_an_error(tmp_path, changes):
    damaged(tmp_path / "a.safetensors", **changes)
    with pytest.raises(InputError, match=r"a\.safetensors") as caught:
        MapFlow.load(tmp_path / "a.safetensors")
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_damaged_and_foreign_files_are_errors(tmp_path):
    network, path = untrained(), tmp_path / "a.safetensors"
    network.save(path)
    whole = path.read_bytes()
    cases = [whole[: len(whole) // 2], whole[:4], b"", b"no weights at all" * 20]
    state = {k: v.clone() for k, v in network.state_dict().items()}
    right = {"config": json.dumps(asdict(CONFIG))}
    foreign = [
        ({"layer.weight": torch.zeros(3)}, right), (dict(list(state.items())[1:]), right),
        (state | {"grown": torch.zeros(2)}, right), (state | {"condition.0.bias": torch.full((64,), torch.nan)}, right),
        (state, None), (state, {"other": "x"}), (state, {"config": "{"}), (state, {"config": "[1]"}),
    ]  # fmt: skip
    save_file(state, path, metadata=right)
    back = MapFlow.load(path)
    assert back.config == CONFIG and not back.training
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in state.items())
    for content in cases:
        path.write_bytes(content)
        with pytest.raises(InputError):
            MapFlow.load(path)
    for tensors, metadata in foreign:
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(InputError):
            MapFlow.load(path)
    with pytest.raises(InputError):
        MapFlow.load(tmp_path / "absent.safetensors")
    with pytest.raises(InputError):
        MapFlow.load(tmp_path)
