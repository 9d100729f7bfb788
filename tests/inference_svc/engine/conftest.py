"""What tests of the engine share; a module with a `base` of its own has the others for that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.models.base_model import BaseModel
from tests.inference_svc.engine.crowd import Solo, tiny_registry
from tests.inference_svc.engine.tiny_engine import MODELS


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BaseModel:
    """A tiny model: the reference, unless the module's tests are parametrized by others of MODELS."""
    return MODELS[getattr(request, "param", "reference")](tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def registry(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> AdapterRegistry:
    """The adapters that the kinds of a crowd name."""
    return tiny_registry(base, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def solo(base: BaseModel, registry: AdapterRegistry) -> Iterator[Solo]:
    """What answers alone, for comparison."""
    alone = Solo(base, registry)
    yield alone
    alone.stop()
