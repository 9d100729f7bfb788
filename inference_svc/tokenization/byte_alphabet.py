"""The alphabet of byte-level BPE: one printable character for each byte (GPT-2, `encoder.py`, `bytes_to_unicode`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


def _byte_of_character() -> dict[str, int]:
    # Printable bytes stand for themselves; the others take the characters from U+0100 on, in order.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF_CHARACTER: Mapping[str, int] = MappingProxyType(_byte_of_character())
