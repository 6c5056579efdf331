"""Cutouts that people have on disk: pictures, FITS, and formats that hold many."""
