"""Orderings, their history and their differences, for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from loramux.cli.tables import fields_table
from loramux.client import ChangeType, Difference, Ordering, OrderingChange, OrderingDiff
from loramux.client.adapters import short_name

MOST_DIFFERENCES = 12
"""More than these are told in the service's own few lines, which join runs of like changes."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def orderings_table(orderings: Sequence[Ordering]) -> Table | Text:
    """Orderings, one a line."""
    if not orderings:
        return Text("no orderings", style="dim")
    deleted = any(ordering.delete_time for ordering in orderings)
    columns = ("Ordering", "Revision", "Tags", "Kind", "Base model", "Order", "Layers", "Labels", "Changed (UTC)")
    table = Table(*columns, *(("Deleted (UTC)",) if deleted else ()), box=None)
    for ordering in orderings:
        document = ordering.document
        cells: list[Text | str] = [
            Text(ordering.id, style="dim strike" if ordering.delete_time else "bold"),
            str(ordering.revision_number),
            _tags(ordering.tags),
            ordering.kind.value if ordering.kind is not None else "",
            Text(document.base_model_id or ""),
            Text(", ".join(document.order or ())),
            str(len(document.layers or {})),
            Text(_labels(ordering.labels)),
            f"{ordering.update_time:%Y-%m-%d %H:%M}",
        ]
        if deleted:
            cells.append(f"{ordering.delete_time:%Y-%m-%d %H:%M}" if ordering.delete_time else "")
        table.add_row(*cells)
    return _uncut(table)


def history_table(revisions: Sequence[Ordering]) -> Table:
    """The revisions of one ordering, one a line."""
    table = Table("Revision", "Id", "Tags", "Made (UTC)", "How", "Order", "Layers", box=None)
    for revision in revisions:
        table.add_row(
            Text(f"{revision.id}@{revision.revision_number}", style="bold"),
            revision.revision_id,
            _tags(revision.tags),
            f"{revision.update_time:%Y-%m-%d %H:%M:%S}",
            Text(_made(revision)),
            Text(", ".join(revision.document.order or ())),
            str(len(revision.document.layers or {})),
        )
    return _uncut(table)


def ordering_table(ordering: Ordering) -> Table:
    """One ordering at one revision: its document, what is kept beside it, and how it was made."""
    document, provenance = ordering.document, ordering.provenance
    preload = ", ".join(f"{entry.name} ({entry.adapter_model_id})" for entry in document.preload_adapters or ())
    return fields_table(
        (
            ("ordering", ordering.id),
            ("revision", f"{ordering.revision_number} ({ordering.revision_id})"),
            ("tags", ", ".join(ordering.tags)),
            ("kind", ordering.kind.value if ordering.kind is not None else None),
            ("base model", document.base_model_id),
            ("order", ", ".join(document.order or ())),
            ("layers", "\n".join(layer_lines(document.layers)) if document.layers is not None else None),
            ("preload", preload),
            ("adapters at", ordering.adapter_model_id),
            ("description", ordering.description),
            ("labels", _labels(ordering.labels)),
            ("made", f"{_made(ordering)}, by version {provenance.service_version or 'unknown'}"),
            ("from model", provenance.model),
            ("config digest", provenance.config_digest),
            ("arguments", provenance.arguments),
            ("module order", provenance.module_order and f"that of transformers {provenance.module_order}"),
            ("etag", ordering.etag),
            ("created", _moment(ordering.create_time)),
            ("changed", _moment(ordering.update_time)),
            ("deleted", _moment(ordering.delete_time) if ordering.delete_time else None),
        )
    )


def layer_lines(layers: Mapping[str, int]) -> list[str]:
    """The count of layers, then a line for each kind of module: its path with `*` for the layer's number, its rows."""
    kinds: dict[str, list[int]] = {}
    for path, row in layers.items():
        kinds.setdefault(_NUMBER.sub("*", path), []).append(row)
    width = max(map(len, kinds), default=0)
    lines = [
        f"  {kind:{width}}  {len(rows)} x, rows {min(rows)} to {max(rows)}"
        if len(rows) > 1
        else f"  {kind:{width}}  row {rows[0]}"
        for kind, rows in kinds.items()
    ]
    return [str(len(layers)), *lines]


def diff_view(before: str, after: str, diff: OrderingDiff, *, every: bool) -> Group | Text:
    """What differs: `-` before and `+` after, field by field, or the service's few lines if there is too much."""
    if not diff.differences:
        same = "the files are equal byte for byte" if diff.same_file else "only the layout of the files differs"
        return Text(f"no differences: {same}", style="green")
    head = Text.assemble((f"--- {short_name(before)}\n", "bold red"), (f"+++ {short_name(after)}", "bold green"))
    if len(diff.differences) <= MOST_DIFFERENCES or every:
        return Group(head, *_difference_lines(diff.differences))
    said = Text(diff.text.rstrip("\n"))
    said.highlight_regex(r"(?m)^.* removed[:,].*$", "red")
    said.highlight_regex(r"(?m)^.* added[:,].*$", "green")
    said.highlight_regex(r"(?m)^[^ ]+(?=[: ])", "bold cyan")
    return Group(head, said, Text(f"{len(diff.differences)} differences; --all shows each", style="dim"))


def _difference_lines(differences: Iterable[Difference]) -> Iterable[Text]:
    for entry in differences:
        yield Text(entry.field, style="bold cyan")
        if entry.before is not None:
            yield Text(f"  - {entry.before}", style="red")
        if entry.after is not None:
            yield Text(f"  + {entry.after}", style="green")


def change_line(change: OrderingChange) -> Text:
    """One change, in one line."""
    what, target = change.type.value, f"{change.id}@{change.revision_number}"
    if change.type is ChangeType.TAGGED:
        what = "tagged" if change.tagged_revision_number else "untagged"
        target = f"{change.id}@{change.tagged_revision_number}" if change.tagged_revision_number else change.id
        target += f" {change.tag}"
    elif change.type in (ChangeType.CREATED, ChangeType.UPDATED):
        target += f" {change.revision_id}"
    elif change.type is ChangeType.PURGED:
        target = change.id
    return Text.assemble(
        (f"{change.sequence:>6}  ", "dim"),
        (f"{change.change_time:%Y-%m-%d %H:%M:%S}  ", "dim"),
        (f"{what:<10}", "red" if change.type in (ChangeType.DELETED, ChangeType.PURGED) else "green"),
        target,
    )


def _uncut(table: Table) -> Table:
    """On a narrow terminal, cells go on in the next line: nothing is cut off."""
    for column in table.columns:
        column.overflow = "fold"
    return table


def _made(ordering: Ordering) -> str:
    source = ordering.provenance.source
    how = ordering.provenance.method.replace("_", " ")
    return f"{how} {'to' if how == 'rolled back' else 'from'} {short_name(source)}" if source else how


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def _tags(tags: Sequence[str]) -> Text:
    return Text(", ".join(tags), style="cyan")


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
