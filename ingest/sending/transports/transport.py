"""The interface of the two transports to the streams: a connection to Redis, and HTTPS requests to the gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from trainwire.ingest.sending.acks import AckReport, parse_report
from trainwire.ingest.servers.outage import Unavailable
from trainwire.schemas.keys import AckFields, Kind
from trainwire.schemas.wire.heartbeats import Heartbeat
from trainwire.schemas.wire.stop_requests import StopRequest

if TYPE_CHECKING:
    from trainwire.ingest.sending.heartbeat import SourceHeartbeat
    from trainwire.ingest.sending.unacked import EncodedMessage

EVERYTHING: Final = 2**63 - 1
"""The acknowledged number for a deleted job: higher than every message number, so that none is sent."""


@dataclass
class Answer:
    """The result of one exchange with the server.

    `must_hold` is True while Redis is nearly full: further messages have to wait. `seqs` are the numbers of the
    messages that Redis has accepted nevertheless, and `refusal` is the reason for the first message that it has
    not accepted.
    """

    must_hold: bool = False
    is_job_deleted: bool = False
    """Whether the job was deleted: then every message counts as acknowledged, and none is stored."""
    acks: dict[Kind, AckReport] = field(default_factory=dict)
    seqs: dict[Kind, list[int]] = field(default_factory=dict)
    refusal: Unavailable | None = None
    stop: StopRequest | None = None
    is_unknown_resume: bool = False
    """Whether the source resumes a job of which no earlier attempt is stored."""
    behind_s: float | None = None
    """For how many seconds messages wait for the workers, 0 while that is short; None if it was not read."""


@dataclass(frozen=True)
class Claim:
    """The claim of a rank by another process, and the seconds since that process last renewed it."""

    holder: Heartbeat
    age_s: float


class Transport(Protocol):
    """Connects one source to the streams; every failure raises `Unavailable`."""

    least_interval_s: float
    """Shortest interval between two exchanges, in seconds, while there is little to send."""

    def exchange(
        self,
        batches: Mapping[Kind, Sequence[EncodedMessage]],
        kinds: Sequence[Kind],
        heartbeat: SourceHeartbeat | None = None,
    ) -> Answer:
        """Send a heartbeat, read acknowledgements of `kinds`, and append messages to streams, perhaps not all.

        A server that refuses the heartbeat may still accept messages. Messages in `batches` that it has not
        accepted can be sent again, and so can those for which the response was lost.
        """

    def claim(self, source: SourceHeartbeat, *, by_force: bool = False) -> Claim | None:
        """Claim the rank if it is free; with `by_force`, replace the claim of another process.

        Returns the claim of the process that has the rank, or None if it is ours now.
        """

    def withdraw_heartbeat(self, source: SourceHeartbeat) -> None:
        """Delete the heartbeat and the claim, because this process ends normally."""

    def close(self) -> None:
        """Close the connection; the next call opens a new one and resolves the host name again."""


def ack_reports(
    kinds: Sequence[Kind], fields: Mapping[Kind, AckFields], *, is_job_deleted: bool
) -> dict[Kind, AckReport]:
    """Return the acknowledgements of `kinds`, parsed from their fields in Redis.

    For a deleted job, every message counts as acknowledged.
    """
    if is_job_deleted:
        return dict.fromkeys(kinds, AckReport(EVERYTHING))
    return {kind: parse_report(*fields[kind]) for kind in kinds if kind in fields}


def foreign_claim(source: SourceHeartbeat, holder: Heartbeat | None, now_ms: int) -> Claim | None:
    """Return the claim if another process has it, with its age by the server's clock (`now_ms`); else None."""
    if holder is None or holder.source == source.claimant:
        return None
    return Claim(holder, (now_ms - holder.at) / 1000)
