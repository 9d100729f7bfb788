"""Runs regular expressions of strangers within bounds."""
