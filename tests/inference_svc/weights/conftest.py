"""A hub that the code under test talks to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.inference_svc.weights.fake_hub import FakeHub, serve
from tests.inference_svc.weights.hub_world import well_stocked_hub

ServeHub = Callable[[FakeHub], FakeHub]


@pytest.fixture
def serve_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServeHub]:
    """Serves a hub until the test ends; its cache is empty, no token is set, and nobody waits between attempts."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for variable in ("HF_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    # The library repeats attempts with pauses: what it does in between is not what is tested here.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    with ExitStack() as running:

        def start(hub: FakeHub) -> FakeHub:
            monkeypatch.setenv("HF_ENDPOINT", running.enter_context(serve(hub)).url)
            return hub

        yield start


@pytest.fixture
def hub(serve_hub: ServeHub) -> FakeHub:
    """One that holds a little of everything."""
    return serve_hub(well_stocked_hub())
