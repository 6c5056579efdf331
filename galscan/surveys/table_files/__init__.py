"""Readers of table files: text, FITS, VOTable and other formats of astropy, Parquet."""
