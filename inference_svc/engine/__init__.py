"""Runs accepted requests to their end, a step of the whole batch at a time."""
