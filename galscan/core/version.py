"""The version of galscan."""

__version__ = "0.2.0"
