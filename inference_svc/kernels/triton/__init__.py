"""Kernels for CUDA, written in Triton, which modules here import: so they are imported only where they are chosen."""
