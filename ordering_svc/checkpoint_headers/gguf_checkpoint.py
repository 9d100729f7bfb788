"""GGUF files, also in several parts: their tensors under the module paths of Hugging Face, and how they are quantized.

llama.cpp permutes the rows of Q and K for some architectures; shapes do not depend on that.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ordering_svc.allowed_roots import AllowedRoots
from ordering_svc.checkpoint_headers.ggml_types import GGML_TYPES, GgmlType
from ordering_svc.domain.architectures import EMBEDDINGS, LAYER_PREFIX, OUTPUT_HEAD, ModelStructure
from ordering_svc.domain.headers import CheckpointHeader, FaultKind
from ordering_svc.domain.problems import shown
from ordering_svc.errors import ModelConfigInvalid
from ordering_svc.file_headers.files import UnreadableFile, malformed, opened
from ordering_svc.model_config.gguf_header import GgufHeader, GgufTensor, read_gguf_header

MAX_PARTS = 1024
_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.ASCII | re.IGNORECASE)
_IN_A_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]{0,8})\.([a-z_]+)\.weight", re.ASCII)

# What each tensor of a block can be; the one that the architecture has is meant. Source: the converter of llama.cpp.
_MODULES: Mapping[str, tuple[str, ...]] = {
    "attn_q": ("self_attn.q_proj",),
    "attn_k": ("self_attn.k_proj",),
    "attn_v": ("self_attn.v_proj",),
    "attn_qkv": ("self_attn.qkv_proj",),
    "attn_output": ("self_attn.o_proj", "self_attn.dense"),
    "ffn_gate": ("mlp.gate_proj",),
    "ffn_up": ("mlp.up_proj", "mlp.gate_up_proj", "mlp.fc1", "mlp.c_fc"),
    "ffn_down": ("mlp.down_proj", "mlp.fc2", "mlp.c_proj"),
}
_SEPARATE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def read_gguf_checkpoint(path: Path, file: str, structure: ModelStructure, roots: AllowedRoots) -> CheckpointHeader:
    """The matrices of a GGUF file and of its other parts, which lie beside it.

    Raises:
        UnreadableFile: a part is missing, or a header does not fit the format or the file.
    """
    shapes: dict[str, tuple[int, ...] | None] = {}
    types: Counter[str] = Counter()
    num_bits = num_values = 0
    for part, name in _parts(path, file):
        for tensor_name, tensor in _checked_tensors(part, name, roots):
            for module, shape in _modules_of(tensor_name, tensor.shape, structure):
                if module in shapes:
                    raise malformed(name, f"tensor `{shown(tensor_name)}` is there twice")
                shapes[module] = shape
            if len(tensor.shape) == 2 and tensor_name.startswith("blk."):
                kind, count = GGML_TYPES[tensor.type_number], math.prod(tensor.shape)
                types[kind.name] += count
                num_values += count
                num_bits += count // kind.block_values * kind.block_bytes * 8
    if EMBEDDINGS in shapes:
        shapes.setdefault(OUTPUT_HEAD, shapes[EMBEDDINGS])  # tied
    most = types.most_common(1)[0][0] if types else ""
    is_quantized = any(kind.is_quantized and types[kind.name] for kind in GGML_TYPES.values())
    if not is_quantized:
        return CheckpointHeader(file, shapes)
    return CheckpointHeader(file, shapes, most, num_bits / num_values)


def _parts(path: Path, file: str) -> Iterator[tuple[Path, str]]:
    """The files of a checkpoint, each with its name for messages."""
    match = _PART.fullmatch(path.name)
    if match is None:
        yield path, file
        return
    count = int(match[3])
    if not 1 <= count <= MAX_PARTS:
        raise malformed(file, f"its name says {count} parts, the limit is {MAX_PARTS}")
    for number in range(1, count + 1):
        name = f"{match[1]}-{number:05}-of-{match[3]}.gguf"
        yield path.with_name(name), name


def _checked_tensors(path: Path, file: str, roots: AllowedRoots) -> Iterator[tuple[str, GgufTensor]]:
    """The tensors of one file, each inside the file and none over another one."""
    with opened(path, file, roots) as (_, size):
        try:
            header = read_gguf_header(path)
        except ModelConfigInvalid as error:
            raise UnreadableFile(FaultKind.MALFORMED, file, f"{error.violations[0].description}.") from None
    alignment = _alignment(header, file)
    start = -(-header.nbytes // alignment) * alignment
    end = 0
    for name, tensor in sorted(header.tensors.items(), key=lambda item: item[1].offset):
        nbytes = _nbytes(tensor, name, file)
        if tensor.offset < end:
            raise malformed(file, f"tensor `{shown(name)}` at offset {tensor.offset} overlaps the one before it")
        end = tensor.offset + nbytes
        if start + end > size:
            raise malformed(file, f"tensor `{shown(name)}` ends at byte {start + end} and the file at byte {size}")
        yield name, tensor


def _alignment(header: GgufHeader, file: str) -> int:
    alignment = header.metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20:
        raise malformed(file, f"its general.alignment is `{shown(str(alignment))}`")
    return alignment


def _nbytes(tensor: GgufTensor, name: str, file: str) -> int:
    kind: GgmlType | None = GGML_TYPES.get(tensor.type_number)
    if kind is None:
        raise malformed(file, f"tensor `{shown(name)}` has the unknown type {tensor.type_number}")
    if not tensor.shape or 0 in tensor.shape or tensor.shape[-1] % kind.block_values:
        raise malformed(file, f"tensor `{shown(name)}` of type {kind.name} cannot have the shape {list(tensor.shape)}")
    return math.prod(tensor.shape) // kind.block_values * kind.block_bytes


def _modules_of(
    name: str, shape: tuple[int, ...], structure: ModelStructure
) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """The modules whose weights a tensor holds."""
    if name == "token_embd.weight":
        yield EMBEDDINGS, shape
    elif name == "output.weight":
        yield OUTPUT_HEAD, shape
    elif match := _IN_A_BLOCK.fullmatch(name):
        prefix, there = f"{LAYER_PREFIX}{match[1]}.", structure.layer_modules
        for module in _MODULES.get(match[2], ()):
            if module in there:
                yield prefix + module, shape
        if match[2] == "attn_qkv" and set(_SEPARATE) <= set(there):  # Phi-2: three modules of the model are one tensor
            rows, columns = shape if len(shape) == 2 else (0, 1)
            for module in _SEPARATE:
                yield prefix + module, ((columns, columns) if rows == 3 * columns else None)
