"""The settings of the ordering service: flags first, then LORAMUX_ORDERING_* variables, then defaults."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import URL

from ordering_svc.errors import CannotStart
from ordering_svc.persistence.database import BUSY_TIMEOUT_MS, parse_database_url

ENV_PREFIX = "LORAMUX_ORDERING_"
CLIENT_VARIABLES = frozenset({"LORAMUX_ORDERING_ADDRESS"})  # has our prefix, but tells clients where we are
DATABASE_FILE = "orderings.sqlite3"
UNIX_SCHEMES = ("unix:", "unix-abstract:")
MAX_UNIX_PATH_BYTES = 107  # what the kernel's socket address has room for


class Config(BaseSettings):
    """Everything that is decided before the service starts."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    data_dir: Path = Path("~/.local/share/loramux/ordering")
    database_url: SecretStr | None = None  # may hold a password; without it a SQLite file in data_dir
    listen: str = "127.0.0.1:50051"
    insecure: bool = False
    port_file: Path | None = None
    model_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    adapter_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    hub_endpoint: str | None = Field(None, min_length=1)  # without it that of HF_ENDPOINT
    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    drain_seconds: float = Field(10.0, ge=0, le=3600)
    metrics_port: int | None = Field(None, ge=0, le=65535)
    busy_timeout_ms: int = Field(BUSY_TIMEOUT_MS, ge=0, le=600_000)
    storage_threads: int = Field(8, ge=1, le=16)  # no more than the database has connections for
    model_threads: int = Field(4, ge=1, le=8)
    watch_poll_seconds: float = Field(0.2, gt=0, le=60)  # how soon a watch sees what another process wrote
    watch_heartbeat_seconds: float = Field(15.0, gt=0, le=3600)  # how long a watch is silent when nothing happens

    @field_validator("model_roots", "adapter_roots", mode="before")
    @classmethod
    def _from_a_path_list(cls, value: object) -> object:
        """A variable holds several folders with commas between them."""
        return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value

    @field_validator("data_dir", "port_file")
    @classmethod
    def _with_home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @field_validator("model_roots", "adapter_roots")
    @classmethod
    def _are_folders(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        roots = tuple(root.expanduser() for root in value)
        for root in roots:
            if not root.is_dir():
                raise ValueError(f"{str(root)!r} is not a folder")
        return roots

    @field_validator("listen")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value.startswith(UNIX_SCHEMES):
            path = value.partition(":")[2]
            if not path or len(path.encode()) > MAX_UNIX_PATH_BYTES:
                raise ValueError(f"{value!r} needs a path of 1 to {MAX_UNIX_PATH_BYTES} bytes")
            return value
        host, _, port = value.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise ValueError(f"{value!r} is not an address: write HOST:PORT or unix:PATH")
        return value

    @model_validator(mode="after")
    def _is_private_or_said_to_be_insecure(self) -> Config:
        if not self.insecure and not is_loopback(self.listen):
            raise ValueError(
                f"--listen {self.listen} is open to other machines without encryption: "
                "say --insecure if that is wanted, or listen on 127.0.0.1"
            )
        return self

    @property
    def metrics_host(self) -> str:
        """Where metrics are served: on the host of `listen`, or on this machine if that is no network address."""
        if self.listen.startswith(UNIX_SCHEMES):
            return "127.0.0.1"
        return self.listen.rpartition(":")[0].removeprefix("[").removesuffix("]")

    def database(self) -> URL:
        """The database to keep orderings in.

        Raises:
            CannotStart: the URL is of no kind we know.
        """
        if self.database_url is not None:
            return parse_database_url(self.database_url.get_secret_value())
        return URL.create("sqlite", database=str(self.data_dir / DATABASE_FILE))


def is_loopback(address: str) -> bool:
    """Only this machine can reach the address."""
    if address.startswith(UNIX_SCHEMES):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_config(flags: Mapping[str, object], environment: Mapping[str, str] | None = None) -> Config:
    """The settings from flags that were given and the process's environment (a test may give its own keys to check).

    Raises:
        CannotStart: a value is wrong, or a variable with our prefix names no setting.
    """
    known = {ENV_PREFIX + name.upper() for name in Config.model_fields} | CLIENT_VARIABLES
    for name in sorted(os.environ if environment is None else environment):
        if name.startswith(ENV_PREFIX) and name not in known:
            raise CannotStart(
                f"variable {name} names no setting of the ordering service: remove it or correct its name"
            )
    try:
        return Config(**flags)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        raise CannotStart("; ".join(_sentence(detail) for detail in error.errors())) from None


def _sentence(detail: Mapping[str, object]) -> str:
    message = str(detail["msg"]).removeprefix("Value error, ")
    location = detail["loc"]
    assert isinstance(location, tuple)
    if not location:
        return message
    return f"--{str(location[0]).replace('_', '-')}: {message} (got {detail['input']!r})"
