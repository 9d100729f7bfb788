"""Which adapters a request asks for, and what it really gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from inference_svc.adapters.bank import AdapterBank
from inference_svc.adapters.classifier import Classifier, XLoraOverrides

BASE_CACHE_IDENTITY = "base"
BASE_SCALING_PASS_CACHE_IDENTITY = "scaling pass of base"  # where the base model computes prompts in another way


class AdapterKind(Enum):
    """What a name stands for."""

    LORA = "lora"
    XLORA = "xlora"


@dataclass(frozen=True, slots=True)
class BaseSelection:
    """The plain base model."""


@dataclass(frozen=True, slots=True)
class ActiveSelection:
    """The active default, whatever it is when the request arrives."""


@dataclass(frozen=True, slots=True)
class LoraSelection:
    """A weighted sum of LoRA adapters; each name at most once."""

    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class XLoraSelection:
    """An X-LoRA mixture."""

    name: str


Selection = BaseSelection | ActiveSelection | LoraSelection | XLoraSelection


@dataclass(frozen=True, slots=True)
class AppliedAdapter:
    """An adapter that a request really runs with."""

    name: str
    kind: AdapterKind
    digest: str
    weight: float | None  # LoRA only
    experts: tuple[str, ...]  # X-LoRA only, in classifier order
    ordering: str  # `orderings/{id}@{revision}`, or empty


@dataclass(frozen=True, slots=True, eq=False)
class WeightedBank:
    """A bank with constant scalings."""

    bank: AdapterBank
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class XLoraMixture:
    """A bank whose scalings its classifier computes."""

    bank: AdapterBank
    classifier: Classifier

    def with_overrides(self, overrides: XLoraOverrides) -> XLoraMixture:
        """The mixture as a request wants it."""
        return replace(self, classifier=self.classifier.with_overrides(overrides))

    @property
    def cache_identity(self) -> str:
        """Names everything that its keys and values depend on."""
        return f"xlora {self.bank.digest} {self.classifier.config!r}"

    def scaling_cache_identity(self, *, separates_prompts: bool) -> str:
        """The same for its scaling pass: that with the value 0 is the plain base model.

        Where prompts are separated, the base model computes them otherwise: a scaling pass shares with others alone.
        """
        if self.classifier.config.scaling_pass_value == 0.0:
            return BASE_SCALING_PASS_CACHE_IDENTITY if separates_prompts else BASE_CACHE_IDENTITY
        return f"scaling pass of {self.cache_identity}"


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """What the engine applies to a request: constant banks, or one X-LoRA, or neither (the base model)."""

    constant: tuple[WeightedBank, ...] = ()
    xlora: XLoraMixture | None = None

    @property
    def cache_identity(self) -> str:
        """Names everything, beside the tokens, that keys and values depend on: digests and weights, never names."""
        if self.xlora is not None:
            return self.xlora.cache_identity
        if not self.constant:
            return BASE_CACHE_IDENTITY
        return " ".join(["lora", *(f"{weighted.bank.digest} {weighted.weight.hex()}" for weighted in self.constant)])
