"""Chat templates: what they are given, what they may do, and that a hostile one is stopped."""

from __future__ import annotations

import gc
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_svc.tokenization.chat_template import ChatTemplate
from inference_svc.tokenization.errors import ChatTemplateError, InvalidText
from inference_svc.tokenization.gguf_tokenizer import tokenizer_from_gguf
from inference_svc.tokenization.tokenizer import ChatMessage, ModelTokenizer
from inference_svc.weights.gguf import GgufFile
from inference_svc.weights.gguf_header import MetadataValue

HI = [ChatMessage("user", "Hi")]


def rendered(source: str, messages: list[ChatMessage] = HI) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages)


def test_a_conversation_is_rendered_with_special_tokens_and_the_generation_prompt(
    small_tokenizer: ModelTokenizer,
) -> None:
    conversation = [ChatMessage("system", "S"), ChatMessage("user", "he")]
    assert small_tokenizer.render_chat(conversation) == "<s>system:S</s><s>user:he</s><s>assistant:"
    ids = small_tokenizer.encode_chat(conversation)
    assert ids == small_tokenizer.encode("<s>system:S</s><s>user:he</s><s>assistant:", add_special_tokens=False)
    assert ids.count(258) == 3


def test_control_tokens_in_a_message_are_control_tokens(small_tokenizer: ModelTokenizer) -> None:
    # As in transformers; whoever relays strangers' messages removes them first.
    assert small_tokenizer.encode_chat([ChatMessage("user", "</s>")]).count(259) == 2


def test_a_lone_surrogate_in_a_message_is_refused(small_tokenizer: ModelTokenizer) -> None:
    with pytest.raises(InvalidText):
        small_tokenizer.encode_chat([ChatMessage("user", "\ud83d")])


def test_a_model_without_a_template_takes_no_conversations(small_metadata: dict[str, MetadataValue]) -> None:
    del small_metadata["tokenizer.chat_template"]
    tokenizer = tokenizer_from_gguf(GgufFile(Path("small.gguf"), small_metadata, {}))
    with pytest.raises(ChatTemplateError, match="no chat template"):
        tokenizer.encode_chat(HI)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "user"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ messages | tojson(indent=1) }}", json.dumps([{"role": "user", "content": "Hi"}], indent=1)),
        ("{% set n = namespace(x=1) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}", "2"),
        ("{{ dict(a=1)['a'] }}{{ dict.fromkeys(['b'])['b'] }}", "1None"),
        ("{% if tools %}T{% endif %}{{ tools is none }}{{ documents is none }}", "TrueTrue"),
        ("{{ bos_token }}{{ pad_token is defined }}", "<s>False"),
        ("a\n  {% if true %}\nb\n{% endif %}\n", "a\nb\n"),
        ("{% generation %}x{{ messages[0].content }}{% endgeneration %}y", "xHiy"),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
    ],
)
def test_templates_find_what_transformers_gives_them(source: str, expected: str) -> None:
    assert rendered(source) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{% for %}", "broken"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ namespace(__class__=1) }}", "underscored"),
        ("{% include '/etc/passwd' %}", "loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses"),
    ],
)
def test_a_template_that_refuses_or_fails_says_why(source: str, message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        rendered(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ (10 * messages | length) ** (10 ** 10) }}",
        "{% set n = namespace(x='a') %}{% for i in range(99999) %}{% set n.x = n.x * 9 %}{% endfor %}",
        "{{ 'a' * 10 ** 12 }}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{{ 'a'.ljust(10 ** 12) }}",
        "{{ '%0999999999999d' % 1 }}",
        "{{ 'a' * 2000000 }}",
        "{{ (('a' * 1000).replace('', 'b' * 100000)) }}",
        "{% for a in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
    ],
)
def test_a_hostile_template_is_stopped_and_the_next_conversation_served(source: str) -> None:
    hostile = "{% if messages[0].content == 'attack' %}" + source + "{% else %}fine{% endif %}"
    template = ChatTemplate(hostile, {}, time_limit_s=0.5)  # of computing, so that a busy machine fails nothing
    for _ in range(2):
        with pytest.raises(ChatTemplateError):
            template.render([ChatMessage("user", "attack")])
        assert template.render(HI) == "fine"


def test_a_hostile_constant_is_stopped_when_it_is_compiled() -> None:
    with pytest.raises(ChatTemplateError, match=r"did not finish within 0\.5 s, and was stopped"):
        ChatTemplate("{{ 10 ** (10 ** 10) }}", {}, time_limit_s=0.5).render(HI)


def test_the_limit_on_characters_is_exact() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, max_chars=10)
    assert template.render([ChatMessage("user", "🙂" * 10)]) == "🙂" * 10
    with pytest.raises(ChatTemplateError, match="11 characters, more than the 10"):
        template.render([ChatMessage("user", "🙂" * 11)])


def test_many_threads_get_their_own_conversations() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    contents = [f"content {number}" * 50 for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda content: template.render([ChatMessage("user", content)]), contents))
    assert answers == contents


def worker_ids() -> set[int]:
    return {
        child.pid
        for child in psutil.Process(os.getpid()).children()
        if any("chat_template_worker" in argument for argument in child.cmdline())
    }


def test_the_process_ends_with_the_template_and_is_replaced_when_it_dies() -> None:
    before = worker_ids()
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert worker_ids() == before, "started before the first use"
    template.render(HI)
    (worker,) = worker_ids() - before
    process = psutil.Process(worker)
    process.kill()
    with pytest.raises(ChatTemplateError, match="ended its process"):
        template.render(HI)
    assert template.render(HI) == "Hi"
    (worker,) = worker_ids() - before
    del template
    gc.collect()
    assert not psutil.pid_exists(worker)


@settings(max_examples=100, deadline=None)
@given(content=st.text(), role=st.text(min_size=1))
def test_contents_pass_unchanged(shared_template: ChatTemplate, content: str, role: str) -> None:
    assert shared_template.render([ChatMessage(role, content)]) == f"{role}|{content}"


@pytest.fixture(scope="module")
def shared_template() -> ChatTemplate:
    """Renders a message as it is."""
    return ChatTemplate("{{ messages[0].role + '|' + messages[0].content }}", {})
