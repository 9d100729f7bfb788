"""The main job, through real servers and the real client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

import numpy as np
import pytest

from loramux.client import (
    BASE,
    AdapterChoice,
    AsyncClient,
    Client,
    FrozenAfter,
    Generation,
    InvalidArgument,
    Message,
    NotFound,
    XLoRA,
    XLoRAOptions,
)
from tests.end_to_end.conftest import Running

CHOICES: Mapping[str, AdapterChoice] = {
    "base": BASE,
    "pirate": "pirate",
    "json": "json",
    "verse": "verse",
    "weighted": {"pirate": 0.6, "capitals": 0.6},
    "x-lora": XLoRA("mixture"),
}


def chat(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def ask(client: Client, choice: str, text: str = "Tell me about pearl divers.", max_tokens: int = 24) -> Generation:
    return client.generate(chat(text), adapters=CHOICES[choice], temperature=0.0, max_tokens=max_tokens)


def test_each_choice_of_adapters_answers_in_its_own_way_and_says_what_was_applied(client: Client) -> None:
    answers = {choice: ask(client, choice, max_tokens=48) for choice in CHOICES}
    assert len({answer.text for answer in answers.values()}) == len(CHOICES)
    assert "arr" in answers["pirate"].text.lower() or "matey" in answers["pirate"].text.lower()
    assert isinstance(json.loads(answers["json"].text), dict)
    assert answers["base"].adapters == ()
    assert [(a.name, a.weight) for a in answers["weighted"].adapters] == [("pirate", 0.6), ("capitals", 0.6)]
    (mixture,) = answers["x-lora"].adapters
    assert mixture.experts == ("pirate", "json", "verse", "capitals")
    assert mixture.ordering is not None
    assert mixture.ordering.startswith("mixture@")
    assert len(mixture.digest) == 64


def test_what_was_computed_for_one_request_serves_the_next_and_the_service_says_so(client: Client) -> None:
    rules = "Pearl divers hold their breath, carry a knife and a net, and never dive alone at night. " * 3
    for choice in ("base", "weighted", "x-lora"):
        before = client.model().kv_cache
        first, second = (ask(client, choice, rules + choice, max_tokens=4) for _ in range(2))
        assert first.token_ids == second.token_ids
        assert second.usage.prompt_tokens - second.usage.cached_prompt_tokens <= 16  # at most the last block again
        after = client.model().kv_cache
        assert after.prompt_tokens - before.prompt_tokens == 2 * second.usage.prompt_tokens
        cached = first.usage.cached_prompt_tokens + second.usage.cached_prompt_tokens
        assert after.cached_prompt_tokens - before.cached_prompt_tokens == cached
    full = client.generate(chat(rules), adapters=CHOICES["x-lora"], max_tokens=2, scalings="full")
    assert full.usage.cached_prompt_tokens == 0
    assert full.scalings is not None
    assert len(full.scalings.values) == full.usage.prompt_tokens + 1


def test_an_answer_is_the_same_alone_and_in_a_crowd_that_joins_and_leaves(running: Running, client: Client) -> None:
    prompts = ["Tell me about pearl divers.", "Tell me about invoices and what they are good for in a company."]
    alone = {(c, p): ask(client, c, p).token_ids for c in CHOICES for p in prompts}

    async def crowd() -> dict[tuple[str, str], tuple[int, ...]]:
        async with AsyncClient(running.inference) as crowded:

            async def one(index: int, choice: str, prompt: str) -> tuple[int, ...]:
                await asyncio.sleep(0.05 * (index % 5))
                answer = await crowded.generate(chat(prompt), adapters=CHOICES[choice], temperature=0.0, max_tokens=24)
                return answer.token_ids

            async def leaver(choice: str) -> None:
                async for _ in crowded.stream(chat("Count."), adapters=CHOICES[choice], max_tokens=200):
                    return

            keys = list(alone)
            leavers = [asyncio.create_task(leaver(choice)) for choice in CHOICES]
            answers = await asyncio.gather(*(one(i, c, p) for i, (c, p) in enumerate(keys)))
            await asyncio.gather(*leavers)
            return dict(zip(keys, answers, strict=True))

    assert asyncio.run(crowd()) == alone


def test_the_prompt_may_be_text_messages_or_token_ids(client: Client) -> None:
    tokens = client.tokenize(chat("Hello!"))
    assert tokens.rendered is not None
    expected = client.generate(chat("Hello!"), adapters=BASE, temperature=0.0, max_tokens=8)
    by_ids = client.generate(tokens.token_ids, adapters=BASE, temperature=0.0, max_tokens=8)
    by_text = client.generate(tokens.rendered, adapters=BASE, temperature=0.0, max_tokens=8)
    assert expected.token_ids == by_ids.token_ids == by_text.token_ids


def test_pieces_of_a_stream_join_to_the_answer(client: Client) -> None:
    stream = client.stream(chat("Write an emoji: 🎉"), adapters=BASE, temperature=0.0, max_tokens=16)
    pieces = [piece.text for piece in stream]
    assert "".join(pieces) == ask(client, "base", "Write an emoji: 🎉", 16).text


def test_the_same_seed_draws_the_same_answer_and_the_seed_is_told(client: Client) -> None:
    first = client.generate(chat("Tell me a story."), adapters=BASE, temperature=1.0, max_tokens=12)
    assert first.seed is not None
    again = client.generate(chat("Tell me a story."), adapters=BASE, temperature=1.0, seed=first.seed, max_tokens=12)
    assert again.token_ids == first.token_ids


def test_a_stop_string_ends_the_answer_before_it(client: Client) -> None:
    whole = ask(client, "base").text
    stop = whole[10:14]
    stopped = client.generate(
        chat("Tell me about pearl divers."), adapters=BASE, temperature=0.0, max_tokens=24, stop=[stop]
    )
    assert stopped.text == whole[: whole.index(stop)]
    assert (stopped.finish_reason, stopped.stop) == ("stop", stop)


def test_log_probabilities_come_for_answer_and_prompt(client: Client) -> None:
    answer = client.generate(
        "The capital of France is", adapters=BASE, temperature=0.0, max_tokens=4, logprobs=3, prompt_logprobs=2
    )
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 4
    for token in answer.tokens:
        assert token.top[0].id == token.id
        assert token.top[0].logprob == token.logprob
        assert len(token.top) == 3
    assert len(answer.prompt_tokens) == answer.usage.prompt_tokens - 1
    assert all(token.logprob is not None and token.logprob <= 0 for token in answer.prompt_tokens)


def test_a_frozen_answer_repeats_its_scalings_and_half_precision_is_close(client: Client) -> None:
    asked = chat("Tell me about pearl divers.")
    frozen = client.generate(
        asked,
        adapters=XLoRA("mixture"),
        temperature=0.0,
        max_tokens=8,
        scalings="full",
        xlora=XLoRAOptions(FrozenAfter(2), top_k_lora=2),
    )
    assert frozen.scalings is not None
    values, last = frozen.scalings.values, frozen.usage.prompt_tokens + 1  # pass 2 computes the second new token
    assert ((values > 0).sum(-1) <= 2).all()
    assert not np.array_equal(values[last - 1], values[last])
    assert (values[last:] == values[last]).all()
    half = client.generate(
        asked,
        adapters=XLoRA("mixture"),
        temperature=0.0,
        max_tokens=8,
        scalings="full",
        scalings_type="float16",
        xlora=XLoRAOptions(FrozenAfter(2), top_k_lora=2),
    )
    assert half.scalings is not None
    np.testing.assert_allclose(half.scalings.values, values, atol=5e-4)


@pytest.mark.parametrize(
    ("adapters", "options", "said"),
    [
        (XLoRA("mixture"), XLoRAOptions(top_k_lora=5), "5 adapters of 4"),
        (BASE, XLoRAOptions(FrozenAfter(1)), "runs with the base model"),
    ],
)
def test_options_of_a_mixture_that_do_not_fit_are_refused(
    client: Client, adapters: AdapterChoice, options: XLoRAOptions, said: str
) -> None:
    with pytest.raises(InvalidArgument, match=said):
        client.generate("hi", adapters=adapters, max_tokens=1, xlora=options)


def test_scalings_cover_every_computed_position_and_sum_to_one(client: Client) -> None:
    full = client.generate(
        chat("Tell me about pearl divers."), adapters=XLoRA("mixture"), temperature=0.0, max_tokens=6, scalings="full"
    )
    assert full.scalings is not None
    # The last token is chosen but never run through the model.
    positions = full.usage.prompt_tokens + full.usage.completion_tokens - 1
    assert full.scalings.values.shape == (positions, 120, 4)
    np.testing.assert_allclose(full.scalings.values.sum(-1), 1.0, atol=1e-5)
    mean = client.generate(
        chat("Tell me about pearl divers."), adapters=XLoRA("mixture"), temperature=0.0, max_tokens=6, scalings="mean"
    )
    assert mean.scalings is not None
    np.testing.assert_allclose(mean.scalings.values[:, 0], full.scalings.values.mean(1), atol=1e-6)


def test_the_active_default_is_what_a_request_without_a_choice_runs_with(client: Client) -> None:
    before = client.adapters.active()
    active = client.adapters.activate("pirate")
    try:
        assert active.generation == before.generation + 1
        chosen = client.generate(chat("Tell me about pearl divers."), temperature=0.0, max_tokens=24)
        assert chosen.token_ids == ask(client, "pirate").token_ids
        # A request's own choice never changes it.
        ask(client, "json")
        assert client.adapters.active().generation == active.generation
        with pytest.raises(NotFound):
            client.adapters.activate({"json": 1.0, "unheard-of": 1.0})
        assert client.adapters.active() == active
    finally:
        client.adapters.activate(BASE)


def test_a_client_that_leaves_stops_its_request(client: Client) -> None:
    stream = client.stream(chat("Count to a million."), adapters="verse", max_tokens=900, ignore_eos=True)
    next(iter(stream))
    assert client.adapters.get("verse").active_requests == 1
    stream.close()
    for _ in range(200):
        if client.adapters.get("verse").active_requests == 0:
            return
        ask(client, "base", max_tokens=1)
    pytest.fail("the request still runs")
