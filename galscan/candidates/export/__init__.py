"""Export of candidates to the formats of astronomical software, one module per format."""
