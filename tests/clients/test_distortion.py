"""`loramux distortion` with a measurement that is made up: what it is asked, what is shown of it, how it fails."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loramux.cli.distortion_report import DistortionReport
from tests.clients.command import Run, parsed
from tests.clients.fakes import FakeServices

REPOSITORY = Path(__file__).resolve().parents[2]

# What the measurement does: it notes its words, tells of its progress, writes a report or fails as it is told to.
PROGRAM = """
import json, os, shutil, sys, time
from pathlib import Path
Path(os.environ["FAKE_WORDS"]).write_text(json.dumps(sys.argv[1:]))
print(json.dumps({"event": "running the reference model", "percent": 50}), file=sys.stderr, flush=True)
behaviour = os.environ.get("FAKE_BEHAVIOUR", "")
if behaviour == "slow":
    time.sleep(60)
if behaviour:
    print(behaviour, file=sys.stderr)
    sys.exit(2)
if "--ordering" in sys.argv:
    shutil.copy(sys.argv[sys.argv.index("--ordering") + 1], os.environ["FAKE_WORDS"] + ".ordering")
shutil.copy(os.environ["FAKE_REPORT"], sys.argv[sys.argv.index("--output") + 1])
"""


def summary(mean_kl: float) -> dict[str, float]:
    return {
        "positions": 4,
        "mean_kl": mean_kl,
        "median_kl": 0.001,
        "p99_kl": 0.02,
        "max_kl": 0.03,
        "top1_agreement": 0.75,
        "reference_perplexity": 12.5,
        "compared_perplexity": 12.75,
    }


def positions(drift: list[float]) -> dict[str, list[Any]]:
    return {
        "text": [0, 0, 1, 1],
        "position": [0, 1, 0, 1],
        "token_id": [5, 6, 5, 7],
        "kl": [0.0, 0.03, 0.001, 0.002],
        "agrees": [True, False, True, True],
        "reference_logprob": [-1.5, None, -0.25, None],
        "compared_logprob": [-1.25, None, -0.5, None],
        "scaling_drift": drift,
    }


def side(model: str, quantization: str, bits: float) -> dict[str, Any]:
    return {
        "model": model,
        "quantization": quantization,
        "bits_per_weight": bits,
        "weight_bytes": 3 << 20,
        "kernels": "native",
        "activations": "rounded",
    }


REPORT = {
    "reference": side("org/model", "BF16", 16.0),
    "compared": side("org/model-GGUF:Q4_0", "Q4_0", 4.5),
    "texts": 2,
    "cut_texts": 1,
    "max_tokens": 256,
    "token_texts": {"5": "The", "6": " sea,\n", "7": "$x$"},
    "distortions": [
        {"adapters": None, "summary": summary(0.00825), "drift": None, "positions": positions([])},
        {
            "adapters": "orderings/[mix].json",
            "summary": summary(0.0125),
            "drift": {
                "experts": ["pirate", "$json$"],
                "mean": 0.0625,
                "max": 0.5,
                "top_expert_agreement": 0.875,
                "by_layer": [[0.1, 0.2], [0.0, 0.3], [0.05, 0.05]],
            },
            "positions": positions([0.1, 0.2, 0.3, 0.4]),
        },
    ],
}


@pytest.fixture
def measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Puts the made-up measurement in the place of the real one; tells with which words it was started."""
    package = tmp_path / "fakes" / "inference_svc" / "distortion"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "__main__.py").write_text(PROGRAM)
    (tmp_path / "fakes" / "report.json").write_text(json.dumps(REPORT))
    roots = [str(tmp_path / "fakes"), *(str(REPOSITORY / root) for root in (".", "clients", "protos"))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(roots))
    monkeypatch.setenv("FAKE_REPORT", str(tmp_path / "fakes" / "report.json"))
    monkeypatch.setenv("FAKE_WORDS", str(tmp_path / "words"))

    def words() -> list[str]:
        found: list[str] = json.loads((tmp_path / "words").read_text())
        return found

    return words


def test_people_see_both_models_and_all_measures(run: Run, measurement: Callable[[], list[str]]) -> None:
    code, out, err = run("distortion", "org/model", "org/model-GGUF:Q4_0")
    assert (code, err) == (0, "")
    for expected in (
        *("org/model-GGUF:Q4_0", "Q4_0", "4.50", "16.00", "3.0 MiB", "rounded", "base model", "with [mix].json"),
        *("0.00825 nats", "0.0125 nats", "0.001, 0.02, 0.03", "75.00 %", "12.5 → 12.75", "0.0625", "87.50 %"),
        "2 texts, 1 of them cut to 256 tokens",
    ):
        assert expected in out
    words = measurement()
    assert words[:2] == ["org/model", "org/model-GGUF:Q4_0"]
    assert words[4:] == ["--kernels", "auto", "--max-tokens", "256", "--device", "auto"]


def test_every_option_goes_on_to_the_measurement(
    run: Run, measurement: Callable[[], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("x")
    (tmp_path / "mix.json").write_text("{}")
    words = [
        "model.gguf",
        "--quantize",
        "q4_k",
        "--kernels",
        "reference",
        "--prompts",
        "prompts.txt",
        "--device",
        "cpu",
    ]
    words += ["--max-tokens", "99", "--ordering", "mix.json", "--adapters", "org/mix"]
    assert run("distortion", *words)[0] == 0
    given = measurement()
    assert given[0] == "model.gguf"
    options = dict(zip(given[1::2], given[2::2], strict=True))
    options.pop("--output")
    assert options == {
        "--kernels": "reference",
        "--max-tokens": "99",
        "--device": "cpu",
        "--quantize": "q4_k",
        "--prompts": "prompts.txt",
        "--ordering": str(tmp_path / "mix.json"),
        "--adapters": "org/mix",
    }


def test_an_ordering_that_is_stored_is_fetched_with_the_place_of_its_adapters(
    run: Run, measurement: Callable[[], list[str]], services: FakeServices, tmp_path: Path
) -> None:
    content = '{"order": ["a"], "layers": {}, "base_model_id": "org/model"}'
    (tmp_path / "file.json").write_text(content)
    run("ordering", "import", "file.json", "--id", "mix", "--adapter-model-id", "org/mix-adapters")
    assert run("distortion", "model.gguf", "--ordering", "mix")[0] == 0
    words = measurement()
    assert words[words.index("--adapters") + 1] == "org/mix-adapters"
    assert (tmp_path / "words.ordering").read_text() == content
    code, _, err = run("distortion", "model.gguf", "--ordering", "nothing.json")
    assert (code, "there is no file nothing.json [NO_ORDERING]" in err) == (1, True)


def test_programs_get_json_every_position_as_csv_and_a_picture(
    run: Run, measurement: Callable[[], list[str]], tmp_path: Path
) -> None:
    found = parsed(run("distortion", "org/model", "--csv", "out.csv", "-o", "out.png", "--json"))
    assert (found["csv"], found["path"]) == ("out.csv", "out.png")
    assert found["reference"] == REPORT["reference"]
    assert found["distortions"][1]["summary"]["mean_kl"] == 0.0125
    assert found["distortions"][1]["drift"]["by_layer"] == [[0.1, 0.2], [0.0, 0.3], [0.05, 0.05]]
    assert "positions" not in found["distortions"][0]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert len(rows) == 8
    assert rows[1] == {
        "adapters": "",
        "text": "0",
        "position": "1",
        "token_id": "6",
        "token_text": " sea,\n",
        "kl": "0.03",
        "agrees": "0",
        "reference_logprob": "",
        "compared_logprob": "",
        "scaling_drift": "",
    }
    assert (rows[4]["adapters"], rows[4]["scaling_drift"]) == ("orderings/[mix].json", "0.1")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_the_title_of_a_picture_has_the_names_of_files_and_hub_ids_as_they_are() -> None:
    models = {"reference": side("/very/long/way/to/SmolLM2.F16.gguf", "F16", 16.0)}
    models["compared"] = side("org/model-GGUF:Q4_0", "Q4_0", 4.5)
    title = DistortionReport(models).title
    assert title == "org/model-GGUF:Q4_0 (Q4_0, native) against SmolLM2.F16.gguf (F16, native)"


def test_a_picture_of_an_unknown_kind_is_refused(run: Run, measurement: Callable[[], list[str]]) -> None:
    code, _, err = run("distortion", "org/model", "-o", "out.docx")
    assert (code, "PICTURE_FORMAT" in err) == (1, True)


def test_what_the_measurement_refuses_is_said_in_its_words(
    run: Run, measurement: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BEHAVIOUR", "loramux distortion: org/model: the disk is full")
    code, out, err = run("distortion", "org/model")
    assert (code, out) == (1, "")
    assert "error: org/model: the disk is full [CANNOT_MEASURE]" in err
    failed = parsed(run("distortion", "org/model", "--json"), code=1)
    assert failed["error"]["message"] == "org/model: the disk is full"


def test_a_measurement_that_breaks_down_shows_its_last_lines(
    run: Run, measurement: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BEHAVIOUR", "Traceback: something went wrong")
    code, _, err = run("distortion", "org/model")
    assert code == 1
    assert "ended with exit code 2" in err
    assert "Traceback: something went wrong" in err


def test_without_the_inference_extra_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    code, _, err = run("distortion", "org/model")
    assert (code, "pip install 'loramux[inference]' [INFERENCE_MISSING]" in err) == (1, True)


def test_an_interrupt_ends_the_measurement_too(
    measurement: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_BEHAVIOUR", "slow")
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from loramux.cli.__main__ import main; sys.exit(main(['distortion', 'org/model']))"
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, cwd=tmp_path) as process:
        end = time.monotonic() + 60
        while not (tmp_path / "words").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
