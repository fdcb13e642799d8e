"""The effect of acknowledgements on the messages of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from trainwire import Run, TrainerSettings
from trainwire.ingest.strict import NotStored
from trainwire.schemas.keys import JOB_DELETED_FIELD, KINDS, acks_key

Until = Callable[..., None]


def say_lines(run: Run, valkey: Any, until: Until, texts: list[str]) -> None:
    """Log each text as a message of its own."""
    for text in texts:
        run.log(text)
        until(lambda text=text: text in valkey.lines("stdout"))


def test_acked_messages_are_released(valkey: Any, settings: TrainerSettings, until: Until) -> None:
    """Messages that are committed in Postgres take no memory in the trainer."""
    run = Run(42, settings=settings)
    say_lines(run, valkey, until, ["a", "b"])
    buffer = run._session.buffer
    assert buffer.size_bytes
    valkey.ack(run.source, "logs", 2)
    valkey.ack(run.source, "metrics", 1)
    until(lambda: buffer.size_bytes == 0)
    run.finish()


def test_finish_returns_at_once_when_all_is_stored(valkey: Any, settings: TrainerSettings, until: Until) -> None:
    """With workers that commit, finish does not wait for its deadline, and the receipt is complete."""
    slow = replace(settings, timing=replace(settings.timing, settle_s=200))
    run = Run(42, settings=slow)
    say_lines(run, valkey, until, ["a"])
    for kind in KINDS:
        valkey.ack(run.source, kind, 1)
    before = time.monotonic()
    receipt = run.finish(timeout_s=200)
    assert time.monotonic() - before < 100
    assert receipt.complete
    assert receipt.stored == {"logs": 1, "metrics": 1, "completions": 1}


def test_finish_does_not_wait_long_for_workers_that_are_away(settings: TrainerSettings) -> None:
    """When everything is in the stream and no worker acknowledges, finish returns long before its deadline."""
    run = Run(42, settings=settings)
    before = time.monotonic()
    receipt = run.finish(timeout_s=200)
    assert time.monotonic() - before < 100
    assert receipt.sent == receipt.produced
    assert not receipt.complete


def test_missing_ranges_are_sent_again(valkey: Any, settings: TrainerSettings, until: Until) -> None:
    """Messages that never arrived at the workers are sent once more, and only those."""
    run = Run(42, settings=settings)
    say_lines(run, valkey, until, list("abcde"))
    valkey.ack(run.source, "logs", 1, missing="2-3,9-12")
    until(lambda: len(valkey.seqs("logs")) >= 7)
    assert valkey.seqs("logs")[:7] == [1, 2, 3, 4, 5, 2, 3]
    valkey.ack(run.source, "logs", 5)
    run.finish()


def test_a_flush_of_redis_is_noticed_and_repaired(valkey: Any, settings: TrainerSettings, until: Until) -> None:
    """After a flush the last message is sent as a probe; the gap it shows brings back the rest."""
    run = Run(42, settings=replace(settings, timing=replace(settings.timing, probe_after_s=0.3)))
    say_lines(run, valkey, until, list("abcd"))
    valkey.client.flushall()
    until(lambda: valkey.seqs("logs"))
    assert set(valkey.seqs("logs")) == {4}
    valkey.ack(run.source, "logs", 0, missing="1-3")
    until(lambda: set(valkey.seqs("logs")) == {1, 2, 3, 4})
    run.finish()


def test_a_restart_without_a_file_is_repaired(valkey: Any, settings: TrainerSettings, until: Until) -> None:
    """A server that restarts empty is sent its lost messages, once the workers report the gap."""
    run = Run(42, settings=replace(settings, timing=replace(settings.timing, probe_after_s=0.3)))
    say_lines(run, valkey, until, list("ab"))
    valkey.stop()
    valkey.start()
    run.log("c")
    until(lambda: 3 in valkey.seqs("logs"))
    valkey.ack(run.source, "logs", 0, missing="1-2")
    until(lambda: set(valkey.seqs("logs")) == {1, 2, 3})
    run.finish()


def test_an_outage_is_told_once(
    valkey: Any, settings: TrainerSettings, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning has the host at the beginning of an outage, and one line marks its end."""
    caplog.set_level(logging.INFO, "trainwire.ingest")
    run = Run(42, settings=settings)
    until(lambda: valkey.entries("metrics"))
    valkey.stop()
    run.log("hello")
    until(lambda: run._session._sender._outage._failures >= 3)
    valkey.start()
    until(lambda: valkey.lines("stdout") == ["hello"])
    run.finish()
    messages = [record.getMessage() for record in caplog.records]
    warnings = [message for message in messages if "training goes on" in message]
    assert len(warnings) == 1
    assert f"127.0.0.1:{valkey.port}" in warnings[0]
    assert messages[-1].endswith("takes messages again")


def test_a_deleted_job_is_not_called_stored(
    valkey: Any, settings: TrainerSettings, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    """The training goes on with one warning, nothing is awaited or kept, and the receipt has the reason."""
    run = Run(42, settings=settings)
    say_lines(run, valkey, until, ["a"])
    for kind in KINDS:
        valkey.ack(run.source, kind, 1)
    valkey.client.hset(acks_key(42), JOB_DELETED_FIELD, 1)
    run.log("b")
    before = time.monotonic()
    receipt = run.finish(timeout_s=200)
    assert time.monotonic() - before < 100
    assert receipt.is_job_deleted
    assert not receipt.complete
    assert set(receipt.stored.values()) == {0}
    assert (set(receipt.spooled.values()), set(receipt.unsent.values())) == ({0}, {0})
    warnings = [record.getMessage() for record in caplog.records if "deleted" in record.getMessage()]
    assert warnings == ["job 42 was deleted: nothing more of it is stored"]


def test_a_strict_run_says_that_its_job_was_deleted(valkey: Any, settings: TrainerSettings) -> None:
    """It raises, and names the cause instead of Redis and the workers."""
    run = Run(42, settings=replace(settings, strict=True))
    for kind in KINDS:
        valkey.ack(run.source, kind, 1)
    valkey.client.hset(acks_key(42), JOB_DELETED_FIELD, 1)
    with pytest.raises(NotStored, match="job 42 was deleted: its messages are not stored"):
        run.finish(timeout_s=60)
