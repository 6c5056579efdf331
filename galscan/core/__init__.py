"""Utilities for all packages: errors, atomic files, staging folders, data home, progress, devices, sky positions."""
