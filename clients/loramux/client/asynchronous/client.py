"""The asynchronous client."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Unpack

from loramux.client import inference_calls
from loramux.client.adapters import AdapterChoice, AppliedOrdering
from loramux.client.asynchronous.adapters import AsyncAdapterApi
from loramux.client.asynchronous.answer_stream import AsyncAnswerStream
from loramux.client.asynchronous.connection import AsyncConnection
from loramux.client.asynchronous.orderings import AsyncOrderingApi
from loramux.client.deadlines import Deadlines
from loramux.client.errors import invalid_argument
from loramux.client.generation import GenerateOptions, Generation, generate_request
from loramux.client.inference_calls import Model, Tokenization
from loramux.client.prompts import Prompt
from loramux.client.scalings import ScalingsRecord, record_of

DEFAULT_ADDRESS = "127.0.0.1:50052"


class AsyncClient:
    """Talks to an inference service and, if its address is given, to an ordering service.

    Connects with the first call. Unary calls end after `timeout` seconds (ten minutes for those that load files); an
    answer has no deadline unless the request sets one. Every method raises LoramuxError.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, ordering: str | None = None, timeout: float = 30.0) -> None:
        deadlines = Deadlines(unary_s=timeout)
        self._inference = AsyncConnection(address, deadlines)
        self._orderings = AsyncConnection(ordering, deadlines) if ordering is not None else None
        self.adapters = AsyncAdapterApi(self._inference)

    @property
    def orderings(self) -> AsyncOrderingApi:
        """The ordering service. Raises InvalidArgument if the client was made without its address."""
        if self._orderings is None:
            raise invalid_argument("ordering", "was not given to the client: AsyncClient(..., ordering='HOST:PORT')")
        return AsyncOrderingApi(self._orderings)

    async def generate(
        self, prompt: Prompt, *, adapters: AdapterChoice = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Continues a prompt (text as it is, chat messages, or token ids) and returns the whole answer."""
        return await self.stream(prompt, adapters=adapters, **options).generation()

    def stream(
        self, prompt: Prompt, *, adapters: AdapterChoice = None, **options: Unpack[GenerateOptions]
    ) -> AsyncAnswerStream:
        """Sends a request at once and returns its answer as a stream of pieces; dropping the stream cancels it."""
        return AsyncAnswerStream(self._inference, generate_request(prompt, adapters, options), options.get("timeout"))

    async def tokenize(self, prompt: Prompt) -> Tokenization:
        """Token ids of a prompt; for chat messages also the rendered text."""
        return await self._inference.run(inference_calls.tokenize(prompt))

    async def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return await self._inference.run(inference_calls.detokenize(token_ids, skip_special_tokens))

    async def model(self) -> Model:
        """Describes the model that is served."""
        return await self._inference.run(inference_calls.get_model())

    async def apply_ordering(
        self, ordering: str, *, adapter_model_id: str | None = None, activate: bool = True
    ) -> AppliedOrdering:
        """Has the inference service fetch an ordering (`demo` or `demo@3`), load what it names, and activate it."""
        return await self._inference.run(inference_calls.apply_ordering(ordering, adapter_model_id, activate))

    async def record_scalings(self, prompt: Prompt, generation: Generation) -> ScalingsRecord:
        """Joins the scalings of an answer with the texts of its tokens, for plots and files."""
        if generation.scalings is None:
            raise invalid_argument("generation", "has no scalings: ask for them with scalings='full', on an X-LoRA")
        prompt_ids = (await self.tokenize(prompt)).token_ids
        token_ids = prompt_ids + generation.token_ids
        texts: dict[int, str] = {}
        for token in set(token_ids):
            texts[token] = await self._inference.run(inference_calls.detokenize([token], False))
        return record_of(generation.scalings, token_ids, [texts[token] for token in token_ids], len(prompt_ids))

    async def close(self) -> None:
        """Cancels what runs and closes the connections."""
        await self._inference.close()
        if self._orderings is not None:
            await self._orderings.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
