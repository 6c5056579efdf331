"""Cutting: each frame opened once, the next ones announced, a broken one fails alone."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest

from galscan.surveys.base import Cutout, Failed, Flag
from galscan.surveys.mosaics.cutting import OPEN
from galscan.surveys.mosaics.frames import FramesSurvey
from tests.mosaics_on_disk import cut_short
from tests.surveys.mosaics.test_frames import results, sky


def test_each_frame_is_opened_once_and_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sky(tmp_path)
    survey = FramesSurvey(tmp_path, size=32)
    located, released, most = [], [], 0

    class Watching(type(survey.source)):
        def locate(self, file: str) -> Path:
            nonlocal most
            located.append(file)
            most = max(most, len(located) - len(released))
            return super().locate(file)

        def release(self, files: Sequence[str]) -> None:
            released.extend(files)

        def expect(self, files: Sequence[str]) -> None:
            raise AssertionError("a row by itself says nothing of what follows")

    survey.source = Watching(tmp_path)
    for n in range(7):
        list(survey.cutouts(n, n + 1))
    assert len(located) == len(set(located)) == 9 and most == 3 * OPEN and located[:3] == released[:3]
    assert len(pickle.loads(pickle.dumps(FramesSurvey(tmp_path, size=32)))._opened) == 0


def test_a_truncated_frame_fails_alone(tmp_path: Path) -> None:
    sky(tmp_path)
    cut_short(tmp_path / "m1-r.fits", 0.7)
    found = results(FramesSurvey(tmp_path, size=32))
    for identifier in ("1-a", "1-b"):
        assert isinstance(found[identifier], Failed) and found[identifier].flag == Flag.UNREADABLE
        assert found[identifier].reason.startswith("frame m1: truncated: ")
    assert sum(isinstance(o, Cutout) for o in found.values()) == 4


@pytest.mark.parametrize("suffix", [".fits.fz", ".fits.bz2"])
def test_a_damaged_packed_frame_fails_alone(tmp_path: Path, suffix: str) -> None:
    sky(tmp_path, suffix=suffix)
    path = tmp_path / f"m1-i{suffix}"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 :: 2] = b"\xaa" * len(raw[len(raw) // 2 :: 2])
    path.write_bytes(raw)
    found = results(FramesSurvey(tmp_path, size=100))
    assert isinstance(found["1-a"], Failed) and str(tmp_path) not in found["1-a"].reason
    assert isinstance(found["0-a"], Cutout) and isinstance(found["2-a"], Cutout)


def test_the_next_frames_are_told_of_before_they_are_needed(tmp_path: Path) -> None:
    sky(tmp_path)
    survey = FramesSurvey(tmp_path, size=32)
    said: list[str] = []

    class Listening(type(survey.source)):
        def expect(self, files: Sequence[str]) -> None:
            said.extend(f"expect {f[:2]}" for f in files[:1])

        def locate(self, file: str) -> Path:
            said.append(f"locate {file[:2]}")
            return super().locate(file)

    survey.source = Listening(tmp_path)
    next(survey.cutouts(0, 4))
    assert said == ["expect m0", "expect m1", "expect m2", "locate m0", "locate m0", "locate m0"]


def test_a_frame_that_cannot_be_opened_is_not_tried_again_for_each_of_its_objects(tmp_path: Path) -> None:
    sky(tmp_path)
    cut_short(tmp_path / "m1-g.fits", 0.7)
    survey = FramesSurvey(tmp_path, size=32)
    first, second = (list(survey.cutouts(n, n + 1)) for n in (2, 3))
    (tmp_path / "m1-g.fits").unlink()
    assert first == second == list(survey.cutouts(3, 4))
