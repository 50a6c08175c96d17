"""Texts as class ids, and back."""
