"""Fetches one `config.json` from the hub."""

from __future__ import annotations

from pathlib import Path

import httpx2
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download

from ordering_svc.errors import HubUnavailable, InvalidValue, ModelNotFound

CONFIG_NAME = "config.json"
TIMEOUT_SECONDS = 10.0
