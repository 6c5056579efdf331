"""Where a training stands: its schedule, a step of it, and checkpoints, all that it needs to end as one that was never
interrupted. No pickle.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from galscan.core.errors import GalscanError, InputError
from galscan.core.files import atomic_path

# What files that are cut short, or that a stranger wrote, raise.
UNREADABLE = (
    OSError, SafetensorError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError,
)  # fmt: skip
PATIENCE = 10  # batches in a row with an overflow that end a training
SECONDS = 120  # between two checkpoints
SHARE = 0.05  # of the time at most that is spent on writing them: a large network's take longer


@dataclass
class Checkpoint:
    """Where a training stands, and the file that keeps it; both networks' tensors are filled in place.

    Attributes
    ----------
    weights, average : mapping of str to tensor
        What is trained, and its moving average.
    random : torch.Generator
        The training's only source of chance.
    """

    path: Path
    weights: Mapping[str, torch.Tensor]
    average: Mapping[str, torch.Tensor]
    optimizer: torch.optim.Optimizer
    random: torch.Generator
    step: int = 0
    losses: list[float] = field(default_factory=list)
    _overflows: int = 0
    _before: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _next: float = field(default_factory=lambda: time.monotonic() + SECONDS)

    @property
    def seconds(self) -> float:
        """Time spent on the training, in all calls."""
        return self._before + time.monotonic() - self._started

    def behind(self, steps: int, seconds: float | None) -> float:
        """Return how much of the training is done, up to 1: by steps or time, whichever is further on.

        With a learning rate that follows it, a run cut short by its budget still ends with a small one.
        """
        elapsed = self.seconds
        if self.step >= steps or (seconds is not None and elapsed >= seconds):
            return 1.0
        return max(self.step / steps, elapsed / seconds if seconds else 0.0)

    def learn(self, loss: torch.Tensor, rate: float, ema: float) -> str:
        """Take one step down the gradient of `loss`, let the average follow, and say how it goes.

        A batch whose gradient overflows is left out: one such step would make every weight NaN.

        Raises
        ------
        GalscanError
            If it diverges.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        learning = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        if torch.nn.utils.clip_grad_norm_(learning, 1.0).isfinite():
            self.optimizer.step()
            self.losses.append(loss.item())
            self._overflows = 0
        else:
            self._overflows += 1
        if self._overflows == PATIENCE:
            raise GalscanError(
                f"the training diverged at step {self.step:,} (learning rate {self.optimizer.defaults['lr']:g}); "
                f"remove {self.path} and train with a smaller generator.learning_rate"
            )
        self.step += 1
        keep = min(ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.weights.items():
                self.average[name].lerp_(value, 1 - keep)
        recent = self.losses[-50:]
        return f"loss {sum(recent) / len(recent) if recent else math.nan:.4f}"

    def save_now_and_then(self) -> None:
        """Write the file, if that is due."""
        if time.monotonic() > self._next:
            began = time.monotonic()
            self.save()
            took = time.monotonic() - began
            self._next = time.monotonic() + max(SECONDS, took / SHARE)

    def save(self) -> None:
        tensors = {f"model.{k}": v for k, v in self.weights.items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        tensors["random"] = self.random.get_state()
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        progress = json.dumps({"step": self.step, "seconds": self.seconds})
        with atomic_path(self.path) as temporary:
            save_file(tensors, temporary, metadata={"progress": progress})

    def resume(self) -> None:
        """Go back to where the file stands, if there is one.

        Raises
        ------
        InputError
            If it is damaged, or of another network.
        """
        if not self.path.exists():
            return
        try:
            self._resume()
        except UNREADABLE as error:
            raise InputError(
                f"{self.path} is not a readable checkpoint of this training ({str(error).splitlines()[0]:.200}); "
                "remove it and run the same command again: it begins anew"
            ) from error

    @torch.no_grad()
    def _resume(self) -> None:
        with safe_open(self.path, framework="pt") as handle:
            progress = json.loads(handle.metadata()["progress"])
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        step, seconds = progress["step"], progress["seconds"]
        if type(step) is not int or step < 0 or not 0 <= seconds < math.inf:
            raise ValueError(f"step {step!r} after {seconds!r} seconds")
        for kind, values in (("model", self.weights), ("average", self.average)):
            for name, value in values.items():
                found = tensors[f"{kind}.{name}"]
                if found.shape != value.shape:  # copy_ would stretch it
                    raise ValueError(f"{kind}.{name} is {tuple(found.shape)}, not {tuple(value.shape)}")
                value.copy_(found)
        learning = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                if value.shape not in ((), learning[int(index)].shape):
                    raise ValueError(f"{key} is {tuple(value.shape)}, not {tuple(learning[int(index)].shape)}")
                state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.random.set_state(tensors["random"])
        self.step, self.losses = step, tensors["losses"].tolist()
        self._before, self._started = seconds, time.monotonic()

    def done(self) -> dict[str, float]:
        """Remove the file, and return what came of the training: ``steps``, ``seconds``, ``loss`` (last tenth)."""
        self.path.unlink(missing_ok=True)
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        loss = sum(tail) / len(tail) if tail else float("nan")
        return {"steps": self.step, "seconds": round(self.seconds, 1), "loss": loss}
