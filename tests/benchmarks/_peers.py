"""Inference by other packages, each in an environment of its own without galscan: run by `tests.benchmarks.peers`.

    PYTHON _peers.py NAME NETWORK FOLDER WORKERS BATCH OUT

NETWORK is a TorchScript file that maps pixels in 0..1, (n, 3, S, S), to logits (n, 1); FOLDER has one JPEG file for
each galaxy. Each function calls the package's own inference, and prints the number of galaxies scored as the last line.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def hyrax(network: str, folder: Path, workers: int, batch: int, out: Path) -> int:
    """Hyrax's verb ``infer``, with a data set class and a model class as its documentation describes them."""
    import hyrax as package
    import numpy as np
    import torch
    from PIL import Image

    try:
        from hyrax.datasets import HyraxDataset
    except ImportError:  # versions before 0.12
        from hyrax.data_sets import HyraxDataset
    from hyrax.models.model_registry import hyrax_model

    class JpegFiles(HyraxDataset, torch.utils.data.Dataset):  # type: ignore[misc]
        def __init__(self, config: Any, data_location: Any = None):
            self.files = sorted(Path(data_location).glob("*.jpg"))
            super().__init__(config)

        def __len__(self) -> int:
            return len(self.files)

        def get_image(self, k: int) -> Any:
            return np.asarray(Image.open(self.files[k]), np.float32).transpose(2, 0, 1) / 255

        def get_object_id(self, k: int) -> str:
            return self.files[k].stem

        def ids(self) -> Any:
            return (path.stem for path in self.files)

        def __getitem__(self, k: int) -> Any:
            return {"object_id": self.get_object_id(k), "data": {"image": self.get_image(k)}}

    @hyrax_model
    class Scripted(torch.nn.Module):
        def __init__(self, config: Any, data_sample: Any = None):
            super().__init__()
            self.network = torch.jit.load(network)

        def forward(self, x: Any) -> Any:
            return self.network(x[0] if isinstance(x, tuple) else x)

        def infer_batch(self, x: Any) -> Any:
            return self(x)

        def load(self, path: Any) -> None:
            """The weights are those of the TorchScript file."""

        @staticmethod
        def prepare_inputs(data: Any) -> Any:
            return np.asarray(data["data"]["image"], np.float32)

        @staticmethod
        def to_tensor(data: Any) -> Any:
            return torch.as_tensor(np.asarray(data["data"]["image"], np.float32))

    weights = out / "weights.pth"
    weights.touch()
    h = package.Hyrax()
    h.config["general"]["results_dir"] = str(out)
    h.config["model"]["name"] = "Scripted"
    h.config["infer"]["model_weights_file"] = str(weights)
    h.config["data_loader"]["batch_size"] = batch
    h.config["data_loader"]["num_workers"] = workers
    request = {"dataset_class": "JpegFiles", "data_location": str(folder), "primary_id_field": "object_id",
               "fields": ["image"]}  # fmt: skip
    for key in ("data_request", "model_inputs"):  # the second before version 0.11
        h.config[key] = {"infer": {"data": request}}
    return len(h.infer())


def anomalymatch(network: str, folder: Path, workers: int, batch: int, out: Path) -> int:
    """AnomalyMatch's ``prediction_process.evaluate_files``, the script that its sessions run, with another network.

    The scripts are not in the package: the folder of its repository must be on PYTHONPATH.
    """
    import anomaly_match
    import prediction_process
    import torch
    from PIL import Image

    class TwoClasses(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = torch.jit.load(network)

        def forward(self, x: Any) -> Any:
            logit = self.network(x)
            return torch.cat([torch.zeros_like(logit), logit], 1)

    side = Image.open(next(folder.glob("*.jpg"))).size[0]
    cfg = anomaly_match.get_default_cfg()
    cfg.size, cfg.output_dir, cfg.save_file = [side, side], str(out), "scores"
    if "normalisation" in cfg:
        cfg.normalisation.image_size = [side, side]
    prediction_process.load_model = lambda *given: TwoClasses()
    files = sorted(map(str, folder.glob("*.jpg")))
    prediction_process.evaluate_files(files, cfg, top_n=len(files), batch_size=batch, max_workers=workers)
    return len(files)


def zoobot(network: str, folder: Path, workers: int, batch: int, out: Path) -> int:
    """Zoobot's ``predict_on_catalog.predict``, with another network in a Lightning module."""
    import inspect

    import pandas as pd
    import torch
    from zoobot.pytorch.predictions import predict_on_catalog

    try:
        import lightning as L
    except ImportError:
        import pytorch_lightning as L

    class Scripted(L.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = torch.jit.load(network)

        def predict_step(self, x: Any, *given: Any) -> Any:
            return self.network(x["image"] if isinstance(x, dict) else x)

    files = sorted(folder.glob("*.jpg"))
    catalog = pd.DataFrame({"id_str": [p.stem for p in files], "file_loc": [str(p) for p in files]})
    given: dict[str, Any] = {
        "catalog": catalog, "model": Scripted(), "label_cols": ["score"], "save_loc": str(out / "scores.csv"),
        "datamodule_kwargs": {"batch_size": batch, "num_workers": workers}, "trainer_kwargs": {"accelerator": "cpu"},
    }  # fmt: skip
    parameters = inspect.signature(predict_on_catalog.predict).parameters
    if "inference_transform" in parameters:  # version 2.9 and later
        import torchvision.transforms.v2 as transforms

        given["inference_transform"] = transforms.Compose(
            [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True)]
        )
    if "n_samples" in parameters:
        given["n_samples"] = 1
    predict_on_catalog.predict(**given)
    return len(pd.read_csv(out / "scores.csv"))


PEERS = {function.__name__: function for function in (hyrax, anomalymatch, zoobot)}


if __name__ == "__main__":
    name, script, images, processes, size, results = sys.argv[1:]
    print(PEERS[name](script, Path(images), int(processes), int(size), Path(results)))
