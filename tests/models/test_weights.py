"""Weights files: round trip, and one-line errors for files that are not networks."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from galscan.core.errors import InputError
from galscan.models.network import GalaxyNet
from galscan.models.weights import load_network, save_network


def test_a_network_comes_back_as_it_was(tmp_path):
    network = GalaxyNet(8, 7, 2).eval()
    save_network(network, tmp_path / "n.safetensors")
    back = load_network(tmp_path / "n.safetensors")
    assert back.config == network.config == {"width": 8, "answers": 7, "targets": 2}
    assert back.trunk_hash() == network.trunk_hash() and torch.equal(back.target.weight, network.target.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["n.safetensors"]
    with pytest.raises(InputError, match="not the file the model was written with"):
        load_network(tmp_path / "n.safetensors", "0" * 64)
    with pytest.raises(InputError, match="is missing"):
        load_network(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        '{"width": 1048576, "answers": 7}', '{"width": 8}', '{"width": "8", "answers": 7}', "[",
        '{"width": 8, "answers": 7, "beside": "../../etc/passwd", "sha256": ""}',
        '{"width": 8, "answers": 7, "beside": "encoder-0123456789abcdef.safetensors"}',
    ],
)  # fmt: skip
def test_a_network_whose_configuration_does_not_fit_its_tensors_is_refused(tmp_path, config):
    tensors = {k: v.contiguous() for k, v in GalaxyNet(8, 7).state_dict().items()}
    save_file(tensors, tmp_path / "n.safetensors", metadata={"config": config})
    with pytest.raises(InputError, match=r"n\.safetensors is not a readable safetensors file") as error:
        load_network(tmp_path / "n.safetensors")
    assert "\n" not in str(error.value)
