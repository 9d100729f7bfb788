"""Options that every channel of the client is made with: retries, keepalive, message sizes."""

from __future__ import annotations

import json

from loramux.client.calls import RETRIED

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""Largest message in either direction: an ordering file may be 16 MiB, and scalings of a long prompt are large."""

ChannelOptions = list[tuple[str, str | int]]


def channel_options() -> ChannelOptions:
    """Options for `grpc.insecure_channel` and its aio twin."""
    return [
        ("grpc.service_config", _service_config()),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # A service that restarts is found again soon: grpc's own pause grows to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
    ]


def _service_config() -> str:
    """What is safe to send again is, when the service is away for a moment: same bytes, so same request_id."""
    names = []
    for method in RETRIED:
        service, _, name = method.removeprefix("/").partition("/")
        names.append({"service": service, "method": name})
    retry = {
        "maxAttempts": 5,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": retry}]})
