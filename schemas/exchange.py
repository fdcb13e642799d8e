"""The request and the answer by which trainers send messages over HTTPS (docs/wire-format.md#over-https)."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from trainwire.schemas.heartbeats import Heartbeat, RankClaim
from trainwire.schemas.keys import KINDS, AckFields, Kind
from trainwire.schemas.messages import SourceName
from trainwire.schemas.validation import MAX_ATTEMPT, MAX_ID

CONTENT_TYPE: Final = "application/vnd.msgpack"
MESSAGES_PATH: Final = "/jobs/{job_id}/messages"
MAX_ENTRIES: Final = 10_000
"""Most entries of each kind in one request."""


class WireEntry(msgspec.Struct, frozen=True):
    """One entry with the fields of an XADD."""

    v: int
    job: Annotated[int, Meta(ge=1, le=MAX_ID)]
    attempt: Annotated[int, Meta(ge=0, le=MAX_ATTEMPT)]
    source: SourceName
    seq: Annotated[int, Meta(ge=1, le=MAX_ID)]
    enc: Annotated[str, Meta(max_length=20)]
    body: bytes


class ExchangeRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Messages of one source, the kinds whose acknowledgements it wants, and its heartbeat.

    `claim` goes with the heartbeat, or alone: then the rank is claimed if it is free, or `by_force`. With
    `has_ended` the heartbeat and the claim are withdrawn.
    """

    source: SourceName
    entries: dict[Kind, Annotated[list[WireEntry], Meta(max_length=MAX_ENTRIES)]] = {}
    acks: Annotated[list[Kind], Meta(max_length=len(KINDS))] = []
    heartbeat: Heartbeat | None = None
    claim: RankClaim | None = None
    by_force: bool = False
    has_ended: bool = False


class ExchangeAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What Redis has taken, and the workers' reports; a client ignores fields that it does not know.

    `taken` counts the first entries of each kind, and `refusal` is Redis' reason for not taking the next. With
    `hold` none was taken: Redis is nearly full. `acks` are the fields of the acknowledgements. `is_alive` is False
    if Redis refused the heartbeat; `claim` is the claim of the rank in Redis, at the time `now_ms`. `stop` is the
    request to stop the source.
    """

    hold: bool = False
    is_job_deleted: bool = False
    taken: dict[Kind, int] = {}
    refusal: str | None = None
    acks: dict[Kind, AckFields] = {}
    is_alive: bool = True
    claim: bytes | None = None
    now_ms: int = 0
    stop: bytes | None = None


encode_exchange: Final = msgspec.msgpack.Encoder().encode
decode_answer: Final = msgspec.msgpack.Decoder(ExchangeAnswer).decode
