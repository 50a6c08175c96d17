"""A run: settings, the Lightning module with its loss, callbacks."""
