"""What the service counts and measures, as Prometheus reads it. No label names a client, a request or an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

if TYPE_CHECKING:  # types only: what stands behind them brings torch along
    from inference_svc.adapters.registry import AdapterRegistry
    from inference_svc.engine.engine import Engine

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_POWERS = tuple(2.0**power for power in range(13))


class EngineMetrics(Collector):
    """An observer of the engine, and a reader of its state whenever somebody asks."""

    def __init__(self) -> None:
        own = self._own = CollectorRegistry()
        self._requests = Counter(
            "loramux_requests",
            "Accepted requests that are over, by what they ran with (base, lora, xlora) and how they ended.",
            ["adapters", "outcome"],
            registry=own,
        )
        self._tokens = Counter("loramux_completion_tokens", "Tokens generated.", registry=own)
        self._first_token = Histogram(
            "loramux_time_to_first_token_seconds", "From arrival to the first token.", buckets=_LONG, registry=own
        )
        self._next_token = Histogram(
            "loramux_inter_token_seconds", "From one token of an answer to the next.", buckets=_SHORT, registry=own
        )
        self._request_seconds = Histogram(
            "loramux_request_seconds", "From arrival to the end, however it came.", buckets=_LONG, registry=own
        )
        self._step_seconds = Histogram(
            "loramux_step_seconds", "One step of the whole batch.", buckets=_SHORT, registry=own
        )
        self._step_rows = Histogram(
            "loramux_step_rows", "Rows of a step, in its larger pass.", buckets=_POWERS, registry=own
        )
        self._step_sequences = Histogram(
            "loramux_step_sequences", "Requests that a step computes.", buckets=_POWERS[:10], registry=own
        )
        self._watched: tuple[Engine, AdapterRegistry] | None = None

    def watch(self, engine: Engine, adapters: AdapterRegistry) -> None:
        """Read the state of these when asked."""
        self._watched = engine, adapters

    def stepped(self, num_sequences: int, num_rows: int, seconds: float) -> None:
        """A step is done."""
        self._step_seconds.observe(seconds)
        self._step_rows.observe(num_rows)
        self._step_sequences.observe(num_sequences)

    def first_token(self, seconds: float) -> None:
        """An answer has its first token."""
        self._tokens.inc()
        self._first_token.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """An answer has another token."""
        self._tokens.inc()
        self._next_token.observe(seconds)

    def ended(self, adapters: str, outcome: str, seconds: float) -> None:
        """An accepted request is over."""
        self._requests.labels(adapters, outcome).inc()
        self._request_seconds.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Everything."""
        yield from self._own.collect()
        if self._watched is not None:
            yield from _engine_state(self._watched[0])
            yield from _adapter_state(self._watched[1])


def _engine_state(engine: Engine) -> Iterator[Metric]:
    usage, counters = engine.kv_cache_usage, engine.scheduler.counters
    yield _gauge("loramux_engine_healthy", "1 while the engine runs, 0 once it has failed.", float(engine.is_healthy))
    yield _gauge("loramux_requests_running", "Requests that hold memory.", usage.running_requests)
    yield _gauge("loramux_requests_waiting", "Requests in the queue.", usage.waiting_requests)
    memory = GaugeMetricFamily(
        "loramux_kv_cache_tokens",
        "Room for keys and values: total; free, of which shareable still holds prefixes that can be found.",
        labels=["state"],
    )
    memory.add_metric(["total"], usage.total_tokens)
    memory.add_metric(["free"], usage.free_tokens)
    memory.add_metric(["shareable"], usage.shareable_tokens)
    yield memory
    for name, help_text, value in (
        ("loramux_prompt_tokens", "Prompt tokens of requests that were admitted.", usage.prompt_tokens),
        ("loramux_cached_prompt_tokens", "Those of them found in the prefix cache.", usage.cached_prompt_tokens),
        ("loramux_kv_cache_evicted_tokens", "Tokens of cached prefixes that had to go.", usage.evicted_tokens),
        ("loramux_drafted_tokens", "Tokens looked up in a request's own text and checked.", counters.drafted_tokens),
        ("loramux_accepted_draft_tokens", "Those of them that were right.", counters.accepted_tokens),
        ("loramux_preemptions", "Requests that gave their memory back for an older one.", usage.preemptions),
    ):
        yield CounterMetricFamily(name, help_text, value)


def _adapter_state(adapters: AdapterRegistry) -> Iterator[Metric]:
    held = GaugeMetricFamily(
        "loramux_adapters", "Adapters in memory: resident, or retired and still in use by a request.", labels=["state"]
    )
    held.add_metric(["resident"], adapters.resident_versions)
    held.add_metric(["retired"], adapters.retired_versions)
    yield held
    yield _gauge("loramux_adapter_bytes", "Bytes of all of them.", adapters.held_bytes)
    events = CounterMetricFamily(
        "loramux_adapter_events", "Changes of what is resident or active, by kind.", labels=["event"]
    )
    for kind, count in adapters.event_counts.items():
        events.add_metric([kind.value], count)
    yield events


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value)
