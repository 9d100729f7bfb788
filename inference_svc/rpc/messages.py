"""Generation between its protobuf messages and the engine's vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inference_svc.adapters.classifier import XLoraOverrides
from inference_svc.engine.request import (
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    KVCacheUsage,
    Output,
    ResponseOptions,
    Sampling,
    ScalingsChunk,
    ScalingsDetail,
    Started,
    Stopping,
    TokenLogprobs,
    XLoraOptions,
)
from inference_svc.errors import InvalidRequest
from inference_svc.rpc.adapter_messages import applied_to_proto, selection_from_proto
from inference_svc.rpc.ports import ChatTurn, ModelDescription
from inference_svc.scheduling.granularity import (
    EVERY_TOKEN,
    FrozenAfter,
    FrozenWhenSettled,
    Granularity,
    RecomputedEvery,
)
from loramux.inference.v1 import generation_pb2, inference_service_pb2

if TYPE_CHECKING:  # a name for types only
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

SCALINGS_DETAILS = {
    generation_pb2.SCALINGS_DETAIL_UNSPECIFIED: ScalingsDetail.NONE,
    generation_pb2.SCALINGS_DETAIL_MEAN: ScalingsDetail.MEAN,
    generation_pb2.SCALINGS_DETAIL_FULL: ScalingsDetail.FULL,
}
FINISH_REASONS = {
    FinishReason.EOS: generation_pb2.FINISH_REASON_EOS,
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.MAX_TOKENS: generation_pb2.FINISH_REASON_MAX_TOKENS,
    FinishReason.CONTEXT: generation_pb2.FINISH_REASON_CONTEXT,
}


def generation_request(
    message: generation_pb2.GenerateRequest, request_id: str, token_ids: Sequence[int]
) -> GenerationRequest:
    """The request as the engine takes it; the message has passed the contract's rules.

    Raises:
        InvalidRequest: no prompt tokens, or values that contradict each other.
    """
    if not token_ids:
        raise InvalidRequest("prompt", "the prompt has no tokens: there is nothing to continue")
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=tuple(token_ids),
        selection=selection_from_proto(message.adapters, "adapters"),
        sampling=sampling_from_proto(message.sampling),
        stopping=stopping_from_proto(message.stopping),
        response=response_options_from_proto(message.response),
        xlora=xlora_options_from_proto(message.xlora),
        begins_text=message.prompt.HasField("chat"),
    )


def sampling_from_proto(message: generation_pb2.Sampling) -> Sampling:
    """Sampling; a field that is not set keeps its default. Raises InvalidRequest for a contradiction."""
    return Sampling(**{field.name: value for field, value in message.ListFields()})


def stopping_from_proto(message: generation_pb2.Stopping) -> Stopping:
    """When an answer ends. Raises InvalidRequest for bounds that exclude each other."""
    return Stopping(
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        min_tokens=message.min_tokens,
        stop=tuple(message.stop),
        ignore_eos=message.ignore_eos,
    )


def response_options_from_proto(message: generation_pb2.ResponseOptions) -> ResponseOptions:
    """What to return beside the text. Raises InvalidRequest for a type of scalings that are not asked for."""
    return ResponseOptions(
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        scalings=SCALINGS_DETAILS[message.scalings],
        half_precision=message.scalings_type == generation_pb2.SCALINGS_TYPE_FLOAT16,
    )


def xlora_options_from_proto(message: generation_pb2.XLoraOptions) -> XLoraOptions:
    """Changes of a mixture; a field that is not set changes nothing."""
    given = {field.name: value for field, value in message.ListFields() if field.name != "granularity"}
    granularity = granularity_from_proto(message.granularity) if message.HasField("granularity") else None
    return XLoraOptions(granularity, XLoraOverrides(**given))


def granularity_from_proto(message: generation_pb2.ScalingsGranularity) -> Granularity:
    """How often scalings are computed; the contract's rules demand one choice."""
    match message.WhichOneof("granularity"):
        case "frozen_after":
            return FrozenAfter(message.frozen_after)
        case "recomputed_every":
            return RecomputedEvery(message.recomputed_every)
        case "settled":
            return FrozenWhenSettled(message.settled.epsilon, message.settled.passes)
        case _:
            return EVERY_TOKEN


def chat_turns(message: generation_pb2.ChatMessages) -> tuple[ChatTurn, ...]:
    """A conversation, oldest first."""
    return tuple(ChatTurn(turn.role, turn.content) for turn in message.messages)


def known_token_ids(ids: Iterable[int], vocab_size: int, field: str) -> tuple[int, ...]:
    """The ids, if the model knows them all.

    Raises:
        InvalidRequest: an id is outside the vocabulary; names its position.
    """
    token_ids = tuple(ids)
    for index, token_id in enumerate(token_ids):
        if token_id >= vocab_size:
            raise InvalidRequest(
                f"{field}[{index}]",
                f"token id {token_id} is outside the vocabulary: this model knows 0 to {vocab_size - 1}",
                token_id=str(token_id),
                limit=str(vocab_size - 1),
            )
    return token_ids


def event_to_proto(event: Event) -> generation_pb2.GenerateResponse:
    """One event of an answer.

    Raises:
        InferenceError: the event says that the request failed.
    """
    match event:
        case Started():
            return generation_pb2.GenerateResponse(started=_started(event))
        case Output():
            return _output(event)
        case Finished():
            return generation_pb2.GenerateResponse(finished=_finished(event))
        case Failed(error):
            raise error


def model_to_proto(
    description: ModelDescription, *, context_length: int, service_version: str, kv_cache: KVCacheUsage
) -> inference_service_pb2.Model:
    """The model that is served, with the context and the memory that this service gives it."""
    return inference_service_pb2.Model(
        base_model_id=description.base_model_id,
        architecture=description.architecture,
        quantization=description.quantization,
        context_length=context_length,
        vocab_size=description.vocab_size,
        num_layers=description.num_layers,
        weight_bytes=description.weight_bytes,
        device=description.device,
        kernels=description.kernels,
        batch_invariant=description.batch_invariant,
        adapter_modules=description.adapter_modules,
        service_version=service_version,
        kv_cache=inference_service_pb2.KvCacheUsage(**dataclasses.asdict(kv_cache)),
    )


def _started(event: Started) -> generation_pb2.Started:
    return generation_pb2.Started(
        request_id=event.request_id,
        prompt_tokens=event.prompt_tokens,
        adapters=[applied_to_proto(adapter) for adapter in event.applied],
        seed=event.seed,
    )


def _output(event: Output) -> generation_pb2.GenerateResponse:
    # Filled field by field: from keyword arguments and lists of messages it takes five times as long.
    response = generation_pb2.GenerateResponse()
    output = response.output
    output.SetInParent()
    output.text = event.text
    for token in event.tokens:
        _add_token(output.tokens, token)
    for token in event.prompt_tokens:
        _add_token(output.prompt_tokens, token)
    if event.scalings:
        output.scalings.extend(map(_scalings, event.scalings))
    return response


def _finished(event: Finished) -> generation_pb2.Finished:
    return generation_pb2.Finished(
        reason=FINISH_REASONS[event.reason],
        stop=event.stop,
        usage=generation_pb2.Usage(
            prompt_tokens=event.prompt_tokens,
            completion_tokens=event.completion_tokens,
            cached_prompt_tokens=event.cached_prompt_tokens,
        ),
        adapters=[applied_to_proto(adapter) for adapter in event.applied],
    )


def _add_token(tokens: RepeatedCompositeFieldContainer[generation_pb2.Token], token: TokenLogprobs) -> None:
    message = tokens.add(id=token.token_id)
    if token.logprob is not None:
        message.logprob = token.logprob
        for token_id, logprob in token.top:
            message.top.add(id=token_id, logprob=logprob)


def _scalings(chunk: ScalingsChunk) -> generation_pb2.Scalings:
    num_tokens, num_layers, num_adapters = chunk.values.shape
    is_half = chunk.values.dtype == np.float16
    return generation_pb2.Scalings(
        first_position=chunk.first_position,
        num_tokens=num_tokens,
        num_layers=num_layers,
        num_adapters=num_adapters,
        values=np.ascontiguousarray(chunk.values, dtype="<f2" if is_half else "<f4").tobytes(),
        type=generation_pb2.SCALINGS_TYPE_FLOAT16 if is_half else generation_pb2.SCALINGS_TYPE_UNSPECIFIED,
    )
