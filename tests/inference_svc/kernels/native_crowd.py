"""A small model, adapters of every kind for it, and texts that run through it in passes cut as one likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_svc.adapters.bank import AdapterBank, LinearDelta
from inference_svc.kv_cache.cache import KVCache
from inference_svc.layers.batch import AdapterRows, AttentionSegment, AttentionShape, ForwardBatch
from inference_svc.layers.executor import Executor
from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.linear import Linear
from inference_svc.weights.quantization import QuantizedTensor

WIDTH, INNER, BLOCK_SIZE = 128, 96, 16
SHAPES = (
    AttentionShape(4, 2, 32, 0.2),
    AttentionShape(4, 1, 32, 0.2, window=70, softcap=5.0),
    AttentionShape(8, 8, 16, 0.3),  # its attention has no matrix tiles
)


class TwoLayers:
    """An embedding and two layers of attention and a gated product, each with what it came from added."""

    def __init__(
        self,
        shape: AttentionShape,
        matrices: Mapping[tuple[int, int], QuantizedTensor],
        table: QuantizedTensor,
        head: QuantizedTensor,
    ) -> None:
        """`matrices` by their shapes: (outputs, columns)."""
        self.config = None
        self.shape = shape
        self.table = table
        self.head = Linear("head", head, None)
        kv = shape.num_kv_heads * shape.head_dim
        self.linears: dict[str, Linear] = {}
        for layer in range(2):
            for name, outputs, columns in (
                ("q", WIDTH, WIDTH),
                ("k", kv, WIDTH),
                ("v", kv, WIDTH),
                ("o", WIDTH, WIDTH),
                ("gate", INNER, WIDTH),
                ("up", INNER, WIDTH),
                ("down", WIDTH, INNER),
            ):
                bias = torch.randn(outputs, generator=torch.Generator().manual_seed(outputs)) / 8
                linear = Linear(f"{layer}.{name}", matrices[outputs, columns], bias if name in "qkv" else None)
                self.linears[linear.path] = linear
        self.norm = torch.rand(WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5

    def hidden_states(self, run: Forward[Value]) -> Value:
        x = run.embed(self.table)
        for layer in range(2):
            of = {name: self.linears[f"{layer}.{name}"] for name in ("q", "k", "v", "o", "gate", "up", "down")}
            normed = run.rms_norm(x, self.norm, 1e-5)
            q, k, v = (run.linear(normed, of[name]) for name in ("q", "k", "v"))
            x = run.add(x, run.linear(run.attention(q, k, v, layer, self.shape), of["o"]))
            normed = run.rms_norm(x, self.norm, 1e-5)
            gated = run.gated("silu", run.linear(normed, of["gate"]), run.linear(normed, of["up"]))
            x = run.add(x, run.linear(gated, of["down"]))
        return run.rms_norm(x, self.norm, 1e-5)

    def logits(self, run: Forward[Value], hidden: Value) -> Value:
        return run.linear(hidden, self.head)


def bank_of(model: TwoLayers, digest: str, ranks: Sequence[int], names: str, *, dora: bool = False) -> AdapterBank:
    """Random adapters of these ranks, one expert each, on the modules of both layers that `names` names."""
    chance = torch.Generator().manual_seed(sum(map(ord, digest)))
    experts = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks))
    deltas: dict[str, LinearDelta] = {}
    rows: dict[str, int] = {}
    for path, linear in model.linears.items():
        if path.split(".")[1] in names.split():
            outputs, columns = linear.weight.shape
            a = torch.randn(len(experts), columns, generator=chance) / columns**0.5
            b = torch.randn(outputs, len(experts), generator=chance) / len(experts) ** 0.5
            factor = torch.rand(outputs, generator=chance) - 0.5 if dora else None
            rows[path] = len(rows)
            deltas[path] = LinearDelta(a, b, experts, factor)
    return AdapterBank(digest, tuple(map(str, ranks)), deltas, rows)


@dataclass(frozen=True)
class Text:
    """Tokens, and the banks that change them with the scalings [num_tokens, num_layers or 1, num_experts] of each."""

    token_ids: Tensor
    changes: Sequence[tuple[AdapterBank, Tensor]] = ()


Step = Sequence[tuple[int, int]]  # texts, and how many of their next tokens run together


class Crowd:
    """Texts on their way through a model, in blocks that lie apart."""

    def __init__(self, executor: Executor, shape: AttentionShape, texts: Sequence[Text]) -> None:
        self._executor = executor
        self._texts = texts
        self._blocks: list[Tensor] = []
        count = sum(-(-len(text.token_ids) // BLOCK_SIZE) for text in texts)
        for text in texts:
            first, own = sum(map(len, self._blocks)), -(-len(text.token_ids) // BLOCK_SIZE)
            self._blocks.append(torch.arange(count).flip(0)[first : first + own].contiguous())
        kv = shape.num_kv_heads, shape.head_dim
        self._cache = KVCache(2, count, BLOCK_SIZE, *kv, WIDTH, dtype=executor.cache_dtype, device=torch.device("cpu"))
        if executor.name == "native":
            for keys_or_values in self._cache.storage:
                keys_or_values.fill_(float("nan"))  # what nobody has written must not matter
        self._done = [0] * len(texts)
        self._hidden: list[list[Tensor]] = [[] for _ in texts]

    def run(self, step: Step, *, is_of_prompts: bool) -> None:
        """One pass."""
        ids, positions, slots, segments = [], [], [], []
        changes: dict[str, tuple[AdapterBank, list[Tensor], list[Tensor]]] = {}
        row = 0
        for index, count in step:
            text, first, blocks = self._texts[index], self._done[index], self._blocks[index]
            span = torch.arange(first, first + count)
            ids.append(text.token_ids[first : first + count])
            positions.append(span)
            slots.append(blocks[span // BLOCK_SIZE] * BLOCK_SIZE + span % BLOCK_SIZE)
            segments.append(AttentionSegment(row, count, first, blocks))
            for bank, scalings in text.changes:
                _, rows, values = changes.setdefault(bank.digest, (bank, [], []))
                rows.append(torch.arange(row, row + count))
                values.append(scalings[first : first + count])
            self._done[index] += count
            row += count
        adapters = tuple(
            AdapterRows(bank, torch.cat(rows), torch.cat(values)) for _, (bank, rows, values) in sorted(changes.items())
        )
        batch = ForwardBatch(
            torch.cat(ids),
            torch.cat(positions),
            torch.cat(slots),
            tuple(segments),
            adapters,
            is_of_prompts=is_of_prompts,
        )
        hidden = self._executor.hidden_states(batch, self._cache)
        for (index, _), part in zip(step, torch.split(hidden, [count for _, count in step]), strict=True):
            self._hidden[index].append(part)

    @property
    def pending(self) -> list[tuple[int, int]]:
        """Texts that are not at their ends, and how many tokens they have left."""
        left = [len(text.token_ids) - done for text, done in zip(self._texts, self._done, strict=True)]
        return [(index, count) for index, count in enumerate(left) if count]

    def hidden(self, index: int) -> Tensor:
        """Of all tokens of a text so far."""
        return torch.cat(self._hidden[index])
