"""``galscan doctor``: check the installation and suggest fixes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from typing import Any

from galscan.core import files, home
from galscan.core.concurrency import cores
from galscan.core.errors import GalscanError
from galscan.core.version import __version__

LOW_DISK = 5e9  # bytes


def doctor() -> dict[str, Any]:
    """Check versions, devices, threads, memory, the data home, free disk and extras.

    Returns
    -------
    dict
        JSON-serialisable. ``ok`` is false where something required is missing or broken; ``problems`` lists what, and
        how to fix it.
    """
    problems: list[str] = []
    versions, extras = _packages(problems)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    result = {
        "galscan": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions,
        "devices": _devices(problems),
        "cores": cores(),
        "threads": int(threads) if threads.isdigit() else cores(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "home": _home(problems),
        "extras": extras,
    }
    return {"ok": not problems, "problems": problems} | result


def _packages(problems: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return installed versions, and for each extra "installed" or the command that installs it."""
    try:
        required = importlib.metadata.requires("galscan") or []
    except importlib.metadata.PackageNotFoundError:  # run from the repository, not installed
        return {name: _version(name) or "missing" for name in ("torch", "dask", "zarr", "numpy")}, {}
    versions: dict[str, str] = {}
    missing: dict[str, list[str]] = {}
    for line in required:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[^\w.-]", requirement.strip())[0]
        version = _version(name)
        if extra := re.search(r"""extra\s*==\s*['"]([^'"]+)""", marker):
            missing.setdefault(extra[1], []).extend([name] if version is None else [])
        elif version is None:
            problems.append(f"{name} is missing; pip install '{requirement.strip()}'")
        else:
            versions[name] = version
    return versions, {
        extra: f"without {', '.join(names)}: pip install 'galscan[{extra}]'" if names else "installed"
        for extra, names in missing.items()
    }


def _version(name: str) -> str | None:
    return next((each.version for each in importlib.metadata.distributions(name=name)), None)


def _devices(problems: list[str]) -> dict[str, Any]:
    """Return the devices for the networks; a torch that cannot be imported is reported as a problem."""
    try:
        from galscan.core import device

        auto = device.pick("auto")
        return {"auto": str(auto), "cuda": auto.type == "cuda", "fast_bf16": device.has_fast_bf16(auto)}
    except Exception as error:  # importing torch may raise any exception
        problems.append(f"torch does not load ({type(error).__name__}: {error}); pip install --force-reinstall torch")
        return {"auto": "none"}


def _home(problems: list[str]) -> dict[str, Any]:
    """Check the data home by writing a file: permission bits do not show quotas and read-only mounts."""
    path = home.data_home()
    existed = path.exists()
    probe = path / ".galscan-doctor"
    writable = True
    try:
        files.write_text(probe, "written by galscan doctor; may be removed\n")
        probe.unlink(missing_ok=True)
        if not existed:
            path.rmdir()
    except (GalscanError, OSError) as error:
        writable = False
        problems.append(f"the data home {path} cannot be written ({error}); set GALSCAN_HOME to another folder")
    present = next(p for p in [path, *path.absolute().parents] if p.exists())
    free = shutil.disk_usage(present).free
    if free < LOW_DISK:
        problems.append(f"only {free / 1e9:.1f} GB free at {present}; free some, or set GALSCAN_HOME to a larger disk")
    return {"path": str(path), "writable": writable, "free_gb": round(free / 1e9, 1)}
