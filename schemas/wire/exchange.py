"""The request and response bodies of the HTTPS transport for trainers (docs/wire-format.md#over-https)."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from msgspec.structs import asdict

from trainwire.schemas.keys import KINDS, AckFields, Kind
from trainwire.schemas.tracing import TRACEPARENT, checked_traceparent
from trainwire.schemas.wire.entries import MAX_PARTS_CHARS
from trainwire.schemas.wire.heartbeats import Heartbeat, RankClaim
from trainwire.schemas.wire.messages import SourceName
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID

CONTENT_TYPE: Final = "application/vnd.msgpack"
MESSAGES_PATH: Final = "/jobs/{job_id}/messages"
MAX_ENTRIES: Final = 10_000
"""Largest number of entries of each kind in one request."""


class WireEntry(msgspec.Struct, frozen=True):
    """One stream entry; its fields are those of the XADD command that the gateway sends to Redis."""

    v: int
    job: Annotated[int, Meta(ge=1, le=MAX_ID)]
    attempt: Annotated[int, Meta(ge=0, le=MAX_ATTEMPT)]
    source: SourceName
    seq: Annotated[int, Meta(ge=1, le=MAX_ID)]
    enc: Annotated[str, Meta(max_length=20)]
    body: bytes
    parts: Annotated[str, Meta(max_length=MAX_PARTS_CHARS)] | None = None
    traceparent: Any = None
    """The span of the run, if it is traced; of any type, because an invalid one is ignored."""

    def stream_fields(self) -> dict[str, Any]:
        """Return the fields of the XADD command; without `traceparent` if that is invalid."""
        fields = asdict(self) | {TRACEPARENT: checked_traceparent(self.traceparent)}
        return {name: value for name, value in fields.items() if value is not None}


class ExchangeRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request of a source: its messages, the kinds whose acknowledgements it requests, and its heartbeat.

    With a heartbeat, `claim` is renewed, or taken if no other process has it. Without one, `claim` is taken if the
    rank is free, or in any case if `by_force` is set. `has_ended` deletes the heartbeat and the claim.
    """

    source: SourceName
    entries: dict[Kind, Annotated[list[WireEntry], Meta(max_length=MAX_ENTRIES)]] = {}
    acks: Annotated[list[Kind], Meta(max_length=len(KINDS))] = []
    heartbeat: Heartbeat | None = None
    claim: RankClaim | None = None
    by_force: bool = False
    has_ended: bool = False


class ExchangeAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The response to an `ExchangeRequest`. Clients ignore fields that they do not know.

    `taken` is the number of entries of each kind that Redis accepted, from the first one on; `refusal` is Redis'
    error for the next entry. `hold` means that Redis is nearly full and that no entry was accepted. `acks` has the
    acknowledgement fields of each requested kind. `is_alive` is False if Redis refused the heartbeat. `claim` is
    the value of the rank's claim in Redis, and `now_ms` the time of the Redis server. `stop` is the request to
    stop the source, if a user has made one. `is_unknown_resume` is True if the source resumes a job of which no
    earlier attempt is stored. `behind_ms` is for how many milliseconds messages wait for the workers, 0 while that
    is short: clients then send less often.
    """

    hold: bool = False
    behind_ms: int = 0
    is_job_deleted: bool = False
    taken: dict[Kind, int] = {}
    refusal: str | None = None
    acks: dict[Kind, AckFields] = {}
    is_alive: bool = True
    claim: bytes | None = None
    now_ms: int = 0
    stop: bytes | None = None
    is_unknown_resume: bool = False


encode_exchange: Final = msgspec.msgpack.Encoder().encode
decode_answer: Final = msgspec.msgpack.Decoder(ExchangeAnswer).decode
