"""Labels and recipes: label schemas, rules over labels, and what a target is made of."""
