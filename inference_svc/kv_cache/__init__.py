"""Blocks of keys and values: the bookkeeping, and the tensors."""
