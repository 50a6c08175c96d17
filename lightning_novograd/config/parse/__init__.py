"""Optimizers, schedules and rules of a block: plain data -> the dataclasses of `schema`. Nothing is built here."""
