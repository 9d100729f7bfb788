"""The base model, read from a GGUF file and held to what the file says, and batched answers from it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

BASE_MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def seed_everything(seed: int) -> None:
    """Python's and torch's generators, the two this script draws from."""
    random.seed(seed)
    torch.manual_seed(seed)


def load_base(gguf: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The dequantized causal language model (frozen, evaluation mode) and its tokenizer."""
    # Without dequantize=True transformers keeps the blocks packed in its own linear class, which PEFT cannot adapt.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.padding_side = "left"
    _check_against_file(model, gguf)
    model.requires_grad_(False)
    return model.eval(), tokenizer


def _check_against_file(model: Any, gguf: Path) -> None:
    """Refuse a model whose rotary base or norm epsilon is not the file's: such answers look fine and are wrong."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    theta = float(fields["llama.rope.freq_base"].contents())
    epsilon = float(fields["llama.attention.layer_norm_rms_epsilon"].contents())
    inverse = model.model.rotary_emb.inv_freq.float()  # (head_dim / 2,)
    head_dim = 2 * inverse.numel()
    expected = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if not torch.allclose(inverse, expected, rtol=1e-5):
        raise ValueError(f"The loaded model does not use the file's rotary base {theta}.")
    if abs(model.model.norm.variance_epsilon - epsilon) > 1e-9:
        raise ValueError(f"The loaded model does not use the file's norm epsilon {epsilon}.")


def render(tokenizer: Any, prompt: str) -> list[int]:
    """The token ids a chat endpoint would build for one user message, ready for the answer."""
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
    )
    return list(rendered["input_ids"])


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (batch, longest), with the padding in front."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@torch.inference_mode()
def answer_all(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, batch_size: int = 48
) -> list[str]:
    """Greedy answers, in the order of the prompts."""
    answers: list[str] = []
    for start in range(0, len(prompts), batch_size):
        rows = [render(tokenizer, prompt) for prompt in prompts[start : start + batch_size]]
        ids, mask = pad_left(rows, tokenizer.pad_token_id)
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True
        )
        answers.extend(tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True))
    return answers
