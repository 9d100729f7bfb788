"""Whatever a document, a config or a header holds, the answer is problems."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ordering_svc.domain.architectures import LAYER_MODULES, QUANTIZED_LAYERS, ModelStructure
from ordering_svc.domain.headers import (
    AdapterFiles,
    AdapterHeaders,
    CheckpointHeader,
    NamedAdapter,
    TensorHeader,
    XLoraFiles,
)
from ordering_svc.domain.ordering import AdapterKind
from ordering_svc.domain.problem_codes import CODES
from ordering_svc.domain.validation import Expectations, validate_file
from ordering_svc.errors import OrderingServiceError
from ordering_svc.model_config.reader import LocalModel
from tests.ordering_svc.checkpoint_headers.test_reader import EMBEDDINGS, block, gguf_bytes
from tests.ordering_svc.small_world import LAYERS, World, lora_tensors

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**65) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CONFIG_KEYS = (
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "base_model_name_or_path"),
    *("bias", "use_dora", "init_lora_weights", "hidden_size", "base_model_id", "adapters", "layerwise_scalings"),
    *("enable_relu_and_dropout", "xlora_depth", "xlora_size", "use_bias", "top_k_lora", "xlora_dropout_p"),
    *("softmax_temperature",),
)
SOUND_CONFIG: dict[str, Any] = {"hidden_size": 8, "base_model_id": "a/b", "r": 2, "xlora_depth": 2}
CONFIGS = st.dictionaries(st.sampled_from(CONFIG_KEYS), VALUES, max_size=4).map(lambda more: SOUND_CONFIG | more)
NAMES = st.sampled_from(
    [
        *list(lora_tensors())[:3],
        *("last.weight", "last.bias", "inner.0.weight", "inner.3.weight", "inner.0.bias", "x", ""),
        *(f"base_model.internal_xlora_classifier.layers.{i}.weight" for i in (0, 3)),
    ]
)
TENSORS = st.dictionaries(
    NAMES,
    st.builds(TensorHeader, st.sampled_from(["F32", "I8"]), st.lists(st.integers(0, 9), max_size=3).map(tuple)),
    max_size=6,
)
DOCUMENTS = st.fixed_dictionaries(
    {"base_model_id": st.sampled_from(["a/b", "c/d", "x"]) | VALUES},
    optional={
        "order": st.lists(st.sampled_from(["a", "b"]), max_size=3) | VALUES,
        "layers": st.dictionaries(st.sampled_from(list(LAYERS)), st.integers(0, 4), max_size=4) | VALUES,
        "preload_adapters": VALUES,
    },
)


@settings(max_examples=200)
@given(DOCUMENTS, st.sampled_from(AdapterKind), CONFIGS, TENSORS, CONFIGS, TENSORS, st.booleans())
def test_no_combination_of_headers_makes_the_judgement_fail(
    document: dict[str, Any],
    kind: AdapterKind,
    config: dict[str, Any],
    tensors: dict[str, TensorHeader],
    xlora: dict[str, Any],
    classifier: dict[str, TensorHeader],
    is_peft: bool,
) -> None:
    headers = AdapterHeaders(
        XLoraFiles(is_peft, "xlora_config.json", xlora, "xlora_classifier.safetensors", classifier),
        [NamedAdapter("a", "order[0]", 0, AdapterFiles("a", config, tensors, ("README.md",)))],
    )
    checkpoint = CheckpointHeader("model.safetensors", {"lm_head": None, next(iter(LAYERS)): (8, 8)}, "Q4_0", 4.5)
    expectations = Expectations(kind, ModelStructure("llama", 2), "", "e/f", 8, checkpoint, headers)
    for problem in validate_file(json.dumps(document).encode(), expectations):
        assert problem.code in CODES
        assert problem.message.encode()
        assert len(problem.message) < 2000


@pytest.mark.parametrize("architecture", sorted(LAYER_MODULES))
@given(data=st.data())
@settings(max_examples=10)
def test_layers_in_pefts_order_have_no_problems(architecture: str, data: st.DataObject) -> None:
    structure = ModelStructure(architecture, data.draw(st.integers(1, 4)))
    modules = [module for module in structure.layer_modules if data.draw(st.booleans())] or structure.layer_modules[:1]
    paths = [path for path in structure.module_paths() if path.endswith(tuple(f".{module}" for module in modules))]
    document = {"order": ["a"], "layers": {path: row for row, path in enumerate(paths)}, "base_model_id": "m"}
    quantized = architecture if architecture in QUANTIZED_LAYERS else ""
    expectations = Expectations(AdapterKind.XLORA, structure, quantized)
    assert validate_file(json.dumps(document).encode(), expectations) == ()


GGUF = gguf_bytes(EMBEDDINGS | block(0))
GGUF_HEADER = 420  # about: the bytes before the weights


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, GGUF_HEADER * 8 - 1), st.integers(0, GGUF_HEADER * 8 - 1))
def test_flipped_bits_of_a_gguf_header_lead_to_problems_or_typed_errors(
    tmp_path: Path, first: int, second: int
) -> None:
    content = bytearray(GGUF)
    for bit in (first, second):
        content[bit // 8] ^= 1 << bit % 8
    (tmp_path / "m.gguf").write_bytes(content)
    with contextlib.suppress(OrderingServiceError):  # of the config in it
        assert all(problem.code in CODES for problem in World(place="").problems(tmp_path, LocalModel("m.gguf")))


def test_a_gguf_file_cut_short_at_any_byte_leads_to_a_problem_or_a_typed_error(tmp_path: Path) -> None:
    for length in range(GGUF_HEADER):
        (tmp_path / "m.gguf").write_bytes(GGUF[:length])
        try:
            codes = [problem.code for problem in World(place="").problems(tmp_path, LocalModel("m.gguf"))]
        except OrderingServiceError:
            continue
        assert "CHECKPOINT_UNREADABLE" in codes


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["math/adapter_config.json", "math/adapter_model.safetensors"]))
def test_any_bytes_in_a_file_lead_to_problems(tmp_path: Path, content: bytes, name: str) -> None:
    if not (tmp_path / "xlora").exists():
        World().write(tmp_path)
    path = tmp_path / "xlora" / name
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        assert "ADAPTER_FILE_MALFORMED" in [problem.code for problem in World().problems(tmp_path)]
    finally:
        path.write_bytes(before)
