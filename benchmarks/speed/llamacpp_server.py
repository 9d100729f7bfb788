"""llama.cpp's server as a contender: all adapters loaded, each request selecting its own.

Times are the server's own, which leave HTTP out, and its answers come whole, not streamed: both in its favour.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.free_port import free_port
from benchmarks.speed.workload import Run, Stream, Timing, WrongAnswer, checked

START_SECONDS = 300.0


class LlamaCppServer:
    """A server process; closing it ends it."""

    def __init__(
        self,
        binaries: Path,
        model: Path,
        adapters: Sequence[Path],
        log: Path,
        *,
        slots: int,
        slot_tokens: int,
        draft_tokens: int = 0,
    ) -> None:
        """Start the process and wait until it is ready; `draft_tokens` it looks up in the text, as we do (0: none).

        Raises:
            RuntimeError: it ended, or was not ready in time.
        """
        self.name = "llama.cpp"
        self._num_adapters = len(adapters)
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        program = [str(binaries / "llama-server"), "-m", str(model), "-t", str(os.cpu_count())]
        program += ["--host", "127.0.0.1", "--port", str(port), "-np", str(slots), "-c", str(slots * slot_tokens)]
        if adapters:
            program += ["--lora-init-without-apply", "--lora", ",".join(map(str, adapters))]
        if draft_tokens:
            program += ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "2"]
            program += ["--spec-ngram-simple-size-m", str(draft_tokens)]
        environment = os.environ | {"LD_LIBRARY_PATH": str(binaries)}
        began = time.perf_counter()
        with log.open("wb") as file:
            self.process = subprocess.Popen(program, stdout=file, stderr=file, env=environment)
        while not self._is_ready():
            if self.process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                self.process.kill()
                raise RuntimeError(f"llama.cpp's server did not become ready: see {log}")
            time.sleep(0.05)

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()

    def run(self, streams: Sequence[Stream]) -> Run:
        """Answer all streams at once. Raises WrongAnswer."""
        answers: dict[int, dict[str, Any]] = {}

        def ask(number: int) -> None:
            answers[number] = self._complete(streams[number])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(streams))]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        if len(answers) < len(streams):
            raise WrongAnswer("llama.cpp's server refused a request: see its log")
        return checked(self.name, streams, Run(tuple(_timing(answers[i]) for i in range(len(streams))), seconds))

    def _complete(self, stream: Stream) -> dict[str, Any]:
        choice = stream.choice
        if choice.kind not in ("base", "lora"):
            raise WrongAnswer(f"llama.cpp's server has no {choice.kind}")
        chosen = choice.index if choice.kind == "lora" else None
        body = {
            "prompt": stream.prompt,
            "n_predict": stream.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "lora": [{"id": number, "scale": float(number == chosen)} for number in range(self._num_adapters)],
        }
        request = urllib.request.Request(
            f"{self._url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            answer: dict[str, Any] = json.load(response)
            return answer

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/health", timeout=5):
                return True
        except OSError:
            return False


def _timing(answer: dict[str, Any]) -> Timing:
    timings = answer["timings"]
    first = timings["prompt_ms"] / 1000
    return Timing(timings["prompt_n"], timings["predicted_n"], first, first + timings["predicted_ms"] / 1000)
