"""Fused kernels from plain formulas: one kernel forward, one backward."""
