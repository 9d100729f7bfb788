"""The engine: a thread that takes requests in, runs steps of the whole batch, and hands tokens out."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import torch

from inference_svc.adapters.registry import AdapterRegistry
from inference_svc.adapters.selection import Mixture
from inference_svc.engine.announcements import Announcements
from inference_svc.engine.answer import Answer
from inference_svc.engine.model_runner import ModelRunner, RowRequest, RowResult
from inference_svc.engine.observer import EngineObserver, NoObserver
from inference_svc.engine.output_stream import OutputStream
from inference_svc.engine.request import Failed, GenerationRequest, KVCacheUsage, ScalingsDetail, Started
from inference_svc.errors import (
    Draining,
    EngineStopped,
    InferenceError,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    ReaderTooSlow,
    RequestTooLarge,
    Unavailable,
)
from inference_svc.kv_cache.block_table import BlockTable
from inference_svc.kv_cache.blocks import BlockPool
from inference_svc.kv_cache.cache import KVCache
from inference_svc.models.base_model import BaseModel
from inference_svc.models.config import ModelConfig
from inference_svc.scheduling.granularity import EVERY_TOKEN, Granularity
from inference_svc.scheduling.scheduler import Scheduler
from inference_svc.scheduling.sequence import ScheduledSequence, Sequence

BLOCK_SIZE = 16
DEFAULT_MAX_TOKENS = 1024
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of the engine, in tokens and requests."""

    max_batch_tokens: int = 512
    max_running: int = 64
    max_waiting: int = 256
    kv_cache_tokens: int = 16384
    speculative_tokens: int = 3  # of each sequence, looked up in it and checked in a step; 0: none
    prefix_caching: bool = True  # what was computed for one request serves others with the same prefix
    context_length: int | None = None  # a cap below the model's own
    slow_reader_seconds: float = 30.0
    granularity: Granularity = EVERY_TOKEN  # of X-LoRA requests that name none


# Nobody is called a slow reader for a time in which the engine itself did nothing: the process may have been stopped,
# or its machine suspended.
STANDSTILL_SECONDS = 5.0


def num_blocks(tokens: int) -> int:
    """Blocks of a cache for so many tokens."""
    return max(1, tokens // BLOCK_SIZE)


def make_cache(
    config: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device, *, hidden_dtype: torch.dtype
) -> KVCache:
    """Room for keys, values and hidden states of so many tokens; on the device `meta` it takes none."""
    return KVCache(
        config.num_layers,
        num_blocks(tokens),
        BLOCK_SIZE,
        config.num_kv_heads,
        config.head_dim,
        config.hidden_size,
        dtype=dtype,
        hidden_dtype=hidden_dtype,
        device=device,
    )


class Engine:
    """Owns the scheduler, the cache and the answers; everything but `submit` and the properties runs in its thread."""

    def __init__(
        self, base: BaseModel, registry: AdapterRegistry, config: EngineConfig, observer: EngineObserver | None = None
    ) -> None:
        self.config = config
        self._observer = observer or NoObserver()
        self.context_length = min(config.context_length or base.config.context_length, base.config.context_length)
        self.pool = BlockPool(num_blocks(config.kv_cache_tokens), BLOCK_SIZE)
        self.scheduler = Scheduler(
            self.pool,
            max_running=config.max_running,
            max_batch_tokens=max(config.max_batch_tokens, config.max_running),
            speculative_tokens=config.speculative_tokens,
        )
        cache = make_cache(
            base.config,
            config.kv_cache_tokens,
            base.executor.cache_dtype,
            base.device,
            hidden_dtype=base.executor.dtype,
        )
        self._runner = ModelRunner(base.executor, cache, base.device)
        self._tokenizer = base.tokenizer
        self._switch_length = base.config.rope.switch_length
        self._registry = registry
        self._answers: dict[Sequence, Answer] = {}
        self._inbox: deque[Answer] = deque()
        self._announcements = Announcements()
        self._wake = threading.Condition()
        self._draining = False
        self._stopping = False
        self._failure: Exception | None = None
        self._last_look = time.monotonic()  # at the answers' readers
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    @property
    def is_healthy(self) -> bool:
        """The thread runs and no step has failed."""
        return self._thread.is_alive() and self._failure is None

    @property
    def num_unfinished(self) -> int:
        """Requests that were accepted and have not ended."""
        return len(self._answers) + len(self._inbox)

    @property
    def kv_cache_usage(self) -> KVCacheUsage:
        """How the memory is used, at this moment; any thread."""
        pool, counters = self.pool, self.scheduler.counters
        return KVCacheUsage(
            total_tokens=pool.num_blocks * BLOCK_SIZE,
            free_tokens=pool.num_free * BLOCK_SIZE,
            shareable_tokens=pool.num_published * BLOCK_SIZE,
            running_requests=self.scheduler.num_running,
            waiting_requests=len(self._inbox) + self.scheduler.num_waiting,
            prompt_tokens=counters.prompt_tokens,
            cached_prompt_tokens=counters.cached_prompt_tokens,
            evicted_tokens=pool.num_evictions * BLOCK_SIZE,
            preemptions=counters.preemptions,
        )

    def submit(self, request: GenerationRequest, on_ready: Callable[[], None]) -> OutputStream:
        """Accept a request; any thread. From here on it ends with Finished or Failed, unless it is cancelled.

        Args:
            request: what to run.
            on_ready: called in the engine's thread whenever the stream has something to take; must not block.

        Raises:
            Draining, EngineStopped: nothing is accepted any more.
            PromptTooLong, InvalidRequest, RequestTooLarge: it can never run.
            QueueFull: it cannot run now.
            AdapterNotFound, AdapterWrongKind: its adapters cannot be had.
        """
        self._check_accepting()
        num_prompt = len(request.prompt_token_ids)
        if num_prompt == 0:
            raise InvalidRequest("prompt", "the prompt has no tokens: send at least one")
        if num_prompt >= self.context_length:
            raise PromptTooLong(
                "prompt",
                f"the prompt has {num_prompt} tokens and the context holds {self.context_length}: "
                f"send at most {self.context_length - 1}",
                prompt_tokens=str(num_prompt),
                context_length=str(self.context_length),
            )
        if len(self._inbox) + self.scheduler.num_waiting >= self.config.max_waiting:
            raise QueueFull(f"{self.config.max_waiting} requests are waiting, the most allowed: try again later")
        stopping = request.stopping
        max_tokens = DEFAULT_MAX_TOKENS if stopping.max_tokens is None else stopping.max_tokens
        room = self.context_length - num_prompt
        lease = self._registry.lease(request.selection)
        try:
            mixture = request.mixture_of(lease.mixture, lease.applied)
        except InvalidRequest:
            lease.release()
            raise
        sequence = self._sequence(request, mixture, num_prompt + min(max_tokens, room))
        if (needed := self.scheduler.blocks_needed(sequence)) > self.pool.num_blocks:
            lease.release()
            raise RequestTooLarge(
                f"the request needs {needed * BLOCK_SIZE} cache tokens and there are "
                f"{self.pool.num_blocks * BLOCK_SIZE}: ask for fewer new tokens, or raise --kv-cache-tokens"
            )
        seed = None if request.sampling.is_greedy else request.sampling.seed
        if seed is None and not request.sampling.is_greedy:
            seed = random.getrandbits(63)
        stream = OutputStream(request.request_id, on_ready)
        is_capped = room < max_tokens
        answer = Answer(
            request, sequence, lease, mixture, stream, self._tokenizer, seed, is_capped_by_context=is_capped
        )
        with self._wake:
            try:
                # Again, under the lock: what is appended after the thread has ended would never be answered.
                self._check_accepting()
            except Unavailable:
                lease.release()
                raise
            stream.put(Started(request.request_id, num_prompt, lease.applied, seed))
            self._inbox.append(answer)
            self._wake.notify()
        stream.announce()
        return stream

    def _sequence(self, request: GenerationRequest, mixture: Mixture, max_total_tokens: int) -> Sequence:
        xlora, response, is_shared = mixture.xlora, request.response, self.config.prefix_caching
        separates_prompts = self._runner.executor.separates_prompts
        scaling_identity: str | None = None
        if xlora is not None:
            scaling_identity = xlora.scaling_cache_identity(separates_prompts=separates_prompts)
        return Sequence(
            request.request_id,
            list(request.prompt_token_ids),
            len(request.prompt_token_ids),
            max_total_tokens,
            needs_scaling_pass=xlora is not None,
            granularity=request.xlora.granularity or self.config.granularity,
            reports_positions=response.prompt_logprobs is not None
            or (xlora is not None and response.scalings is not ScalingsDetail.NONE),
            blocks=BlockTable(mixture.cache_identity if is_shared else None),
            scaling_blocks=BlockTable(scaling_identity if is_shared else None),
            switch_length=self._switch_length,
            separates_prompts=separates_prompts,
        )

    def _check_accepting(self) -> None:
        if self._draining and self._failure is None:
            raise Draining("the service is shutting down and takes no new requests: send it to another one")
        if not self.is_healthy:
            raise EngineStopped(f"the engine does not run ({self._failure or 'not started'}): restart the service")

    def drain(self, timeout_seconds: float) -> bool:
        """Refuse new requests and wait for the running ones; False if some were still running at the end."""
        self._draining = True
        deadline = time.monotonic() + timeout_seconds
        while self.num_unfinished and self.is_healthy and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.num_unfinished == 0

    def stop(self) -> None:
        """End the thread; requests that are still running fail with Draining."""
        with self._wake:
            self._draining = self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def check_integrity(self) -> None:
        """No request is left over and every block is back; for tests, when idle."""
        assert not self._answers
        assert not self._inbox
        self.pool.check_integrity()
        assert self.pool.num_free == self.pool.num_blocks

    def _loop(self) -> None:
        try:
            while self._wait_for_work():
                self.step()
            self._end_all(Draining("the service is shutting down: send the request to another one"))
        except Exception as error:
            # One bad step leaves the cache in an unknown state: everybody is told, and health turns.
            log.exception("engine.failed")
            self._end_all(EngineStopped("the engine failed while it ran this request: restart the service"), error)

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or self._inbox or self.scheduler.has_work)
        return not self._stopping

    def step(self) -> None:
        """Run one step of the whole batch."""
        self._take_in()
        scheduled = self.scheduler.schedule()
        if not scheduled:
            self._announcements.announce_all()
            return
        num_decoding_rows = sum(1 + item.num_drafted for item in scheduled if item.sequence.is_decoding)
        num_prompt_tokens = sum(item.num_rows for item in scheduled if not item.sequence.is_decoding)
        if num_prompt_tokens:
            self._announcements.announce_all()
        began = time.perf_counter()
        results = self._runner.run([self._row_request(item) for item in scheduled])
        for item, result in zip(scheduled, results, strict=True):
            self._advance(item, result)
        seconds = time.perf_counter() - began
        self._observer.stepped(len(scheduled), sum(item.num_rows for item in scheduled), seconds)
        self.scheduler.pace.note(num_decoding_rows, num_prompt_tokens, seconds)
        if num_prompt_tokens:
            self._announcements.announce_all()
        else:
            self._announcements.after_step(seconds)

    def _take_in(self) -> None:
        """Admit what has arrived; drop what nobody reads any more."""
        self._empty_inbox()
        now, before = time.monotonic(), self._last_look
        self._last_look = now
        earliest = now - self.config.slow_reader_seconds
        for answer in list(self._answers.values()):
            stream = answer.stream
            if now - before > STANDSTILL_SECONDS:
                stream.excuse_reader()
            if stream.is_cancelled:
                self._end(answer)
            elif stream.pending_since is not None and stream.pending_since < earliest:
                self._end(answer, ReaderTooSlow(f"nothing was read for {self.config.slow_reader_seconds:g} seconds"))

    def _empty_inbox(self) -> None:
        while self._inbox:
            answer = self._inbox[0]
            self._answers[answer.sequence] = answer
            self.scheduler.add(answer.sequence)
            self._inbox.popleft()  # last, so that at no moment the request counts nowhere

    def _row_request(self, item: ScheduledSequence) -> RowRequest:
        answer = self._answers[item.sequence]
        return RowRequest(item, answer.mixture, answer.wants_prompt_logits, answer.freezer.frozen)

    def _advance(self, item: ScheduledSequence, result: RowResult) -> None:
        answer, first_position = self._answers[item.sequence], item.first_position
        num_known = item.num_tokens - item.num_drafted
        if answer.wants_scalings and result.scalings is not None:
            answer.add_scalings(first_position, result.scalings[:num_known])
        if answer.wants_prompt_logits and result.logits is not None:
            answer.add_prompt_logits(first_position, result.logits)
        num_new, is_complete = self._choose(answer, item, result) if item.reaches_end else (0, False)
        num_wrong = item.num_drafted - max(0, num_new - 1)
        self.scheduler.advance(item, num_wrong)
        scalings = None if result.scalings is None else result.scalings[: item.num_tokens - num_wrong]
        if scalings is not None and answer.freezer.freezes(first_position, scalings):
            self.scheduler.release_scaling_blocks(item.sequence)
        if is_complete:
            self._end(answer)

    def _choose(self, answer: Answer, item: ScheduledSequence, result: RowResult) -> tuple[int, bool]:
        """Choose the next token and, as long as what was drafted is what is chosen, those after it.

        Each is chosen from the logits that it would have been chosen from without a draft, so drafts change no answer.
        Returns how many tokens the answer has got, and whether it is complete.
        """
        assert result.logits is not None
        drafted = item.token_ids(item.positions)[item.num_tokens - item.num_drafted :]
        rows = result.logits[len(result.logits) - 1 - len(drafted) :]
        num_new, is_complete = 0, False
        for logits in rows:
            is_complete = answer.choose_next(logits)
            num_new += 1
            if is_complete or num_new > len(drafted) or item.sequence.token_ids[-1] != drafted[num_new - 1]:
                break
            if answer.wants_scalings and result.scalings is not None:  # the next token's row is one of the answer now
                row = item.num_tokens - len(drafted) + num_new - 1
                answer.add_scalings(item.first_position + row, result.scalings[row : row + 1])
        self._note_tokens(answer, num_new)
        self._announcements.add(answer.stream, can_wait=not is_complete)
        return num_new, is_complete

    def _note_tokens(self, answer: Answer, count: int) -> None:
        now, before = time.perf_counter(), answer.last_token
        answer.last_token = now
        if before is None:
            self._observer.first_token(now - answer.arrived)
            return
        for _ in range(count):
            self._observer.next_token((now - before) / count)

    def _end(self, answer: Answer, error: InferenceError | None = None) -> None:
        self.scheduler.remove(answer.sequence)
        del self._answers[answer.sequence]
        answer.lease.release()
        self._observer.ended(answer.kind, answer.outcome(error), time.perf_counter() - answer.arrived)
        if error is not None:
            answer.stream.put(Failed(error))
            answer.stream.announce()

    def _end_all(self, error: InferenceError, failure: Exception | None = None) -> None:
        with self._wake:
            self._draining = True
            self._failure = failure
            self._empty_inbox()
        self._announcements.announce_all()  # some answers may have ended before the step failed
        for answer in list(self._answers.values()):
            self._end(answer, error)
