"""Stable Diffusion conditioned on captions of galaxies."""
