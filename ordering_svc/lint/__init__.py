"""Judges ordering files where they lie, without a service: for a shell, a pre-commit hook, a workflow."""
