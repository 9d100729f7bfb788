"""The figures of a measurement against the same computed directly from transformers' and PEFT's logits.

The bar is 1e-6 on KL, which itself is about 1e-2 here: logits of ours and of transformers differ by about 1e-5, and
that moves a KL by about its square root times as much.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from inference_svc.distortion.adapters import ChosenAdapters
from inference_svc.distortion.errors import DistortionError
from inference_svc.distortion.measuring import Plan, Side, measure
from inference_svc.distortion.prompts import Prompt
from inference_svc.distortion.report import Report
from inference_svc.errors import InferenceError
from inference_svc.tokenization.byte_alphabet import BYTE_OF_CHARACTER
from inference_svc.weights.in_situ import Scheme
from tests.inference_svc.weights import tiny_folder
from tests.inference_svc.weights.tiny_folder import TinyModel, write_tiny_model
from tests.inference_svc.weights.tiny_llama import write_tiny_llama_gguf
from tests.parity.xlora_oracle import Expert, Mixture, peft_answer

BAR = 1e-6
TEXTS = (
    "The sea is wide.",
    "def add(a, b):\n    return a + b",
    "x",
    "Ein längerer Satz, der geschnitten wird, weil er lang ist.",
)
MAX_TOKENS = 40
# Transformers warns of a name of its own that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SHAPES = {
    f"model.layers.{layer}.{module}": shape
    for layer in range(tiny_folder.LAYERS)
    for module, shape in {
        "self_attn.q_proj": (tiny_folder.HIDDEN, tiny_folder.HIDDEN),
        "self_attn.k_proj": (tiny_folder.HIDDEN // 2, tiny_folder.HIDDEN),
        "self_attn.v_proj": (tiny_folder.HIDDEN // 2, tiny_folder.HIDDEN),
        "self_attn.o_proj": (tiny_folder.HIDDEN, tiny_folder.HIDDEN),
    }.items()
}
MIXTURE = Mixture(
    experts=(
        Expert(2, ("self_attn.q_proj", "self_attn.v_proj")),
        Expert(3, ("self_attn.v_proj",)),
        Expert(1, ("self_attn.o_proj",)),
    ),
    config={
        "enable_softmax": True,
        "enable_softmax_topk": False,
        "softmax_temperature": 0.5,
        "top_k_lora": None,
        "scaling_pass_value": 0.0,
        "global_scaling_weight": 1.0,
        "xlora_dropout_p": 0.2,
    },
    depth=1,
    size=8,
    use_bias=True,
    relu=True,
    inner_step=3,
    seed=4,
    shapes=SHAPES,
    hidden=tiny_folder.HIDDEN,
)


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_tiny_model(tmp_path_factory.mktemp("floats"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """The same weights in 4 bits."""
    return write_tiny_model(tmp_path_factory.mktemp("packed"), quantization=gguf.GGMLQuantizationType.Q4_0)


@pytest.fixture(scope="module")
def xlora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordering file with its adapters beside it."""
    folder = tmp_path_factory.mktemp("xlora")
    MIXTURE.write(folder, "original")
    rows = {path: row for row, path in enumerate(MIXTURE.paths)}
    ordering = {"order": list(MIXTURE.order), "layers": rows, "base_model_id": "tiny"}
    (folder / "ordering.json").write_text(json.dumps(ordering))
    return folder / "ordering.json"


def transformers_model(model: TinyModel) -> Any:
    config = LlamaConfig(**json.loads((model.folder / "config.json").read_text()), attn_implementation="eager")
    oracle = LlamaForCausalLM(config).eval()
    tensors = {name: torch.from_numpy(value) for name, value in model.weights.items()}
    oracle.load_state_dict({"lm_head.weight": tensors["model.embed_tokens.weight"]} | tensors)
    return oracle


def tokens() -> list[list[int]]:
    """What the tokenizer makes of the texts, by hand: bytes, but for `Th`."""
    alphabet = {byte: letter for letter, byte in BYTE_OF_CHARACTER.items()}
    texts = []
    for text in TEXTS:
        letters = "".join(alphabet[byte] for byte in text.encode())
        pieces = ["Th", *letters[2:]] if letters.startswith("Th") else list(letters)
        texts.append([tiny_folder.TOKENS.index(piece) for piece in pieces][:MAX_TOKENS])
    return texts


def plan(reference: Side, compared: Side, xlora: Path | None = None, texts: Sequence[str] = TEXTS) -> Plan:
    adapters = None if xlora is None else ChosenAdapters(xlora, str(xlora.parent / "original"))
    return Plan(reference, compared, [Prompt(text) for text in texts], MAX_TOKENS, adapters, "cpu")


def expected(reference: Sequence[Tensor], compared: Sequence[Tensor]) -> dict[str, float]:
    """The definitions, written down once more: over the logits of each text."""
    kl, agrees = [], []
    nll: dict[str, list[Tensor]] = {"reference": [], "compared": []}
    for p_logits, q_logits, token_ids in zip(reference, compared, tokens(), strict=True):
        p, q = torch.softmax(p_logits.double(), -1), torch.softmax(q_logits.double(), -1)
        kl.append((p * (p / q).log()).sum(-1))
        agrees.append((p.argmax(-1) == q.argmax(-1)).double())
        for name, probabilities in (("reference", p), ("compared", q)):
            following = probabilities[torch.arange(len(token_ids) - 1), token_ids[1:]]
            nll[name].append(-following.log())
    return {
        "mean_kl": float(torch.cat(kl).mean()),
        "max_kl": float(torch.cat(kl).max()),
        "top1_agreement": float(torch.cat(agrees).mean()),
        "reference_perplexity": float(torch.cat(nll["reference"]).mean().exp()),
        "compared_perplexity": float(torch.cat(nll["compared"]).mean().exp()),
    }


def check(report: Report, index: int, wanted: dict[str, float]) -> None:
    summary = report.distortions[index].summary
    assert summary.positions == sum(map(len, tokens()))
    assert summary.mean_kl == pytest.approx(wanted["mean_kl"], abs=BAR)
    assert summary.max_kl == pytest.approx(wanted["max_kl"], abs=10 * BAR)
    assert summary.top1_agreement == wanted["top1_agreement"]
    for name in ("reference_perplexity", "compared_perplexity"):
        assert getattr(summary, name) == pytest.approx(wanted[name], rel=1e-4)
    assert summary.median_kl <= summary.mean_kl <= summary.p99_kl <= summary.max_kl


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_the_figures_are_those_of_transformers_logits(floats: TinyModel, packed: TinyModel, form: str) -> None:
    side = Side(str(getattr(floats, form)), None, None)
    report = measure(plan(side, Side(str(packed.gguf), None, "reference")))
    oracle, packed_oracle = transformers_model(floats), transformers_model(packed)
    with torch.no_grad():
        reference = [oracle(torch.tensor([token_ids])).logits[0] for token_ids in tokens()]
        compared = [packed_oracle(torch.tensor([token_ids])).logits[0] for token_ids in tokens()]
    wanted = expected(reference, compared)
    assert wanted["mean_kl"] > 100 * BAR  # otherwise nothing would be compared
    assert wanted["top1_agreement"] < 1
    check(report, 0, wanted)
    assert (report.texts, report.cut_texts, len(report.distortions)) == (4, 1, 1)
    assert (report.reference.quantization, report.compared.quantization) == ("F32", "Q4_0")
    assert (report.reference.bits_per_weight, report.compared.bits_per_weight) == (32.0, 4.5)
    positions = report.distortions[0].positions
    assert positions.token_id == list(itertools.chain(*tokens()))
    assert [at for at, value in enumerate(positions.compared_logprob) if value is None] == [
        end - 1 for end in np.cumsum([len(token_ids) for token_ids in tokens()]).tolist()
    ]


def test_the_drift_of_scalings_is_that_of_pefts_forward(floats: TinyModel, packed: TinyModel, xlora: Path) -> None:
    reference, compared = Side(str(floats.folder), None, None), Side(str(packed.gguf), None, "reference")
    report = measure(plan(reference, compared, xlora))
    assert [each.adapters for each in report.distortions] == [None, str(xlora)]
    folder = xlora.parent / "original"
    oracle, packed_oracle = transformers_model(floats), transformers_model(packed)
    with torch.no_grad():
        answers = [peft_answer(oracle, MIXTURE, folder, token_ids) for token_ids in tokens()]
        packed_answers = [peft_answer(packed_oracle, MIXTURE, folder, token_ids) for token_ids in tokens()]
    check(report, 1, expected([logits for logits, _ in answers], [logits for logits, _ in packed_answers]))
    before = torch.cat([scalings for _, scalings in answers]).double()
    after = torch.cat([scalings for _, scalings in packed_answers]).double()
    drift = report.distortions[1].drift
    assert drift is not None
    assert report.distortions[0].drift is None
    assert drift.experts == MIXTURE.order
    difference = (before - after).abs()
    assert difference.mean() > 1e-3
    assert drift.mean == pytest.approx(float(difference.mean()), abs=BAR)
    assert drift.max == pytest.approx(float(difference.max()), abs=10 * BAR)
    assert np.allclose(drift.by_layer, difference.mean(0), atol=BAR)
    assert drift.top_expert_agreement < 1
    assert drift.top_expert_agreement == float((before.argmax(-1) == after.argmax(-1)).double().mean())
    assert np.allclose(report.distortions[1].positions.scaling_drift, difference.mean((1, 2)), atol=BAR)


def test_a_model_against_itself_has_no_distortion(floats: TinyModel, xlora: Path) -> None:
    side = Side(str(floats.folder), None, "reference")
    report = measure(plan(side, side, xlora))
    for found in report.distortions:
        assert found.summary.max_kl < 1e-12
        assert found.summary.top1_agreement == 1.0
    drift = report.distortions[1].drift
    assert drift is not None
    assert (drift.mean, drift.max, drift.top_expert_agreement) == (0.0, 0.0, 1.0)


def test_quantizing_while_loading_is_measured_as_the_same_types_in_a_file(floats: TinyModel) -> None:
    side = Side(str(floats.folder), None, None)
    report = measure(plan(side, Side(str(floats.folder), Scheme.Q8_0, "auto")))
    assert report.compared.quantization == "Q8_0"
    assert 0 < report.distortions[0].summary.mean_kl < 1e-3
    assert report.reference.model == report.compared.model


def test_one_file_exactly_and_as_it_is_served(packed: TinyModel) -> None:
    report = measure(plan(Side(str(packed.gguf), None, None), Side(str(packed.gguf), None, "auto")))
    assert report.reference.kernels in ("native-exact", "reference")
    assert report.reference.activations == "float32"
    assert report.compared.kernels in ("native", "reference")
    assert report.distortions[0].summary.mean_kl < 1e-3
    assert report.reference.weight_bytes == report.compared.weight_bytes


def test_models_of_different_vocabularies_are_not_compared(floats: TinyModel, tmp_path: Path) -> None:
    other = [*reversed(tiny_folder.TOKENS[:256]), *tiny_folder.TOKENS[256:]]
    write_tiny_llama_gguf(tmp_path / "other.gguf", vocab=other)
    with pytest.raises(
        DistortionError, match=r"other\.gguf reads the texts as other tokens than .*tiny: two precisions"
    ):
        measure(plan(Side(str(floats.folder), None, None), Side(str(tmp_path / "other.gguf"), None, "reference")))


def test_logits_without_room_are_refused_with_the_arithmetic(
    floats: TinyModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    side = Side(str(floats.folder), None, None)
    count = sum(map(len, tokens()))
    with pytest.raises(
        DistortionError, match=rf"{count} positions over 288 tokens need .* KiB, and 5 B are free in {tmp_path}"
    ):
        measure(plan(side, side))


def test_texts_are_cut_to_what_the_model_can_take(floats: TinyModel, tmp_path: Path) -> None:
    side = Side(str(floats.folder), None, None)
    long = replace(plan(side, side, texts=["sea " * 100, "sea"]), max_tokens=1000)
    report = measure(long)
    assert (report.max_tokens, report.cut_texts) == (tiny_folder.CONTEXT, 1)
    assert report.distortions[0].summary.positions == tiny_folder.CONTEXT + 3
    write_tiny_llama_gguf(tmp_path / "short.gguf", vocab=tiny_folder.TOKENS, context=128)
    shorter = Side(str(tmp_path / "short.gguf"), None, "reference")
    with pytest.raises(DistortionError, match=r"short\.gguf takes texts of up to 128 tokens, fewer than .*tiny: say"):
        measure(replace(long, compared=shorter))


def test_texts_without_tokens_are_refused(floats: TinyModel) -> None:
    side = Side(str(floats.folder), None, None)
    with pytest.raises(DistortionError, match="nothing to measure"):
        measure(plan(side, side, texts=[""]))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"order": "a"}, DistortionError, "`order` is 'a', expected a list of names"),
        ({"layers": {"x": "1"}}, DistortionError, "`layers` is .*, expected rows by module path"),
        ({"base_model_id": None}, DistortionError, "`base_model_id` is None, expected a model id"),
        ({"preload_adapters": ["x"]}, DistortionError, "`preload_adapters` is"),
        ({"layers": {"x": 0}}, InferenceError, "layer `x`"),
        ({"order": ["adapter_1", "nobody"]}, InferenceError, "nobody"),
    ],
)
def test_an_ordering_that_does_not_fit_is_refused(
    floats: TinyModel, xlora: Path, change: dict[str, object], kind: type[Exception], message: str
) -> None:
    wrong = xlora.with_name("wrong.json")
    wrong.write_text(json.dumps(json.loads(xlora.read_text()) | change))
    side = Side(str(floats.folder), None, None)
    with pytest.raises(kind, match=message):
        measure(plan(side, side, wrong))


def test_a_folder_that_is_not_there_is_named_with_the_places_where_it_was_looked_for(
    floats: TinyModel, xlora: Path
) -> None:
    side = Side(str(floats.folder), None, None)
    adapters = ChosenAdapters(xlora, "./nowhere")
    with pytest.raises(
        DistortionError, match=r"'\./nowhere': there is no folder nowhere or .*nowhere, and it is not a hub id"
    ):
        measure(Plan(side, side, [Prompt("x")], MAX_TOKENS, adapters, "cpu"))


@pytest.mark.parametrize("name", ["adapter_1", "peft"])
def test_a_folder_that_needs_no_ordering_is_measured_by_itself(floats: TinyModel, tmp_path: Path, name: str) -> None:
    folder = MIXTURE.write(tmp_path, "peft" if name == "peft" else "original")
    side = Side(str(floats.folder), None, "reference")
    adapters = ChosenAdapters(None, str(folder if name == "peft" else folder / name))
    report = measure(Plan(side, side, [Prompt("The sea")], MAX_TOKENS, adapters, "cpu"))
    assert report.distortions[1].adapters == str(folder if name == "peft" else folder / name)
    assert (report.distortions[1].drift is not None) == (name == "peft")
    base, adapted = (each.summary.reference_perplexity for each in report.distortions)
    assert base != adapted
