"""Both services in this process, small and predictable: what the client and the command line are tested against."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from loramux.inference.v1 import (
    adapter_pb2,
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    generation_pb2,
    inference_service_pb2,
    inference_service_pb2_grpc,
)
from loramux.ordering.v1 import ordering_pb2, ordering_service_pb2, ordering_service_pb2_grpc
from tests.clients.fake_history import FakeHistory
from tests.clients.refusals import refuse

EXPERTS = ("pirate", "json", "verse")
LAYERS = 5


def words_of(prompt: generation_pb2.Prompt) -> list[str]:
    """The fake tokenizer: one token a word; ids are 100 + the length of the word."""
    if prompt.WhichOneof("prompt") == "text":
        return prompt.text.split()
    if prompt.WhichOneof("prompt") == "chat":
        return [word for message in prompt.chat.messages for word in message.content.split()]
    return [f"<{token}>" for token in prompt.token_ids.ids]


def token_id(word: str) -> int:
    """The id of a word."""
    return 100 + len(word)


def fake_scalings(tokens: int, layers: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Distinct values [tokens, layers, experts], so that a mixed-up axis shows."""
    shape = (tokens, layers, len(EXPERTS))
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@dataclass
class FakeInference(
    inference_service_pb2_grpc.InferenceServiceServicer, adapter_service_pb2_grpc.AdapterServiceServicer
):
    """Answers every prompt with its words in reverse order. The prompt `forever` never ends by itself."""

    requests: list[generation_pb2.GenerateRequest] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    active: adapter_pb2.ActiveAdapters = field(
        default_factory=lambda: adapter_pb2.ActiveAdapters(
            selection=adapter_pb2.AdapterSelection(base=adapter_pb2.BaseModel())
        )
    )
    adapters: dict[str, adapter_pb2.Adapter] = field(default_factory=dict)
    unavailable: int = 0
    delay_s: float = 0.0
    script: list[generation_pb2.GenerateResponse] | None = None

    def Generate(  # noqa: N802
        self, request: generation_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[generation_pb2.GenerateResponse]:
        self.requests.append(request)
        if self.script is not None:
            yield from self.script
            return
        words = words_of(request.prompt)
        applied = self._applied(request.adapters, context)
        context.add_callback(self.ended.set)
        yield generation_pb2.GenerateResponse(
            started=generation_pb2.Started(
                request_id=request.request_id or "made-1", prompt_tokens=len(words), adapters=applied, seed=7
            )
        )
        while words == ["forever"] and context.is_active():
            time.sleep(0.005)
            yield generation_pb2.GenerateResponse(output=generation_pb2.Output(text="on and "))
        answer = list(reversed(words))
        for index, word in enumerate(answer):
            output = generation_pb2.Output(text=word if index == 0 else f" {word}")
            token = output.tokens.add(id=token_id(word))
            if request.response.HasField("logprobs"):
                token.logprob = -0.5
                token.top.add(id=1, logprob=-0.25)
            if index == 0 and request.response.HasField("prompt_logprobs"):
                output.prompt_tokens.add(id=token_id(words[0]), logprob=-1.0)
            self._scale(request, output, index, len(words))
            yield generation_pb2.GenerateResponse(output=output)
        yield generation_pb2.GenerateResponse(
            finished=generation_pb2.Finished(
                reason=generation_pb2.FINISH_REASON_EOS,
                usage=generation_pb2.Usage(
                    prompt_tokens=len(words), completion_tokens=len(answer), cached_prompt_tokens=len(words) - 1
                ),
                adapters=applied,
            )
        )

    def _scale(
        self, request: generation_pb2.GenerateRequest, output: generation_pb2.Output, index: int, prompt: int
    ) -> None:
        detail = request.response.scalings
        if not detail or request.adapters.WhichOneof("selection") != "xlora":
            return
        layers = 1 if detail == generation_pb2.SCALINGS_DETAIL_MEAN else LAYERS
        values = fake_scalings(2 * prompt - 1, layers)
        # As the real service: the prompt comes with the first token; the last token of an answer is never run.
        first, count = (0, prompt) if index == 0 else (prompt + index - 1, 1)
        output.scalings.add(
            first_position=first,
            num_tokens=count,
            num_layers=layers,
            num_adapters=len(EXPERTS),
            values=values[first : first + count].tobytes(),
        )

    def _applied(
        self, selection: adapter_pb2.AdapterSelection, context: grpc.ServicerContext
    ) -> list[adapter_pb2.AppliedAdapter]:
        if selection.WhichOneof("selection") == "xlora":
            return [
                adapter_pb2.AppliedAdapter(
                    name=f"adapters/{selection.xlora.name}",
                    kind=adapter_pb2.ADAPTER_KIND_XLORA,
                    digest="d1",
                    experts=EXPERTS,
                    ordering="orderings/demo@3",
                )
            ]
        for lora in selection.loras.adapters:
            if lora.name == "nobody":
                refuse(
                    context,
                    grpc.StatusCode.NOT_FOUND,
                    "no adapter 'nobody' is loaded",
                    "ADAPTER_NOT_FOUND",
                    adapter="nobody",
                )
            if lora.name == "wrong":
                violations = (("adapters[0].weight", "must be finite"), ("sampling.top_p", "must be positive"))
                refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "2 fields are wrong", "INVALID_REQUEST", violations)
        return [
            adapter_pb2.AppliedAdapter(
                name=f"adapters/{lora.name}", kind=adapter_pb2.ADAPTER_KIND_LORA, digest="d2", weight=lora.weight
            )
            for lora in selection.loras.adapters
        ]

    def Tokenize(  # noqa: N802
        self, request: inference_service_pb2.TokenizeRequest, context: grpc.ServicerContext
    ) -> inference_service_pb2.TokenizeResponse:
        answer = inference_service_pb2.TokenizeResponse(ids=map(token_id, words_of(request.prompt)))
        if request.prompt.WhichOneof("prompt") == "chat":
            answer.rendered = f"<user>{' '.join(words_of(request.prompt))}"
        return answer

    def Detokenize(  # noqa: N802
        self, request: inference_service_pb2.DetokenizeRequest, context: grpc.ServicerContext
    ) -> inference_service_pb2.DetokenizeResponse:
        return inference_service_pb2.DetokenizeResponse(text="".join(f" t{token}" for token in request.ids))

    def GetModel(  # noqa: N802
        self, request: inference_service_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> inference_service_pb2.Model:
        time.sleep(self.delay_s)
        if self.unavailable > 0:
            self.unavailable -= 1
            refuse(context, grpc.StatusCode.UNAVAILABLE, "draining", "DRAINING")
        return inference_service_pb2.Model(
            base_model_id="SmolLM2",
            architecture="llama",
            quantization="Q4_1",
            context_length=2048,
            device="cpu",
            kv_cache=inference_service_pb2.KvCacheUsage(
                total_tokens=4096, free_tokens=4000, prompt_tokens=400, cached_prompt_tokens=100, preemptions=2
            ),
        )

    def LoadAdapter(  # noqa: N802
        self, request: adapter_service_pb2.LoadAdapterRequest, context: grpc.ServicerContext
    ) -> adapter_pb2.Adapter:
        name = f"adapters/{request.adapter_id}"
        if name in self.adapters and not request.replace:
            refuse(context, grpc.StatusCode.ALREADY_EXISTS, f"{name} is taken", "ADAPTER_EXISTS")
        if request.HasField("expected_digest"):
            resident = self.GetAdapter(adapter_service_pb2.GetAdapterRequest(name=name), context)
            if resident.digest != request.expected_digest:
                refuse(context, grpc.StatusCode.ABORTED, f"{name} is another by now", "DIGEST_MISMATCH")
        if request.source.startswith("/etc"):
            refuse(context, grpc.StatusCode.PERMISSION_DENIED, "/etc is outside the allowed roots", "PATH_NOT_ALLOWED")
        self.adapters[name] = adapter_pb2.Adapter(
            name=name,
            kind=adapter_pb2.ADAPTER_KIND_LORA,
            digest="d",
            source=request.source,
            rank=4,
            size_bytes=2048,
            pinned=request.pinned,
        )
        return self.adapters[name]

    def PinAdapter(  # noqa: N802
        self, request: adapter_service_pb2.PinAdapterRequest, context: grpc.ServicerContext
    ) -> adapter_pb2.Adapter:
        self.GetAdapter(adapter_service_pb2.GetAdapterRequest(name=request.name), context).pinned = True
        return self.adapters[request.name]

    def UnpinAdapter(  # noqa: N802
        self, request: adapter_service_pb2.UnpinAdapterRequest, context: grpc.ServicerContext
    ) -> adapter_pb2.Adapter:
        self.GetAdapter(adapter_service_pb2.GetAdapterRequest(name=request.name), context).pinned = False
        return self.adapters[request.name]

    def WatchAdapters(  # noqa: N802
        self, request: adapter_service_pb2.WatchAdaptersRequest, context: grpc.ServicerContext
    ) -> Iterator[adapter_service_pb2.WatchAdaptersResponse]:
        if not request.resume_token:
            snapshot = adapter_service_pb2.AdaptersSnapshot(
                adapters=self.adapters.values(), active=self.active, generation=4
            )
            yield adapter_service_pb2.WatchAdaptersResponse(snapshot=snapshot, resume_token="s.4")
        adapter = adapter_pb2.Adapter(name="adapters/gone", kind=adapter_pb2.ADAPTER_KIND_LORA, digest="0123")
        kind = adapter_service_pb2.ADAPTER_EVENT_KIND_EVICTED
        event = adapter_service_pb2.AdapterEvent(kind=kind, generation=5, adapter=adapter)
        yield adapter_service_pb2.WatchAdaptersResponse(event=event, resume_token="s.5")
        kind = adapter_service_pb2.ADAPTER_EVENT_KIND_ACTIVATED
        event = adapter_service_pb2.AdapterEvent(kind=kind, generation=6, active=self.active)
        yield adapter_service_pb2.WatchAdaptersResponse(event=event, resume_token="s.6")

    def UnloadAdapter(  # noqa: N802
        self, request: adapter_service_pb2.UnloadAdapterRequest, context: grpc.ServicerContext
    ) -> adapter_pb2.Adapter:
        adapter = self.GetAdapter(adapter_service_pb2.GetAdapterRequest(name=request.name), context)
        del self.adapters[request.name]
        return adapter

    def GetAdapter(  # noqa: N802
        self, request: adapter_service_pb2.GetAdapterRequest, context: grpc.ServicerContext
    ) -> adapter_pb2.Adapter:
        if request.name not in self.adapters:
            refuse(context, grpc.StatusCode.NOT_FOUND, f"{request.name} is not loaded", "ADAPTER_NOT_FOUND")
        return self.adapters[request.name]

    def ListAdapters(  # noqa: N802
        self, request: adapter_service_pb2.ListAdaptersRequest, context: grpc.ServicerContext
    ) -> adapter_service_pb2.ListAdaptersResponse:
        # Pages of two, whatever is asked for, so that a client that forgets the later ones is seen.
        names = sorted(self.adapters)
        start = int(request.page_token or 0)
        token = str(start + 2) if start + 2 < len(names) else ""
        page = [self.adapters[name] for name in names[start : start + 2]]
        followed = adapter_service_pb2.FollowedOrdering(
            reference="orderings/demo@live", applied="orderings/demo@1", last_seen="orderings/demo@2", problem="unfit"
        )
        return adapter_service_pb2.ListAdaptersResponse(
            adapters=page, next_page_token=token, active=self.active, followed=[followed]
        )

    def ActivateAdapters(  # noqa: N802
        self, request: adapter_service_pb2.ActivateAdaptersRequest, context: grpc.ServicerContext
    ) -> adapter_pb2.ActiveAdapters:
        self.active = adapter_pb2.ActiveAdapters(selection=request.selection, generation=self.active.generation + 1)
        return self.active

    def ApplyOrdering(  # noqa: N802
        self, request: adapter_service_pb2.ApplyOrderingRequest, context: grpc.ServicerContext
    ) -> adapter_service_pb2.ApplyOrderingResponse:
        brought = adapter_pb2.Adapter(
            name="adapters/demo",
            kind=adapter_pb2.ADAPTER_KIND_XLORA,
            experts=EXPERTS,
            source=request.adapter_model_id,
            ordering=f"{request.ordering}@3",
        )
        if not request.skip_activation:
            selection = adapter_pb2.AdapterSelection(xlora=adapter_pb2.XLoraSelection(name="adapters/demo"))
            self.active = adapter_pb2.ActiveAdapters(selection=selection, generation=self.active.generation + 1)
        return adapter_service_pb2.ApplyOrderingResponse(
            ordering=f"{request.ordering}@3",
            adapters=[brought],
            active=self.active,
            warnings=["its classifier may choose otherwise"],
        )


@dataclass
class FakeOrdering(FakeHistory):
    """Keeps orderings in a dictionary of revisions."""

    files: dict[str, bytes] = field(default_factory=dict)

    def CreateOrdering(  # noqa: N802
        self, request: ordering_service_pb2.CreateOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_pb2.Ordering:
        self.seen.append(request)
        self.stumble(context)
        return self.add(f"orderings/{request.ordering_id}", request.ordering, ordering_pb2.CHANGE_TYPE_CREATED)

    def GetOrdering(  # noqa: N802
        self, request: ordering_service_pb2.GetOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_pb2.Ordering:
        self.seen.append(request)
        return self.find(request.name, context, request.show_deleted)

    def ListOrderings(  # noqa: N802
        self, request: ordering_service_pb2.ListOrderingsRequest, context: grpc.ServicerContext
    ) -> ordering_service_pb2.ListOrderingsResponse:
        self.seen.append(request)
        names = sorted(name for name in self.stored if request.show_deleted or not self.is_deleted(name))
        start = int(request.page_token or 0)
        token = str(start + 1) if start + 1 < len(names) else ""
        page = [self.stored[name][-1] for name in names[start : start + 1]]
        return ordering_service_pb2.ListOrderingsResponse(orderings=page, next_page_token=token)

    def ListOrderingRevisions(  # noqa: N802
        self, request: ordering_service_pb2.ListOrderingRevisionsRequest, context: grpc.ServicerContext
    ) -> ordering_service_pb2.ListOrderingRevisionsResponse:
        self.find(request.name, context, request.show_deleted)
        return ordering_service_pb2.ListOrderingRevisionsResponse(revisions=reversed(self.stored[request.name]))

    def UpdateOrdering(  # noqa: N802
        self, request: ordering_service_pb2.UpdateOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_pb2.Ordering:
        self.seen.append(request)
        changed = ordering_pb2.Ordering()
        changed.CopyFrom(self.guard(request, context))
        if request.HasField("document"):
            changed.document.CopyFrom(request.document)
        if request.HasField("description"):
            changed.description = request.description
        if request.HasField("labels"):
            changed.labels.clear()
            changed.labels.update(request.labels.labels)
        return self.add(request.name, changed, ordering_pb2.CHANGE_TYPE_UPDATED)

    def ImportOrdering(  # noqa: N802
        self, request: ordering_service_pb2.ImportOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_pb2.Ordering:
        self.seen.append(request)
        name = f"orderings/{request.ordering_id}"
        if name in self.stored and not request.allow_existing:
            refuse(context, grpc.StatusCode.ALREADY_EXISTS, f"{name} is taken", "ORDERING_EXISTS")
        content = json.loads(request.json)
        document = ordering_pb2.OrderingDocument(base_model_id=content["base_model_id"])
        if "order" in content:
            document.order.names.extend(content["order"])
        ordering = self.add(
            name,
            ordering_pb2.Ordering(
                kind=request.kind,
                document=document,
                adapter_model_id=request.adapter_model_id,
                description=request.description,
                labels=request.labels.labels,
            ),
            ordering_pb2.CHANGE_TYPE_UPDATED if name in self.stored else ordering_pb2.CHANGE_TYPE_CREATED,
        )
        self.files[f"{name}@{ordering.revision_number}"] = request.json
        return ordering

    def ExportOrdering(  # noqa: N802
        self, request: ordering_service_pb2.ExportOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_service_pb2.ExportOrderingResponse:
        found = self.find(request.name, context)
        content = self.files[f"{found.name}@{found.revision_number}"]
        return ordering_service_pb2.ExportOrderingResponse(json=content, revision_id=found.revision_id)

    def GenerateOrdering(  # noqa: N802
        self, request: ordering_service_pb2.GenerateOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_service_pb2.GenerateOrderingResponse:
        self.seen.append(request)
        document = ordering_pb2.OrderingDocument(base_model_id=request.base_model_id)
        document.order.names.extend(request.adapter_names)
        for row, target in enumerate(request.targets.names.names):
            document.layers.rows.add(path=f"model.layers.0.self_attn.{target}", row=row)
        content = {
            "order": list(request.adapter_names),
            "layers": {row.path: row.row for row in document.layers.rows},
            "base_model_id": request.base_model_id,
        }
        return ordering_service_pb2.GenerateOrderingResponse(
            document=document, json=json.dumps(content).encode(), architecture="llama", config_digest="c0"
        )

    def DeriveOrdering(  # noqa: N802
        self, request: ordering_service_pb2.DeriveOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_service_pb2.DeriveOrderingResponse:
        self.seen.append(request)
        document = ordering_pb2.OrderingDocument(base_model_id="m", order=request.adapter_names)
        if request.add_preload_adapters:
            document.preload_adapters.adapters.extend(request.add_preload_adapters)
        content = json.loads(request.json or b"{}") | {"order": list(request.adapter_names.names), "base_model_id": "m"}
        stored = None
        if request.HasField("destination"):
            stored = ordering_pb2.Ordering(
                name=f"orderings/{request.destination.ordering_id}", document=document, revision_number=2, etag='"2"'
            )
        return ordering_service_pb2.DeriveOrderingResponse(
            document=document, json=json.dumps(content).encode(), ordering=stored
        )

    def ValidateOrdering(  # noqa: N802
        self, request: ordering_service_pb2.ValidateOrderingRequest, context: grpc.ServicerContext
    ) -> ordering_service_pb2.ValidateOrderingResponse:
        self.seen.append(request)
        if request.WhichOneof("source") == "json" and b"base_model_id" not in request.json:
            problems = [
                ordering_pb2.Problem(
                    code="BASE_MODEL_ID_MISSING",
                    field="base_model_id",
                    message="base_model_id is missing.",
                    severity=ordering_pb2.SEVERITY_ERROR,
                    hint="Add base_model_id.",
                ),
                ordering_pb2.Problem(
                    code="ORDER_EMPTY",
                    field="order",
                    message="order is empty.",
                    severity=ordering_pb2.SEVERITY_WARNING,
                    hint="Write the names.",
                    file="math/adapter_config.json",
                ),
            ]
            return ordering_service_pb2.ValidateOrderingResponse(valid=False, problems=problems)
        return ordering_service_pb2.ValidateOrderingResponse(valid=True)


@dataclass
class FakeServices:
    """Both fakes, served at one address."""

    inference: FakeInference
    ordering: FakeOrdering
    address: str


def serve() -> tuple[grpc.Server, FakeServices]:
    """Starts both fakes on a free port."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    inference, ordering = FakeInference(), FakeOrdering()
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
    adapter_service_pb2_grpc.add_AdapterServiceServicer_to_server(inference, server)
    ordering_service_pb2_grpc.add_OrderingServiceServicer_to_server(ordering, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, FakeServices(inference, ordering, f"127.0.0.1:{port}")
