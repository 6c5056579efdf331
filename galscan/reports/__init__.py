"""Report pages of runs, models, ablations and evaluations."""
