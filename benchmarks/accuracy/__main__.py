"""How exact the fast paths are: `python -m benchmarks.accuracy` (`make bench-accuracy`).

Distributions over the next token at 64 positions of each of 64 natural texts, against float32 over the dequantized
weights: for a prompt in one pass, for decoding side by side and alone; for the base, a LoRA and an X-LoRA; and for
llama.cpp on the same texts. The exit status is 1 if a variant of ours misses a bound, or is worse than llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.accuracy.divergence import MAX_MEAN_KL, MAX_SCALING_ERROR, MIN_TOP1, Divergence
from benchmarks.accuracy.llamacpp_logits import SavedLogits, save_logits
from benchmarks.accuracy.passes import Adapters, Computed, as_prompt, one_by_one, token_by_token
from benchmarks.accuracy.texts import one_long_text
from benchmarks.inputs.files import Inputs
from benchmarks.peers.installations import DEFAULT_FOLDER, llama_cpp_binaries
from inference_svc.adapters.base_model import AdapterLimits
from inference_svc.adapters.lora import load_lora
from inference_svc.adapters.xlora import load_xlora
from inference_svc.models.base_model import BaseModel, open_base_model
from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.weights.gguf import GgufFile

DEMO = Path(__file__).parents[2] / "orderings" / "demo"
NUM_TEXTS, NUM_POSITIONS = 64, 64
TEXTS_AT_ONCE = 16  # as many rows as take the kernels for many rows when they decode
Mode = Callable[[BaseModel, Adapters, Tensor, int], Computed]
MODES: Mapping[str, Mode] = MappingProxyType(
    {"prompt": as_prompt, "decode": token_by_token, "decode-alone": one_by_one}
)
LLAMA_CPP = "llama.cpp"


@dataclass(frozen=True, slots=True)
class Variant:
    """What is compared with the reference."""

    kernels: str
    batch_invariant: bool

    @property
    def name(self) -> str:
        """As the table calls it."""
        return f"{self.kernels}{', batch-invariant' if self.batch_invariant else ''}"


def load(model: Path, variant: Variant) -> BaseModel:
    """The model with these kernels."""
    return open_base_model(
        str(model),
        base_model_id=None,
        device="cpu",
        kernels=variant.kernels,
        batch_invariant=variant.batch_invariant,
    ).load()


def adapters_for(base: BaseModel) -> Iterator[Adapters]:
    """The demo's adapters, which are trained: their scalings and deltas are real ones."""
    limits = AdapterLimits()
    ordering = json.loads((DEMO / "xlora-ordering.json").read_text())
    mixture = load_xlora(DEMO / "xlora", ordering["order"], ordering["layers"], base.shape, limits)
    yield Adapters("base")
    yield Adapters("1 LoRA", load_lora(DEMO / "xlora" / "pirate", base.shape, limits).bank)
    yield Adapters("X-LoRA", mixture.bank, mixture.classifier)


def compare(
    model: Path,
    variants: Sequence[Variant],
    modes: Sequence[str],
    tokens: Tensor,
    num_positions: int,
    llama_cpp: SavedLogits | None,
) -> list[Divergence]:
    """All variants in these modes with all adapters, a few texts at a time."""
    reference = load(model, Variant("reference", False))
    others = [(variant.name, load(model, variant)) for variant in variants]
    found: dict[str, Divergence] = {}

    def divergence(name: str) -> Divergence:
        return found.setdefault(name, Divergence(name))

    for first in range(0, len(tokens), TEXTS_AT_ONCE):
        chunk = tokens[first : first + TEXTS_AT_ONCE]
        for adapters in adapters_for(reference):
            right = as_prompt(reference, adapters, chunk, num_positions)
            right_logprobs = right.logits.log_softmax(-1)
            for kernels, base in others:
                for mode in modes:
                    computed = MODES[mode](base, adapters, chunk, num_positions)
                    entry = divergence(f"{kernels}: {adapters.name}, {mode}")
                    entry.add(right_logprobs.flatten(0, 1), computed.logits.log_softmax(-1).flatten(0, 1))
                    if right.scalings is not None and computed.scalings is not None:
                        entry.add_scalings(right.scalings, computed.scalings)
            if llama_cpp is not None and adapters.bank is None:
                for number, logprobs in enumerate(right_logprobs):
                    divergence(LLAMA_CPP).add(logprobs, *llama_cpp.logprobs(first + number, logprobs.shape[1]))
    return list(found.values())


def table_of(divergences: list[Divergence]) -> Table:
    """For a terminal."""
    table = Table(
        "variant", "mean KL", "top-1", "max scaling error", "mean", "within bounds",
        title=f"against float32 over dequantized weights, {divergences[0].num_positions} positions",
        caption=f"bounds: mean KL {MAX_MEAN_KL:g} nats, top-1 {MIN_TOP1:.0%}, scalings {MAX_SCALING_ERROR:g}",
    )  # fmt: skip
    for divergence in divergences:
        error = divergence.scaling_error
        errors = ("", "") if error is None else (f"{error[0]:.1e}", f"{error[1]:.1e}")
        verdict = "yes" if divergence.is_within_bounds else "no"
        table.add_row(divergence.variant, f"{divergence.mean_kl:.1e}", f"{divergence.top1:.2%}", *errors, verdict)
    return table


def main() -> None:
    """Compare, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="+", default=["native"], help="which of ours; each also batch-invariant")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--texts", type=int, default=NUM_TEXTS)
    parser.add_argument("--positions", type=int, default=NUM_POSITIONS)
    parser.add_argument("--peers", nargs="*", default=[LLAMA_CPP], choices=[LLAMA_CPP])
    parser.add_argument("--peers-folder", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--inputs", type=Path, default=Path("build/bench-inputs"))
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    arguments = parser.parse_args()
    output: Path = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    model, num_texts, length = Inputs(arguments.inputs).model, arguments.texts, 2 * (arguments.positions + 1)
    saved: SavedLogits | None = None
    if arguments.peers:
        binaries = llama_cpp_binaries(arguments.peers_folder.resolve())
        saved = save_logits(binaries, model, one_long_text(), num_texts, length, output)
    tokens = _tokens(model, num_texts, length)
    if saved is not None and not torch.equal(saved.tokens, tokens):
        raise SystemExit("llama.cpp cuts the text into other tokens than Loramux: nothing can be compared")
    variants = [Variant(kernels, invariant) for kernels in arguments.kernels for invariant in (False, True)]
    divergences = compare(model, variants, arguments.modes, tokens, arguments.positions, saved)
    Console(width=None if sys.stdout.isatty() else 160).print(table_of(divergences))
    summaries = [divergence.summary() for divergence in divergences]
    (output / "accuracy.json").write_text(json.dumps(summaries, indent=1) + "\n")
    ours = [divergence for divergence in divergences if divergence.variant != LLAMA_CPP]
    theirs = [divergence for divergence in divergences if divergence.variant == LLAMA_CPP]
    is_worse = any(one.mean_kl > rival.mean_kl or one.top1 < rival.top1 for one in ours for rival in theirs)
    if is_worse or not all(divergence.is_within_bounds for divergence in ours):
        sys.exit(1)


def _tokens(model: Path, num_texts: int, length: int) -> Tensor:
    ids = tokenizer_from_gguf(GgufFile.open(model)).encode(one_long_text())[: num_texts * length]
    if len(ids) < num_texts * length:
        raise SystemExit(f"the texts give {len(ids) // length} pieces of {length} tokens, {num_texts} are asked for")
    return torch.tensor(ids).reshape(num_texts, length)


if __name__ == "__main__":
    main()
