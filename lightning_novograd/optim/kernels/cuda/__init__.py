"""Triton kernels for CUDA, and the tables of addresses that they read."""
