"""Runs without a server, whose messages are read back from the outbox."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trainwire import Run, TrainerSettings
from trainwire.ingest.sending.outbox import Outbox
from trainwire.ingest.settings.setting_groups import Timing
from trainwire.schemas.keys import Kind
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import open_envelope
from trainwire.schemas.wire.messages import Body

NOWHERE = "redis://127.0.0.1:1/0"


def bodies_of(outbox: Outbox, kind: Kind) -> list[Any]:
    """Make messages of all buffered values and decode those of one kind that were not sent."""
    while outbox.cut():
        pass
    bodies: list[Body] = []
    for message in outbox.to_send(2**40).get(kind, []):
        fields = {
            name.encode(): value if isinstance(value, bytes) else str(value).encode()
            for name, value in message.entry.items()
        }
        bodies.append(decode_body(kind, open_envelope(fields)))
    return bodies


class Told:
    """A run without a reachable server, and access to its messages."""

    def __init__(self, **arguments: Any) -> None:
        timing = Timing(first_backoff_s=30, longest_backoff_s=30)
        settings = TrainerSettings(redis_url=NOWHERE, timing=timing)
        self.run = Run(**{"job_id": 42, "settings": settings, **arguments})

    def bodies(self, kind: Kind) -> list[Any]:
        """Return the bodies of one kind so far."""
        return bodies_of(self.run._session.outbox, kind)

    def lines(self) -> list[str]:
        """Return all log lines so far."""
        return [line for body in self.bodies("logs") for line in body.lines]

    def points(self) -> list[Any]:
        """Return all points so far."""
        return [point for body in self.bodies("metrics") for point in body.points]


@pytest.fixture
def tell() -> Iterator[Callable[..., Told]]:
    """Give a maker of runs that are finished at the end of the test."""
    made: list[Told] = []

    def make(**arguments: Any) -> Told:
        made.append(Told(**arguments))
        return made[-1]

    yield make
    for told in made:
        told.run.finish(timeout_s=0)


@pytest.fixture
def read_bodies() -> Callable[[Outbox, Kind], list[Any]]:
    """Give the reader of an outbox."""
    return bodies_of


@pytest.fixture
def high_descriptor() -> Iterator[int]:
    """A free number above those that `select.select` accepts, and a limit that allows it."""
    number = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number + 1), hard))
    yield number
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
