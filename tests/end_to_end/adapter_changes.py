"""Adapters that change over gRPC while requests run: what there is to load, and who keeps changing it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_svc.models.base_model import shape_of
from inference_svc.models.loading import load_checkpoint
from inference_svc.weights.opening import open_model
from loramux.client import (
    BASE,
    Adapter,
    AdapterChoice,
    AdapterEventKind,
    AdapterKind,
    AdaptersSnapshot,
    AdapterUpdate,
    AsyncClient,
    Client,
    LoramuxError,
    OrderingDocument,
    PreloadAdapter,
    XLoRA,
)
from loramux.client.xlora_layouts import convert_xlora
from tests.inference_svc.adapters.conftest import BASE_ID, AdapterWriter
from tests.inference_svc.engine.crowd import EXPERTS, lora_folder, xlora_folder

GUESTS = ("guest", "visitor", "stranger")  # the names that LoRAs are loaded under by hand
# What a change may be told: another one came first, a default is in use, running requests hold too much, or, on a
# machine with much else to do, one service hears nothing from the other within ten seconds.
REFUSALS = {
    "DIGEST_MISMATCH",
    "ADAPTER_NOT_FOUND",
    "ADAPTER_EXISTS",
    "ADAPTER_IN_USE",
    "LIMIT_REACHED",
    "ORDERING_SERVICE_UNAVAILABLE",
}


@dataclass(frozen=True)
class Contents:
    """Folders of adapters, each with a content of its own."""

    red: Sequence[Path]  # LoRAs that the ordering `styles` preloads
    blue: Sequence[Path]
    guests: Sequence[Path]  # LoRAs
    roses: Sequence[Path]  # X-LoRAs in PEFT's layout
    compass: Path  # the X-LoRA of the ordering `compass`
    rows: Mapping[str, int]

    @classmethod
    def write(cls, root: Path, gguf: Path) -> Contents:
        """Write them below a folder, for the model in a file."""
        writer = AdapterWriter(root, shape_of(load_checkpoint(open_model(gguf)), BASE_ID))
        compass, rows = xlora_folder(writer, "compass", 5)

        def loras(name: str, first_seed: int) -> list[Path]:
            return [lora_folder(writer, f"{name}-{seed}", seed) for seed in range(first_seed, first_seed + 3)]

        roses = []
        for number in range(2):
            original, _ = xlora_folder(writer, f"original-{number}", 6 + number, top_k_lora=2, xlora_dropout_p=0.0)
            roses.append(root / f"rose-{number}")
            convert_xlora(original, roses[-1], "peft", EXPERTS)
        return cls(loras("red", 0), loras("blue", 3), loras("guest", 6), roses, compass, rows)

    def styles_document(self, shuffle: random.Random) -> OrderingDocument:
        """One of 27 revisions."""
        order = shuffle.choice([("red", "blue"), ("red",), None])
        chosen = {"red": shuffle.choice(self.red), "blue": shuffle.choice(self.blue)}
        preload = tuple(PreloadAdapter(name, str(folder)) for name, folder in chosen.items())
        return OrderingDocument(BASE_ID, order, None, preload)

    def compass_document(self, shuffle: random.Random) -> OrderingDocument:
        """One of six revisions: in the order of its experts."""
        return OrderingDocument(BASE_ID, shuffle.choice(list(itertools.permutations(EXPERTS))), self.rows)

    def store(self, client: Client) -> None:
        """Store the first revision of both orderings, and the tag `live`."""
        first = random.Random(0)
        client.orderings.create("styles", self.styles_document(first), kind=AdapterKind.LORA)
        place = str(self.compass)
        document = self.compass_document(first)
        client.orderings.create("compass", document, kind=AdapterKind.XLORA, adapter_model_id=place)
        client.orderings.tag("compass", "live")


class Changes:
    """Changes adapters, orderings, tags and the active default, at random, until it is told to end."""

    def __init__(self, client: AsyncClient, contents: Contents, shuffle: random.Random) -> None:
        self.client, self.contents, self.shuffle = client, contents, shuffle
        self.counts: Counter[str] = Counter()
        self.is_over = False
        self._revisions: list[str] = []
        self._changes = (
            self.load_a_guest,
            self.load_one_name_twice_at_once,
            self.replace_what_is_there,
            self.unload,
            self.pin_or_unpin,
            self.load_a_rose,
            self.revise_styles,
            self.revise_compass,
            self.move_the_tag,
            self.apply_a_revision,
            self.activate,
        )

    @property
    def have_all_happened(self) -> bool:
        """Each kind of change took effect at least once."""
        return all(self.counts[change.__name__] for change in self._changes)

    async def run(self) -> None:
        """One change after the other."""
        while not self.is_over:
            change = self.shuffle.choice(self._changes)
            try:
                await change()
                self.counts[change.__name__] += 1
            except LoramuxError as error:
                if error.reason not in REFUSALS:
                    raise
                self.counts[error.reason] += 1
            await asyncio.sleep(self.shuffle.uniform(0, 0.01))

    async def load_a_guest(self) -> None:
        await self._load(self.shuffle.choice(GUESTS))

    async def _load(self, name: str) -> Adapter:
        folder = str(self.shuffle.choice(self.contents.guests))
        return await self.client.adapters.load(name, folder, replace=self.shuffle.random() < 0.5)

    async def load_one_name_twice_at_once(self) -> None:
        name = self.shuffle.choice(GUESTS)
        for outcome in await asyncio.gather(self._load(name), self._load(name), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def replace_what_is_there(self) -> None:
        name, folder = self.shuffle.choice(GUESTS), str(self.shuffle.choice(self.contents.guests))
        known = await self.client.adapters.get(name)
        await self.client.adapters.replace(name, folder, expected_digest=known.digest)

    async def unload(self) -> None:
        known = await self.client.adapters.get(self.shuffle.choice([*GUESTS, "rose"]))
        await self.client.adapters.unload(known.name, expected_digest=known.digest)

    async def pin_or_unpin(self) -> None:
        name = self.shuffle.choice([*GUESTS, "red", "compass"])
        await (self.client.adapters.pin(name) if self.shuffle.random() < 0.3 else self.client.adapters.unpin(name))

    async def load_a_rose(self) -> None:
        await self.client.adapters.load("rose", str(self.shuffle.choice(self.contents.roses)), replace=True)

    async def revise_styles(self) -> None:
        await self.client.orderings.update("styles", document=self.contents.styles_document(self.shuffle))

    async def revise_compass(self) -> None:
        made = await self.client.orderings.update("compass", document=self.contents.compass_document(self.shuffle))
        self._revisions.append(made.revision_id)
        await self.client.orderings.tag("compass", "live", made.revision_id)

    async def move_the_tag(self) -> None:
        if self._revisions:
            await self.client.orderings.tag("compass", "live", self.shuffle.choice(self._revisions))

    async def apply_a_revision(self) -> None:
        revision = self.shuffle.choice(self._revisions or ["live"])
        await self.client.apply_ordering(f"compass@{revision}", activate=self.shuffle.random() < 0.5)

    async def activate(self) -> None:
        choices: list[AdapterChoice] = [BASE, {"red": 1.0, "blue": 0.25}, "guest", XLoRA("rose"), XLoRA("compass")]
        await self.client.adapters.activate(self.shuffle.choice(choices))

    async def until_followed(self) -> None:
        """Wait until the service has applied the newest of what it follows; nothing may be wrong with it."""
        live = (await self.client.orderings.get("compass@live")).revision_id
        newest = {
            "styles": (await self.client.orderings.get("styles")).revision_id,
            # Once more, as it may have been applied in another revision since the tag was moved.
            "compass@live": (await self.client.apply_ordering(f"compass@{live}")).ordering.partition("@")[2],
        }
        async with asyncio.timeout(120):
            while True:
                followed = await self.client.adapters.followed()
                applied = {each.reference: (each.applied or "").partition("@")[2] for each in followed}
                if applied == newest and not any(each.problem for each in followed):
                    return
                await asyncio.sleep(0.05)


class Mirror:
    """What is resident, put together from a snapshot and the events since."""

    def __init__(self) -> None:
        self.adapters: dict[str, Adapter] = {}
        self.generation = 0

    async def watch(self, client: AsyncClient) -> None:
        """Until cancelled."""
        async with client.adapters.watch() as updates:
            async for update in updates:
                self._take(update)

    def _take(self, update: AdapterUpdate) -> None:
        if isinstance(update, AdaptersSnapshot):
            self.adapters = {adapter.name: adapter for adapter in update.adapters}
        else:
            assert update.generation == self.generation + 1, "an event is missing, or there twice"
            if update.kind in (AdapterEventKind.UNLOADED, AdapterEventKind.EVICTED):
                assert update.adapter is not None
                del self.adapters[update.adapter.name]
            elif update.adapter is not None:
                self.adapters[update.adapter.name] = update.adapter
        self.generation = update.generation
