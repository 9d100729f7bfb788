"""Lets the demo's tests import the training scripts, which are run from the repository root and never installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
