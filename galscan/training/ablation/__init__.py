"""Ablation: gain of synthetic galaxies compared with other methods for a rare class."""
