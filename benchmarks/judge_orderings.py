"""How long it takes to judge an ordering of 100 decoder layers and 64 adapters: the file alone, then with all headers.

Run it with `python benchmarks/judge_orderings.py`; files are made in a temporary folder, without weights in them.
"""

from __future__ import annotations

import json
import math
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ordering_svc.domain.architectures import ModelStructure
from ordering_svc.domain.ordering import AdapterKind
from ordering_svc.domain.validation import Expectations, validate_file
from ordering_svc.judge import Against, Judge
from ordering_svc.model_config.reader import LocalModel, ModelReader

NUM_LAYERS, NUM_ADAPTERS, RANK, HIDDEN = 100, 64, 16, 64
STRUCTURE = ModelStructure("llama", NUM_LAYERS)
PATHS = [path for path in STRUCTURE.module_paths() if path.startswith("model.layers.")]
NAMES = [f"adapter-{number:02}" for number in range(NUM_ADAPTERS)]
Shapes = Mapping[str, tuple[int, ...]]


def write_safetensors(path: Path, shapes: Shapes) -> None:
    """A file of float32 zeros, sparse on disk."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * 4
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def make_files(folder: Path) -> bytes:
    """Base, adapters and classifier; returns the ordering file."""
    (folder / "base").mkdir()
    config = {"model_type": "llama", "num_hidden_layers": NUM_LAYERS}
    (folder / "base" / "config.json").write_text(json.dumps(config))
    base = {f"{path}.weight": (HIDDEN, HIDDEN) for path in PATHS}
    write_safetensors(folder / "base" / "model.safetensors", {"model.embed_tokens.weight": (9, HIDDEN)} | base)
    targets = sorted({path.rpartition(".")[2] for path in PATHS})
    lora = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": targets}
    for name in NAMES:
        (folder / "xlora" / name).mkdir(parents=True)
        (folder / "xlora" / name / "adapter_config.json").write_text(json.dumps(lora))
        tensors = {f"base_model.model.{path}.lora_A.weight": (RANK, HIDDEN) for path in PATHS}
        tensors |= {f"base_model.model.{path}.lora_B.weight": (HIDDEN, RANK) for path in PATHS}
        write_safetensors(folder / "xlora" / name / "adapter_model.safetensors", tensors)
    xlora = {"hidden_size": HIDDEN, "base_model_id": "org/base", "layerwise_scalings": True, "adapters": NAMES}
    (folder / "xlora" / "xlora_config.json").write_text(json.dumps(xlora))
    rows = NUM_ADAPTERS * len(PATHS)
    write_safetensors(
        folder / "xlora" / "xlora_classifier.safetensors", {"last.weight": (rows, HIDDEN), "last.bias": (rows,)}
    )
    document = {"order": NAMES, "layers": {path: row for row, path in enumerate(PATHS)}, "base_model_id": "org/base"}
    return json.dumps(document).encode()


def milliseconds(work: Callable[[], object], repeats: int) -> list[float]:
    """The time of each run, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1000)
    return sorted(times)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = make_files(folder)
        judge = Judge(ModelReader([folder]), [folder], [folder])
        rules, model = Expectations(AdapterKind.XLORA), LocalModel("base")
        with_structure = Expectations(AdapterKind.XLORA, STRUCTURE, "llama")
        everything = Against(AdapterKind.XLORA, model, "llama", True, "xlora")
        cases: list[tuple[str, Callable[[], tuple[object, ...]], int]] = [
            ("the file alone", lambda: validate_file(file, rules), 200),
            ("with the model's structure and the quantized list", lambda: validate_file(file, with_structure), 200),
            ("with the base's header", lambda: judge.problems(file, Against(AdapterKind.XLORA, model)), 50),
            ("with all headers", lambda: judge.problems(file, everything), 5),
        ]
        sys.stdout.write(f"{len(PATHS)} layer rows, {NUM_ADAPTERS} adapters, {len(file)} bytes\n")
        for what, work, repeats in cases:
            if work():
                raise SystemExit(f"{what}: the files are meant to be sound: {work()[:3]}")
            times = milliseconds(work, repeats)
            middle, high = statistics.median(times), times[int(len(times) * 0.99)]
            sys.stdout.write(f"{what:52} p50 {middle:8.2f} ms   p99 {high:8.2f} ms\n")


if __name__ == "__main__":
    main()
