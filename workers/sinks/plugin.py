"""The interface between the workers and the code of one sink, and the sinks that this process delivers to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import Connection

from trainwire.schemas.sinks import SINKS, SinkEntry
from trainwire.stores.postgres.deletion import Deletion, DeletionPart
from trainwire.workers.findings import Finding
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings
from trainwire.workers.sinks.backlog import SinkBacklog
from trainwire.workers.sinks.base import Sink


class NotSetUp(Exception):  # noqa: N818 - shown to people
    """A deletion needs a store that the settings of this process do not name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of deleting one run or file; the rows that name it stay while it `is_left`."""

    is_deleted: bool = False
    is_left: bool = False
    note: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a sink has the rows of a job: its sum, further lines for people, and the same as a JSON document."""

    is_verified: bool
    lines: Sequence[str]
    document: Mapping[str, object]


class SinkSettings(BaseSettings):
    """Base of the settings that belong to one sink alone, from environment variables of the same names."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")


class SinkPlugin(ABC):
    """Everything that differs from sink to sink; the module `plugin` of each has one instance, `PLUGIN`."""

    settings_type: ClassVar[type[SinkSettings] | None] = None
    """The class of its own settings, if it has any besides those of `trainwire.workers.settings`."""

    @abstractmethod
    def is_on(self, settings: Settings) -> bool:
        """Tell whether these settings switch the sink on. Raises `WrongSettings` for its own settings."""

    @abstractmethod
    def connect(self, resources: Resources) -> tuple[SinkBacklog[Any, Any], Sink[Any, Any]]:
        """Return what a delivery needs; called once per work order, so connections are cached."""

    @abstractmethod
    def delete(self, resources: Resources, deletion: Deletion, part: DeletionPart) -> DeletionPart:
        """Delete the copies of a job. Raises `NotSetUp`, and `SinkUnavailable` where it is to be tried again."""

    def linger_s(self, settings: Settings) -> float:
        """Return for how long a delivery waits for more rows before it begins, in seconds."""
        del settings
        return 0.5

    def examine(self, settings: Settings) -> Iterable[Finding]:
        """Yield what `trainwire doctor` finds of the store."""
        del settings
        return ()

    def verify(self, settings: Settings, connection: Connection, job_id: int) -> Verdict | str:
        """Compare the copies of a job with its rows; or return in words what to look at instead.

        Raises `SinkUnavailable`.
        """
        del settings, connection, job_id
        return "it has no comparison"

    def replayed(self, connection: Connection, job_id: int) -> None:
        """Reset what the sink keeps of a job outside of its cursor, in the transaction of a replay."""
        del connection, job_id


@cache
def plugin(name: str) -> SinkPlugin:
    """Return the plugin of a sink in the registry."""
    found: SinkPlugin = import_module(f"{__package__}.{name}.plugin").PLUGIN
    return found


def sink_settings() -> list[type[SinkSettings]]:
    """Return the classes of the settings that belong to one sink alone."""
    found = (plugin(name).settings_type for name in SINKS)
    return [kind for kind in found if kind is not None]


def sinks_on(settings: Settings) -> list[SinkEntry]:
    """Return the sinks that these settings switch on, in the order of the registry."""
    return [sink for sink in SINKS.values() if plugin(sink.name).is_on(settings)]
