"""What the blocks of a layer ask of a pass, and in which order."""

from __future__ import annotations

from types import SimpleNamespace

from inference_svc.models.blocks import Attention


class Asked:
    """A pass that writes down what it is asked for."""

    def __init__(self) -> None:
        self.operations: list[str] = []

    def linear(self, x: str, layer: str) -> str:
        self.operations.append(layer)
        return f"{layer}({x})"

    def rotary(self, x: str, table: object, head_dim: int) -> str:
        self.operations.append("rotary")
        return f"rotary({x})"

    def attention(self, q: str, k: str, v: str, layer: int, shape: object) -> str:
        self.operations.append("attention")
        return f"attention({q}, {k}, {v})"


def test_attention_asks_for_queries_keys_and_values_together_so_that_they_can_be_one_product() -> None:
    attention = Attention.__new__(Attention)
    vars(attention).update(
        layer=0,
        rotary=None,
        shape=SimpleNamespace(head_dim=64),
        q_proj="q",
        k_proj="k",
        v_proj="v",
        output="o",
    )
    run = Asked()
    assert attention(run, "x") == "o(attention(rotary(q(x)), rotary(k(x)), v(x)))"  # type: ignore[arg-type]
    assert run.operations[:3] == ["q", "k", "v"]
