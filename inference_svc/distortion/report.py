"""What a measurement found."""

from __future__ import annotations

from dataclasses import dataclass

from inference_svc.distortion.measures import Positions, ScalingsDrift, Summary


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """One of the two models."""

    model: str  # the reference that was given
    quantization: str  # type of most of its weights
    bits_per_weight: float | None  # of the linear layers, head apart
    weight_bytes: int
    kernels: str  # one of KERNELS but `auto`
    activations: str  # their type; `rounded`: to whole numbers, for the products


@dataclass(frozen=True, slots=True)
class Distortion:
    """How far the compared model is from the reference, with or without adapters."""

    adapters: str | None  # the ordering; None: the base model alone
    summary: Summary
    drift: ScalingsDrift | None  # of an X-LoRA
    positions: Positions


@dataclass(frozen=True, slots=True)
class Report:
    """Everything, as it is written to JSON."""

    reference: MeasuredModel
    compared: MeasuredModel
    texts: int
    cut_texts: int  # of these, those that were longer than the limit and were cut
    max_tokens: int
    distortions: list[Distortion]
    token_texts: dict[int, str]  # of the token ids that occur
