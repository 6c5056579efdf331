"""How objects show themselves: HTML for notebooks, and the style of figures."""
