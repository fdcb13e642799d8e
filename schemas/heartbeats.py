"""What a trainer says of itself every few seconds, in a Redis hash, beside its messages (docs/liveness.md)."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from trainwire.schemas.messages import ATTEMPT_UNSAID, Body, Metrics
from trainwire.schemas.validation import MAX_ATTEMPT, MAX_ID, MAX_TIME_NS, InvalidMessage
from trainwire.schemas.wire import MAX_SOURCE_CHARS

SYSTEM_PREFIX: Final = "system/"
"""Names of metrics that say how the machine is; they come from a hung training too."""


Number: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_ATTEMPT)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_ID)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=10**9)]
"""Up to thirty years."""
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE_CHARS)]


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """That a process lived at `at`, and for how long it had been quiet then.

    `at` is in milliseconds since 1970 by the clock of Redis (TIME), all else is optional: `since` is the start of
    the process in seconds since 1970; `every_s` how often it says so; `stall_after_s` the longest pause that it
    promised; `usual_pause_s` the longest that is to be expected of it, by its rhythm so far; `unsent` how many of
    its messages were not in Redis, `spooled_bytes` what it kept on its disk until that is committed, `dropped` how
    many lines, points and checkpoints it had dropped by then.
    """

    job: Annotated[int, Meta(ge=1, le=MAX_ID)]
    source: Name
    at: Annotated[int, Meta(ge=0, le=MAX_ID)]
    attempt: Number = ATTEMPT_UNSAID
    rank: Number | None = None
    host: Name | None = None
    pid: Number | None = None
    since: Annotated[float, Meta(ge=0, le=MAX_TIME_NS // 10**9)] | None = None
    every_s: Seconds = 10.0
    quiet_s: Seconds = 0.0
    stall_after_s: Seconds | None = None
    usual_pause_s: Seconds | None = None
    unsent: Count | None = None
    spooled_bytes: Count | None = None
    dropped: Count | None = None


encode_heartbeat: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Heartbeat).decode


def decode_heartbeat(data: bytes) -> Heartbeat:
    """Return the heartbeat; raise `InvalidMessage` where it is none."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidMessage("undecodable", f"not a heartbeat: {exc}") from exc


def says_progress(body: Body) -> bool:
    """Tell whether a message shows that the training goes on; metrics of the machine alone do not."""
    if not isinstance(body, Metrics) or body.progress is not None or not body.points:
        return True
    return any(not name.startswith(SYSTEM_PREFIX) for point in body.points for name in point.values)
