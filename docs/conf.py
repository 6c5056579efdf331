"""Configuration of Sphinx for the documentation (``make docs``)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from galscan.core.version import __version__

DOCS = Path(__file__).resolve().parent
REPOSITORY = "https://github.com/galscan/galscan"
sys.path.insert(0, str(DOCS))  # _figures and _generate

project = "galscan"
author = "galscan developers"
copyright = "galscan developers"
version = release = __version__

extensions = [
    "_figures",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
templates_path: list[str] = []

# Markdown. Pages with a kernel in their header are notebooks: they run once, and again when they change.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_merge_streams = True
suppress_warnings = ["myst-nb.lexer"]  # with -D nb_execution_mode=off the language of the cells is not known

# Docstrings. Names in single backticks are links where they can be.
default_role = "py:obj"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
intersphinx_mapping: dict[str, tuple[str, None]] = {}

html_theme = "pydata_sphinx_theme"
html_title = f"galscan {version}"
html_static_path = ["_static"]
html_css_files = ["galscan.css"]
html_show_sourcelink = False
html_sidebars = {"index": [], "figures": []}
html_theme_options = {
    "github_url": REPOSITORY,
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ |In \[\d*\]: "
copybutton_prompt_is_regexp = True


def link_repository(app: Any, page: str, source: list[str]) -> None:
    """Replace links to files of the repository outside docs/ by their address on GitHub."""
    folder = (DOCS / page).parent

    def address(found: re.Match[str]) -> str:
        path = (folder / found[1]).resolve()
        if path.is_relative_to(DOCS) or not path.is_relative_to(DOCS.parent):
            return found[0]
        return f"]({REPOSITORY}/{'tree' if path.is_dir() else 'blob'}/main/{path.relative_to(DOCS.parent)}"

    source[0] = re.sub(r"\]\((\.\./[^)#\s]+)", address, source[0])


def setup(app: Any) -> None:
    """Make the parts of the reference that come from the code; links to the repository work on the site as well."""
    import _generate

    _generate.write()
    app.connect("source-read", link_repository)
