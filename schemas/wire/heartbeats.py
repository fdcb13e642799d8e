"""Heartbeats: the state that a source writes to a Redis hash every few seconds (docs/liveness.md)."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from trainwire.schemas.decode_errors import DECODE_ERRORS
from trainwire.schemas.wire.limits import MAX_SOURCE_CHARS
from trainwire.schemas.wire.messages import ATTEMPT_UNKNOWN, Body, Metrics
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID, MAX_TIME_NS, InvalidMessage

SYSTEM_PREFIX: Final = "system/"
"""Prefix of the metrics of the machine, such as its memory. A hung training sends them too."""
MAX_CLAIM_TTL_MS: Final = 10 * 60 * 1000


Number: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_ATTEMPT)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_ID)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=10**9)]
"""A duration in seconds, at most about thirty years."""
Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE_CHARS)]


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of a source at the time `at`, in milliseconds since 1970 by the clock of Redis (TIME).

    `since` is the start of the process in seconds since 1970. `every_s` is the interval of its heartbeats, and
    `quiet_s` the time since its last message. `stall_after_s` is the longest pause between messages that the user
    configured, and `usual_pause_s` an upper limit estimated from the pauses so far. `unsent` counts messages that
    are not in Redis yet; `dropped` counts dropped lines, points and checkpoints. `spooled_bytes` is the size of
    the spool.
    """

    job: Annotated[int, Meta(ge=1, le=MAX_ID)]
    source: Name
    at: Annotated[int, Meta(ge=0, le=MAX_ID)]
    attempt: Number = ATTEMPT_UNKNOWN
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
    rival: Name | None = None
    """In a claim: the `source` of the claim that it replaced, to inform that process, which is alive."""


class RankClaim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The claim by which a process reserves a rank, or a launcher a machine; it expires after `ttl_ms`.

    `holder.source` is a hash of the process's source name, because other trainers can read the claim.
    """

    holder: Heartbeat
    ttl_ms: Annotated[int, Meta(ge=1, le=MAX_CLAIM_TTL_MS)]
    launcher: Annotated[str, Meta(max_length=500)] = ""


encode_heartbeat: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Heartbeat).decode


def decode_heartbeat(data: bytes) -> Heartbeat:
    """Decode a heartbeat; raise `InvalidMessage` if the data is not one."""
    try:
        return _decode(data)
    except DECODE_ERRORS as exc:
        raise InvalidMessage("undecodable", f"not a heartbeat: {exc}") from exc


def read_claim(claim: object) -> Heartbeat | None:
    """Return the heartbeat in Redis' reply to the read of a claim; None if it is an error or no valid claim."""
    try:
        return decode_heartbeat(claim) if isinstance(claim, bytes) else None
    except InvalidMessage:
        return None


def shows_progress(body: Body) -> bool:
    """Return whether a message proves that the training makes progress.

    A message with points and no progress report, whose points have only system metrics (SYSTEM_PREFIX), does not.
    """
    if not isinstance(body, Metrics) or body.progress is not None or not body.points:
        return True
    return any(not name.startswith(SYSTEM_PREFIX) for point in body.points for name in point.values)
