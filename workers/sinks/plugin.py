"""Defines the interface between the workers and the code of one sink, and lists the sinks that are switched on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Generic

from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import Connection, text

from trainwire.schemas.sinks import ROWS, SINKS, RowKind, SinkEntry
from trainwire.stores.postgres.deletion import Deletion, DeletionPart
from trainwire.workers.findings import Finding
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings
from trainwire.workers.sinks import cursors
from trainwire.workers.sinks.base import BatchT, DeliveredT_contra, Sink


class NotSetUp(Exception):  # noqa: N818 - shown to users
    """A job cannot be deleted completely: a store that has data of it is not configured in this process."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of deleting one file, or one MLflow run.

    If `is_left` is True, it could not be deleted, and the rows that refer to it stay in Postgres. If `is_deleted`
    is False too, it was gone already, or is not to be deleted. `note` is the reason, for operators, or None.
    """

    is_deleted: bool = False
    is_left: bool = False
    note: str | None = None


@dataclass(frozen=True)
class SinkVerification:
    """The result of comparing a sink with the rows of a job: as lines of text, and as a JSON document."""

    is_verified: bool
    lines: Sequence[str]
    document: Mapping[str, object]


class SinkBacklog(ABC, Generic[BatchT, DeliveredT_contra]):
    """Reads the rows that a sink has not confirmed, and moves its cursors. A subclass implements `read`."""

    kind: ClassVar[RowKind]
    """The kind of row that the sink receives."""

    def __init__(self, sink: str) -> None:
        self._sink = sink

    def jobs_behind(self, connection: Connection, limit: int) -> list[int]:
        """Return at most `limit` jobs that are due and have rows to deliver, least recently delivered first."""
        return cursors.jobs_behind(connection, self._sink, self.kind, limit)

    @abstractmethod
    def read(
        self, connection: Connection, job_ids: Sequence[int], most_rows: int, most_bytes: int
    ) -> Mapping[int, BatchT]:
        """Return the next rows of each job: at most `most_rows`, up to the row that reaches `most_bytes`.

        Both limits are per job. Jobs that have nothing to deliver may be omitted.
        """

    def read_on(
        self, connection: Connection, batches: Mapping[int, BatchT], most_rows: int, most_bytes: int, /
    ) -> Mapping[int, BatchT]:
        """Read ahead: return the rows that follow `batches`, while these are still being sent.

        The result for a job is discarded unless its batch is confirmed to the end and the sink refused no row of
        the last part. Called only for batches whose `is_followed` is True. The default reads nothing.
        """
        del connection, batches, most_rows, most_bytes
        return {}

    def confirm(self, connection: Connection, delivered: Mapping[int, DeliveredT_contra]) -> None:
        """Move the cursors to the rows that the sink confirmed, and insert dead letters for refused rows."""
        cursors.confirm(connection, self._sink, self.kind, delivered)

    def settle(self, connection: Connection) -> None:
        """Mark quiet jobs of which all rows are delivered, so that `jobs_behind` need not examine them.

        The mark lasts until the job's next message; for the conditions see `cursors.settle`.
        """
        cursors.settle(connection, self._sink, self.kind)

    def last_seqs(self, connection: Connection, job_ids: Sequence[int]) -> dict[int, int]:
        """Return the highest `seq` that was ever assigned to a row of each job.

        Call this before rows are read: if then no row up to that `seq` is found, the rows were deleted.
        """
        last_seq = ROWS[self.kind].last_seq
        found = text(f"SELECT id, {last_seq} FROM training_jobs WHERE id = ANY(:jobs) ORDER BY id")  # noqa: S608
        return {row.id: row[1] for row in connection.execute(found, {"jobs": list(job_ids)})}


class SinkSettings(BaseSettings):
    """Base class for settings that only one sink uses.

    Each field is read from the environment variable of its name in capitals.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore")


class SinkPlugin(ABC):
    """Base class of the code of one sink. The module `plugin` of each sink has one instance, named `PLUGIN`."""

    settings_type: ClassVar[type[SinkSettings] | None] = None
    """The class of the sink's own settings, if it has any."""

    @abstractmethod
    def is_on(self, settings: Settings) -> bool:
        """Return whether `settings` switch the sink on.

        Raises `WrongSettings` if the sink's own settings are wrong.
        """

    @abstractmethod
    def connect(self, resources: Resources) -> tuple[SinkBacklog[Any, Any], Sink[Any, Any]]:
        """Return the object that reads rows for the sink, and the sink itself.

        Called once per work order, so implementations should cache connections.
        """

    @abstractmethod
    def delete(self, resources: Resources, deletion: Deletion, part: DeletionPart) -> DeletionPart:
        """Delete all data of a job from the sink; return the updated state of this `part` of the deletion.

        Raises `NotSetUp` if the sink may have data of the job but is not configured in this process, and
        `SinkUnavailable` if the deletion is to be retried later.
        """

    def linger_s(self, settings: Settings) -> float:
        """Return how many seconds a delivery waits for more rows before it begins; by default half a second."""
        del settings
        return 0.5

    def examine(self, settings: Settings) -> Iterable[Finding]:
        """Yield findings of `trainwire doctor` about the store of the sink; by default none."""
        del settings
        return ()

    def verify(self, settings: Settings, connection: Connection, job_id: int) -> SinkVerification | str:
        """Compare the data of a job in the sink with its rows in Postgres.

        A sink that cannot be compared returns a text instead, as by default: the reason, or another command to
        use. Raises `SinkUnavailable` if the sink cannot be read.
        """
        del settings, connection, job_id
        return "it has no comparison"

    def replayed(self, connection: Connection, job_id: int) -> None:
        """Reset the data about a job that Postgres stores for this sink besides the sink's cursor.

        Called in the transaction in which an operator has the rows of the job delivered again. By default, nothing
        is reset.
        """
        del connection, job_id


@cache
def plugin(name: str) -> SinkPlugin:
    """Return the plugin of the sink `name`, which must be in `trainwire.schemas.sinks`."""
    found: SinkPlugin = import_module(f"{__package__}.{name}.plugin").PLUGIN
    return found


def sink_settings() -> list[type[SinkSettings]]:
    """Return the settings classes of those sinks that have one."""
    found = (plugin(name).settings_type for name in SINKS)
    return [kind for kind in found if kind is not None]


def sinks_on(settings: Settings) -> list[SinkEntry]:
    """Return the sinks that `settings` switch on, in the order of `trainwire.schemas.sinks`.

    Raises `WrongSettings` if the own settings of a sink are wrong.
    """
    return [sink for sink in SINKS.values() if plugin(sink.name).is_on(settings)]
