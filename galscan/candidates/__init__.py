"""Ranked candidates: table columns, crossmatches, similarity, morphology, sky coverage, exports."""
