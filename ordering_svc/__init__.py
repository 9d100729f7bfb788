"""Keeps ordering files as named, versioned documents, makes them from model configs, and judges them."""
