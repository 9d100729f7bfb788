"""Prompts from files, and those that come along."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_svc.distortion.errors import DistortionError
from inference_svc.distortion.prompts import Prompt, built_in_prompts, read_prompts
from inference_svc.tokenization.tokenizer import ChatMessage


def test_the_paragraphs_of_a_text_are_its_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("One\nin two lines.\n\n\n   \nAnother,\r\n  indented.  \n\n")
    assert read_prompts(file) == (Prompt("One\nin two lines."), Prompt("Another,\n  indented."))


def test_a_jsonl_file_has_a_prompt_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '"a text"\n\n{"text": "another", "id": 3}\n{"prompt": "a third"}\n'
        '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}\n'
    )
    messages = (ChatMessage("user", "Hello"), ChatMessage("assistant", "Hi"))
    assert read_prompts(file) == (Prompt("a text"), Prompt("another"), Prompt("a third"), Prompt(messages=messages))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "it holds no prompt"),
        ("a.txt", b" \n\n \n", "it holds no prompt"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
        ("a.jsonl", b"\n", "it holds no prompt"),
        ("a.jsonl", b'"a"\n{', "line 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b"3", r'line 1 is 3, expected "text", \{"text"'),
        ("a.jsonl", b'{"text": 3}', "line 1 is"),
        ("a.jsonl", b'{"messages": []}', "line 1 is"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "line 1 is"),
    ],
)
def test_what_is_no_prompt_is_refused_by_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DistortionError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DistortionError, match=r"nothing\.txt: it cannot be read"):
        read_prompts(tmp_path / "nothing.txt")


def test_the_prompts_that_come_along_are_many_different_ones() -> None:
    texts = [prompt.text for prompt in built_in_prompts()]
    assert len(set(texts)) == len(texts) == 32
    assert all(len(text.encode()) > 100 for text in texts)
