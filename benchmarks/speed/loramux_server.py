"""Loramux as its users meet it: the real server process, asked over its public gRPC stream.

The stream is read raw: messages are kept as bytes with the moment they came, and decoded after the run, so that the
client takes as little of the processor as a client on another machine would.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil

from benchmarks.speed.free_port import free_port
from benchmarks.speed.service_process import ServiceProcess
from benchmarks.speed.workload import Choice, Run, Stream, Timing, WrongAnswer, checked
from loramux.client import Client, Model
from loramux.inference.v1 import adapter_pb2, generation_pb2

GENERATE = "/loramux.inference.v1.InferenceService/Generate"
MIXTURE = "mixture"
MAX_MESSAGE_BYTES = 2**26


@dataclass(slots=True)
class Answer:
    """The raw messages of one stream, with the seconds at which they came."""

    stream: Stream
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)

    def token_times(self) -> list[float]:
        """The moment of each token.

        Raises:
            WrongAnswer: other adapters than asked for, or an early end.
        """
        times: list[float] = []
        finished: generation_pb2.Finished | None = None
        for moment, message in self.arrivals:
            event = generation_pb2.GenerateResponse.FromString(message)
            times += [moment] * len(event.output.tokens)
            if event.HasField("finished"):
                finished = event.finished
        if finished is None or finished.usage.completion_tokens != len(times):
            raise WrongAnswer("loramux ended an answer early")
        applied, wanted = len(finished.adapters), {"base": 0, "pair": 2}.get(self.stream.choice.kind, 1)
        if applied != wanted:
            raise WrongAnswer(f"loramux applied {applied} adapters, not {wanted}")
        if finished.usage.cached_prompt_tokens:
            raise WrongAnswer("loramux had the prompt in its cache: give it one that it has not seen")
        return times

    def timing(self, origin: float) -> Timing:
        """What the stream took since the origin. Raises WrongAnswer."""
        times = self.token_times()
        prompt_tokens = generation_pb2.GenerateResponse.FromString(self.arrivals[-1][1]).finished.usage.prompt_tokens
        return Timing(prompt_tokens, len(times), times[0] - origin, times[-1] - origin)


class LoramuxServer:
    """A server process and a channel to it; closing it ends both."""

    def __init__(self, model: Path, folder: Path, *flags: str) -> None:
        """Start the process and wait until it is ready; its data and log lie in the folder.

        Raises:
            RuntimeError: it ended, or was not ready in time.
        """
        self.name = "loramux"
        self._metrics = f"http://127.0.0.1:{(port := free_port())}/metrics"
        flags = ("--model", str(model), "--metrics-port", str(port), *flags)
        self._service = ServiceProcess("inference_svc", folder, *flags)
        self.seconds_to_ready = self._service.seconds_to_ready
        self._runner = asyncio.Runner()
        self._channel = self._runner.run(self._connect())

    def close(self) -> None:
        """End the process."""
        self._runner.run(self._channel.close())
        self._runner.close()
        self._service.close()

    def load_adapters(self, folders: dict[str, Path]) -> None:
        """Make adapters resident under these names."""
        with Client(self._service.address) as client:
            for name, folder in folders.items():
                client.adapters.load(name, str(folder))

    def apply_ordering(self, ordering: str) -> None:
        """Make resident what an ordering names."""
        with Client(self._service.address) as client:
            client.apply_ordering(ordering, activate=False)

    def model(self) -> Model:
        """What the server says of itself."""
        with Client(self._service.address) as client:
            return client.model()

    def resident_bytes(self) -> int:
        """Memory of the process."""
        return int(psutil.Process(self._service.pid).memory_info().rss)

    def num_steps(self) -> int:
        """How many steps the server has run."""
        with urllib.request.urlopen(self._metrics, timeout=10) as response:
            lines = response.read().decode().splitlines()
        return int(float(next(line for line in lines if line.startswith("loramux_step_seconds_count")).split()[1]))

    def run(self, streams: Sequence[Stream]) -> Run:
        """Answer all streams at once. Raises WrongAnswer."""
        answers = [Answer(stream) for stream in streams]
        requests = [request_for(stream) for stream in streams]

        async def all_at_once(_: object) -> tuple[float, float]:
            origin = time.perf_counter()
            await asyncio.gather(*map(self.collect, answers, requests))
            return origin, time.perf_counter()

        origin, end = self.in_loop(all_at_once)
        run = Run(tuple(answer.timing(origin) for answer in answers), end - origin)
        return checked(self.name, streams, run)

    def in_loop(self, work: Callable[[LoramuxServer], Awaitable[Any]]) -> Any:
        """Run a coroutine function in the event loop of the channel."""

        async def run() -> Any:
            return await work(self)

        return self._runner.run(run())

    async def collect(self, answer: Answer, request: bytes) -> None:
        """Fill an answer with its messages until it ends."""
        invoke: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
        invoke = self._channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)
        call = invoke(request)
        while isinstance(message := await call.read(), bytes):
            answer.arrivals.append((time.perf_counter(), message))

    async def _connect(self) -> grpc.aio.Channel:
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        channel = grpc.aio.insecure_channel(self._service.address, options=options)
        await channel.channel_ready()
        return channel


def request_for(stream: Stream) -> bytes:
    """The message that asks for a stream."""
    request = generation_pb2.GenerateRequest(
        prompt=generation_pb2.Prompt(text=stream.prompt),
        adapters=selection_of(stream.choice),
        sampling=generation_pb2.Sampling(temperature=0.0),
        stopping=generation_pb2.Stopping(max_tokens=stream.new_tokens, ignore_eos=True),
    )
    if stream.choice.kind == "frozen xlora":
        request.xlora.granularity.frozen_after = 0
    return request.SerializeToString()


def selection_of(choice: Choice) -> adapter_pb2.AdapterSelection:
    """The adapters of a choice as the contract says it."""
    match choice.kind:
        case "base":
            return adapter_pb2.AdapterSelection(base=adapter_pb2.BaseModel())
        case "lora":
            adapters = [adapter_pb2.WeightedAdapter(name=lora_name(choice.index))]
        case "pair":
            names = (lora_name(choice.index), lora_name(choice.index + 1))
            adapters = [adapter_pb2.WeightedAdapter(name=name, weight=0.5) for name in names]
        case _:
            return adapter_pb2.AdapterSelection(xlora=adapter_pb2.XLoraSelection(name=MIXTURE))
    return adapter_pb2.AdapterSelection(loras=adapter_pb2.WeightedAdapters(adapters=adapters))


def lora_name(index: int) -> str:
    """What LoRA adapter number `index` is called."""
    return f"a{index}"
