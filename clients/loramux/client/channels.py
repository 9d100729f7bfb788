"""Options that every channel of the client is made with: retries of reads, keepalive, message sizes."""

from __future__ import annotations

import json

from loramux.client.calls import READS

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
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
    ]


def _service_config() -> str:
    """Reads are retried when the service is away for a moment; writes and Generate never are."""
    names = []
    for method in READS:
        service, _, name = method.removeprefix("/").partition("/")
        names.append({"service": service, "method": name})
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": retry}]})
