"""Neighbors of what is erased."""
