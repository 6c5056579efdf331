"""Predictions of the ensembles of one or several models: load the networks, score images, combine members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from galscan.core.errors import InputError, first_line
from galscan.models.model import Model
from galscan.models.weights import load_network

if TYPE_CHECKING:
    import torch

    from galscan.models.network import Ensemble, Network


class Scores(NamedTuple):
    """Predictions for n images: float32 arrays of shape (n, targets), (n, targets) and (n, answers)."""

    score: np.ndarray
    """Mean logit over the ensemble's members: a rank, not a probability."""
    score_std: np.ndarray
    """Standard deviation of the logit over members (0 for a single member)."""
    answers: np.ndarray
    """Morphology answers (`answer_names`) in their own units, mean over members."""
    embedding: np.ndarray | None = None
    """Features of the first network, float32 of shape (n, `embedding_size`); None unless requested."""


Scorer = Callable[[np.ndarray], Scores]


def answer_names(models: Sequence[Model]) -> list[str]:
    """Return the names of the columns of `Scores.answers`: morphology answers, and concentrations of vote questions.

    Where several models have an answer, the first model's is taken.
    """
    return list(dict.fromkeys(name for model in models for name in [*model.answers, *_concentration_names(model)]))


def _concentration_names(model: Model) -> list[str]:
    """Return the names of the columns with the Dirichlet concentration of each vote question."""
    return [f"{task.id}_concentration" for task in model.schema.tasks if set(task.answers) & set(model.answers)]


def embedding_size(model: Model) -> int:
    """Return the number of features of a model's first network; reads only the header of its weights file.

    Raises `InputError` if the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = model.path / next(iter(model.info["weights"]))
    try:
        with safe_open(path, framework="np") as handle:
            return int(handle.get_slice("target.weight").get_shape()[1])
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged ({first_line(error)}); restore it, or train again") from error


def check_encoders(models: Sequence[Model]) -> None:
    """Check, before anything expensive begins, that the encoders of the models can be built.

    Raises `InputError` if timm, which a model's encoder needs, is not installed or does not work.
    """
    for model in models:
        if model.recipe.classifier.encoder:
            from galscan.models.encoders import require_timm

            require_timm(model.recipe.classifier.encoder)


def load_networks(model: Model) -> list[Network]:
    """Load the members of a model's ensemble, and check their hashes and answers."""
    networks = [load_network(model.path / name, sha) for name, sha in model.info["weights"].items()]
    schema = model.schema
    if not set(model.answers) <= set(schema.names) or {n.answers for n in networks} != {len(model.answers)}:
        raise InputError(
            f"{model.path}: its answers are not those of its networks and of the schema '{schema.name}'; "
            "restore model.json, or train again"
        )
    return networks


def load_ensemble(models: Sequence[Model], embeddings: bool = False) -> Ensemble:
    """Load the networks of some models as one module.

    Raises `InputError` if a weights file is not the one the model was written with, or the answers do not match the
    networks.

    Parameters
    ----------
    embeddings : bool
        Whether it also returns embeddings.
    """
    from galscan.models.network import Ensemble

    return Ensemble(*(load_networks(model) for model in models), embeddings=embeddings).eval()


def load_scorer(
    models: Sequence[Model],
    device: str = "auto",
    precision: str | None = None,
    converted: Path | None = None,
    embeddings: bool = False,
) -> Scorer:
    """Load the networks of some models; return a function from images (n, S, S, 3) uint8 to `Scores`.

    Raises `InputError` if a weights file is not the one the model was written with.

    Parameters
    ----------
    models : sequence of Model
        Trunks that they share are computed once.
    converted : Path, optional
        Their `load_ensemble` as converted by `galscan.models.compiled.convert`.
    embeddings : bool
        Whether the scores include embeddings.
    """
    from galscan.core import device as devices
    from galscan.models.compiled import compiled

    torch_device, dtype = devices.pick(device), devices.precision(precision or models[0].recipe.scan.precision)
    ensemble = load_ensemble(models, embeddings)
    answering = [models[k] for k in ensemble.answer_models]
    run = compiled(ensemble, torch_device, dtype, converted)

    def score(images: np.ndarray) -> Scores:
        outputs = run(images)
        logits, raw_answers = outputs[: len(models)], outputs[len(models) :][: len(answering)]
        answers: dict[str, np.ndarray] = {}
        for model, raw in zip(answering, raw_answers, strict=True):
            answers = _in_units(model, raw) | answers
        columns = [answers[name] for name in answer_names(models)]
        return Scores(
            np.stack([of_model.mean(1) for of_model in logits], 1),
            np.stack([of_model.std(1) for of_model in logits], 1),
            np.stack(columns, 1) if columns else np.empty((len(images), 0), np.float32),
            outputs[-1] if embeddings else None,
        )  # fmt: skip

    return score


def _in_units(model: Model, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Combine the members' raw answers (n, members, answers) of a model into answers in their own units."""
    from scipy.special import expit

    from galscan.models import votes

    schema = model.schema
    if groups := votes.groups_of(model.answers, schema):
        fractions, concentration = votes.expected(raw, groups)
        return dict(zip([*model.answers, *_concentration_names(model)], [*fractions.T, *concentration.T], strict=True))
    columns = [schema.names.index(a) for a in model.answers]
    low, high = schema.low[columns], schema.high[columns]
    fractions = expit(raw).mean(1)
    return dict(zip(model.answers, (low + fractions * (high - low)).astype(np.float32).T, strict=True))


def member_scores(networks: list[Network], images: np.ndarray, device: torch.device) -> np.ndarray:
    """Return the targets' logits, float32 of shape (members, n, targets), for images (n, S, S, 3) uint8."""
    return member_outputs(networks, images, device)[0]


def member_outputs(networks: list[Network], images: np.ndarray, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of targets, (members, n, targets), and raw answers, (members, n, answers), float32.

    An encoder shared by several networks is evaluated once.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    """
    import torch

    from galscan.models.network import to_unit

    scores = np.empty((len(networks), len(images), networks[0].targets), np.float32)
    answers = np.empty((len(networks), len(images), networks[0].answers), np.float32)
    networks = [network.to(device).eval() for network in networks]
    trunks = [network.trunk_hash() for network in networks]
    with torch.inference_mode():
        for start in range(0, len(images), 256):
            pixels = to_unit(torch.from_numpy(images[start : start + 256]).to(device))
            features: dict[str, torch.Tensor] = {}
            for k, (network, trunk) in enumerate(zip(networks, trunks, strict=True)):
                if trunk not in features:
                    features[trunk] = network.features(pixels)
                for array, output in zip((scores, answers), network.heads(features[trunk]), strict=True):
                    array[k, start : start + 256] = output.float().cpu().numpy()
    return scores, answers


def out_of_fold(
    networks: list[Network], images: np.ndarray, folds: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Score each object with the network that was not trained on it.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    folds : ndarray of int, shape (n,)
        Fold of each image, 0 to ``len(networks) - 1``.

    Returns
    -------
    scores, answers : ndarray of float32, shape (1, n, targets) and (1, n, answers)
        As from `member_outputs`, with one network per object.
    """
    scores = np.empty((1, len(images), networks[0].targets), np.float32)
    answers = np.empty((1, len(images), networks[0].answers), np.float32)
    for k, network in enumerate(networks):
        rows = np.flatnonzero(folds == k)
        for array, outputs in zip((scores, answers), member_outputs([network], images[rows], device), strict=True):
            array[0, rows] = outputs[0]
    return scores, answers
