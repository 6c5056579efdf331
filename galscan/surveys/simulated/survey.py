"""Simulated survey with known truth: any number of galaxies, with dust lanes and artefacts, from a seed.

Object i depends only on (seed, i) and the settings: every 256 objects form a block with its own random generator,
so that any range can be computed again, also by another process, with the same result.

The population is described in `galscan.surveys.simulated.population`, the images in
`galscan.surveys.simulated.rendering`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from galscan.core.errors import InputError
from galscan.labels.columns import votes_column
from galscan.labels.schema import load_schema
from galscan.surveys.base import Cutout
from galscan.surveys.simulated import population, volunteers
from galscan.surveys.simulated import rendering as render
from galscan.surveys.sizes import DEFAULT_SIZE

ANSWERS = (
    "early_type", "dust_lane", "spiral", "bar", "ring", "merger", "edge_on", "dusty", "inclination",
    "bulge_to_total", "artefact", "size", "redness",
)  # fmt: skip
TRUTH = ("target_dustlane", "target_ring", "target_merger", "dust_tau", "dust_inclination", "axis_ratio")
_MEASURED = ("inclination", "bulge_to_total", "size", "redness")  # in steps of 0.01; the others of a quarter


@dataclass(frozen=True)
class SimulatedSurvey:
    """A survey of simulated galaxies, framed and stretched like the SDSS images of Galaxy Zoo 2.

    Ids are ``seed * 10**9 + index``, unique over seeds.

    Parameters
    ----------
    count : int
        Number of objects, up to 10**9.
    size : int
        Pixels on a side, even, 16 to 512. The angular size of the cutout (4 to 7 R90) does not depend on it.
    seed : int
        0 to 9 * 10**9.
    rare_fraction : float
        Fraction of early-type galaxies with a visible dust lane (truth ``target_dustlane``), 0 to 1.
    lane_fraction : float
        Fraction of spirals with a dust lane like that of early types, 0 to 1; in nature it is small.
    labelled : float
        Fraction of objects with labels, 0 to 1; those of the others are all NaN.
    votes : bool
        Whether there are also votes of 10 to 40 volunteers per object as in Galaxy Zoo 2 (labels ``gz2``).
    """

    count: int
    size: int = DEFAULT_SIZE
    seed: int = 0
    rare_fraction: float = 0.002
    lane_fraction: float = 0.0
    labelled: float = 1.0
    votes: bool = False
    name: str = "simulated"
    id_dtype: ClassVar[np.dtype] = np.dtype(np.int64)

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("count", self.count, 1, 10**9), ("size", self.size, 16, 512), ("seed", self.seed, 0, 9 * 10**9),
            ("rare_fraction", self.rare_fraction, 0, 1), ("lane_fraction", self.lane_fraction, 0, 1),
            ("labelled", self.labelled, 0, 1),
        ):  # fmt: skip
            integer = name in ("count", "size", "seed")
            types = (int, np.integer) if integer else (int, float, np.number)
            if not isinstance(value, types) or not low <= value <= high or (name == "size" and value % 2):
                number = "an even integer" if name == "size" else "an integer" if integer else "a number"
                raise InputError(f"simulated survey: {name} is {value!r}; give {number} from {low:,} to {high:,}")
            object.__setattr__(self, name, int(value) if integer else float(value))  # NumPy numbers are not JSON

    def __len__(self) -> int:
        return self.count

    @property
    def ids(self) -> np.ndarray:
        """The id of every object."""
        return self.seed * 10**9 + np.arange(self.count)

    def describe(self) -> dict[str, Any]:
        """Return every setting that determines the pixels."""
        settings = asdict(self)
        if not self.votes:  # as in stores written before this setting existed
            del settings["votes"]
        return {
            "survey": "simulated", **settings, "bands": "gri",
            "sky_noise": (render.GRAIN * render.SKY_NOISE).tolist(),
            "stretch": {"kind": "Lupton asinh", "Q": render.SOFTENING, "scales": render.BAND_SCALE.tolist()},
        }  # fmt: skip

    def schemas(self) -> dict[str, list[str]]:
        """Return the answers of ``simulated``, and of ``gz2`` if there are votes."""
        tree = load_schema("gz2")
        gz2 = [*tree.names, *(votes_column(task.id) for task in tree.tasks)]
        return {"simulated": list(ANSWERS)} | ({"gz2": gz2} if self.votes else {})

    def truth(self) -> list[str]:
        """Return the names of the truth columns."""
        return list(TRUTH)

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """Yield each block that overlaps rows `start` to `stop`, and the rows within the block."""
        start, stop = max(0, start), min(stop, self.count)
        first = start - start % population.BLOCK
        for at in range(first, stop if stop > start else first, population.BLOCK):
            yield at // population.BLOCK, slice(max(start - at, 0), min(stop - at, population.BLOCK))

    def _sky(self, block: int) -> dict[str, np.ndarray]:
        return population.draw(self.seed, block, self.rare_fraction, self.lane_fraction)

    def objects(self, start: int, stop: int) -> pd.DataFrame:
        """Return rows `start` to `stop`: id, position, labels and truth (see `galscan.surveys.base.Survey`).

        Dust strengths are measured on rendered galaxies, so this takes about a third of the time of the cutouts.
        """
        blocks = []
        for block, rows in self._blocks(start, stop):
            sky = self._sky(block)
            index = np.arange(population.BLOCK) + block * population.BLOCK
            table = {"id": self.seed * 10**9 + index, "ra": sky["ra"], "dec": sky["dec"]}
            answers = _answers(sky)
            labelled = sky["label_draw"] < self.labelled
            for name in ANSWERS:
                table[f"simulated/{name}"] = np.where(labelled, answers[name], np.float32(np.nan))
            if self.votes:
                probabilities = volunteers.answer_probabilities(sky, answers)
                votes = volunteers.votes(np.random.default_rng([self.seed, block, 2]), probabilities)
                table |= {f"gz2/{name}": np.where(labelled, votes[name], np.float32(np.nan)) for name in votes}
            targets = {
                "target_dustlane": (answers["early_type"] >= 0.5) & (answers["dust_lane"] >= 0.5),
                "target_ring": answers["ring"] >= 0.5, "target_merger": answers["merger"] >= 0.5,
            }  # fmt: skip
            for name in TRUTH:
                table[f"truth/{name}"] = (targets[name] if name in targets else sky[name]).astype(np.float32)
            blocks.append(pd.DataFrame(table).iloc[rows])
        if not blocks:
            return self.objects(0, 1).iloc[:0]
        return pd.concat(blocks, ignore_index=True)

    def cutouts(self, start: int, stop: int) -> Iterator[Cutout]:
        """Yield the cutout of each object, rendered in small batches to limit memory."""
        step = max(1, population.PIXELS // self.size**2)
        for block, rows in self._blocks(start, stop):
            sky = self._sky(block)
            scales = render.pixel_scale(sky, self.size)
            for first in range(rows.start // step * step, rows.stop, step):
                batch = {name: values[first : first + step] for name, values in sky.items()}
                rng = np.random.default_rng([self.seed, block, 1, first])
                images = render.pictures(batch, self.size, rng)
                for i in range(max(first, rows.start), min(first + step, rows.stop, population.BLOCK)):
                    yield Cutout(images[i - first], pixel_scale=float(scales[i]))


def _answers(sky: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return expert labels, float32: in steps of 0.25 for visual answers, of 0.01 for measured ones.

    `dust_lane` and `dusty` are the visible strength (`galscan.surveys.simulated.rendering.lane_strength`), not the
    amount of dust. `dusty` is for all types of galaxies; `dust_lane` is half of it in irregulars and mergers.
    """
    early, lane, bulge = sky["early_type"], sky["lane"], sky["bulge_to_total"]
    mean_colour = bulge * sky["bulge_colour"] + (1 - bulge) * sky["disk_colour"]
    colour = np.where(sky["disk"], mean_colour, sky["bulge_colour"])
    answers = {
        "early_type": np.select([early & sky["disk"] & (bulge < 0.4), early, bulge > 0.3], [0.75, 1.0, 0.25], 0.0),
        "dust_lane": np.where(sky["irregular"] | sky["merger"], 0.5 * lane, lane),
        "dusty": lane,
        "spiral": sky["arms"] * np.clip((sky["disk_q"] - 0.12) * 4, 0, 1),
        "bar": sky["bar"] * (sky["axis_ratio"] > 0.35),
        "ring": sky["ring"],
        "merger": sky["merger"],
        "edge_on": np.clip((0.36 - sky["axis_ratio"]) / 0.1, 0, 1) * sky["disk"],
        "inclination": 1 - sky["axis_ratio"],
        "bulge_to_total": bulge,
        "artefact": (sky["seam"] > 0) | (sky["trail"] > 0) | (sky["saturated"] > 0),
        "size": sky["re"],
        "redness": np.clip((colour - 0.2) / 0.7, 0, 1),
    }
    return {
        name: (np.round(v, 2) if name in _MEASURED else np.round(v * 4) / 4).astype(np.float32)
        for name, v in answers.items()
    }
