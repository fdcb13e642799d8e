"""The receipt of a run: its messages counted by state, such as stored, sent or spooled."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainwire.schemas.keys import Kind


@dataclass(frozen=True)
class Receipt:
    """Counts of the messages of one source, each mapping by kind.

    `produced` are all messages; `stored` are committed in Postgres; `sent` were taken by Redis, `unsent` were not;
    `spooled` are not stored yet, and on the disk, from where they are sent later; `lost` can neither be found in
    Postgres nor sent again (after a restore of Postgres, or damage of the spool). `dropped` counts lines, points,
    checkpoints and single `values` that were never part of a message. With `is_job_deleted` the job was deleted
    meanwhile: the workers have acknowledged its messages and stored none.
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
        """Return the number of messages that are neither stored nor lost: they wait for their acknowledgement."""
        settled = sum(self.stored.values()) + sum(self.lost.values())
        return sum(self.produced.values()) - settled

    @property
    def complete(self) -> bool:
        """Return whether everything that was reported is committed in Postgres."""
        return not self.dropped and self.stored == self.produced
