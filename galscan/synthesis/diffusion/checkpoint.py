"""The training loop of all generators, with checkpoints. No pickle."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from galscan.core.errors import GalscanError, InputError, first_line
from galscan.core.files import atomic_path
from galscan.core.progress import track

# Exceptions of truncated, damaged or foreign files.
UNREADABLE = (
    OSError, SafetensorError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError,
)  # fmt: skip
PATIENCE = 10  # consecutive batches with an overflow, after which training is aborted
SECONDS = 120  # between checkpoints
MAX_FRACTION = 0.05  # of the time spent on writing checkpoints, at most: those of large networks take longer


@dataclass
class Checkpoint:
    """State of a training, and its checkpoint file, from which an interrupted training resumes to the same result."""

    path: Path
    weights: Mapping[str, torch.Tensor]
    optimizer: torch.optim.Optimizer
    random: torch.Generator
    """The only random number generator of the training."""
    decay: float
    """Of the moving average of the weights; less in the first steps, (1 + step) / (10 + step)."""
    step: int = 0
    losses: list[float] = field(default_factory=list)
    _overflows: int = 0
    _before: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _next: float = field(default_factory=lambda: time.monotonic() + SECONDS)

    def __post_init__(self) -> None:
        # Tensors do as well as the parameters that the annotation of diffusers wants.
        self._ema = EMAModel(self._tensors, decay=self.decay, update_after_step=-1, foreach=True)

    @property
    def _tensors(self) -> Any:
        return list(self.weights.values())

    @property
    def average(self) -> dict[str, torch.Tensor]:
        """Moving average of the weights."""
        return dict(zip(self.weights, self._ema.shadow_params, strict=True))

    @property
    def seconds(self) -> float:
        """Training time over all calls."""
        return self._before + time.monotonic() - self._started

    def run(
        self,
        loss: Callable[[], torch.Tensor],
        steps: int,
        seconds: float | None,
        *,
        warmup: int,
        floor: float,
        label: str,
    ) -> None:
        """Train for `steps` or `seconds`, from the checkpoint if there is one.

        The learning rate rises linearly in `warmup` steps and falls as a cosine to the fraction `floor`. It follows the
        finished fraction by steps or time, whichever is larger, so it has fallen also when a time budget ends the
        training.

        Raises `GalscanError` if the training diverges; `InputError` if the checkpoint is damaged, or of another
        network.
        """
        self.resume()
        with track(label, steps, "step", done=self.step) as advance:
            while (done := self.progress(steps, seconds)) < 1:
                decay = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
                rate = self.optimizer.defaults["lr"] * min(1.0, (self.step + 1) / warmup) * decay
                advance(1, self.update(loss(), rate))
                self.save_if_due()

    def progress(self, steps: int, seconds: float | None) -> float:
        """Return the finished fraction of the training, by steps or time, whichever is larger."""
        elapsed = self.seconds
        if self.step >= steps or (seconds is not None and elapsed >= seconds):
            return 1.0
        return max(self.step / steps, elapsed / seconds if seconds else 0.0)

    @property
    def _trained(self) -> list[torch.Tensor]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    def update(self, loss: torch.Tensor, rate: float) -> str:
        """Take an optimizer step, update the moving average, and return a progress message.

        A batch whose gradient is not finite is skipped, as it would make all weights NaN.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if torch.nn.utils.clip_grad_norm_(self._trained, 1.0).isfinite():
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
        self._ema.step(self._tensors)
        recent = self.losses[-50:]
        return f"loss {sum(recent) / len(recent) if recent else math.nan:.4f}"

    def save_if_due(self) -> None:
        """Write the checkpoint if enough time has passed."""
        if time.monotonic() > self._next:
            began = time.monotonic()
            self.save()
            took = time.monotonic() - began
            self._next = time.monotonic() + max(SECONDS, took / MAX_FRACTION)

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
        """Restore the state from the checkpoint file, if it exists; tensors are filled in place."""
        if not self.path.exists():
            return
        try:
            self._resume()
        except UNREADABLE as error:
            raise InputError(
                f"{self.path} is not a readable checkpoint of this training ({first_line(error)}); "
                "remove it and run the same command again to start over"
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
                if found.shape != value.shape:  # copy_ would broadcast it
                    raise ValueError(f"{kind}.{name} is {tuple(found.shape)}, not {tuple(value.shape)}")
                value.copy_(found)
        trained = self._trained
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                if value.shape not in ((), trained[int(index)].shape):
                    raise ValueError(f"{key} is {tuple(value.shape)}, not {tuple(trained[int(index)].shape)}")
                state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.random.set_state(tensors["random"])
        self.step, self.losses = step, tensors["losses"].tolist()
        self._ema.optimization_step = step
        self._before, self._started = seconds, time.monotonic()

    def finish(self) -> dict[str, float]:
        """Remove the file; return ``steps``, ``seconds`` and ``loss`` (mean over the last tenth of the steps)."""
        self.path.unlink(missing_ok=True)
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        loss = sum(tail) / len(tail) if tail else float("nan")
        return {"steps": self.step, "seconds": round(self.seconds, 1), "loss": loss}
