"""A whole model on Triton's kernels against the reference: base, LoRA, weighted and X-LoRA rows in one pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference_svc.errors import InvalidRequest
from inference_svc.kernels.choice import choose_kernels
from inference_svc.kernels.reference import ReferenceKernels
from inference_svc.layers.eager import EagerExecutor
from inference_svc.models.base_model import define
from inference_svc.models.definition import ModelDefinition
from inference_svc.weights.quantization import QuantizedTensor
from tests.inference_svc.kernels.triton_device import DEVICE
from tests.inference_svc.kernels.triton_sequences import Run, Running, bank, tiny_checkpoint, tiny_model

pytest.importorskip("triton")

from inference_svc.kernels.triton.kernels import TritonKernels
from inference_svc.kernels.triton.weights import PackedWeights

# Tokens of each sequence in pass after pass: prompts; a prompt beside others that decode, with and without drafts.
PASSES = [(6, 4, 0, 5, 3), (1, 1, 20, 3, 1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDefinition:
    return tiny_model(tmp_path_factory.mktemp("model"))


def sequences(model: ModelDefinition, dtype: torch.dtype) -> list[Running]:
    """One of the base, of one LoRA, of two weighted, of an X-LoRA of mixed ranks, of a DoRA."""
    one, two = bank(model.config, "a", (4,), dtype), bank(model.config, "b", (19,), dtype)
    mixture = bank(model.config, "c", (2, 5), dtype)
    dora = bank(model.config, "d", (3,), dtype, dora=True)
    return [
        Running(()),
        Running((one,)),
        Running((one, two), (0.7, -0.4)),
        Running((mixture,), None),
        Running((dora, two), (1.0, 0.5)),
    ]


def triton_executor(model: ModelDefinition, dtype: torch.dtype, *, batch_invariant: bool = False) -> EagerExecutor:
    return EagerExecutor(model, TritonKernels(PackedWeights(dtype), batch_invariant=batch_invariant), dtype)


def reference_executor(model: ModelDefinition, dtype: torch.dtype) -> EagerExecutor:
    return EagerExecutor(model, ReferenceKernels(batch_invariant=False), dtype)


def answers(executor: EagerExecutor, model: ModelDefinition) -> Tensor:
    run = Run(executor, model, sequences(model, executor.dtype))
    chance = torch.Generator().manual_seed(7)
    return torch.cat([run.step(counts, chance) for counts in PASSES])


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_all_kinds_of_rows_in_one_pass_have_the_logits_of_the_reference(
    model: ModelDefinition, batch_invariant: bool
) -> None:
    expected = answers(reference_executor(model, torch.float32), model)
    found = answers(triton_executor(model, torch.float32, batch_invariant=batch_invariant), model)
    # Logits of size 3 or so, and float32 sums in another order, some of them over scales and minima.
    assert expected.abs().max() > 1.0
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_in_bfloat16_they_are_off_by_no_more_than_the_reference_is(model: ModelDefinition) -> None:
    exact = answers(reference_executor(model, torch.float32), model)

    def off(executor: EagerExecutor) -> float:
        return float((answers(executor, model) - exact).square().mean().sqrt())

    # The interpreter cuts bfloat16 off instead of rounding it, which is twice as much and all to one side.
    most = 1.5 if DEVICE.type == "cuda" else 3.0
    bar = off(reference_executor(model, torch.bfloat16))
    assert 0 < off(triton_executor(model, torch.bfloat16)) < most * bar


def test_an_answer_is_the_same_to_the_bit_alone_and_in_a_crowd(model: ModelDefinition) -> None:
    executor = triton_executor(model, torch.float32, batch_invariant=True)
    base, _, weighted, mixture, dora = sequences(model, torch.float32)
    for own in (weighted, mixture):

        def logits(own: Running, others: list[Running]) -> list[Tensor]:
            """Of a prompt and the next token, the others' tokens in the same passes."""
            run = Run(executor, model, [own, *others])
            # Tokens and scalings are drawn in the order of the sequences: the first has the same alone and in a crowd.
            return [
                run.step((count, *[4] * len(others)), torch.Generator().manual_seed(count))[:count] for count in (7, 1)
            ]

        for alone, together in zip(logits(own, []), logits(own, [base, dora]), strict=True):
            assert torch.equal(alone, together)


def test_loading_packs_every_linear_layer_and_gives_their_memory_back(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    weights = PackedWeights(torch.float32)
    weights.load(define(checkpoint))
    packed = {name: tensor for name, tensor in checkpoint.tensors.items() if isinstance(tensor, QuantizedTensor)}
    embedding = packed.pop("model.embed_tokens.weight")
    assert len(packed) == 7
    assert not any(tensor.is_resident for tensor in packed.values())
    assert embedding.is_resident


def test_triton_is_taken_where_it_is_asked_for_and_can_be_had(
    model: ModelDefinition, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = choose_kernels("triton", DEVICE, batch_invariant=True)
    executor, notice = choice.executor(model)
    assert (executor.name, executor.batch_invariant, notice) == ("triton", True, "")
    assert choose_kernels("triton-graphs", DEVICE, batch_invariant=False).executor(model)[0].name == "triton-graphs"
    if DEVICE.type == "cpu":
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.raises(InvalidRequest, match="triton kernels cannot be had: they run on CUDA"):
            choose_kernels("triton", DEVICE, batch_invariant=True)


def test_without_triton_the_reference_runs_on_cuda_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    choice = choose_kernels("auto", torch.device("cuda"), batch_invariant=False)
    assert (choice.name, choice.dtype) == ("reference", torch.bfloat16)
    assert choice.notice.startswith("triton kernels cannot be had: triton cannot be imported")
    with pytest.raises(InvalidRequest, match="triton cannot be imported"):
        choose_kernels("triton", torch.device("cuda"), batch_invariant=False)


def test_where_a_kernel_does_not_run_the_reference_does_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr("inference_svc.kernels.triton.elementwise.rms_norm", fail)
    with pytest.raises(InvalidRequest, match="a kernel does not run on cpu: Failed to find C compiler"):
        choose_kernels("triton", torch.device("cpu"), batch_invariant=False)
