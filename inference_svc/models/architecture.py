"""What an architecture is: a table of its modules, how its files are to be read, and the definition of a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.checkpoint import Checkpoint
from inference_svc.models.config import ModelConfig, Size
from inference_svc.models.settings import Settings
from inference_svc.models.windows import WindowRule, no_windows


class DecoderLayer(Protocol):
    """One layer of a decoder."""

    def __call__(self, run: Forward[Value], x: Value) -> Value:
        """[num_tokens, hidden_size] -> the same."""
        ...


@dataclass(frozen=True, slots=True)
class LinearModule:
    """A linear layer in every decoder layer."""

    path: str  # inside a layer of a Hugging Face checkpoint; `{expert}` stands for the number of an expert
    gguf: str  # inside a block of a GGUF file
    out_features: Size
    in_features: Size
    # Always, never, or as a key of config.json says; a GGUF file then says it by having the tensor.
    bias: bool | str = False
    # llama.cpp's converter interleaves the two halves of every head in these rows.
    permuted_in_gguf: bool = False

    @property
    def is_expert(self) -> bool:
        """There is one for each expert; a GGUF file stacks them."""
        return "{expert}" in self.path

    def path_of(self, expert: int) -> str:
        """The path of one expert's layer."""
        return self.path.replace("{expert}", str(expert))

    def expert_of(self, path: str) -> int:
        """The reverse."""
        before, after = self.path.split("{expert}")
        return int(path.removeprefix(before).removesuffix(after))


@dataclass(frozen=True, slots=True)
class NormModule:
    """A norm, in every decoder layer or at the end."""

    path: str
    gguf: str
    has_bias: bool = False


LayerFactory = Callable[[int, Checkpoint, RotaryTable], DecoderLayer]
# What the file says, what all architectures read of it -> that with what only this one has.
Refinement = Callable[[Settings, ModelConfig], ModelConfig]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture. Defaults of config.json are those of transformers' class for it."""

    name: str  # `model_type` of config.json
    gguf_name: str | None  # `general.architecture` of GGUF; None: its files go by another name
    layer: LayerFactory
    linear: tuple[LinearModule, ...]  # in the order in which PEFT visits them
    norms: tuple[NormModule, ...]
    final_norm: NormModule = NormModule("model.norm", "output_norm")
    head_has_bias: bool = False
    eps_key: str = "rms_norm_eps"  # of config.json
    gguf_eps_key: str = "attention.layer_norm_rms_epsilon"
    default_eps: float = 1e-6
    activation: str = "silu"  # of GGUF files, which do not say; of config.json, if it does not
    activation_key: str = "hidden_act"
    default_theta: float = 10000.0
    rotary_part: float | None = None  # of a head's dimensions, where config.json does not say; None: always all
    tied_by_default: bool = False
    windows: WindowRule = no_windows
    gguf_windows: WindowRule = no_windows
    stores_norms_less_one: bool = False  # Hugging Face checkpoints; GGUF files store what is multiplied
    scales_embedding: bool = False  # by the square root of the hidden size
    has_experts: bool = False
    refine: Refinement | None = None  # by config.json
    gguf_refine: Refinement | None = None

    def linear_shapes(self, config: ModelConfig) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of every linear layer that an adapter can change, in PEFT's module order."""
        shapes = {
            f"model.layers.{layer}.{path}": (config.size(module.out_features), config.size(module.in_features))
            for layer in range(config.num_layers)
            for path, module in self.layer_paths(config)
        }
        return {**shapes, "lm_head": (config.vocab_size, config.hidden_size)}

    def layer_paths(self, config: ModelConfig) -> list[tuple[str, LinearModule]]:
        """The linear layers of one decoder layer in PEFT's order, an expert after the other."""
        experts = [module for module in self.linear if module.is_expert]
        return [(module.path, module) for module in self.linear if not module.is_expert] + [
            (module.path_of(expert), module) for expert in range(config.num_experts) for module in experts
        ]
