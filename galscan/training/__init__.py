"""Training of a classifier on real and synthetic galaxies: data sets, splits, committees."""
