"""Shared by the tests of generators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from galscan.synthesis.diffusion import checkpoint


@pytest.fixture
def interrupted(monkeypatch) -> Callable[[int], AbstractContextManager[None]]:
    """Write a checkpoint after each step, and return a context in which training is interrupted after some of them."""
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    monkeypatch.setattr(checkpoint, "MAX_FRACTION", 1e9)
    save = checkpoint.Checkpoint.save

    @contextmanager
    def interrupt(steps: int) -> Iterator[None]:
        def save_and_stop(self):
            save(self)
            if self.step == steps:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.Checkpoint, "save", save_and_stop)
            yield

    return interrupt
