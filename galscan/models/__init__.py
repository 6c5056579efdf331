"""The networks of a model, what they predict, and the folder that holds them."""
