"""Synthetic humans: dressed adult bodies, scenes, and renders with exact labels."""
