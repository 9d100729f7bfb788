"""Checkpoints are known from their headers: safetensors alone and in shards, GGUF whole and in parts."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest

from ordering_svc.allowed_roots import AllowedRoots
from ordering_svc.checkpoint_headers.ggml_types import GGML_TYPES
from ordering_svc.checkpoint_headers.gguf_checkpoint import _modules_of
from ordering_svc.checkpoint_headers.reader import read_checkpoint
from ordering_svc.domain.architectures import LAYER_MODULES, ModelStructure
from ordering_svc.domain.headers import CheckpointHeader, FaultKind, FileFault
from ordering_svc.domain.ordering import AdapterKind
from ordering_svc.model_config.reader import LocalModel
from tests.ordering_svc.small_world import HIDDEN, SHAPES, VOCABULARY, World, write_safetensors

LLAMA = ModelStructure("llama", 2)
Q4_0, Q8_0, F32 = 2, 8, 0
Tensors = dict[str, tuple[int, tuple[int, ...]]]  # ggml type, shape with the slowest axis first


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_bytes(tensors: Mapping[str, tuple[int, tuple[int, ...]]], overlap: int = 0) -> bytes:
    """A whole file of zeros, little-endian, version 3."""
    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 2),
    ]
    infos, offset = b"", 0
    for name, (kind, shape) in tensors.items():
        infos += text(name) + struct.pack(
            f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, max(offset - overlap, 0)
        )
        block, size = GGML_TYPES[kind].block_values, GGML_TYPES[kind].block_bytes
        offset += -(-math.prod(shape) // block * size // 32) * 32
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + infos
    return header + bytes(-len(header) % 32 + offset)


def block(layer: int, kind: int = Q8_0) -> Tensors:
    return {
        f"blk.{layer}.attn_norm.weight": (F32, (32,)),
        f"blk.{layer}.attn_q.weight": (kind, (32, 32)),
        f"blk.{layer}.attn_v.weight": (kind, (16, 32)),
    }


EMBEDDINGS: Tensors = {"token_embd.weight": (Q8_0, (64, 32))}


def read(path: Path, structure: ModelStructure = LLAMA) -> CheckpointHeader:
    found = read_checkpoint(path, structure, AllowedRoots([path if path.is_dir() else path.parent], "--model-root"))
    assert isinstance(found, CheckpointHeader), found
    return found


def fault(path: Path) -> FileFault:
    found = read_checkpoint(path, LLAMA, AllowedRoots([path if path.is_dir() else path.parent], "--model-root"))
    assert isinstance(found, FileFault), found
    return found


def test_a_single_safetensors_file_gives_shapes_by_module(tmp_path: Path) -> None:
    base = World().base
    assert base is not None
    write_safetensors(tmp_path / "model.safetensors", base)
    header = read(tmp_path)
    assert header.shapes["model.layers.1.mlp.down_proj"] == SHAPES["mlp.down_proj"]
    assert header.shapes["lm_head"] == (VOCABULARY, HIDDEN)  # tied
    assert (header.hidden_size, header.quantization) == (HIDDEN, "")


def test_a_packed_weight_is_there_but_hides_its_shape(tmp_path: Path) -> None:
    tensors = {"a.qweight": ("I32", (4, 4)), "b.weight": ("U8", (16, 1)), "b.bias": ("F32", (4,))}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert read(tmp_path).shapes == {"a": None, "b": None}


def shards(folder: Path) -> Any:
    """Two shards and their index."""
    write_safetensors(folder / "one.safetensors", {"a.weight": ("F32", (2, 3))})
    write_safetensors(folder / "two.safetensors", {"b.weight": ("F32", (4, 5))})
    return {"metadata": {}, "weight_map": {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}}


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards(tmp_path)))
    assert read(tmp_path).shapes == {"a": (2, 3), "b": (4, 5)}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"weight_map": {"a.weight": "three.safetensors"}}, FaultKind.MISSING),
        ({"weight_map": {"a.weight": "two.safetensors"}}, FaultKind.MALFORMED),
        ({"weight_map": {"a.weight": "../one.safetensors"}}, FaultKind.MALFORMED),
        ({"weight_map": {"a.weight": 1}}, FaultKind.MALFORMED),
        ({"weight_map": [1]}, FaultKind.MALFORMED),
        ({"weight_map": {str(i): f"{i}.safetensors" for i in range(1025)}}, FaultKind.MALFORMED),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_a_fault(
    tmp_path: Path, change: dict[str, object], kind: FaultKind
) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards(tmp_path) | change))
    assert fault(tmp_path).kind is kind


def test_a_folder_with_a_config_alone_has_no_checkpoint(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path, LLAMA, AllowedRoots([tmp_path], "x")) is None


def test_the_real_model_is_known_by_its_header(smollm2_gguf: Path) -> None:
    path = smollm2_gguf.resolve()
    header = read(path, ModelStructure("llama", 30))
    assert (header.quantization, header.bits_per_weight, header.hidden_size) == ("Q4_1", 5.0, 576)
    assert header.shapes["model.layers.29.self_attn.k_proj"] == (192, 576)
    assert len(header.shapes) == 30 * 7 + 2


def test_parts_of_a_gguf_file_count_together(tmp_path: Path) -> None:
    first, second = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    first.write_bytes(gguf_bytes(EMBEDDINGS | block(0)))
    assert fault(first) == FileFault(FaultKind.MISSING, second.name, f"There is no {second.name}.")
    second.write_bytes(gguf_bytes(block(1)))
    assert len(read(first).shapes) == 6
    assert read(tmp_path).shapes == read(first).shapes  # a folder that holds it


@pytest.mark.parametrize(
    "content",
    [
        gguf_bytes(block(0), overlap=32),
        gguf_bytes(block(0))[:-1],
        gguf_bytes({"blk.0.attn_q.weight": (Q8_0, (32, 32))}).replace(struct.pack("<QQI", 32, 32, 8), b"\xff" * 20),
        gguf_bytes({"a.weight": (F32, (1,))}).replace(struct.pack("<QI", 1, F32), struct.pack("<QI", 1, 9999)),
        gguf_bytes({"a.weight": (F32, (33,))}).replace(struct.pack("<QI", 33, F32), struct.pack("<QI", 33, Q8_0)),
        b"GGUF",
        b"",
    ],
)
def test_a_gguf_file_that_lies_is_a_fault(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    assert fault(tmp_path / "m.gguf").kind is FaultKind.MALFORMED


def test_a_quantized_base_applies_its_list_and_warns_an_xlora_of_few_bits(tmp_path: Path) -> None:
    document = {"order": ["a"], "layers": {"model.layers.0.mlp.gate": 0}, "base_model_id": "m"}
    for kind, expected in ((Q4_0, ["XLORA_BASE_LOW_BITS"]), (Q8_0, []), (F32, None)):
        (tmp_path / "m.gguf").write_bytes(gguf_bytes(EMBEDDINGS | block(0, kind)))
        world = World(document=document, kind=AdapterKind.XLORA)
        codes = [problem.code for problem in world.problems(tmp_path, LocalModel("m.gguf"))]
        assert ("LAYER_NOT_SUPPORTED" in codes) == (expected is not None)
        assert [code for code in codes if code == "XLORA_BASE_LOW_BITS"] == (expected or [])


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        ours = GGML_TYPES[kind.value]
        assert (ours.name, (ours.block_values, ours.block_bytes)) == (kind.name, sizes)


@pytest.mark.parametrize("architecture", sorted(LAYER_MODULES))
def test_gguf_names_are_those_that_the_gguf_package_gives_to_modules(architecture: str) -> None:
    named = {"mixtral": "llama", "mistral": "llama", "phi": "phi2"}.get(architecture, architecture)
    kinds = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    if named not in kinds:
        pytest.fail(f"the gguf package has no {named}")
    names = gguf.get_tensor_name_map(kinds[named], 1)
    structure = ModelStructure(architecture, 1)
    found = {}
    for module in structure.layer_modules:
        name = names.get_name(f"model.layers.0.{module}")
        assert name is not None, module
        found[module] = [path for path, _ in _modules_of(f"{name}.weight", (3, 3), structure)]
    assert found == {module: [f"model.layers.0.{module}"] for module in structure.layer_modules}


def test_a_fused_tensor_of_phi_2_stands_for_three_modules() -> None:
    found = dict(_modules_of("blk.0.attn_qkv.weight", (24, 8), ModelStructure("phi", 1)))
    assert found == {f"model.layers.0.self_attn.{name}_proj": (8, 8) for name in "qkv"}
