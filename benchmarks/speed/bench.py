"""Everything that rows share: the profile, the inputs, and contenders, which start when a row first needs them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from benchmarks.inputs.files import Inputs
from benchmarks.inputs.prompts import Prompts
from benchmarks.peers.installations import PeerMissing, llama_cpp_binaries, python_of
from benchmarks.speed.child import Child
from benchmarks.speed.llamacpp_server import LlamaCppServer
from benchmarks.speed.loramux_server import MIXTURE, LoramuxServer, lora_name
from benchmarks.speed.profiles import Profile
from benchmarks.speed.service_process import ServiceProcess
from benchmarks.speed.workload import BASE, Choice, Stream
from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.weights.gguf import GgufFile
from loramux.client import AdapterKind, Client

# Who looks tokens up in the text to check several at once. By default we do and peers do not.
Drafts = Literal["ours", "none", "both"]
DRAFT_TOKENS = 3
RESIDENT = 512  # adapters of rank RESIDENT_RANK
RESIDENT_RANK = 8


class _Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class Bench:
    """Contenders by what they were started for; closing it ends all of them."""

    def __init__(
        self,
        profile: Profile,
        inputs: Inputs,
        peers: Path,
        chosen: Sequence[str],
        output: Path,
        rounds: int,
        drafts: Drafts = "ours",
    ) -> None:
        self.profile = profile
        self.drafts = drafts
        self.inputs = inputs
        self.rounds = rounds
        self.output = output
        self.chosen = frozenset(chosen)
        self.prompts = Prompts(self._count_tokens)
        self._peers = peers
        self._tokenizer = tokenizer_from_gguf(GgufFile.open(inputs.model))
        self._running: dict[str, _Closable] = {}
        self.problems: list[str] = []  # why peers take no part
        self._failed: set[str] = set()
        self._exit = ExitStack()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def streams(self, choices: Sequence[Choice]) -> list[Stream]:
        """A crowd of streams, one for each choice, with prompts that nobody has seen."""
        lengths, answers = self.profile.crowd_prompt_tokens, self.profile.crowd_new_tokens
        return [
            Stream(self.prompts.next(lengths[i % len(lengths)]), answers[i % len(answers)], choice)
            for i, choice in enumerate(choices)
        ]

    def single(self, choice: Choice = BASE) -> list[Stream]:
        """One stream alone."""
        return [Stream(self.prompts.next(self.profile.prompt_tokens), self.profile.new_tokens, choice)]

    @property
    def lora_choices(self) -> list[Choice]:
        """Another LoRA adapter for each stream of a crowd."""
        return [Choice("lora", index) for index in range(self.profile.streams)]

    def loramux(self) -> LoramuxServer:
        """With all LoRA adapters and the mixture resident."""
        return self._started("loramux", lambda: self._with_adapters(self.start_loramux("loramux")))

    def bare_loramux(self) -> LoramuxServer:
        """Without any adapter."""
        return self._started("bare", lambda: self.start_loramux("bare"))

    def invariant_loramux(self) -> LoramuxServer:
        """In the batch-invariant mode."""
        return self._started(
            "invariant", lambda: self._with_adapters(self.start_loramux("invariant", "--batch-invariant"))
        )

    def crowded_loramux(self, resident: int) -> LoramuxServer:
        """With so many adapters of rank RESIDENT_RANK."""

        key = f"resident-{resident}"
        folders = self.inputs.loras((RESIDENT_RANK,), resident)
        return self._started(
            key, lambda: self._filled(self.start_loramux(key, "--max-adapters", str(resident)), folders)
        )

    def large_loramux(self) -> LoramuxServer:
        """With the model of 1.1 billion weights."""
        return self._started("large", lambda: self.start_loramux("large", model=self.inputs.large_model))

    def start_loramux(self, name: str, *flags: str, model: Path | None = None) -> LoramuxServer:
        """A server that the caller closes."""
        roots = ("--adapter-root", str(self.inputs.folder), "--ordering-address", self._orderings().address)
        drafts = ("--speculative-tokens", "0") if self.drafts == "none" else ()
        return LoramuxServer(model or self.inputs.model, self.output / name, *roots, *drafts, *flags)

    def llama_cpp(self) -> LlamaCppServer | None:
        """With all LoRA adapters loaded; None if the peer is not asked for."""
        profile = self.profile
        return self._peer(
            "llama.cpp",
            "llama.cpp",
            lambda: LlamaCppServer(
                llama_cpp_binaries(self._peers),
                self.inputs.model,
                self.inputs.gguf_loras(profile.ranks, profile.streams),
                self.output / "llama.cpp.log",
                slots=profile.streams,
                slot_tokens=-(-profile.slot_tokens // 256) * 256,
                draft_tokens=DRAFT_TOKENS if self.drafts == "both" else 0,
            ),
        )

    def large_llama_cpp(self) -> LlamaCppServer | None:
        """With the model of 1.1 billion weights."""
        return self._peer(
            "llama.cpp",
            "large llama.cpp",
            lambda: LlamaCppServer(
                llama_cpp_binaries(self._peers),
                self.inputs.large_model,
                [],
                self.output / "large-llama.cpp.log",
                slots=1,
                slot_tokens=1024,
                draft_tokens=DRAFT_TOKENS if self.drafts == "both" else 0,
            ),
        )

    def mistralrs(self) -> Child | None:
        """With the mixture."""

        def start() -> Child:
            files = self.inputs.xlora(self.profile.xlora_rank, self.profile.experts)
            arguments = [self.inputs.model, self.inputs.untied, files.flat, files.xlora_ordering, "xlora"]
            return Child(
                "mistral.rs",
                python_of(self._peers, "mistralrs"),
                "mistralrs_xlora.py",
                [str(argument) for argument in arguments],
                self.output / "mistralrs.log",
                may_stop_early=True,  # it cannot be told to go on after the end of the text
            )

        return self._peer("mistralrs", "mistralrs", start)

    def vllm(self) -> Child | None:
        """With all LoRA adapters."""

        def start() -> Child:
            profile = self.profile
            folder = self.inputs.loras(profile.ranks, profile.streams)[0].parent
            numbers = (max(8, *profile.ranks), profile.streams, profile.slot_tokens + 64)
            return Child(
                "vLLM",
                python_of(self._peers, "vllm"),
                "vllm_loras.py",
                [str(self.inputs.dequantized), str(folder), *map(str, numbers)],
                self.output / "vllm.log",
                environment={"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
            )

        return self._peer("vllm", "vllm", start)

    def peft_xlora(self) -> Child | None:
        """PEFT's X-LoRA."""

        def start() -> Child:
            experts = self.inputs.xlora(self.profile.xlora_rank, self.profile.experts).experts
            return Child(
                "PEFT",
                Path(sys.executable),
                "transformers_peft.py",
                [str(self.inputs.dequantized), str(self.inputs.config.hidden_size), *map(str, experts)],
                self.output / "peft.log",
            )

        return self._peer("peft", "peft", start)

    def _with_adapters(self, server: LoramuxServer) -> LoramuxServer:
        return self._filled(server, self.inputs.loras(self.profile.ranks, self.profile.streams), MIXTURE)

    def _filled(self, server: LoramuxServer, folders: Sequence[Path], *orderings: str) -> LoramuxServer:
        """The server with these adapters; without them it is closed."""
        try:
            server.load_adapters({lora_name(number): folder for number, folder in enumerate(folders)})
            for ordering in orderings:
                server.apply_ordering(ordering)
        except BaseException:
            server.close()
            raise
        return server

    def _orderings(self) -> ServiceProcess:
        """The ordering service, with the mixture's ordering."""

        def start() -> ServiceProcess:
            folder = self.output / "orderings"
            shutil.rmtree(folder, ignore_errors=True)
            service = ServiceProcess("ordering_svc", folder)
            files = self.inputs.xlora(self.profile.xlora_rank, self.profile.experts)
            with Client(service.address, ordering=service.address) as client:
                client.orderings.import_file(
                    files.xlora_ordering, MIXTURE, kind=AdapterKind.XLORA, adapter_model_id=str(files.folder)
                )
            return service

        return self._started("orderings", start)

    def _peer(self, peer: str, key: str, start: Callable[[], C]) -> C | None:
        """None if the peer is not asked for, or cannot be started: the rows go on without it."""
        if peer not in self.chosen or key in self._failed:
            return None
        try:
            return self._started(key, start)
        except (PeerMissing, RuntimeError) as error:
            self._failed.add(key)
            self.problems.append(f"{key}: {error}")
            return None

    def _started(self, key: str, start: Callable[[], C]) -> C:
        if key not in self._running:
            contender = start()
            self._exit.callback(contender.close)
            self._running[key] = contender
        return self._running[key]  # type: ignore[return-value]  # what `start` gave for this key

    def _count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text))
