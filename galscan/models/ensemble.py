"""What the networks of a model, or of several, say of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import expit

from galscan.core.errors import InputError
from galscan.labels.schema import load_schema
from galscan.models.model import Model
from galscan.models.weights import load_network

if TYPE_CHECKING:
    import torch

    from galscan.models.network import Ensemble, Network


class Scores(NamedTuple):
    """What a scorer says of n images: float32 arrays of shape (n, targets), (n, targets) and (n, answers)."""

    score: np.ndarray
    """Mean logit over the ensemble's members: a rank, not a probability."""
    score_std: np.ndarray
    """Standard deviation of the logit over members (0 for a single member)."""
    answers: np.ndarray
    """Morphology answers (`answer_names`) in their own units, mean over members."""
    embedding: np.ndarray | None = None
    """What the first network's heads read, float32 of shape (n, `embedding_size`); only where it was asked for."""


Scorer = Callable[[np.ndarray], Scores]


def answer_names(bundles: Sequence[Model]) -> list[str]:
    """Return the morphology answers of some models, and how many votes each question is worth; the first one's each."""
    return list(dict.fromkeys(name for bundle in bundles for name in [*bundle.answers, *_worth(bundle)]))


def _worth(bundle: Model) -> list[str]:
    """Return the names of the columns that say how many votes the fractions of a question are worth."""
    tasks = load_schema(bundle.schema).tasks
    return [f"{task.id}_concentration" for task in tasks if set(task.answers) & set(bundle.answers)]


def embedding_size(bundle: Model) -> int:
    """Return how many numbers the heads of a model's first network read; its weights are not loaded.

    Raises
    ------
    InputError
        If they cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = bundle.path / next(iter(bundle.info["weights"]))
    try:
        with safe_open(path, framework="np") as handle:
            return int(handle.get_slice("target.weight").get_shape()[1])
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is missing or damaged ({reason:.200}); restore it, or train again") from error


def check_encoders(bundles: Sequence[Model]) -> None:
    """Refuse, before anything long begins, models whose networks could not be built here.

    Raises
    ------
    InputError
        If timm, which a model's encoder needs, is not installed or does not work.
    """
    for bundle in bundles:
        if bundle.recipe.classifier.encoder:
            from galscan.models.encoders import require_timm

            require_timm(bundle.recipe.classifier.encoder)


def load_networks(bundle: Model) -> list[Network]:
    """Load the members of a model's ensemble, checked."""
    networks = [load_network(bundle.path / name, sha) for name, sha in bundle.info["weights"].items()]
    schema = load_schema(bundle.schema)
    if not set(bundle.answers) <= set(schema.names) or {n.answers for n in networks} != {len(bundle.answers)}:
        raise InputError(
            f"{bundle.path}: its answers are not those of its networks and of the schema '{schema.name}'; "
            "restore model.json, or train again"
        )
    return networks


def load_ensemble(bundles: Sequence[Model], embeddings: bool = False) -> Ensemble:
    """Load the networks of some models, to give embeddings as well where these are asked for.

    Raises
    ------
    InputError
        If a weights file is not the one its bundle was written with, or the answers are not theirs.
    """
    from galscan.models.network import Ensemble

    return Ensemble(*(load_networks(bundle) for bundle in bundles), embeddings=embeddings).eval()


def load_scorer(
    bundles: Sequence[Model],
    device: str = "auto",
    precision: str | None = None,
    converted: Path | None = None,
    embeddings: bool = False,
) -> Scorer:
    """Load the networks of some models; return a function from images (n, S, S, 3) uint8 to `Scores`.

    Parameters
    ----------
    bundles : sequence of Bundle
        What they have in common is computed once.
    converted : Path, optional
        What `galscan.models.compiled.convert` made of their `load_ensemble`, if it did.
    embeddings : bool
        Whether the scores are to hold them, too.

    Raises
    ------
    InputError
        If a weights file is not the one its bundle was written with.
    """
    from galscan.core import device as devices
    from galscan.models.compiled import compiled

    where, dtype = devices.pick(device), devices.precision(precision or bundles[0].recipe.scan.precision)
    ensemble = load_ensemble(bundles, embeddings)
    speakers = [bundles[k] for k in ensemble.speakers]
    run = compiled(ensemble, where, dtype, converted)

    def score(images: np.ndarray) -> Scores:
        outputs = run(images)
        logits, told = outputs[: len(bundles)], outputs[len(bundles) :][: len(speakers)]
        answers: dict[str, np.ndarray] = {}
        for bundle, raw in zip(speakers, told, strict=True):
            answers = _in_units(bundle, raw) | answers
        columns = [answers[name] for name in answer_names(bundles)]
        return Scores(
            np.stack([one.mean(1) for one in logits], 1), np.stack([one.std(1) for one in logits], 1),
            np.stack(columns, 1) if columns else np.empty((len(images), 0), np.float32),
            outputs[-1] if embeddings else None,
        )  # fmt: skip

    return score


def _in_units(bundle: Model, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the members of a model say together, of its raw answers (n, members, answers), in their units."""
    from galscan.models import votes

    schema = load_schema(bundle.schema)
    if groups := votes.groups_of(bundle.answers, schema):
        fractions, worth = votes.expected(raw, groups)
        return dict(zip([*bundle.answers, *_worth(bundle)], [*fractions.T, *worth.T], strict=True))
    columns = [schema.names.index(a) for a in bundle.answers]
    low, high = schema.low[columns], schema.high[columns]
    shares = expit(raw).mean(1)
    return dict(zip(bundle.answers, (low + shares * (high - low)).astype(np.float32).T, strict=True))


def member_scores(networks: list[Network], images: np.ndarray, device: torch.device) -> np.ndarray:
    """Return the targets' logits, float32 of shape (members, n, targets), for images (n, S, S, 3) uint8."""
    return member_outputs(networks, images, device)[0]


def member_outputs(networks: list[Network], images: np.ndarray, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of targets, (members, n, targets), and raw answers, (members, n, answers), float32.

    An encoder that several networks have in common sees the images once.

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
                for out, said in zip((scores, answers), network.read(features[trunk]), strict=True):
                    out[k, start : start + 256] = said.float().cpu().numpy()
    return scores, answers


def out_of_fold(
    networks: list[Network], images: np.ndarray, folds: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Let each network score the objects that it was not trained on.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, S, S, 3)
    folds : ndarray of int, shape (n,)
        Of each image, 0 to ``len(networks) - 1``.

    Returns
    -------
    scores, answers : ndarray of float32, shape (1, n, targets) and (1, n, answers)
        As `galscan.models.ensemble.member_outputs`, of one network each.
    """
    scores = np.empty((1, len(images), networks[0].targets), np.float32)
    answers = np.empty((1, len(images), networks[0].answers), np.float32)
    for k, network in enumerate(networks):
        rows = np.flatnonzero(folds == k)
        for out, found in zip((scores, answers), member_outputs([network], images[rows], device), strict=True):
            out[0, rows] = found[0]
    return scores, answers
