"""Problems of files as text for people, as annotations of a GitHub workflow, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ordering_svc.domain.positions import Position
from ordering_svc.domain.problems import Problem


class Format(StrEnum):
    """How findings are written."""

    TEXT = "text"
    GITHUB = "github"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of one file."""

    path: str
    position: Position
    problem: Problem


def written(findings: Sequence[Finding], paths: Sequence[str], form: Format) -> Iterator[str]:
    """The lines of all findings; `paths` are the files that were judged."""
    if form is Format.JSON:
        yield json.dumps([_plain(path, [each for each in findings if each.path == path]) for path in paths])
        return
    for finding in findings:
        yield from _annotation(finding) if form is Format.GITHUB else _text(finding)


def _text(finding: Finding) -> Iterator[str]:
    problem, position = finding.problem, finding.position
    place = f"{finding.path}:{position.line}:{position.column}"
    yield f"{place}: {problem.severity.value} {problem.code}: {problem.message}"
    yield f"    {problem.hint}"


def _annotation(finding: Finding) -> Iterator[str]:
    """Source: "Workflow commands for GitHub Actions", `::error` and `::warning`."""
    problem, position = finding.problem, finding.position
    values = {"file": finding.path, "line": position.line, "col": position.column, "title": problem.code}
    properties = ",".join(f"{key}={_escaped(str(value), in_property=True)}" for key, value in values.items())
    yield f"::{problem.severity.value} {properties}::{_escaped(f'{problem.message} {problem.hint}')}"


def _escaped(text: str, *, in_property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if in_property else text


def _plain(path: str, findings: Sequence[Finding]) -> dict[str, object]:
    problems = [
        {
            "code": each.problem.code,
            "severity": each.problem.severity.value,
            "field": each.problem.field,
            "message": each.problem.message,
            "hint": each.problem.hint,
            "file": each.problem.file,
            "line": each.position.line,
            "column": each.position.column,
        }
        for each in findings
    ]
    return {"path": path, "valid": not any(each.problem.is_error for each in findings), "problems": problems}
