"""Downloads: once and in order, deleted or kept, cancelled at once."""

from __future__ import annotations

import pickle
import time
from functools import partial
from pathlib import Path

import pytest

from galscan.surveys.mosaics.download import DownloadedFiles
from galscan.surveys.services.client import Client, RequestPolicy
from galscan.surveys.services.errors import FetchError, MissingError
from tests.mosaics_on_disk import mosaic, pixels, tan
from tests.services.loopback import Loopback


def source(service: Loopback, folder: Path, *, keep: bool = False, **settings: object) -> DownloadedFiles:
    for n in range(3):
        if not (path := folder / f"site/sas/{n}.fits").exists():
            mosaic(path, pixels((20, 30), n), tan(10.0, 0.0, (20, 30)))
    service.frames(folder / "site")
    policy = RequestPolicy((service.host,), **{"per_minute": 60_000, "tries": 2, "timeout": 20.0} | settings)  # type: ignore[arg-type]
    return DownloadedFiles(folder / "here", "http", partial(Client, policy, cache=folder / "cache"), keep=keep)


def names(service: Loopback) -> list[str]:
    return [f"{service.host}/sas/{n}.fits" for n in range(3)]


def asked(service: Loopback) -> list[str]:
    return [path.rsplit("/", 1)[1] for _, path, _ in service.log()]


def test_fetched_once_in_order_and_dropped(service, tmp_path):
    files, here = names(service), source(service, tmp_path)
    here.expect(files)
    here.expect(files)
    for n, file in enumerate(files):
        assert here.locate(file).read_bytes() == (tmp_path / f"site/sas/{n}.fits").read_bytes()
    assert asked(service) == ["0.fits", "1.fits", "2.fits"]
    here.release(files)
    assert not [p for p in (tmp_path / "here").rglob("*") if p.is_file()]
    here.locate(files[1])
    assert asked(service)[3:] == ["1.fits"], "what was dropped comes again"


def test_kept_and_rejected(service, tmp_path):
    files, here = names(service), source(service, tmp_path, keep=True)
    places = [here.locate(file) for file in files[:2]]
    here.release(files[:1])
    here.reject(files[1:2])
    assert [p.is_file() for p in places] == [True, False]
    service.behave()
    other = pickle.loads(pickle.dumps(here))
    assert other.locate(files[0]) == places[0] and not service.log()
    other.locate(files[1])
    assert asked(service) == ["1.fits"]


def test_what_cannot_be_had(service, tmp_path):
    here = source(service, tmp_path)
    with pytest.raises(MissingError, match="there is no such file"):
        here.locate(f"{service.host}/sas/9.fits")
    service.behave("html")
    with pytest.raises(FetchError, match="the response is not a FITS image"):
        here.locate(names(service)[0])
    service.behave("503")
    with pytest.raises(FetchError, match=r"HTTP 503 \(2 tries\)"):
        here.locate(names(service)[1])
    assert not [p for p in (tmp_path / "here").rglob("*") if p.is_file()], "nothing half-written"


def test_a_slow_server_is_not_waited_for(service, tmp_path):
    here = source(service, tmp_path)
    service.behave("slow", slow=30)
    here.expect(names(service))
    started = time.monotonic()
    here.stop()
    assert time.monotonic() - started < 1
    service.behave()
    assert here.locate(names(service)[0]).is_file(), "and it can go on"
