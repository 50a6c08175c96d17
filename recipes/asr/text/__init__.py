"""Texts as class ids, a model's output as text, and the distance between texts."""
