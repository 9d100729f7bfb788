"""The files of a Hugging Face folder that tell of its tokenizer, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken

from inference_svc.tokenization.errors import UnsupportedTokenizer
from inference_svc.weights.errors import FileMissing, MalformedFile
from inference_svc.weights.json_object import read_json_object

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
MAX_BYTES = 256 << 20  # the largest tokenizer.json known has 33 MB

# Other forms that a folder may hold its tokenizer in.
_OTHER_FORMS = ("tokenizer.model", "tekken.json", "vocab.json")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the files say, each key checked when it is asked for."""

    folder: Path
    tokenizer: str  # tokenizer.json
    config: Mapping[str, object]  # tokenizer_config.json, special_tokens_map.json
    generation: Mapping[str, object]  # generation_config.json, or else config.json
    states_ends: bool  # there is a generation_config.json with `eos_token_id`
    added_tokens: Mapping[int, AddedToken]  # those of tokenizer_config.json or added_tokens.json
    chat_templates: Mapping[str, str]

    def malformed(self, file: str, message: str) -> MalformedFile:
        """The error to raise about a file."""
        return MalformedFile(str(self.folder / file), message)

    def special_tokens(self) -> dict[str, str]:
        """`bos_token` and the like with their texts, as chat templates read them."""
        named = {}
        for key, value in self.config.items():
            if not key.endswith("_token") or value is None or isinstance(value, bool):
                continue
            text = value.get("content") if isinstance(value, Mapping) else value
            if not isinstance(text, str):
                raise self.malformed(CONFIG_FILE, f"{key!r} is {value!r:.80}, not a token")
            named[key] = text
        return named

    def generation_ids(self, key: str) -> tuple[int, ...]:
        """One id or several, such as `eos_token_id`."""
        value = self.generation.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token_id in ids:
            if type(token_id) is not int or token_id < 0:
                raise self.malformed("generation_config.json", f"{key!r} is {value!r:.80}, not an id or a list of ids")
        return tuple(ids)


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read what there is.

    Raises:
        FileMissing: there is no tokenizer.json.
        UnsupportedTokenizer: the folder has its tokenizer in another form only.
        MalformedFile: a file is not what its name says.
    """
    tokenizer = _text(folder / TOKENIZER_FILE)
    if tokenizer is None:
        other = next((name for name in _OTHER_FORMS if (folder / name).exists()), None)
        if other is None:
            raise FileMissing(str(folder / TOKENIZER_FILE), "the folder has no tokenizer")
        raise UnsupportedTokenizer(
            f"The folder {folder} has its tokenizer as {other}, not as tokenizer.json: write one with transformers, "
            "`AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`."
        )
    config = _object(folder / CONFIG_FILE)
    special = _object(folder / "special_tokens_map.json")
    lists_added = "added_tokens_decoder" in config
    # As in transformers: the map is from before tokenizer_config.json listed the added tokens, and stronger then.
    merged = {**special, **config} if lists_added else {**config, **special}
    generation = _object(folder / "generation_config.json")
    return TokenizerFiles(
        folder=folder,
        tokenizer=tokenizer,
        config=merged,
        generation={**_object(folder / "config.json"), **generation},
        states_ends=generation.get("eos_token_id") is not None,
        added_tokens=_listed(folder, config) if lists_added else _legacy(folder),
        chat_templates=_chat_templates(folder, config),
    )


def _listed(folder: Path, config: Mapping[str, object]) -> dict[int, AddedToken]:
    listed = config["added_tokens_decoder"]
    if not isinstance(listed, Mapping):
        raise MalformedFile(str(folder / CONFIG_FILE), f"'added_tokens_decoder' is {listed!r:.80}, not an object")
    tokens = {}
    for token_id, entry in listed.items():
        content = entry.get("content") if isinstance(entry, Mapping) else None
        if not token_id.isdecimal() or not isinstance(content, str) or not content:
            raise MalformedFile(
                str(folder / CONFIG_FILE), f"'added_tokens_decoder' holds {token_id!r}: {entry!r:.80}, not a token"
            )
        flags = {flag: entry[flag] for flag in _FLAGS if isinstance(entry.get(flag), bool)}
        tokens[int(token_id)] = AddedToken(content, **flags)
    return tokens


def _legacy(folder: Path) -> dict[int, AddedToken]:
    tokens = {}
    for content, token_id in _object(folder / "added_tokens.json").items():
        if type(token_id) is not int or token_id < 0:
            raise MalformedFile(str(folder / "added_tokens.json"), f"holds {content!r}: {token_id!r:.80}, not an id")
        tokens[token_id] = AddedToken(content, normalized=False)
    return tokens


def _chat_templates(folder: Path, config: Mapping[str, object]) -> dict[str, str]:
    """By name; files are stronger than tokenizer_config.json, as in transformers."""
    files = {path.stem: _text(path) or "" for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    default = _text(folder / TEMPLATE_FILE)
    if default is not None:
        files["default"] = default
    return files or _templates_of_config(folder, config.get("chat_template"))


def _templates_of_config(folder: Path, value: object) -> dict[str, str]:
    if value is None:
        return {}
    named: dict[object, object] = {"default": value}
    if isinstance(value, Mapping):
        named = dict(value)
    elif isinstance(value, list):
        entries = [entry if isinstance(entry, Mapping) else {} for entry in value]
        named = {entry.get("name"): entry.get("template") for entry in entries}
    templates = {name: text for name, text in named.items() if isinstance(name, str) and isinstance(text, str)}
    if len(templates) != len(named):
        raise MalformedFile(
            str(folder / CONFIG_FILE), f"'chat_template' is {value!r:.80}, not a template or a list of named ones"
        )
    return templates


def _object(path: Path) -> dict[str, object]:
    return read_json_object(path) if path.exists() else {}


def _text(path: Path) -> str | None:
    """None if there is no such file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise MalformedFile(str(path), f"has more than {MAX_BYTES >> 20} MiB")
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise MalformedFile(str(path), "is not UTF-8") from error
    except OSError as error:
        raise FileMissing(str(path), f"cannot be read: {error.strerror}") from error
