"""Columns of catalogs: their names, units, positions and other values."""
