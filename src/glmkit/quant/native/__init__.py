"""Kernels in plain C for products with integer and float matrices on CPUs: their source, build, and choice."""
