"""Schedules that need more than their class: made of several, or with learning rates of their own for groups."""
