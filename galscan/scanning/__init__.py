"""A scan: planned, spread over a Dask cluster, merged at bounded memory."""
