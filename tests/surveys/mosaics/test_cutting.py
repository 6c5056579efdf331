"""Cutting: each frame opened once, the next ones announced, a broken one fails alone."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.mosaics.cutting import OPEN
from galscan.surveys.mosaics.footprints import Folder
from galscan.surveys.mosaics.frames import FramesSurvey
from tests.mosaics_on_disk import cut_short, results


class Recorded(Folder):
    """A folder that records the calls of its methods."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.calls: list[tuple[str, str]] = []
        self.held: list[int] = []  # files in use after each call

    def _record(self, call: str, files: Sequence[str]) -> None:
        self.calls += [(call, file) for file in files]
        names = [name for name, _ in self.calls]
        self.held.append(names.count("locate") - names.count("release"))

    def locate(self, file: str) -> Path:
        self._record("locate", [file])
        return super().locate(file)

    def release(self, files: Sequence[str]) -> None:
        self._record("release", files)

    def expect(self, files: Sequence[str]) -> None:
        self._record("expect", files[:1])


@pytest.fixture
def recorded(skies: Callable[[str], Path]) -> FramesSurvey:
    survey = FramesSurvey(skies(".fits"), size=32)
    survey.source = Recorded(survey.root)
    return survey


def test_each_frame_is_opened_once_and_few_at_a_time(recorded: FramesSurvey) -> None:
    for n in range(7):
        list(recorded.cutouts(n, n + 1))
    located = [file for call, file in recorded.source.calls if call == "locate"]
    assert len(located) == len(set(located)) == 9 and max(recorded.source.held) == 3 * OPEN
    assert not [call for call in recorded.source.calls if call[0] == "expect"], "a single row is a retry"
    assert not pickle.loads(pickle.dumps(recorded))._opened


def test_the_next_frames_are_announced(recorded: FramesSurvey) -> None:
    next(recorded.cutouts(0, 4))
    assert [(call, file[:2]) for call, file in recorded.source.calls] == [
        ("expect", "m0"), ("expect", "m1"), ("expect", "m2"), *[("locate", "m0")] * 3,
    ]  # fmt: skip


def test_a_truncated_frame_fails_alone_and_is_opened_once(sky: Path) -> None:
    cut_short(sky / "m1-r.fits", 0.7)
    survey = FramesSurvey(sky, size=32)
    found = results(survey)
    for identifier in ("1-a", "1-b"):
        assert isinstance(found[identifier], Failed) and found[identifier].flag == Flag.UNREADABLE
        assert found[identifier].reason.startswith("frame m1: truncated: ")
    assert sum(isinstance(o, Cutout) for o in found.values()) == 4
    first, second = (list(survey.cutouts(n, n + 1)) for n in (2, 3))
    (sky / "m1-r.fits").unlink()
    assert first == second == list(survey.cutouts(3, 4))


@pytest.mark.parametrize("suffix", [".fits.fz", ".fits.bz2"])
def test_a_damaged_packed_frame_fails_alone(skies: Callable[[str], Path], tmp_path: Path, suffix: str) -> None:
    sky = shutil.copytree(skies(suffix), tmp_path / "sky")
    path = sky / f"m1-i{suffix}"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 :: 2] = b"\xaa" * len(raw[len(raw) // 2 :: 2])
    path.write_bytes(raw)
    found = results(FramesSurvey(sky, size=100))
    assert isinstance(found["1-a"], Failed) and str(tmp_path) not in found["1-a"].reason
    assert isinstance(found["0-a"], Cutout) and isinstance(found["2-a"], Cutout)
