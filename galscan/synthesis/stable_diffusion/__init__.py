"""Stable Diffusion that reads captions of galaxies."""
