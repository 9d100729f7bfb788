"""The blocking client: one thread, one call at a time."""
