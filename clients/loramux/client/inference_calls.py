"""The unary calls of the inference service, adapters among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from loramux.client.adapters import (
    ActiveAdapters,
    Adapter,
    AdapterChoice,
    AppliedOrdering,
    FollowedOrdering,
    active_from_proto,
    adapter_from_proto,
    adapter_resource,
    choice_to_proto,
    followed_from_proto,
    short_name,
)
from loramux.client.calls import ADAPTERS, INFERENCE, AnyCall, Call, Page
from loramux.client.errors import invalid_argument
from loramux.client.orderings import ordering_resource
from loramux.client.prompts import Prompt, prompt_to_proto
from loramux.inference.v1 import adapter_pb2, adapter_service_pb2, inference_service_pb2


@dataclass(frozen=True, slots=True)
class Tokenization:
    """Token ids of a prompt; `rendered` is the text that a chat prompt became."""

    token_ids: tuple[int, ...]
    rendered: str | None


@dataclass(frozen=True, slots=True)
class KvCacheUsage:
    """The memory for keys and values; fields as in `loramux.inference.v1.KvCacheUsage`."""

    total_tokens: int
    free_tokens: int
    shareable_tokens: int
    running_requests: int
    waiting_requests: int
    prompt_tokens: int
    cached_prompt_tokens: int
    evicted_tokens: int
    preemptions: int


@dataclass(frozen=True, slots=True)
class Model:
    """The model that is served; fields as in `loramux.inference.v1.Model`."""

    base_model_id: str
    architecture: str
    quantization: str
    context_length: int
    vocab_size: int
    num_layers: int
    weight_bytes: int
    device: str
    kernels: str
    batch_invariant: bool
    adapter_modules: tuple[str, ...]
    service_version: str
    kv_cache: KvCacheUsage


_KV_CACHE_FIELDS = tuple(field.name for field in fields(KvCacheUsage))


def tokenize(prompt: Prompt) -> AnyCall[Tokenization]:
    """Text, messages or ids to token ids."""
    return Call(
        INFERENCE + "Tokenize",
        inference_service_pb2.TokenizeRequest(prompt=prompt_to_proto(prompt)),
        inference_service_pb2.TokenizeResponse,
        lambda answer: Tokenization(tuple(answer.ids), answer.rendered if answer.HasField("rendered") else None),
    )


def detokenize(token_ids: Sequence[int], skip_special_tokens: bool) -> AnyCall[str]:
    """Token ids to text."""
    try:
        request = inference_service_pb2.DetokenizeRequest(ids=token_ids, skip_special_tokens=skip_special_tokens)
    except (TypeError, ValueError) as error:
        raise invalid_argument("token_ids", f"holds something that is no token id ({error})") from error
    return Call(
        INFERENCE + "Detokenize",
        request,
        inference_service_pb2.DetokenizeResponse,
        lambda answer: answer.text,
    )


def get_model() -> AnyCall[Model]:
    """What is served."""
    return Call(INFERENCE + "GetModel", inference_service_pb2.GetModelRequest(), inference_service_pb2.Model, _model)


def _model(message: inference_service_pb2.Model) -> Model:
    return Model(
        base_model_id=message.base_model_id,
        architecture=message.architecture,
        quantization=message.quantization,
        context_length=message.context_length,
        vocab_size=message.vocab_size,
        num_layers=message.num_layers,
        weight_bytes=message.weight_bytes,
        device=message.device,
        kernels=message.kernels,
        batch_invariant=message.batch_invariant,
        adapter_modules=tuple(message.adapter_modules),
        service_version=message.service_version,
        kv_cache=KvCacheUsage(**{name: getattr(message.kv_cache, name) for name in _KV_CACHE_FIELDS}),
    )


def load_adapter(name: str, source: str, replace: bool, expected_digest: str | None, pinned: bool) -> AnyCall[Adapter]:
    """Makes an adapter resident."""
    request = adapter_service_pb2.LoadAdapterRequest(
        adapter_id=short_name(name), source=source, replace=replace, expected_digest=expected_digest, pinned=pinned
    )
    return Call(ADAPTERS + "LoadAdapter", request, adapter_pb2.Adapter, adapter_from_proto, slow=True)


def pin_adapter(name: str) -> AnyCall[Adapter]:
    """Keeps an adapter from being evicted."""
    request = adapter_service_pb2.PinAdapterRequest(name=adapter_resource(name))
    return Call(ADAPTERS + "PinAdapter", request, adapter_pb2.Adapter, adapter_from_proto)


def unpin_adapter(name: str) -> AnyCall[Adapter]:
    """Lets an adapter be evicted again."""
    request = adapter_service_pb2.UnpinAdapterRequest(name=adapter_resource(name))
    return Call(ADAPTERS + "UnpinAdapter", request, adapter_pb2.Adapter, adapter_from_proto)


def unload_adapter(name: str, expected_digest: str | None) -> AnyCall[Adapter]:
    """Takes an adapter away from later requests."""
    request = adapter_service_pb2.UnloadAdapterRequest(name=adapter_resource(name), expected_digest=expected_digest)
    return Call(ADAPTERS + "UnloadAdapter", request, adapter_pb2.Adapter, adapter_from_proto)


def get_adapter(name: str) -> AnyCall[Adapter]:
    """One resident adapter."""
    request = adapter_service_pb2.GetAdapterRequest(name=adapter_resource(name))
    return Call(ADAPTERS + "GetAdapter", request, adapter_pb2.Adapter, adapter_from_proto)


def list_adapters(page_token: str) -> AnyCall[Page[Adapter]]:
    """One page of the resident adapters."""
    return Call(
        ADAPTERS + "ListAdapters",
        adapter_service_pb2.ListAdaptersRequest(page_size=1000, page_token=page_token),
        adapter_service_pb2.ListAdaptersResponse,
        lambda answer: Page(tuple(map(adapter_from_proto, answer.adapters)), answer.next_page_token),
    )


def active_adapters() -> AnyCall[ActiveAdapters]:
    """The active default, which comes with every list."""
    return Call(
        ADAPTERS + "ListAdapters",
        adapter_service_pb2.ListAdaptersRequest(page_size=1),
        adapter_service_pb2.ListAdaptersResponse,
        lambda answer: active_from_proto(answer.active),
    )


def followed_orderings() -> AnyCall[tuple[FollowedOrdering, ...]]:
    """How following orderings goes, which comes with every list."""
    return Call(
        ADAPTERS + "ListAdapters",
        adapter_service_pb2.ListAdaptersRequest(page_size=1),
        adapter_service_pb2.ListAdaptersResponse,
        lambda answer: tuple(map(followed_from_proto, answer.followed)),
    )


def activate_adapters(choice: AdapterChoice) -> AnyCall[ActiveAdapters]:
    """Replaces the active default."""
    if choice is None:
        raise invalid_argument("adapters", "is None; give adapters to activate, or BASE")
    request = adapter_service_pb2.ActivateAdaptersRequest(selection=choice_to_proto(choice))
    return Call(ADAPTERS + "ActivateAdapters", request, adapter_pb2.ActiveAdapters, active_from_proto)


def apply_ordering(ordering: str, adapter_model_id: str | None, activate: bool) -> AnyCall[AppliedOrdering]:
    """Loads what an ordering names, and activates it."""
    request = adapter_service_pb2.ApplyOrderingRequest(
        ordering=ordering_resource(ordering), adapter_model_id=adapter_model_id, skip_activation=not activate
    )
    return Call(ADAPTERS + "ApplyOrdering", request, adapter_service_pb2.ApplyOrderingResponse, _applied, slow=True)


def _applied(message: adapter_service_pb2.ApplyOrderingResponse) -> AppliedOrdering:
    return AppliedOrdering(
        ordering=short_name(message.ordering),
        adapters=tuple(map(adapter_from_proto, message.adapters)),
        active=active_from_proto(message.active),
        warnings=tuple(message.warnings),
    )
