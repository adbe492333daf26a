"""A workspace: its folder, settings, stages, keys and registered models."""
