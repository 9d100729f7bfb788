"""How hard the tests of this folder try: a little in `make test`, the whole in `make torture`."""

from __future__ import annotations

import os

IS_WHOLE = os.environ.get("LORAMUX_TORTURE") == "1"

KILLS = 200 if IS_WHOLE else 4
INCREMENTS = 10_000 if IS_WHOLE else 120
CALLS = 50_000 if IS_WHOLE else 1_500
TIMEOUT_SECONDS = 3600 if IS_WHOLE else 300
