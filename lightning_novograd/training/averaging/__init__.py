"""Weights that are evaluated and are not those that train: averages of the block's, and of optimizers."""
