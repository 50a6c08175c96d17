"""Ranks that die, hang or are stopped: who it was is said, and the job ends."""
