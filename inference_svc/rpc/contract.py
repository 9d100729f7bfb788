"""Checks a request against the rules that its contract carries."""

from __future__ import annotations

import protovalidate
from google.protobuf.message import Message

from inference_svc.rpc.status import FieldProblem


def problems_of(request: Message) -> list[FieldProblem]:
    """Every broken rule of the contract, in field order; empty if there is none."""
    return [_problem(violation.proto) for violation in protovalidate.collect_violations(request)]


def _problem(violation: protovalidate.ViolationPb) -> FieldProblem:
    elements = violation.field.elements if violation.field is not None else ()
    return FieldProblem(_dotted(list(elements)), violation.message, violation.rule_id.upper().replace(".", "_"))


def _dotted(elements: list[protovalidate.FieldPathElementPb]) -> str:
    """`stopping.stop[1]` for the path to the second stop string."""
    parts = []
    for element in elements:
        subscript = element.subscript
        parts.append(element.field_name + (f"[{subscript.value}]" if subscript is not None else ""))
    return ".".join(parts)
