"""What is packed anew while a model is loaded: which tensors, into which types, with what is told of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from safetensors.torch import save_file

from inference_svc.weights import loader as loader_module
from inference_svc.weights.errors import FileChanged, MalformedFile, UnsupportedFile
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.in_situ import Scheme, pack
from inference_svc.weights.loader import WeightLoader
from inference_svc.weights.opening import open_model
from inference_svc.weights.safetensors_model import SafetensorsModel
from inference_svc.weights.source import SourceFormat
from tests.inference_svc.weights.packed_rows import random_rows

# Types that are unpacked, and the least float type that holds all of their values.
RARE = {
    "IQ1_S": "F32",
    "IQ1_M": "F32",
    "IQ2_XXS": "F32",
    "IQ2_XS": "F32",
    "IQ2_S": "F32",
    "IQ3_XXS": "F32",
    "IQ3_S": "F32",
    "TQ1_0": "F16",
    "TQ2_0": "F16",
    "MXFP4": "BF16",
    "NVFP4": "BF16",
}


def write_gguf(path: Path, tensors: Mapping[str, tuple[str, NDArray[np.uint8 | np.float32]]]) -> GgufFile:
    """Tensors that are packed already, by name and type."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile.open(path)


def packed(kind: str, rows: int = 6) -> tuple[str, NDArray[np.uint8]]:
    """Any bits at all in 512 columns, with scales like those of weights."""
    return kind, random_rows(GGMLQuantizationType[kind], rows, 512)


@pytest.mark.parametrize("kind", RARE)
def test_types_that_no_kernel_reads_are_unpacked_once_and_keep_every_value(tmp_path: Path, kind: str) -> None:
    files = write_gguf(tmp_path / "rare.gguf", {"w": packed(kind, rows=1100), "norm": ("F32", np.ones(4, np.float32))})
    loader = WeightLoader(files)
    nbytes = 1100 * 512 * (4 if RARE[kind] == "F32" else 2)
    assert (loader.entries["w"].quantization.name, loader.entries["w"].nbytes) == (RARE[kind], nbytes)
    tensor = loader.tensor("w")
    assert (tensor.quantization.name, tensor.shape, tensor.nbytes) == (RARE[kind], (1100, 512), nbytes)
    assert tensor.precision.name == tensor.take_rows(torch.tensor([1])).part(0, 1).precision.name == kind
    theirs = gguf.quants.dequantize(packed(kind, rows=1100)[1], GGMLQuantizationType[kind])
    assert tensor.dequantize().numpy().tobytes() == theirs.astype(np.float32).tobytes()
    assert np.abs(theirs).max() > 1e-4
    assert loader.tensor("norm").quantization.name == "F32"
    assert f"tensors packed anew: 1 of {kind} as {RARE[kind]}" in loader.notice


@pytest.mark.parametrize("kind", RARE)
def test_kernels_that_round_get_no_more_than_halves_of_them(tmp_path: Path, kind: str) -> None:
    loader = WeightLoader(write_gguf(tmp_path / "rare.gguf", {"w": packed(kind)}), exact=False)
    assert loader.entries["w"].quantization.name == ("F16" if RARE[kind] == "F32" else RARE[kind])
    ours = loader.tensor("w").dequantize().numpy()
    theirs = gguf.quants.dequantize(packed(kind)[1], GGMLQuantizationType[kind])
    # Half an ulp of float16: 2^-11 of the value, or 2^-25 where it is subnormal.
    assert (np.abs(ours - theirs) <= np.maximum(np.abs(theirs) * 2.0**-11, 2.0**-25)).all()


@pytest.mark.parametrize("kind", ["F32", "Q4_K", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS"])
def test_what_is_read_packed_stays_as_it_is_in_the_file(tmp_path: Path, kind: str) -> None:
    data = np.ones((6, 512), np.float32) if kind == "F32" else packed(kind)[1]
    files = write_gguf(tmp_path / "common.gguf", {"w": (kind, data)})
    loader = WeightLoader(files)
    assert loader.tensor("w").data.numpy().tobytes() == data.tobytes()
    assert loader.notice == ""
    released = loader.tensor("w")
    released.release()
    assert not released.is_resident


@pytest.mark.parametrize("kind", ["I8", "I32", "F64"])
def test_a_type_that_nothing_unpacks_is_unsupported_by_name(tmp_path: Path, kind: str) -> None:
    numpy_type = {"I8": np.int8, "I32": np.int32, "F64": np.float64}[kind]
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_tensor("w", np.ones((2, 4), numpy_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedFile, match=f"odd.gguf: tensor 'w' is of type {kind}"):
        WeightLoader(GgufFile.open(tmp_path / "odd.gguf"))


def test_numbers_beyond_float16_are_refused_by_name(tmp_path: Path) -> None:
    kind, data = packed("IQ2_XXS")
    data[3, :2] = np.frombuffer(np.float16(60000).tobytes(), np.uint8)
    files = write_gguf(tmp_path / "large.gguf", {"w": (kind, data)})
    with pytest.raises(MalformedFile, match=r"large\.gguf: tensor 'w' holds \S+, and F16 no more than 65504"):
        WeightLoader(files, exact=False).tensor("w")
    assert WeightLoader(files).tensor("w").dequantize().abs().max() > 65504


def test_what_is_infinite_once_it_is_unpacked_is_refused_by_name(tmp_path: Path) -> None:
    kind, data = packed("IQ2_XXS")
    data[3, :2] = np.frombuffer(np.float16("inf").tobytes(), np.uint8)
    files = write_gguf(tmp_path / "infinite.gguf", {"w": (kind, data)})
    with pytest.raises(MalformedFile, match=r"infinite\.gguf: tensor 'w' holds \S+, and F32 no more than 3\.4"):
        WeightLoader(files).tensor("w")


HIDDEN, INNER, LAYERS = 256, 512, 8


def float_model(*, tied: bool = False, hidden: int = HIDDEN) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (40, hidden)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name in ("q", "k", "v", "o"):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (hidden, hidden)
        shapes[f"{prefix}.self_attn.q_proj.bias"] = (hidden,)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = shapes[f"{prefix}.mlp.up_proj.weight"] = (INNER, hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, INNER)
        shapes[f"{prefix}.block_sparse_moe.gate.weight"] = (4, hidden)
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (40, hidden)
    return {name: (torch.randn(shape, generator=random) / 50).bfloat16() for name, shape in shapes.items()}


def write_folder(folder: Path, tensors: Mapping[str, torch.Tensor], **config: object) -> SafetensorsModel:
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    opened = open_model(folder)
    assert isinstance(opened, SafetensorsModel)
    return opened


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SafetensorsModel:
    return write_folder(tmp_path_factory.mktemp("float"), float_model())


def types_of(loader: WeightLoader, suffix: str) -> list[str]:
    """Of the tensors that end so, layer by layer."""
    return [entry.quantization.name for name, entry in loader.entries.items() if name.endswith(suffix)]


def test_q4_k_chooses_as_llama_cpp_does_for_q4_k_m(model: SafetensorsModel) -> None:
    loader = WeightLoader(model, quantize=Scheme.Q4_K)
    assert (loader.path, loader.format, loader.metadata) == (model.path, SourceFormat.HUGGING_FACE, {})
    # Of eight layers: the first, the last, and every third between.
    mixed = ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert types_of(loader, "v_proj.weight") == types_of(loader, "down_proj.weight") == mixed
    for name in ("q_proj", "k_proj", "o_proj", "gate_proj", "up_proj"):
        assert types_of(loader, f"{name}.weight") == ["Q4_K"] * LAYERS
    assert types_of(loader, "embed_tokens.weight") == ["Q4_K"]
    assert types_of(loader, "lm_head.weight") == ["Q6_K"]
    for name in ("input_layernorm.weight", "block_sparse_moe.gate.weight", "q_proj.bias"):
        assert types_of(loader, name) == ["BF16"] * LAYERS


def test_the_names_of_gguf_files_are_chosen_for_alike(tmp_path: Path) -> None:
    matrix = np.zeros((2, 256), np.float32)
    names = ["token_embd.weight", "output.weight", "output_norm.weight"]
    for layer in range(8):
        names += [
            f"blk.{layer}.{name}.weight" for name in ("attn_q", "attn_v", "attn_qkv", "ffn_down", "ffn_down_exps")
        ]
        names.append(f"blk.{layer}.ffn_gate_inp.weight")
    files = write_gguf(
        tmp_path / "f32.gguf", {name: ("F32", matrix[0] if "norm" in name else matrix) for name in names}
    )
    loader = WeightLoader(files, quantize=Scheme.Q4_K)
    assert types_of(loader, "token_embd.weight") == ["Q4_K"]
    assert types_of(loader, "output.weight") == ["Q6_K"]
    assert types_of(loader, "output_norm.weight") == ["F32"]
    assert types_of(loader, "attn_q.weight") == ["Q4_K"] * 8
    assert types_of(loader, "ffn_gate_inp.weight") == ["F32"] * 8
    mixed = ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    for name in ("attn_v", "attn_qkv", "ffn_down", "ffn_down_exps"):
        assert types_of(loader, f"{name}.weight") == mixed


@pytest.mark.parametrize("said", [True, False])
def test_an_embedding_that_is_the_head_too_is_packed_as_a_head(tmp_path: Path, said: bool) -> None:
    # Some checkpoints keep a copy of the head although they say that it is the embedding.
    files = write_folder(tmp_path, float_model(tied=not said), tie_word_embeddings=said)
    assert types_of(WeightLoader(files, quantize=Scheme.Q4_K), "embed_tokens.weight") == ["Q6_K"]


def test_rows_that_are_no_multiple_of_256_take_the_legacy_types(tmp_path: Path) -> None:
    loader = WeightLoader(write_folder(tmp_path, float_model(hidden=96)), quantize=Scheme.Q4_K)
    assert types_of(loader, "v_proj.weight") == ["Q8_0", "Q5_0", "Q5_0", "Q8_0", "Q5_0", "Q5_0", "Q8_0", "Q8_0"]
    assert types_of(loader, "lm_head.weight") == ["Q8_0"]
    assert types_of(loader, "down_proj.weight")[:2] == ["Q6_K", "Q4_K"]
    assert loader.tensor("model.layers.1.self_attn.v_proj.weight").quantization.name == "Q5_0"


@pytest.mark.parametrize("scheme", [*Scheme])
def test_rows_that_no_block_divides_stay_as_they_are(tmp_path: Path, scheme: Scheme) -> None:
    loader = WeightLoader(write_folder(tmp_path, float_model(hidden=72)), quantize=scheme)
    assert {*types_of(loader, "q_proj.weight")} == {"BF16"}
    assert {*types_of(loader, "down_proj.weight")} == ({"Q8_0"} if scheme is Scheme.Q8_0 else {"Q4_K", "Q6_K"})


def test_q8_0_packs_every_matrix_and_no_vector_or_router(model: SafetensorsModel) -> None:
    loader = WeightLoader(model, quantize=Scheme.Q8_0)
    for name, entry in loader.entries.items():
        is_packed = len(entry.shape) == 2 and ".gate." not in name
        assert entry.quantization.name == ("Q8_0" if is_packed else "BF16"), name


@pytest.mark.parametrize("scheme", [*Scheme])
def test_tensors_are_packed_piece_by_piece_into_what_they_are_packed_into_at_once(
    tmp_path: Path, scheme: Scheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "PIECE", 40 * 768)
    weight = torch.randn((100, 768), generator=torch.Generator().manual_seed(1)).half()
    files = write_folder(tmp_path, {"model.layers.0.mlp.up_proj.weight": weight})
    done: list[tuple[int, int]] = []
    loader = WeightLoader(files, quantize=scheme, on_progress=lambda *progress: done.append(progress))
    tensor = loader.tensor("model.layers.0.mlp.up_proj.weight")
    kind = tensor.quantization
    assert kind is (GGMLQuantizationType.Q4_K if scheme is Scheme.Q4_K else GGMLQuantizationType.Q8_0)
    at_once = torch.cat([pack(rows.float(), kind) for rows in torch.split(weight, 40)])
    assert tensor.data.equal(at_once)
    error = (tensor.dequantize() - weight.float()).norm() / weight.float().norm()
    assert error < (0.08 if scheme is Scheme.Q4_K else 0.006)
    assert done == [(rows * 768 * 2, 100 * 768 * 2) for rows in (40, 80, 100)]


def test_threads_that_pack_use_one_core_each_and_later_threads_as_many_as_before(model: SafetensorsModel) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with loader_module.one_core_threads() as threads:
            assert [*threads.map(lambda _: torch.get_num_threads(), range(6))] == [1] * 6
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_progress_counts_the_bytes_of_all_files(model: SafetensorsModel) -> None:
    done: list[tuple[int, int]] = []
    loader = WeightLoader(model, on_progress=lambda *progress: done.append(progress))
    for name in loader.entries:
        loader.tensor(name)
    total = sum(entry.nbytes for entry in model.entries.values())
    assert done == sorted(set(done))
    assert len(done) == len(loader.entries)
    assert done[-1] == (total, total)


def test_the_notice_counts_what_was_packed_anew(model: SafetensorsModel) -> None:
    loader = WeightLoader(model, quantize=Scheme.Q4_K)
    assert loader.notice.startswith("tensors packed anew: 49 of BF16 as Q4_K, 9 of BF16 as Q6_K; ")
    total, loaded = (sum(e.nbytes for e in entries.values()) / 1e6 for entries in (model.entries, loader.entries))
    assert loader.notice.endswith(f"; {total:.1f} MB of files take {loaded:.1f} MB")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 70000.0])
def test_numbers_that_no_packed_type_can_hold_are_refused_by_name(tmp_path: Path, value: float) -> None:
    tensors = float_model()
    tensors["model.layers.3.mlp.up_proj.weight"][5, 7] = value
    files = write_folder(tmp_path, tensors)
    with pytest.raises(
        MalformedFile, match=r"'model\.layers\.3\.mlp\.up_proj\.weight' holds \S+, and Q4_K no more than"
    ):
        WeightLoader(files, quantize=Scheme.Q4_K).tensor("model.layers.3.mlp.up_proj.weight")


def test_a_model_that_is_packed_already_is_not_packed_again(tmp_path: Path) -> None:
    files = write_gguf(tmp_path / "packed.gguf", {"w": packed("Q4_K"), "x": packed("Q6_K"), "y": packed("Q4_K")})
    with pytest.raises(
        UnsupportedFile, match=r"cannot be quantized to q8_0: 3 of its tensors are packed.*\(Q4_K, Q6_K\)"
    ):
        WeightLoader(files, quantize=Scheme.Q8_0)


def test_a_file_that_changes_while_it_is_packed_is_named(tmp_path: Path) -> None:
    loader = WeightLoader(write_folder(tmp_path, float_model()), quantize=Scheme.Q8_0)
    (tmp_path / "model.safetensors").write_bytes(b"gone")
    with pytest.raises(FileChanged, match=r"model\.safetensors: tensor 'lm_head\.weight' is cut off"):
        loader.tensor("lm_head.weight")
