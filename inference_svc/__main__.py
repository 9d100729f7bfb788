"""`loramux-inference`: serves one base model with many adapters until it is told to stop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from inference_svc.config import Config, StartError, load_config

EXIT_CANNOT_START = 2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Option(help="GGUF file, folder, hub id (`org/name[@revision][:FILE]`) or `wheel:PACKAGE`.")
    ] = None,
    base_model_id: Annotated[str | None, typer.Option(help="What orderings and adapters call the model.")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT; port 0 takes a free one. [127.0.0.1:50052]")] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help="Allow an address others can reach.")] = None,
    port_file: Annotated[Path | None, typer.Option(help="Where to write the address once ready.")] = None,
    ordering_address: Annotated[str | None, typer.Option(help="The ordering service. [127.0.0.1:50051]")] = None,
    ordering: Annotated[
        list[str] | None, typer.Option(help="ID[@REVISION] or ID@TAG to apply at start; repeatable, in this order.")
    ] = None,
    follow: Annotated[
        bool | None, typer.Option("--follow", help="Apply the orderings again whenever they change or a tag moves.")
    ] = None,
    adapter_root: Annotated[
        list[Path] | None, typer.Option(help="Folder that adapters may be loaded from; repeatable.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where fetched orderings are kept.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. [auto]")] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Pack a float model while it is loaded: q8_0 or q4_k. [it stays as it is]")
    ] = None,
    kernels: Annotated[
        str | None, typer.Option(help="auto, native, native-exact, triton, triton-graphs or reference. [auto]")
    ] = None,
    batch_invariant: Annotated[
        bool | None, typer.Option("--batch-invariant", help="An answer never depends on the rest of the batch.")
    ] = None,
    max_batch_tokens: Annotated[int | None, typer.Option(help="Most tokens of one step. [512]")] = None,
    max_running: Annotated[int | None, typer.Option(help="Most requests in one batch. [64]")] = None,
    max_waiting: Annotated[int | None, typer.Option(help="Most requests in the queue. [256]")] = None,
    kv_cache_tokens: Annotated[int | None, typer.Option(help="Room for keys and values, in tokens. [16384]")] = None,
    speculative_tokens: Annotated[
        int | None,
        typer.Option(
            help="Most tokens per request and step that are looked up in its own text and checked together with the "
            "next one: text that repeats itself comes sooner. 0: none. [3]"
        ),
    ] = None,
    prefix_caching: Annotated[
        bool | None,
        typer.Option(
            "--prefix-caching/--no-prefix-caching",
            help="Share keys and values between requests that begin alike. [on]",
            show_default=False,
        ),
    ] = None,
    context_length: Annotated[int | None, typer.Option(help="Most tokens of prompt and answer. [the model's]")] = None,
    max_adapters: Annotated[int | None, typer.Option(help="Most resident adapters. [64]")] = None,
    max_rank: Annotated[int | None, typer.Option(help="Largest rank of an adapter. [256]")] = None,
    max_adapter_bytes: Annotated[
        int | None, typer.Option(help="Most bytes of all adapters. [8 GiB, or what the model leaves of memory]")
    ] = None,
    eviction: Annotated[
        str | None, typer.Option(help="What happens at a limit: never (loads are refused) or lru. [never]")
    ] = None,
    xlora_granularity: Annotated[
        str | None,
        typer.Option(
            help="How often X-LoRA scalings are computed, if a request does not say: every-token, frozen-after:K "
            "(those of decode pass K hold; 0: those of the prompt's last token), every:N, or settled:EPSILON:PASSES. "
            "[every-token]"
        ),
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, json or console. [auto]")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve Prometheus metrics at http://HOST of --listen:PORT/metrics. [off]")
    ] = None,
    drain_seconds: Annotated[
        float | None, typer.Option(help="How long running requests may go on at the end. [30]")
    ] = None,
) -> None:
    """Serve one base model with many adapters over gRPC. Flags are variables too: LORAMUX_INFERENCE_LISTEN."""
    flags = {
        "model": model,
        "base_model_id": base_model_id,
        "listen": listen,
        "insecure": insecure,
        "port_file": port_file,
        "ordering_address": ordering_address,
        "orderings": tuple(ordering) if ordering else None,
        "follow": follow,
        "adapter_roots": tuple(adapter_root) if adapter_root else None,
        "data_dir": data_dir,
        "device": device,
        "quantize": quantize,
        "kernels": kernels,
        "batch_invariant": batch_invariant,
        "max_batch_tokens": max_batch_tokens,
        "max_running": max_running,
        "max_waiting": max_waiting,
        "kv_cache_tokens": kv_cache_tokens,
        "speculative_tokens": speculative_tokens,
        "prefix_caching": prefix_caching,
        "context_length": context_length,
        "max_adapters": max_adapters,
        "max_rank": max_rank,
        "max_adapter_bytes": max_adapter_bytes,
        "eviction": eviction,
        "xlora_granularity": xlora_granularity,
        "log_format": log_format,
        "metrics_port": metrics_port,
        "drain_seconds": drain_seconds,
    }
    try:
        config = load_config({name: value for name, value in flags.items() if value is not None})
        exit_code = _serve(config)
    except StartError as error:
        sys.stderr.write(f"loramux-inference: {' '.join(str(error).split())}\n")
        raise typer.Exit(EXIT_CANNOT_START) from None
    raise typer.Exit(exit_code)


def _serve(config: Config) -> int:
    from inference_svc.server import serve_until_told_to_stop  # torch takes seconds: not for --help or a wrong flag

    return serve_until_told_to_stop(config)


def main() -> None:
    """The entry point of the command."""
    app()


if __name__ == "__main__":
    main()
