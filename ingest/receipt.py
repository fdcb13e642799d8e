"""The receipt of a run: the numbers of its messages that are stored, sent, spooled or lost."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainwire.schemas.keys import Kind


@dataclass(frozen=True)
class Receipt:
    """Counts of the messages of one source, by kind.

    `produced` counts all messages. `stored` ones are committed in Postgres. `sent` ones were accepted by Redis,
    `unsent` ones were not. `spooled` ones are on the disk and not stored yet: they are sent later. `lost` ones
    are neither in Postgres nor can they be sent again (after a restore of Postgres, or damage of the spool).
    `dropped` counts lines, points, checkpoints and single `values` that never became part of a message. If
    `is_job_deleted` is True, the job was deleted meanwhile: the workers have acknowledged its messages and
    stored none.
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
        """The number of messages that are neither stored nor lost.

        They still wait for acknowledgement, unless the job was deleted.
        """
        settled = sum(self.stored.values()) + sum(self.lost.values())
        return sum(self.produced.values()) - settled

    @property
    def complete(self) -> bool:
        """Whether every reported value is committed in Postgres, and none was dropped."""
        return not self.dropped and self.stored == self.produced
