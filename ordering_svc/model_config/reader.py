"""Reads the model that a request names, wherever it is."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ordering_svc.allowed_roots import AllowedRoots
from ordering_svc.domain.problems import shown
from ordering_svc.errors import InvalidValue, ModelConfigInvalid, ModelNotFound, PathNotAllowed
from ordering_svc.model_config.gguf_config import model_of_gguf
from ordering_svc.model_config.hub import CONFIG_NAME, fetch_config
from ordering_svc.model_config.model import MAX_CONFIG_BYTES, Model, model_of_config


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A folder with a `config.json`, or a `.gguf` file, inside the allowed roots."""

    path: str


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository on the hub, optionally `@revision`."""

    hub_id: str


@dataclass(frozen=True, slots=True)
class ModelText:
    """The text of a `config.json`."""

    config_json: str


ModelSource = LocalModel | HubModel | ModelText
FetchConfig = Callable[[str, str | None, str | None], Path]


class ModelReader:
    """Reads configs; blocking, and safe to use from several threads."""

    def __init__(
        self, roots: Sequence[Path], hub_endpoint: str | None = None, fetch: FetchConfig = fetch_config
    ) -> None:
        self._roots = AllowedRoots(roots, "--model-root")
        self._hub_endpoint = hub_endpoint
        self._fetch = fetch

    def read(self, source: ModelSource) -> Model:
        """The structure of the model.

        Raises:
            InvalidRequest: the config is malformed or of an unknown architecture.
            ModelNotFound: it is not there.
            PathNotAllowed: it is outside the allowed roots.
            HubUnavailable: the hub does not answer.
        """
        match source:
            case LocalModel(path):
                return self._read_local(path)
            case HubModel(hub_id):
                return self._read_hub(hub_id)
            case ModelText(text):
                return model_of_config(text.encode(), "", "the given text")

    def _read_local(self, text: str) -> Model:
        path = self._roots.find(text, "model.path")
        try:
            if path.is_dir():
                config = path / CONFIG_NAME
                if not self._roots.contains(config.resolve()):
                    raise PathNotAllowed(f"the {CONFIG_NAME} of {shown(text)!r} is a link to outside", path=text)
                return model_of_config(_content(config), text, shown(text))
            if path.suffix.lower() == ".gguf" and path.is_file():
                return model_of_gguf(path, text)
        except (FileNotFoundError, NotADirectoryError):
            raise ModelNotFound(f"the folder {shown(text)!r} has no {CONFIG_NAME}", text) from None
        except OSError as error:
            raise ModelNotFound(f"{shown(text)!r} cannot be read: {error.strerror or error}", text) from None
        if path.exists():
            raise InvalidValue(
                "model.path", f"{shown(text)!r} is neither a folder with a {CONFIG_NAME} nor a .gguf file"
            )
        raise ModelNotFound(f"there is no {shown(text)!r}", text)

    def _read_hub(self, hub_id: str) -> Model:
        repository, _, revision = hub_id.partition("@")
        path = self._fetch(repository, revision or None, self._hub_endpoint)
        return model_of_config(_content(path), repository, repository)


def _content(path: Path) -> bytes:
    """A regular file of a bounded size: nothing that blocks, nothing that fills the memory."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ModelConfigInvalid("model", f"{path.name!r} is not a regular file")
    with path.open("rb") as file:
        content = file.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise ModelConfigInvalid("model", f"{path.name!r} has more than {MAX_CONFIG_BYTES} bytes")
    return content
