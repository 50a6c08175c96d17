"""The config of a run as typed, checked blocks."""
