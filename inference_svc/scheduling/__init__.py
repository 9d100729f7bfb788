"""Decides which tokens of which requests run in the next step; pure Python."""
