"""A hub that holds a little of everything, and how tests ask for it."""

from __future__ import annotations

from pathlib import Path

from inference_svc.weights.hub_fetch import download_model
from inference_svc.weights.hub_reference import HubReference, parse_hub_reference
from tests.inference_svc.weights.fake_hub import FakeHub
from tests.inference_svc.weights.repositories import Checks, checkpoint, gguf_bytes, safetensors_bytes

MODEL = gguf_bytes(seed=1)
OLD_MODEL = gguf_bytes(seed=2)
PARTS = {f"model-0000{n}-of-00003.gguf": gguf_bytes(seed=n, tensor=f"weight.{n}") for n in (1, 2, 3)}
SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]


def well_stocked_hub() -> FakeHub:
    """Models in every form."""
    return FakeHub(
        {
            "org/one": {
                "main": {"model.gguf": MODEL, "README.md": b"read me"},
                "v1": {"model.gguf": OLD_MODEL},
            },
            "org/many": {"main": {"a-Q4_K_M.gguf": MODEL, "sub/b-Q8_0.gguf": OLD_MODEL}},
            "org/split": {"main": {**PARTS, "README.md": b""}},
            "org/plain": {"main": checkpoint()},
            "org/sharded": {"main": checkpoint(SHARDS)},
        }
    )


def fetch(text: str, check: Checks | None = None) -> Path:
    """The local path of a model."""
    return download_model(reference(text), check or Checks())


def reference(text: str) -> HubReference:
    """A reference that is well formed."""
    found = parse_hub_reference(text)
    assert found is not None
    return found


def blobs(home: Path, repository: str) -> set[str]:
    """What the cache has of a repository, under the names of its hashes."""
    folder = home / "home" / "hub" / f"models--{repository.replace('/', '--')}" / "blobs"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def shard(index: int) -> bytes:
    """The content of SHARDS[index]."""
    return safetensors_bytes(index, f"tensor.{index}")


def names(folder: Path) -> set[str]:
    """All files in a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
