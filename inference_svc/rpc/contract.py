"""Checks a request against the rules that its contract carries."""

from __future__ import annotations

import reprlib

import protovalidate
from google.protobuf.message import Message

from inference_svc.rpc.status import FieldProblem

_SHORT = reprlib.Repr()
_SHORT.maxstring = 60


def problems_of(request: Message) -> list[FieldProblem]:
    """Every broken rule of the contract, in field order; empty if there is none."""
    return [_problem(violation) for violation in protovalidate.collect_violations(request)]


def _problem(violation: protovalidate.Violation) -> FieldProblem:
    found = violation.proto
    elements = found.field.elements if found.field is not None else ()
    value = violation.field_value
    # Of a list or a message the field's name says more than its content.
    got = f" (got {_SHORT.repr(value)})" if isinstance(value, str | int | float) else ""
    return FieldProblem(_dotted(list(elements)), f"{found.message}{got}", found.rule_id.upper().replace(".", "_"))


def _dotted(elements: list[protovalidate.FieldPathElementPb]) -> str:
    """`stopping.stop[1]` for the path to the second stop string."""
    parts = []
    for element in elements:
        subscript = element.subscript
        parts.append(element.field_name + (f"[{subscript.value}]" if subscript is not None else ""))
    return ".".join(parts)
