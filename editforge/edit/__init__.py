"""Closed-form edits: one factor for all maps, exact low rank."""
