"""Simulated votes of volunteers on the decision tree of Galaxy Zoo 2.

The properties of a galaxy determine the probability of each answer. Each volunteer follows the tree by the answers
given, so that questions deep in the tree get fewer votes. The numbers are chosen, not fitted, to give fractions like
those of the survey (most of them far from 0 and 1).
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from galscan.labels.columns import votes_column
from galscan.labels.schema import load_schema

FEWEST, MOST = 10, 40  # volunteers a galaxy
# Topological order: each question after all that lead to it.
ORDER = ("t01", "t02", "t07", "t03", "t09", "t04", "t10", "t11", "t05", "t06", "t08")


def answer_probabilities(sky: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the probability of each answer by question id, arrays of shape (n, answers of the question).

    `sky` is a block from `galscan.surveys.simulated.population.draw`, `labels` its expert labels.
    """
    bulge, ratio, lane = sky["bulge_to_total"], sky["axis_ratio"], labels["dust_lane"]
    early, edge, arms, bar, ring = (labels[k] for k in ("early_type", "edge_on", "spiral", "bar", "ring"))
    merger, irregular = labels["merger"], sky["irregular"].astype(float)
    pitch = np.degrees(np.arctan(1 / np.abs(sky["winding"])))
    zero = np.zeros(len(bulge))

    def yes(logit: np.ndarray) -> np.ndarray:
        return np.stack([logit, zero], 1)

    def nearest(value: np.ndarray, centres: tuple[float, ...], width: float) -> np.ndarray:
        return np.stack([-(((value - c) / width) ** 2) for c in centres], 1)

    arm = np.stack([3.0 * (sky["arm_count"] == k) for k in (1, 2, 3, 4, 5)] + [1 + 2 * (1 - arms)], 1)
    logits = {
        "t01": np.stack([
            2.5 * early - 1.5 * edge - 1.2 * lane - ring,
            2 * arms + 1.2 * edge + lane + ring + bar + merger + irregular,
            -2 + 1.5 * labels["artefact"],
        ], 1),
        "t02": yes(8 * (edge - 0.5)),
        "t03": yes(5 * (bar - 0.45)),
        "t04": yes(6 * (arms - 0.35)),
        "t05": nearest(bulge, (0.02, 0.2, 0.42, 0.75), 0.15),
        "t06": yes(-2.2 + 4 * np.max([ring, merger, 0.9 * irregular, lane], axis=0)),
        "t07": nearest(ratio, (0.97, 0.68, 0.3), 0.18),
        "t08": np.stack([4 * ring, zero - 2, 1.5 * merger, 3.5 * irregular, zero, 4 * merger, 4 * lane], 1),
        "t09": np.stack([6 * bulge, zero - 0.5, 2 - 6 * bulge], 1),
        "t10": nearest(pitch, (13, 20, 28), 5),
        "t11": arm,
    }  # fmt: skip
    return {task: softmax(u, axis=1) for task, u in logits.items()}


def votes(rng: np.random.Generator, probabilities: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draw votes; return columns as of `galscan.labels.columns.read_answers`, float32, shape (n,).

    Vote fractions of each answer, NaN if fewer volunteers than the schema requires reached the question, and the number
    of votes on each question.
    """
    schema = load_schema("gz2")
    count = len(next(iter(probabilities.values())))
    tasks = {task.id: task for task in schema.tasks}
    voters = {name: np.zeros(count, np.int64) for name in tasks}
    voters[schema.tasks[0].id] = rng.integers(FEWEST, MOST + 1, count)
    fractions: dict[str, np.ndarray] = {}
    for task in map(tasks.__getitem__, ORDER):
        counts = rng.multinomial(voters[task.id], probabilities[task.id])
        enough = voters[task.id] >= max(schema.min_votes, 1)
        for k, (answer, next_task) in enumerate(task.answers.items()):
            fractions[answer] = np.where(enough, counts[:, k] / np.maximum(voters[task.id], 1), np.nan)
            if next_task is not None:
                voters[next_task] += counts[:, k]
    columns = {name: fractions[name] for name in schema.names} | {votes_column(k): n for k, n in voters.items()}
    return {name: values.astype(np.float32) for name, values in columns.items()}
