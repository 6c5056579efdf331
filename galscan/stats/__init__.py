"""Calibration, density ratios, purity and completeness with intervals. NumPy and SciPy only."""
