"""Pipelines that are known before they run: compiled from placeholders, or wired by names."""
