"""A request to stop a training, as it travels to its processes (docs/stop.md)."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import msgspec


class StopRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asks a training to stop, and why."""

    by: str
    reason: str | None = None


encode_stop: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(StopRequest).decode


def read_stop(data: bytes | None) -> StopRequest | None:
    """Return the request in a field of Redis; None without a valid one."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        return None if data is None else _decode(data)
    return None
