"""A request to stop a training, as stored in Redis for the training's processes (docs/stop.md)."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import msgspec

from trainwire.schemas.decode_errors import DECODE_ERRORS


class StopRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The author of a request to stop a training, and the reason."""

    by: str
    reason: str | None = None


encode_stop: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(StopRequest).decode


def read_stop(data: bytes | None) -> StopRequest | None:
    """Decode a request to stop from a Redis hash field; return None if it is absent or not valid."""
    with suppress(*DECODE_ERRORS):
        return None if data is None else _decode(data)
    return None
