"""Candidates in the formats of astronomers' tools, one module a format."""
