"""A run: the Lightning module, its callbacks and settings."""
