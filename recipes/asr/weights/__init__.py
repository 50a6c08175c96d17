"""Weights in files: checkpoints of runs, NeMo's archives."""
