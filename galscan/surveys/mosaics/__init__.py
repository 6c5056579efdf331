"""Cutouts from large images: FITS headers, footprints on the sky, stamps."""
