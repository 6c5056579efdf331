"""Simulated survey with known truth."""
