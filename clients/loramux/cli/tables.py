"""Values of the client as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from loramux.cli.choices import describe_selection
from loramux.client import (
    ActiveAdapters,
    Adapter,
    AdaptersSnapshot,
    AdapterUpdate,
    AppliedOrdering,
    FollowedOrdering,
    KvCacheUsage,
    Model,
    Severity,
    Validation,
)


def fields_table(rows: Iterable[tuple[str, object]]) -> Table:
    """Names and values, one a line; empty values are left out."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        if value not in (None, "", (), {}):
            table.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(str(value)))
    return table


def size(count: int) -> str:
    """Bytes for people: 1.5 MiB."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def model_table(model: Model) -> Table:
    """The model that is served."""
    return fields_table(
        (
            ("model", model.base_model_id),
            ("architecture", f"{model.architecture}, {model.num_layers} layers, {model.vocab_size} token ids"),
            ("weights", f"{model.quantization}, {size(model.weight_bytes)}"),
            ("context", f"{model.context_length} tokens"),
            ("device", f"{model.device}, {model.kernels} kernels"),
            ("batch-invariant", "yes" if model.batch_invariant else "no"),
            ("keys and values", _memory(model.kv_cache)),
            ("adapters can change", ", ".join(model.adapter_modules)),
            ("version", model.service_version),
        )
    )


def _memory(usage: KvCacheUsage) -> str:
    found = 100 * usage.cached_prompt_tokens // usage.prompt_tokens if usage.prompt_tokens else 0
    return (
        f"{usage.total_tokens} tokens, {usage.free_tokens} free; {found} % of prompt tokens found cached; "
        f"{usage.preemptions} preemptions"
    )


def adapters_table(
    adapters: Sequence[Adapter], active: ActiveAdapters, followed: Sequence[FollowedOrdering] = ()
) -> Table:
    """Resident adapters, one a line; the active default and what is followed below."""
    table = Table("Adapter", "Kind", "Rank", "Layers", "Modules", "Size", "Running", "Pinned", "Ordering", box=None)
    for adapter in adapters:
        table.add_row(
            Text(adapter.name, style="bold"),
            _kind(adapter),
            str(adapter.rank),
            str(adapter.num_layers),
            Text(", ".join(adapter.target_modules)),
            size(adapter.size_bytes),
            str(adapter.active_requests),
            "yes" if adapter.pinned else "",
            Text(adapter.ordering or ""),
        )
    lines = [f"active: {describe_selection(active.selection)}", *map(_followed_line, followed)]
    table.caption = Text("\n".join(lines))
    table.caption_justify = "left"
    return table


def adapter_table(adapter: Adapter) -> Table:
    """One resident adapter."""
    return fields_table(
        (
            ("adapter", adapter.name),
            ("kind", _kind(adapter)),
            ("experts", ", ".join(adapter.experts)),
            ("source", adapter.source),
            ("digest", adapter.digest),
            ("rank", adapter.rank),
            ("layers", adapter.num_layers),
            ("modules", ", ".join(adapter.target_modules)),
            ("size", size(adapter.size_bytes)),
            ("running requests", str(adapter.active_requests)),
            ("pinned", "yes" if adapter.pinned else "no"),
            ("last used", f"{adapter.last_use_time:%Y-%m-%d %H:%M:%S} UTC"),
            ("loaded", f"{adapter.load_time:%Y-%m-%d %H:%M:%S} UTC"),
            ("ordering", adapter.ordering),
        )
    )


def _followed_line(followed: FollowedOrdering) -> str:
    line = f"following {followed.reference}: {followed.applied or 'nothing'} is applied"
    if followed.last_seen is not None and followed.last_seen != followed.applied:
        line += f", {followed.last_seen} was seen"
    return f"{line}; {followed.problem}" if followed.problem else line


def update_lines(update: AdapterUpdate) -> Text:
    """One line for an event; for a snapshot one line and one more for each adapter."""
    if isinstance(update, AdaptersSnapshot):
        active = describe_selection(update.active.selection)
        head = f"{len(update.adapters)} adapters after change {update.generation}; active: {active}"
        return Text("\n".join([head, *(f"  {each.name} {each.digest[:12]}" for each in update.adapters)]))
    what = describe_selection(update.active.selection) if update.active is not None else ""
    if update.adapter is not None:
        what = f"{update.adapter.name} {update.adapter.digest[:12]}"
    return Text(f"{update.generation:>6}  {update.event_time:%H:%M:%S}  {update.kind:<9}  {what}")


def active_line(active: ActiveAdapters) -> Text:
    """The active default."""
    return Text(f"active: {describe_selection(active.selection)} (change {active.generation})")


def applied_ordering_table(applied: AppliedOrdering) -> Table:
    """What an ordering brought."""
    brought = ", ".join(adapter.name for adapter in applied.adapters)
    active = describe_selection(applied.active.selection)
    warnings = (("warning", Text(warning, style="yellow")) for warning in applied.warnings)
    return fields_table((("ordering", applied.ordering), ("brought", brought), ("active", active), *warnings))


def _kind(adapter: Adapter) -> str:
    return f"X-LoRA of {len(adapter.experts)}" if adapter.experts else "LoRA"


def validation_table(validation: Validation) -> Table | Text:
    """All problems of a document, one a row: what is wrong, and below it what to do."""
    if not validation.problems:
        return Text("valid", style="green")
    table = Table("", "Code", "Field", "Problem", box=None)
    for problem in validation.problems:
        error = problem.severity is Severity.ERROR
        mark = Text("error", style="bold red") if error else Text("warning", style="yellow")
        said = Text.assemble(problem.message, ("\n" + problem.hint if problem.hint else "", "dim"))
        where = Text(problem.field if not problem.file else f"{problem.field}\n{problem.file}".strip())
        table.add_row(mark, Text(problem.code), where, said)
    table.caption = "valid, with warnings" if validation.valid else "not valid"
    table.caption_justify = "left"
    return table
