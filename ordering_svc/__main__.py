"""`loramux-ordering`: keeps, makes and judges ordering files until it is told to stop; and looks after its database."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from ordering_svc.config import load_config
from ordering_svc.errors import OrderingServiceError
from ordering_svc.logs import configure_logs
from ordering_svc.maintenance import EXIT_CANNOT_START, add_commands
from ordering_svc.server import serve

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
add_commands(app)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the SQLite file. [~/.local/share/loramux/ordering]")
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="sqlite:///PATH or postgresql://..., instead of --data-dir.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT (port 0 takes a free one) or unix:PATH. [127.0.0.1:50051]")
    ] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help="Allow an address others can reach.")] = None,
    port_file: Annotated[Path | None, typer.Option(help="Where to write the address once ready.")] = None,
    model_root: Annotated[
        list[Path] | None, typer.Option(help="Folder that models may be read from; repeatable.")
    ] = None,
    adapter_root: Annotated[
        list[Path] | None, typer.Option(help="Folder that adapters may be read from, to judge orderings; repeatable.")
    ] = None,
    hub_endpoint: Annotated[str | None, typer.Option(help="The hub to ask. [that of HF_ENDPOINT]")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, json or console. [auto]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [info]")] = None,
    drain_seconds: Annotated[
        float | None, typer.Option(help="How long running calls may take when told to stop. [10]")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics at http://HOST of --listen:PORT/metrics. [off]")
    ] = None,
    busy_timeout_ms: Annotated[
        int | None, typer.Option(help="How long to wait for a locked SQLite file. [5000]")
    ] = None,
) -> None:
    """Serve orderings. Every flag is also a variable: LORAMUX_ORDERING_DATA_DIR for --data-dir, and so on.

    With a command, do that instead of serving; its own flags say which database.
    """
    if context.invoked_subcommand is not None:
        return
    flags: dict[str, object] = {
        "data_dir": data_dir,
        "database_url": database_url,
        "listen": listen,
        "insecure": insecure,
        "port_file": port_file,
        "model_roots": tuple(model_root) if model_root else None,
        "adapter_roots": tuple(adapter_root) if adapter_root else None,
        "hub_endpoint": hub_endpoint,
        "log_format": log_format,
        "log_level": log_level,
        "drain_seconds": drain_seconds,
        "metrics_port": metrics_port,
        "busy_timeout_ms": busy_timeout_ms,
    }
    try:
        config = load_config({name: value for name, value in flags.items() if value is not None})
        configure_logs(config.log_format, config.log_level)
        asyncio.run(serve(config))
    except OrderingServiceError as error:
        sys.stderr.write(f"loramux-ordering: {error.message}\n")
        raise typer.Exit(EXIT_CANNOT_START) from None


def main() -> None:
    """The command."""
    app(prog_name="loramux-ordering")


if __name__ == "__main__":
    main()
