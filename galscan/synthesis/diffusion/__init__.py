"""Diffusion models of feature maps and of whole galaxies, under flow matching."""
