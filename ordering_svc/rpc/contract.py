"""Checks a request against the rules that its proto states."""

from __future__ import annotations

import reprlib

import protovalidate
from google.protobuf.message import DecodeError, Message

from ordering_svc.errors import InvalidRequest, Violation

MALFORMED = "MALFORMED_MESSAGE"

_SHORT = reprlib.Repr()
_SHORT.maxstring = 60


def decoded(message_type: type[Message], raw: bytes) -> Message:
    """The request in the bytes, which keeps the rules of its contract.

    Raises:
        InvalidRequest: the bytes are no such message, or break a rule; with one violation for each.
    """
    try:
        request = message_type.FromString(raw)
    except DecodeError:
        what = message_type.DESCRIPTOR.name
        raise InvalidRequest([Violation("", f"the bytes are not a {what} message", MALFORMED)]) from None
    violations = [_violation(violation) for violation in protovalidate.collect_violations(request)]
    if violations:
        raise InvalidRequest(violations)
    return request


def _violation(violation: protovalidate.Violation) -> Violation:
    found = violation.proto
    elements = found.field.elements if found.field is not None else ()
    value = violation.field_value
    # Of a list or a message the field's name says more than its content.
    got = f" (got {_SHORT.repr(value)})" if isinstance(value, str | int | float) else ""
    reason = found.rule_id.upper().replace(".", "_")
    return Violation(".".join(_part(element) for element in elements), f"{found.message}{got}", reason)


def _part(element: protovalidate.FieldPathElementPb) -> str:
    """One step of a field path, for instance `target_modules[1]`."""
    subscript = element.subscript
    return element.field_name + (f"[{subscript.value}]" if subscript is not None else "")
