"""A panel with Aladin Lite for pages: the sky around an object, loaded from its official server when it is opened.

The panel is a frame in a sandbox: the script that it loads, of a fixed version, has neither access to the page around
it, nor to its address, and gets positions only. Its own policy limits it to servers of the CDS.
"""

from __future__ import annotations

from importlib.resources import files as resources


def sky_frame() -> str:
    """Return the page in the frame."""
    return _read("aladin.html")


def panel_script() -> str:
    """Return the function ``skyPanel`` of the page around the frame."""
    return _read("sky_panel.js")


def _read(name: str) -> str:
    return (resources("galscan.vetting") / name).read_text(encoding="utf-8")
