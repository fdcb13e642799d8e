"""Workers are connected to a broker soon after it is back."""

from __future__ import annotations

from functools import partial

import pytest
from kombu import Connection
from kombu.exceptions import OperationalError

from trainwire.stack.persisted_config import free_port
from trainwire.workers.orders import broker_consumer
from trainwire.workers.orders.broker_consumer import MOST_PAUSE_S, PromptConsumer


def attempts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Connect to a port where nobody listens; return the pauses of which the log is written."""
    logged: list[float] = []
    connection = Connection(f"redis://127.0.0.1:{free_port()}/0")

    def ensure_connected(_consumer: object, conn: Connection) -> Connection:
        return conn.ensure_connection(lambda _exc, pause_s: logged.append(pause_s), 12)

    monkeypatch.setattr("celery.worker.consumer.Consumer.ensure_connected", ensure_connected)
    connect = partial(PromptConsumer.ensure_connected, PromptConsumer.__new__(PromptConsumer))
    with pytest.raises(OperationalError):
        connect(connection)
    return logged


def test_pauses_between_attempts_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long Redis is away, the next attempt comes within half a second."""
    monkeypatch.setattr(broker_consumer, "LOG_EVERY_S", 0.0)
    pauses_s = attempts(monkeypatch)
    assert len(pauses_s) == 12
    assert max(pauses_s) == MOST_PAUSE_S


def test_failed_attempts_are_not_all_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the attempts of ten seconds one is logged."""
    assert len(attempts(monkeypatch)) == 1
