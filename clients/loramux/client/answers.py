"""Reads the events of one answer, without any I/O: what both clients feed their streams into."""

from __future__ import annotations

from collections.abc import Iterable

from loramux.client.adapters import applied_from_proto
from loramux.client.errors import broken_answer
from loramux.client.generation import FinishReason, Generation, Piece, Started, Token, TopToken, Usage
from loramux.client.scalings import join_scalings
from loramux.inference.v1 import generation_pb2

_REASONS = {
    generation_pb2.FINISH_REASON_EOS: FinishReason.EOS,
    generation_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    generation_pb2.FINISH_REASON_MAX_TOKENS: FinishReason.MAX_TOKENS,
    generation_pb2.FINISH_REASON_CONTEXT: FinishReason.CONTEXT,
}


class AnswerReader:
    """Takes the events of one answer in order, and knows the whole answer when the last has come."""

    def __init__(self) -> None:
        self._started: Started | None = None
        self._finished: generation_pb2.Finished | None = None
        self._texts: list[str] = []
        self._tokens: list[Token] = []
        self._prompt_tokens: list[Token] = []
        self._scalings: list[generation_pb2.Scalings] = []

    @property
    def started(self) -> Started | None:
        """What the request runs with, once it was accepted."""
        return self._started

    def feed(self, response: generation_pb2.GenerateResponse) -> Piece | None:
        """Takes one event; returns the piece if it holds one. Raises Internal if events come in a wrong order."""
        event = response.WhichOneof("event")
        if self._finished is not None:
            raise broken_answer("the service sent an event after the end of the answer")
        if event == "started":
            self._start(response.started)
            return None
        if self._started is None:
            raise broken_answer(f"the service sent {event!r} before 'started'")
        if event == "output":
            return self._read(response.output)
        if event == "finished":
            self._finished = response.finished
        return None

    def _start(self, started: generation_pb2.Started) -> None:
        if self._started is not None:
            raise broken_answer("the service started the answer twice")
        self._started = Started(
            request_id=started.request_id,
            prompt_tokens=started.prompt_tokens,
            adapters=tuple(map(applied_from_proto, started.adapters)),
            seed=started.seed if started.HasField("seed") else None,
        )

    def _read(self, output: generation_pb2.Output) -> Piece:
        text, tokens = output.text, tuple(map(_token, output.tokens))
        self._texts.append(text)
        self._tokens.extend(tokens)
        if output.prompt_tokens:
            self._prompt_tokens.extend(map(_token, output.prompt_tokens))
        if not output.scalings:
            return Piece(text, tokens)
        self._scalings.extend(output.scalings)
        return Piece(text, tokens, join_scalings(output.scalings, self._experts()))

    def _experts(self) -> tuple[str, ...]:
        adapters = self._started.adapters if self._started is not None else ()
        return next((adapter.experts for adapter in adapters if adapter.experts), ())

    def generation(self) -> Generation:
        """The whole answer. Raises Internal if the stream ended before the answer did."""
        if self._started is None or self._finished is None:
            raise broken_answer("the stream ended before the answer was finished")
        finished = self._finished
        reason = _REASONS.get(finished.reason)
        if reason is None:
            raise broken_answer(f"the service sent the unknown finish reason {finished.reason}")
        return Generation(
            text="".join(self._texts),
            token_ids=tuple(token.id for token in self._tokens),
            tokens=tuple(self._tokens),
            finish_reason=reason,
            stop=finished.stop if finished.HasField("stop") else None,
            usage=Usage(
                finished.usage.prompt_tokens,
                finished.usage.completion_tokens,
                finished.usage.cached_prompt_tokens,
            ),
            adapters=tuple(map(applied_from_proto, finished.adapters)),
            seed=self._started.seed,
            request_id=self._started.request_id,
            logprobs=_logprobs(self._tokens),
            prompt_tokens=tuple(self._prompt_tokens),
            scalings=join_scalings(self._scalings, self._experts()),
        )


def _token(message: generation_pb2.Token) -> Token:
    if not message.HasField("logprob"):
        return Token(message.id)
    return Token(message.id, message.logprob, tuple(TopToken(top.id, top.logprob) for top in message.top))


def _logprobs(tokens: Iterable[Token]) -> tuple[float, ...] | None:
    logprobs = tuple(token.logprob for token in tokens if token.logprob is not None)
    return logprobs or None
