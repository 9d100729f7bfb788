"""`loramux distortion` with the real measurement, on a model of a few kilobytes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import gguf

from tests.inference_svc.weights.tiny_folder import write_tiny_model


def distortion(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "loramux.cli", "distortion", *words]
    return subprocess.run(program, capture_output=True, text=True, cwd=folder, timeout=280, check=False)


def test_a_checkpoint_and_its_quantized_file_are_compared_from_the_command_line(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "floats")
    write_tiny_model(tmp_path / "packed", quantization=gguf.GGMLQuantizationType.Q4_0)
    (tmp_path / "prompts.txt").write_text("The sea is wide.\n\nThe hills are far.")
    words = ["--prompts", "prompts.txt", "--max-tokens", "12", "--device", "cpu", "--csv", "out.csv", "--json"]
    ended = distortion(tmp_path, "floats/tiny", "packed/tiny.gguf", *words)
    assert (ended.returncode, ended.stderr) == (0, "")
    report = json.loads(ended.stdout)
    assert (report["texts"], report["cut_texts"]) == (2, 2)
    (found,) = report["distortions"]
    assert found["summary"]["positions"] == 24
    assert found["summary"]["mean_kl"] > 1e-4
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["token_text"] for row in rows[:4]] == ["Th", "e", " ", "s"]
    mean = sum(float(row["kl"]) for row in rows) / len(rows)
    assert abs(mean - found["summary"]["mean_kl"]) < 1e-8


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    ended = distortion(tmp_path, "./nothing.gguf")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "error: ./nothing.gguf: there is no such file" in ended.stderr
    assert "[CANNOT_MEASURE]" in ended.stderr
    assert "Traceback" not in ended.stderr
