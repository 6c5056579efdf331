"""The version of galscan."""

__version__ = "0.1.0"
