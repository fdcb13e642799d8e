"""Heartbeats, which a trainer writes to a Redis hash every few seconds (docs/liveness.md)."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from trainwire.schemas.messages import ATTEMPT_UNSAID, Body, Metrics
from trainwire.schemas.validation import MAX_ATTEMPT, MAX_ID, MAX_TIME_NS, InvalidMessage
from trainwire.schemas.wire import MAX_SOURCE_CHARS

SYSTEM_PREFIX: Final = "system/"
"""Prefix of the names of metrics of the machine, which a hung training also sends."""


_Number: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_ATTEMPT)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_ID)]
_Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=10**9)]
"""Up to thirty years."""
_Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE_CHARS)]


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of a process at the time `at`, in milliseconds since 1970 by the clock of Redis (TIME).

    All other fields but job and source are optional:
    `since`: the start of the process, in seconds since 1970;
    `every_s`: the interval of its heartbeats;
    `quiet_s`: time since its last message;
    `stall_after_s`: the longest pause that it promised between messages;
    `usual_pause_s`: the longest pause to be expected from its rhythm so far;
    `unsent`: number of its messages that are not in Redis yet;
    `spooled_bytes`: size of the messages on its disk that are not acknowledged yet;
    `dropped`: number of lines, points and checkpoints that it has dropped.
    """

    job: Annotated[int, Meta(ge=1, le=MAX_ID)]
    source: _Name
    at: Annotated[int, Meta(ge=0, le=MAX_ID)]
    attempt: _Number = ATTEMPT_UNSAID
    rank: _Number | None = None
    host: _Name | None = None
    pid: _Number | None = None
    since: Annotated[float, Meta(ge=0, le=MAX_TIME_NS // 10**9)] | None = None
    every_s: _Seconds = 10.0
    quiet_s: _Seconds = 0.0
    stall_after_s: _Seconds | None = None
    usual_pause_s: _Seconds | None = None
    unsent: _Count | None = None
    spooled_bytes: _Count | None = None
    dropped: _Count | None = None


encode_heartbeat: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Heartbeat).decode


def decode_heartbeat(data: bytes) -> Heartbeat:
    """Return the heartbeat; raise `InvalidMessage` for anything else."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidMessage("undecodable", f"not a heartbeat: {exc}") from exc


def says_progress(body: Body) -> bool:
    """Return whether a message shows that the training goes on; metrics of the machine alone do not."""
    if not isinstance(body, Metrics) or body.progress is not None or not body.points:
        return True
    return any(not name.startswith(SYSTEM_PREFIX) for point in body.points for name in point.values)
