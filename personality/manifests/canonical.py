"""Canonical JSON and the digests that are taken of it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SHORT = 12
"""Hex digits of a digest that are shown to people; files and records always carry all 64."""


def canonical_json(value: Any) -> bytes:
    """Encode a value so that equal values give equal bytes on every machine.

    Keys are sorted, there is no white space, text is UTF-8, floats are Python's shortest round-trip form.

    Raises:
        ValueError: for NaN or infinity, which JSON cannot carry.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def pretty_json(value: Any) -> bytes:
    """Encode a value for a file that people read and git merges: sorted keys, one field a line."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def digest_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of some bytes, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, as 64 hex digits."""
    return digest_bytes(canonical_json(value))


def short(identity: str) -> str:
    """The first digits of a digest, as shown to people."""
    return identity[:SHORT]
