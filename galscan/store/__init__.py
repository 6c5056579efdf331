"""The store: the cutouts of a survey in one Zarr group, built, appended to and read."""
