"""Synthetic galaxies: features injected into real galaxies, whole images generated, and both evaluated."""
