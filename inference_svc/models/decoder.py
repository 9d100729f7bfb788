"""A decoder: token ids to hidden states, hidden states to logits. What its layers are, the architecture says."""

from __future__ import annotations

from inference_svc.layers.forward import Forward, Value
from inference_svc.layers.rotary import RotaryTable
from inference_svc.models.architecture import Architecture
from inference_svc.models.blocks import LayerNorm, RMSNorm
from inference_svc.models.checkpoint import Checkpoint


class Decoder:
    """Embedding, layers, final norm, head."""

    def __init__(self, architecture: Architecture, checkpoint: Checkpoint, longest: int | None = None) -> None:
        """`longest` is the most tokens that a sequence can come to have; None: the whole context."""
        config = checkpoint.config
        self.config = config
        self.embedding = checkpoint.packed("model.embed_tokens.weight")
        rotary = RotaryTable(
            config.rope, min(config.context_length, longest or config.context_length), device=checkpoint.device
        )
        self.layers = [architecture.layer(layer, checkpoint, rotary) for layer in range(config.num_layers)]
        norm = architecture.final_norm
        self.norm = (LayerNorm if norm.has_bias else RMSNorm)(norm.path, checkpoint)
        self.lm_head = checkpoint.head()

    def hidden_states(self, run: Forward[Value]) -> Value:
        """Hidden states after the final norm [num_tokens, hidden_size]."""
        x = run.embed(self.embedding, self.config.embedding_scale)
        for layer in self.layers:
            x = layer(run, x)
        return self.norm(run, x)

    def logits(self, run: Forward[Value], hidden: Value) -> Value:
        """[num_rows, hidden_size] -> [num_rows, vocab_size]."""
        logits = run.linear(hidden, self.lm_head)
        cap = self.config.logit_softcap
        return logits if cap is None else run.softcap(logits, cap)
