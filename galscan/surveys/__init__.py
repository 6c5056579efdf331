"""Surveys: catalogs of objects with their cutouts, from files, frames, services and simulations."""
