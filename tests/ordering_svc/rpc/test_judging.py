"""ValidateOrdering over a real channel, with files that the service may and may not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loramux.ordering.v1 import ordering_pb2 as P
from loramux.ordering.v1 import ordering_service_pb2 as S
from tests.ordering_svc.rpc.conftest import Serve
from tests.ordering_svc.small_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """The small world in `root/`."""
    (tmp_path / "root").mkdir()
    world = World()
    world.write(tmp_path / "root")
    return world


async def test_a_stored_ordering_is_judged_with_its_own_kind_and_place(
    serve: Serve, world: World, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "xlora" / "bio" / "adapter_config.json").write_text("{")
    async with serve(model_roots=(root,), adapter_roots=(root,)) as service:
        await service.stub.ImportOrdering(
            S.ImportOrderingRequest(
                ordering_id="mine",
                json=json.dumps(world.document).encode(),
                kind=P.ADAPTER_KIND_XLORA,
                adapter_model_id="xlora",
            )
        )
        request = S.ValidateOrderingRequest(
            name="orderings/mine", model=P.ModelReference(path="base"), check_adapters=True
        )
        answer = await service.stub.ValidateOrdering(request)
        (problem,) = answer.problems
        assert (problem.code, problem.field) == ("ADAPTER_FILE_MALFORMED", "order[1]")
        assert (problem.file, answer.valid) == ("bio/adapter_config.json", False)
        assert problem.hint
        request.check_adapters = False
        assert (await service.stub.ValidateOrdering(request)).valid


async def test_without_adapter_roots_nothing_is_read_and_that_is_said(
    serve: Serve, world: World, tmp_path: Path
) -> None:
    async with serve() as service:
        answer = await service.stub.ValidateOrdering(
            S.ValidateOrderingRequest(
                json=json.dumps(world.document).encode(),
                check_adapters=True,
                adapter_model_id=str(tmp_path / "root" / "xlora"),
            )
        )
        assert [(each.code, each.field) for each in answer.problems] == [("ADAPTER_FILE_OUTSIDE", "order")]  # once
        assert "--adapter-root" in answer.problems[0].message
