"""Passes from graphs: what is filled in, which graph is taken, when none is. The capture itself needs a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from inference_svc.models.definition import ModelDefinition
from tests.inference_svc.kernels.triton_device import DEVICE
from tests.inference_svc.kernels.triton_sequences import Run, Running, bank, tiny_model

pytest.importorskip("triton")

from inference_svc.kernels.triton.attention_table import SPLIT
from inference_svc.kernels.triton.graphs import GraphExecutor, capture_graph
from inference_svc.kernels.triton.kernels import TritonKernels
from inference_svc.kernels.triton.weights import PackedWeights
from inference_svc.layers.eager import EagerExecutor


class Captures:
    """Stands in for the capture: a graph is the pass itself, run again, whose result goes where the first one went."""

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captured += 1
        output = torch.full_like(run(), float("nan"))

        def replay() -> None:
            self.replayed += 1
            output.copy_(run())

        return replay, output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelDefinition:
    return tiny_model(tmp_path_factory.mktemp("model"))


def kernels(*, batch_invariant: bool = False) -> TritonKernels:
    return TritonKernels(PackedWeights(torch.float32), batch_invariant=batch_invariant)


def executors(
    model: ModelDefinition, *, batch_invariant: bool = False
) -> tuple[EagerExecutor, GraphExecutor, Captures]:
    captures = Captures()
    own = kernels(batch_invariant=batch_invariant)
    graphs = GraphExecutor(model, own, torch.float32, captures)
    return EagerExecutor(model, kernels(batch_invariant=batch_invariant), torch.float32), graphs, captures


def same(runs: Sequence[Run], counts: list[int], seed: int) -> None:
    """A pass gives the same either way, to the bit, and leaves the same in the cache."""
    expected, found = (run.hidden_states(counts, torch.Generator().manual_seed(seed)) for run in runs)
    assert torch.equal(found, expected)
    for own, its in zip(*(run.cache.storage for run in runs), strict=True):
        assert torch.equal(own, its)


def test_a_graph_is_captured_once_for_each_size_and_used_for_all_smaller_passes(model: ModelDefinition) -> None:
    plain, graphs, captures = executors(model)
    runs = [Run(executor, model, [Running(()) for _ in range(5)]) for executor in (plain, graphs)]
    same(runs, [3, 2, 9, 1, 0], 0)  # two kinds of queries: eagerly
    assert (captures.captured, captures.replayed) == (0, 0)
    for seed, counts, captured in [
        (1, [1, 1, 1, 0, 0], 1),  # four rows
        (2, [1, 0, 3, 0, 1], 2),  # eight rows, three of them of one sequence
        (3, [1, 1, 1, 1, 0], 2),
    ]:
        same(runs, counts, seed)
        assert captures.captured == captured
        assert captures.replayed == seed


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_adapters_come_and_go_in_the_same_graph(model: ModelDefinition, batch_invariant: bool) -> None:
    plain, graphs, captures = executors(model, batch_invariant=batch_invariant)
    one, two = bank(model.config, "a", (4,), torch.float32), bank(model.config, "b", (9,), torch.float32)
    mixture = bank(model.config, "c", (2, 5), torch.float32)
    if batch_invariant:
        crowd = [Running((mixture,), None), Running((two,), (0.5,))]
    else:
        crowd = [Running((one,)), Running((one, two), (0.7, -0.4))]
    runs = [Run(executor, model, crowd) for executor in (plain, graphs)]
    for seed, counts in enumerate(([2, 1], [1, 2])):
        same(runs, counts, seed)
    assert (captures.captured, captures.replayed) == (1, 2)


def test_a_graph_runs_adapters_of_other_layers_than_those_it_was_captured_with(model: ModelDefinition) -> None:
    plain, graphs, captures = executors(model)
    crowd = [Running((bank(model.config, name, (rank,), torch.float32),)) for name, rank in (("a", 4), ("b", 5))]
    assert not crowd[0].banks[0].deltas.keys() & crowd[1].banks[0].deltas.keys()
    runs = [Run(executor, model, crowd) for executor in (plain, graphs)]
    same(runs, [1, 0], 1)
    same(runs, [0, 1], 2)
    assert captures.captured == 1


def test_graphs_of_one_cache_are_not_used_for_another(model: ModelDefinition) -> None:
    plain, graphs, captures = executors(model)
    for captured in (1, 2):
        same([Run(executor, model, [Running(())]) for executor in (plain, graphs)], [1], 1)
        assert captures.captured == captured


def test_a_longer_context_takes_a_graph_with_more_room(model: ModelDefinition) -> None:
    plain, graphs, captures = executors(model)
    runs = [Run(executor, model, [Running(()), Running(())]) for executor in (plain, graphs)]
    for run in runs:
        run.done = [SPLIT - 1, 20]  # as if these tokens had been run: their keys and values are zeros
    for seed, captured in ((1, 1), (2, 2)):
        same(runs, [1, 1], seed)
        assert captures.captured == captured


def test_a_dora_and_more_adapters_than_there_is_room_for_are_run_eagerly(model: ModelDefinition) -> None:
    plain, graphs, captures = executors(model)
    dora = bank(model.config, "d", (3,), torch.float32, dora=True)
    many = [bank(model.config, str(number), (number + 1,), torch.float32) for number in range(9)]
    for crowd in ([Running((dora,))], [Running(many, [0.1] * 9)]):
        same([Run(executor, model, crowd) for executor in (plain, graphs)], [1], 1)
    assert captures.captured == 0


def test_a_result_is_not_written_to_by_the_next_pass(model: ModelDefinition) -> None:
    _, graphs, _ = executors(model)
    run = Run(graphs, model, [Running(())])
    first = run.hidden_states([1], torch.Generator().manual_seed(1))
    kept = first.clone()
    second = run.hidden_states([1], torch.Generator().manual_seed(2))
    assert torch.equal(first, kept)
    assert not torch.equal(second, kept)


@pytest.mark.cuda
def test_a_captured_pass_is_that_of_the_eager_kernels(model: ModelDefinition) -> None:
    if DEVICE.type != "cuda":
        pytest.skip("no CUDA device")
    adapter = bank(model.config, "a", (4,), torch.float32)
    plain = EagerExecutor(model, kernels(), torch.float32)
    graphs = GraphExecutor(model, kernels(), torch.float32, capture_graph)
    runs = [Run(executor, model, [Running((adapter,)), Running(())]) for executor in (plain, graphs)]
    for seed in range(4):
        same(runs, [1, 1], seed)
