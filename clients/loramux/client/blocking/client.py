"""The blocking client."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Unpack

from loramux.client import inference_calls
from loramux.client.adapters import AdapterChoice, AppliedOrdering
from loramux.client.blocking.adapters import AdapterApi
from loramux.client.blocking.answer_stream import AnswerStream
from loramux.client.blocking.connection import Connection
from loramux.client.blocking.orderings import OrderingApi
from loramux.client.deadlines import Deadlines
from loramux.client.errors import invalid_argument
from loramux.client.generation import GenerateOptions, Generation, generate_request
from loramux.client.inference_calls import Model, Tokenization
from loramux.client.prompts import Prompt
from loramux.client.scalings import ScalingsRecord, record_of

DEFAULT_ADDRESS = "127.0.0.1:50052"


class Client:
    """Talks to an inference service and, if its address is given, to an ordering service.

    Connects with the first call. Unary calls end after `timeout` seconds (ten minutes for those that load files); an
    answer has no deadline unless the request sets one. Every method raises LoramuxError.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, ordering: str | None = None, timeout: float = 30.0) -> None:
        deadlines = Deadlines(unary_s=timeout)
        self._inference = Connection(address, deadlines)
        self._orderings = Connection(ordering, deadlines) if ordering is not None else None
        self.adapters = AdapterApi(self._inference)

    @property
    def orderings(self) -> OrderingApi:
        """The ordering service. Raises InvalidArgument if the client was made without its address."""
        if self._orderings is None:
            raise invalid_argument("ordering", "was not given to the client: Client(..., ordering='HOST:PORT')")
        return OrderingApi(self._orderings)

    def generate(
        self, prompt: Prompt, *, adapters: AdapterChoice = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Continues a prompt (text as it is, chat messages, or token ids) and returns the whole answer."""
        return self.stream(prompt, adapters=adapters, **options).generation()

    def stream(
        self, prompt: Prompt, *, adapters: AdapterChoice = None, **options: Unpack[GenerateOptions]
    ) -> AnswerStream:
        """Sends a request at once and returns its answer as a stream of pieces; dropping the stream cancels it."""
        return AnswerStream(self._inference, generate_request(prompt, adapters, options), options.get("timeout"))

    def tokenize(self, prompt: Prompt) -> Tokenization:
        """Token ids of a prompt; for chat messages also the rendered text."""
        return self._inference.run(inference_calls.tokenize(prompt))

    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return self._inference.run(inference_calls.detokenize(token_ids, skip_special_tokens))

    def model(self) -> Model:
        """Describes the model that is served."""
        return self._inference.run(inference_calls.get_model())

    def apply_ordering(
        self, ordering: str, *, adapter_model_id: str | None = None, activate: bool = True
    ) -> AppliedOrdering:
        """Has the inference service fetch an ordering (`demo` or `demo@3`), load what it names, and activate it."""
        return self._inference.run(inference_calls.apply_ordering(ordering, adapter_model_id, activate))

    def record_scalings(self, prompt: Prompt, generation: Generation) -> ScalingsRecord:
        """Joins the scalings of an answer with the texts of its tokens, for plots and files."""
        if generation.scalings is None:
            raise invalid_argument("generation", "has no scalings: ask for them with scalings='full', on an X-LoRA")
        prompt_ids = self.tokenize(prompt).token_ids
        token_ids = prompt_ids + generation.token_ids
        texts: dict[int, str] = {}
        for token in set(token_ids):
            texts[token] = self._inference.run(inference_calls.detokenize([token], False))
        return record_of(generation.scalings, token_ids, [texts[token] for token in token_ids], len(prompt_ids))

    def close(self) -> None:
        """Cancels what runs and closes the connections."""
        self._inference.close()
        if self._orderings is not None:
            self._orderings.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
