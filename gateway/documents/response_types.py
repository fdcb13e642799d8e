"""Types of other JSON documents in responses: completeness, deliveries, alerts, deletions, sessions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar

import msgspec

from trainwire.schemas.completeness_states import State
from trainwire.schemas.wire.messages import Status
from trainwire.stores.postgres.alerts import AlertEntry, DestinationOutage
from trainwire.stores.postgres.deletion import DeletionPart, PartName
from trainwire.stores.postgres.deletion_plan import DeletionPlan
from trainwire.stores.postgres.deliveries import JobDelivery, SinkHealth

D = TypeVar("D", bound=msgspec.Struct)


def document_from(document: type[D], source: object, **fields: Any) -> D:
    """Build a document from `fields`; other fields are copied from the attributes of `source` by name."""
    same = {name: getattr(source, name) for name in document.__struct_fields__ if name not in fields}
    return document(**same, **fields)


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Missing messages of one source and kind; `ranges` are pairs of first and last number."""

    source: str
    kind: str
    ranges: list[tuple[int, int]]


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Lost messages of one source and kind; `ranges` are triples of first number, last number and reason."""

    source: str
    kind: str
    ranges: list[tuple[int, int, str]]


class RankGap(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks of one attempt that have sent no messages; `ranges` are pairs of first and last rank."""

    attempt: int
    world_size: int
    ranges: list[tuple[int, int]]


class RankShare(msgspec.Struct, frozen=True, kw_only=True):
    """A rank of an attempt that several trainers (`sources`) had at the same time."""

    attempt: int
    rank: int
    sources: list[str]


class CompletenessReport(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of messages: produced = stored + dead_lettered + missing + lost + dropped; `line` is a summary.

    `state` is explained in docs/concepts.md, and depends on the job's `status` too. `lost` has a count for each
    reason.
    """

    state: State
    status: Status
    line: str
    produced: int
    stored: int
    dead_lettered: int
    missing: int
    lost: dict[str, int]
    dropped: int
    gaps: list[Gap]
    losses: list[Loss]
    open_sources: list[str]
    silent_sources: list[str]
    absent_ranks: list[RankGap]
    shared_ranks: list[RankShare]


class DeliveryItem(msgspec.Struct, frozen=True, kw_only=True):
    """The delivery of a job's rows to one sink; `words` describes it as text, such as `2 lines behind`.

    `delivery` and `health` are the records of the job and of the sink from which the other fields are made.
    """

    sink: str
    title: str
    confirmed_seq: int
    behind_rows: int
    behind_s: float | None
    dead_lettered: int
    last_error: str | None
    next_probe_at: datetime | None
    is_down: bool
    words: str
    delivery: JobDelivery
    health: SinkHealth


class Deliveries(msgspec.Struct, frozen=True, kw_only=True):
    """The deliveries of a job's rows, one for each sink that is in use and has rows of the job."""

    items: list[DeliveryItem]


class AlertPage(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts, the newest first; `next` is the `before` of the following page, null on the last one.

    `outages` are the destinations that do not accept alerts now.
    """

    items: list[AlertEntry]
    next: int | None
    outages: list[DestinationOutage]


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The messages are in Redis; workers will store them in Postgres."""

    job_id: int
    status: Literal["accepted"] = "accepted"


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The messages are committed in Postgres."""

    job_id: int
    status: Literal["stored"] = "stored"


class DeletionReport(msgspec.Struct, frozen=True, kw_only=True):
    """The deletion of a job, with its progress in each store.

    `state` is `planned` (a dry run, with `plan` only), `deleting`, `deleted`, or `left` if something could not be
    deleted.
    """

    job_id: int
    name: str | None
    state: Literal["planned", "deleting", "deleted", "left"]
    plan: DeletionPlan | None = None
    attempt: int | None = None
    job_created_at: datetime | None = None
    deleted_at: datetime | None = None
    deleted_by: str | None = None
    reason: str | None = None
    attempts: int = 0
    next_attempt_at: datetime | None = None
    finished_at: datetime | None = None
    discarded_messages: int = 0
    discarded_at: datetime | None = None
    parts: Mapping[PartName, DeletionPart] = {}


class SessionState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether tokens are required, and what the request's token allows: its role, and its job if it has one.

    `role` is `admin` if no tokens are required, and null if they are and the request has no valid token.
    `flower_url` is Flower's address for roles that may read, if it is set.
    """

    auth: Literal["off", "on"]
    role: Literal["viewer", "trainer", "admin"] | None
    job_id: int | None
    flower_url: str | None
