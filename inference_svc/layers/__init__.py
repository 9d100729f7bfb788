"""Linear layers with adapters, attention, norms: shared by all models."""
