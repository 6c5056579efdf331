"""Downloads: once and in order, deleted or kept, cancelled at once."""

from __future__ import annotations

import pickle
import time
from functools import partial
from pathlib import Path

from galscan.surveys.mosaics.download import DownloadedFiles
from galscan.surveys.services.client import Client, RequestPolicy
from tests.mosaics_on_disk import mosaic, pixels, tan
from tests.services.loopback import Loopback


def source(service: Loopback, folder: Path, *, keep: bool = False) -> DownloadedFiles:
    for n in range(3):
        mosaic(folder / f"site/sas/{n}.fits", pixels((20, 30), n), tan(10.0, 0.0, (20, 30)))
    service.frames(folder / "site")
    policy = RequestPolicy(hosts=(service.host,), per_minute=60_000, tries=2, timeout=20.0)
    return DownloadedFiles(folder / "frames", "http", partial(Client, policy, cache=folder / "cache"), keep=keep)


def names(service: Loopback) -> list[str]:
    return [f"{service.host}/sas/{n}.fits" for n in range(3)]


def requests(service: Loopback) -> list[str]:
    return [path.rsplit("/", 1)[1] for _, path, _ in service.log()]


def left(folder: Path) -> list[Path]:
    return [p for p in (folder / "frames").rglob("*") if p.is_file()]


def test_downloaded_once_in_order_and_deleted(service, tmp_path):
    files, downloads = names(service), source(service, tmp_path)
    downloads.expect(files)
    downloads.expect(files)
    for n, file in enumerate(files):
        assert downloads.locate(file).read_bytes() == (tmp_path / f"site/sas/{n}.fits").read_bytes()
    assert requests(service) == ["0.fits", "1.fits", "2.fits"]
    downloads.release(files)
    assert not left(tmp_path)
    downloads.locate(files[1])
    assert requests(service)[3:] == ["1.fits"]


def test_kept_and_rejected(service, tmp_path):
    files, downloads = names(service), source(service, tmp_path, keep=True)
    paths = [downloads.locate(file) for file in files[:2]]
    downloads.release(files[:1])
    downloads.reject(files[1:2])
    assert [p.is_file() for p in paths] == [True, False]
    service.behave()
    other = pickle.loads(pickle.dumps(downloads))
    assert other.keep and other.locate(files[0]) == paths[0] and not service.log()
    other.locate(files[1])
    assert requests(service) == ["1.fits"]


def test_stop_does_not_wait_for_a_slow_server(service, tmp_path):
    downloads = source(service, tmp_path)
    service.behave("slow", slow=30)
    downloads.expect(names(service))
    started = time.monotonic()
    downloads.stop()
    assert time.monotonic() - started < 1
    service.behave()
    assert downloads.locate(names(service)[0]).is_file()
