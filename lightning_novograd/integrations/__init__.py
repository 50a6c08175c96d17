"""Bridges to frameworks with an optimizer registry or a command line of their own; each imports its host lazily."""
