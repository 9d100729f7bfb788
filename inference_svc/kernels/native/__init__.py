"""Compiled kernels for the CPU: a model's definition, recorded once as a program, run by a few threads."""
