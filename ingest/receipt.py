"""What `Run.finish` answers: how far every message came."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainwire.schemas.keys import Kind


@dataclass(frozen=True)
class Receipt:
    """How far the messages of one source came; each mapping holds counts by kind.

    `produced`, `stored` (committed in Postgres), `lost` (Postgres has lost them again, or the spool could not be
    read, and they cannot be sent any more), `sent` (Redis has or had them), `unsent` and `spooled` (not stored,
    and on the disk, from where they are sent later) count messages.
    `dropped` counts what never became one: lines, points, checkpoints, and single `values` that are no numbers.
    With `is_job_deleted` somebody deleted the job meanwhile: the workers took its messages and stored none.
    """

    produced: dict[Kind, int] = field(default_factory=dict)
    stored: dict[Kind, int] = field(default_factory=dict)
    sent: dict[Kind, int] = field(default_factory=dict)
    unsent: dict[Kind, int] = field(default_factory=dict)
    spooled: dict[Kind, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    lost: dict[Kind, int] = field(default_factory=dict)
    is_job_deleted: bool = False

    @property
    def unsettled(self) -> int:
        """How many messages are neither stored nor lost: they wait for their ack."""
        settled = sum(self.stored.values()) + sum(self.lost.values())
        return sum(self.produced.values()) - settled

    @property
    def complete(self) -> bool:
        """Tell whether everything that was said is committed in Postgres."""
        return not self.dropped and self.stored == self.produced
