"""Why a measurement cannot be made."""

from __future__ import annotations


class DistortionError(Exception):
    """One sentence that says why, and what to do."""
