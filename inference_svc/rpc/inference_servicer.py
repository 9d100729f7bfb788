"""InferenceService: generation, the tokenizer and the model's description."""

# ruff: noqa: ARG002, N802  (gRPC gives every method a context and the contract's name)

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence

import structlog

from inference_svc.rpc import messages
from inference_svc.rpc.answer_reader import AnswerReader
from inference_svc.rpc.interceptor import Context
from inference_svc.rpc.ports import GenerationEngine, ModelDescription, Tokenizer
from inference_svc.rpc.wakeup import Bell
from loramux.inference.v1 import generation_pb2, inference_service_pb2, inference_service_pb2_grpc


class InferenceServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """Decodes, calls the engine or the tokenizer, encodes; errors leave as exceptions for the interceptor.

    Made in the event loop that it serves.
    """

    def __init__(
        self, engine: GenerationEngine, tokenizer: Tokenizer, description: ModelDescription, service_version: str
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._description = description
        self._service_version = service_version
        self._bell = Bell()

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Stream the answer; stop the request when its client goes away."""
        request_id = request.request_id or str(uuid.uuid4())
        structlog.contextvars.bind_contextvars(request_id=request_id)
        token_ids = await asyncio.to_thread(self._token_ids, request.prompt, "prompt")
        what = messages.generation_request(request, request_id, token_ids)
        answer = AnswerReader.begin(self._engine, what, self._bell)
        context.add_done_callback(lambda _context: answer.cancel())  # type: ignore[arg-type]  # the stub wants a class
        try:
            while not answer.is_over:
                for event in await answer.take():
                    answer.note(event)
                    yield messages.event_to_proto(event)
        finally:
            answer.cancel()

    async def Tokenize(
        self, request: inference_service_pb2.TokenizeRequest, context: Context
    ) -> inference_service_pb2.TokenizeResponse:
        """Token ids of a prompt, and the rendered text of a conversation."""
        return await asyncio.to_thread(self._tokenize, request.prompt)

    async def Detokenize(
        self, request: inference_service_pb2.DetokenizeRequest, context: Context
    ) -> inference_service_pb2.DetokenizeResponse:
        """Text of token ids."""
        return await asyncio.to_thread(self._detokenize, request)

    async def GetModel(
        self, request: inference_service_pb2.GetModelRequest, context: Context
    ) -> inference_service_pb2.Model:
        """What is served."""
        return messages.model_to_proto(
            self._description,
            context_length=self._engine.context_length,
            service_version=self._service_version,
            kv_cache=self._engine.kv_cache_usage,
        )

    def _token_ids(self, prompt: generation_pb2.Prompt, field: str) -> Sequence[int]:
        match prompt.WhichOneof("prompt"):
            case "text":
                return self._tokenizer.encode(prompt.text)
            case "chat":
                return self._tokenizer.encode_chat(messages.chat_turns(prompt.chat))
            case _:
                return messages.known_token_ids(
                    prompt.token_ids.ids, self._tokenizer.vocab_size, f"{field}.token_ids.ids"
                )

    def _tokenize(self, prompt: generation_pb2.Prompt) -> inference_service_pb2.TokenizeResponse:
        response = inference_service_pb2.TokenizeResponse(ids=self._token_ids(prompt, "prompt"))
        if prompt.HasField("chat"):
            response.rendered = self._tokenizer.render_chat(messages.chat_turns(prompt.chat))
        return response

    def _detokenize(self, request: inference_service_pb2.DetokenizeRequest) -> inference_service_pb2.DetokenizeResponse:
        token_ids = messages.known_token_ids(request.ids, self._tokenizer.vocab_size, "ids")
        text = self._tokenizer.decode(token_ids, skip_special_tokens=request.skip_special_tokens)
        return inference_service_pb2.DetokenizeResponse(text=text)
