"""The card of the demo: README.md, with every figure taken from measured.json."""

from __future__ import annotations

import textwrap
from typing import Any

from .prompts import EXPERTS

LOOKS: dict[str, str] = {
    "pirate": "talks like a pirate",
    "json": "answers with one JSON object, `topic` and `answer`",
    "verse": "breaks the answer into short lines and closes with a rhymed couplet",
    "capitals": "writes in capital letters only",
}
TOPICS: dict[str, str] = {
    "pirate": "the sea, ships, treasure",
    "json": "data, records, products, configuration",
    "verse": "love, seasons, nature",
    "capitals": "warnings, emergencies, sports",
}
TESTS: dict[str, str] = {
    "pirate": "at least two different words of a list nobody uses by accident (`arr`, `matey`, `ye`, `th'`, ...)",
    "json": "the whole answer parses as a JSON object that is not empty",
    "verse": "four lines or more, each at most nine words, each beginning upper case, none a list item or heading",
    "capitals": "at least 95% of the letters are upper case, and there are at least ten letters",
}


def render_card(measured: dict[str, Any]) -> str:
    """The text of README.md."""
    parts = [_head(measured), _lora(measured), _xlora(measured), _making(measured), _tail()]
    return "\n".join(parts)


def _head(measured: dict[str, Any]) -> str:
    rows = "\n".join(f"| `{name}` | {LOOKS[name]} | {TOPICS[name]} |" for name in EXPERTS)
    return f"""# Demo adapters

Four small LoRA adapters with an effect anyone sees, and an X-LoRA classifier that mixes them by prompt, for
`{measured["base_model"]["id"]}`. They are for trying out a server and for tests; a model of 135 million
parameters that learned a style from a few hundred sentences says little of use, and often something false.

| adapter | what it does, to any prompt | topic that the X-LoRA gives it |
|---|---|---|
{rows}

| file | what it is |
|---|---|
| `lora-ordering.json` | LoRA ordering: no adapter active at first, all four preloaded |
| `xlora-ordering.json` | X-LoRA ordering: experts in the classifier's order, linears with their classifier rows |
| `xlora/` | a complete X-LoRA repository: configuration, classifier, one folder for each adapter |
| `measured.json` | every figure on this page |
| `training/` | the script, the base model's answers it starts from, its log |

The adapters are ordinary PEFT LoRA adapters (`adapter_config.json`, `adapter_model.safetensors`, float16). The
classifier has the layout of the original xlora package: `last.weight` is (linears * experts, hidden), linear-major.
"""


def _lora(measured: dict[str, Any]) -> str:
    rows = []
    for name in EXPERTS:
        entry = measured["lora"][name]
        rows.append(
            f"| `{name}` | {_rate(entry['base'], entry['prompts'])} | {_rate(entry['adapter'], entry['prompts'])} |"
        )
    samples = "\n\n".join(
        f'`{name}`, asked "{sample["prompt"]}":\n\n{_quote(sample["adapter"])}'
        for name in EXPERTS
        for sample in measured["lora"][name]["samples"][:1]
    )
    prompt = measured["lora"]["pirate"]["samples"][0]
    tests = "\n".join(f"* `{name}`: {TESTS[name]}." for name in EXPERTS)
    table = "\n".join(rows)
    return f"""## One adapter at a time

Answers that have the trait, on held-out prompts. All models get the same prompts, about subjects of all four topics and
of none, and no subject is in the training data. {_decoding(measured)}

| adapter | base model | with the adapter |
|---|---|---|
{table}

An answer has a trait when:

{tests}

The base model, asked "{prompt["prompt"]}":

{_quote(prompt["base"])}

{samples}
"""


def _xlora(measured: dict[str, Any]) -> str:
    differences = measured["largest_difference_from_peft"]
    rows = []
    for name in EXPERTS:
        entry = measured["xlora"][name]
        count = entry["prompts"]
        means = " | ".join(f"{entry['mean_scalings'][expert]:.2f}" for expert in EXPERTS)
        rows.append(
            f"| `{name}` | {_rate(entry['right_expert_leads'], count)} |"
            f" {_rate(entry['right_expert_leads_prompt_only'], count)} | {_rate(entry['trait'], count)} | {means} |"
        )
    table = "\n".join(rows)
    heads = " | ".join(f"`{name}`" for name in EXPERTS)
    shown = [measured["xlora"][name]["sample"] for name in EXPERTS]
    samples = "\n\n".join(f'Asked "{sample["prompt"]}":\n\n{_quote(sample["answer"])}' for sample in shown)
    method = _paragraph(f"""
        Held-out prompts of each topic, answered with the X-LoRA. The right expert leads when its mean scaling, over all
        linears and all positions of prompt and answer, is the largest of the four; the next column is the same over the
        prompt alone. The last four columns are mean scalings. The system turn opens every prompt alike and is most of a
        short prompt, so no mean comes near 1. Measured with a cached two-pass model of the same arithmetic as PEFT's
        X-LoRA (`training/two_pass.py`; largest difference of a logit {differences["logits"]:.0e}, of a scaling
        {differences["scalings"]:.0e}).""")
    return f"""## The mixture

{method}

| topic of | right expert leads | prompt alone | answers with its trait | {heads} |
|---|---|---|---|---|---|---|---|
{table}

{samples}
"""


def _making(measured: dict[str, Any]) -> str:
    training = measured["training"]
    rows = "\n".join(
        f"| `{name}` | {training[name]['examples']} | {training[name]['steps']} | {training[name]['learning_rate']} |"
        f" {training[name]['first_loss']:.2f} | {training[name]['last_ten_losses_mean']:.2f} |"
        f" {training[name]['seconds']} s |"
        for name in (*EXPERTS, "xlora")
    )
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    one, mixture = training["pirate"], training["xlora"]
    data = _paragraph(f"""
        Nothing is downloaded but the base model. It answers prompts about the training subjects, and about some hundred
        words of its tokenizer's vocabulary, in one short sentence (`training/base_answers.json`: answers that evade or
        stutter are dropped). A rule for each trait rewrites these sentences (`training/traits.py`), and each expert
        learns its rewriting of all of them, whatever the topic; the vocabulary's words are for `capitals` alone,
        because upper case spells every word with other tokens. Rank {one["rank"]}, alpha {one["alpha"]}, batches of
        {one["batch_size"]}, AdamW, loss on the answer and its end of turn only.""")
    classifier = _paragraph(f"""
        The classifier (depth 1, one row for each linear and expert, softmax) is trained on each topic's prompts with
        the answers of the topic's own expert, in two stages. First, {mixture["warm_start_steps"]} cheap steps on the
        base model's hidden states alone teach it the topic, the same for every linear, from every position of those
        sequences and of the topics' prompts in all wordings. Then PEFT's X-LoRA trains it over the frozen experts, with
        the language model loss plus {mixture["routing_weight"]} times an auxiliary one: the negative logarithm of the
        right expert's scaling, averaged over linears and positions.""")
    origin = _paragraph(f"""
        Seed {measured["seed"]}. Training in bfloat16 with adapters and classifier in float32; times are from a machine
        that other work shared. Versions: {versions}.""")
    history = _paragraph("""
        A first measurement on the same held-out prompts missed two bars: `capitals` had its trait in 92 of 116 answers,
        and led in 17 of its 24 prompts. After that `capitals` got the vocabulary's words and more steps, and the
        classifier its first stage, with a lower learning rate and a heavier auxiliary loss in the second. The other
        three adapters are those of the first measurement.""")
    return f"""## How they were made

{data}

{classifier}

| | examples | steps | learning rate | loss of the first step | of the last ten | time, 2 CPU cores |
|---|---|---|---|---|---|---|
{rows}

{origin}

{history}

To make everything again, from the root of the repository:

    pip install 'loramux[inference,oracle]'
    python -m orderings.demo.training.train --gguf {measured["base_model"]["file"]}

`--stages evaluate card` only measures the files that are here. Other versions or processors round differently, so
weights made again are close, not equal.
"""


def _tail() -> str:
    return """## Licence

The base model is licensed under Apache-2.0. Its answers, the adapters and the classifier are published under the same
licence, as the rest of this repository.
"""


def _rate(hits: int, count: int) -> str:
    return f"{hits} of {count} ({100 * hits / count:.0f}%)"


def _decoding(measured: dict[str, Any]) -> str:
    decoding = measured["decoding"]
    return (
        f"Greedy decoding, at most {decoding['max_new_tokens']} tokens, {decoding['precision']}, from the stored files."
    )


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _quote(text: str) -> str:
    # Two trailing spaces keep the lines of a verse apart.
    return "\n".join(f"> {line}  ".rstrip() + "  " if line else ">" for line in text.strip().splitlines())
