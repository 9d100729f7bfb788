"""Model files: found, checked, and turned into packed tensors."""
