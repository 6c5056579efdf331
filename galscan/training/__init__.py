"""Training of classifiers on real and synthetic galaxies: data sets, splits, committees."""
