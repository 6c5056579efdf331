"""Surveys: a catalog of objects, and a cutout (or the reason for none) of each."""
