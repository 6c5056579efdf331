"""Scans of a survey: planned, run on a Dask cluster, merged in bounded memory."""
