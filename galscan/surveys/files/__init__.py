"""Surveys of cutouts on disk: JPEG, PNG and FITS files, and formats with many cutouts per file."""
