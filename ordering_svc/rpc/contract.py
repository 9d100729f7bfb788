"""Checks a request against the rules that its proto states."""

from __future__ import annotations

import protovalidate
from google.protobuf.message import DecodeError, Message

from ordering_svc.errors import InvalidRequest, Violation

MALFORMED = "MALFORMED_MESSAGE"


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
    violations = [_violation(found) for found in protovalidate.collect_violations(request)]
    if violations:
        raise InvalidRequest(violations)
    return request


def _violation(found: protovalidate.Violation) -> Violation:
    field = "".join(
        f".{element.field_name}{_subscript(element)}" if element.field_name else _subscript(element)
        for element in found.proto.field.elements
    )
    return Violation(field.removeprefix("."), found.proto.message, found.proto.rule_id.upper().replace(".", "_"))


def _subscript(element: protovalidate.FieldPathElementPb) -> str:
    return ""
