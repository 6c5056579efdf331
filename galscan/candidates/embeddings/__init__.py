"""Embeddings of a scan: objects similar to examples, lists of objects, and the points of a map."""
