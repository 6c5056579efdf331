"""Ranked candidates: columns, cross-matches, morphology, the sky they cover."""
