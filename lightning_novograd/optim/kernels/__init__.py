"""Compiled kernels by device; they know tensors and numbers, and no optimizer."""
