"""Label schemas, rules over labels, and recipes of targets."""
