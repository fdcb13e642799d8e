"""Entries that end their drains, by faults unknown to the workers, are found, isolated and dead-lettered."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

import trainwire.workers.drain.decoding
from tests.factories import Sender, drain, logs, rows
from trainwire.schemas.keys import HALTED_KEY, stream_key, trials_key
from trainwire.schemas.tables import dead_letters, training_logs
from trainwire.schemas.wire import body_decoding
from trainwire.workers.drain import poison_entries
from trainwire.workers.drain.batch import Batch
from trainwire.workers.drain.drain import Drain, Drained
from trainwire.workers.drain.poison_entries import PoisonSearch
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.errors import MostlyInvalid
from trainwire.workers.resources import Resources

STREAM = stream_key("logs", 1)


def drain_in_a_child(resources: Resources) -> int:
    """Drain in a process that may be killed; return its exit code."""
    pid = os.fork()
    if not pid:
        resources.engine.dispose(close=False)
        os._exit(0 if drain(resources).entries >= 0 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def drain_patiently(resources: Resources) -> Drained:
    """Drain with a time slice that lasts on a busy machine too."""
    patient = resources.settings.model_copy(update={"drain_slice_s": 300.0})
    return Drain(resources.engine, IngestStream(resources.streams, "logs", 1), patient).run()


def kill_decoder(monkeypatch: pytest.MonkeyPatch, by: Any) -> None:
    """Have the decoder end by `by` if a body contains `deadly`."""
    original = body_decoding.decode_plain

    def decode_plain(kind: Any, encoding: str, plain: bytes) -> Any:
        if b"deadly" in plain:
            by()
        return original(kind, encoding, plain)

    monkeypatch.setattr(trainwire.workers.drain.decoding, "decode_plain", decode_plain)


def crash_store(monkeypatch: pytest.MonkeyPatch, word: str, by: Any) -> None:
    """Have the storing of a batch end by `by` if a line has this word."""
    original = Batch._write

    def write(self: Batch, messages: Any, before: Any) -> None:
        if any(word in line for message in messages for line in message.body.lines):
            by()
        original(self, messages, before)

    monkeypatch.setattr(Batch, "_write", write)


def kill_self() -> None:
    """End by SIGKILL, as after an out-of-memory kill."""
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    """Fail with an unexpected exception."""
    raise OSError("of nobody's making")


def test_an_entry_that_kills_its_decoder(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second drain finds the entry in a child process, and stores all entries before and after it."""
    kill_decoder(monkeypatch, kill_self)
    for line in ("a", "deadly 1", "b", "deadly 2", "c"):
        sender.send(logs(line))
    assert drain_in_a_child(resources) == -signal.SIGKILL
    drained = drain(resources)
    assert (drained.stored, drained.dead_lettered) == (3, 2)
    assert rows(resources.engine, training_logs, "content") == ["a", "b", "c"]
    found = rows(resources.engine, dead_letters, "seq", "reason", "detail", order=["seq"])
    assert [(seq, reason) for seq, reason, _ in found] == [(2, "kills-decoder"), (4, "kills-decoder")]
    assert "SIGKILL" in found[0][2]
    assert not sender.client.exists(trials_key(STREAM))


def test_an_entry_that_hangs_its_decoder(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alarm ends a decoder that hangs, twice."""
    monkeypatch.setattr(poison_entries, "CHILD_TIMEOUT_S", 4)
    kill_decoder(monkeypatch, lambda: time.sleep(600))
    for line in ("a", "deadly", "b"):
        sender.send(logs(line))
    sender.client.hincrby(trials_key(STREAM), "begun", 1)  # of a drain that was ended by its time limit
    assert drain(resources).stored == 2
    assert rows(resources.engine, dead_letters, "seq", "reason", order=["seq"]) == [(2, "timed-out")]


def test_an_entry_that_takes_all_memory(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A MemoryError alone does not reject an entry; one in a child process with a memory limit does."""
    monkeypatch.setattr(poison_entries, "CHILD_MEMORY_BYTES", 64 * 1024**2)

    def take_memory() -> None:
        if bytearray(200 * 1024**2):
            raise MemoryError

    kill_decoder(monkeypatch, take_memory)
    for line in ("a", "deadly", "b"):
        sender.send(logs(line))
    assert drain(resources).stored == 2
    assert rows(resources.engine, dead_letters, "seq", "reason", order=["seq"]) == [(2, "crashes-decoder")]


def test_an_entry_that_crashes_the_store(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that crashes while it is stored is found by smaller transactions, within one run of the drain."""
    crash_store(monkeypatch, "deadly", crash)
    for number in range(500):
        sender.send(logs("deadly" if number == 333 else f"{number}"))
    drained = drain_patiently(resources)
    assert (drained.stored, drained.dead_lettered) == (499, 1)
    assert rows(resources.engine, training_logs, "content") == [f"{n}" for n in range(500) if n != 333]
    ((seq, reason, detail),) = rows(resources.engine, dead_letters, "seq", "reason", "detail", order=["seq"])
    assert (seq, reason) == (334, "ends-drain")
    assert "OSError: of nobody's making" in detail


def test_an_entry_that_kills_the_store(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each drain is killed while it stores a batch with this entry; after a dozen drains it is isolated."""
    crash_store(monkeypatch, "deadly", kill_self)
    for number in range(100):
        sender.send(logs("deadly" if number == 70 else f"{number}"))
    deaths = 0
    while drain_in_a_child(resources):
        deaths += 1
        assert deaths < 15
    assert rows(resources.engine, training_logs, "content") == [f"{n}" for n in range(100) if n != 70]
    assert rows(resources.engine, dead_letters, "seq", "reason", order=["seq"]) == [(71, "ends-drain")]


def test_a_fault_of_ours_makes_no_dead_letters(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If every entry fails, the drain stops with the reason; once the cause is repaired, everything is stored."""
    with monkeypatch.context() as broken:
        crash_store(broken, "", crash)
        for number in range(20):
            sender.send(logs(f"{number}"))
        with pytest.raises(MostlyInvalid, match="OSError: of nobody's making"):
            drain_patiently(resources)
        assert b"Nothing was taken" in (sender.client.hget(HALTED_KEY, STREAM) or b"")
    assert rows(resources.engine, dead_letters, "seq", order=["seq"]) == []
    assert drain(resources).stored == 20
    assert not sender.client.hexists(HALTED_KEY, STREAM)


def test_workers_that_are_killed_are_no_fault_of_entries(resources: Resources, sender: Sender) -> None:
    """After drains that were killed up to six times in a row, all valid entries are stored."""
    client: Any = sender.client  # without types
    search = PoisonSearch(client, "logs", STREAM)
    for deaths in range(1, 7):
        sender.send(logs(f"after {deaths}"))
        for _ in range(deaths):
            search.begin([client.execute_command(*command) for command in search.begin_commands()])
        assert drain(resources).stored == 1
    assert rows(resources.engine, dead_letters, "seq", order=["seq"]) == []


def test_an_entry_that_ends_the_trial_once(
    resources: Resources, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry is not rejected because its child process was killed by something else."""
    original = poison_entries._decode_in_child
    killed: list[int] = []

    def trial(kind: Any, entries: Any) -> tuple[int, int]:
        if killed:
            return original(kind, entries)
        killed.append(1)
        return 1, signal.SIGKILL

    monkeypatch.setattr(poison_entries, "_decode_in_child", trial)
    for line in ("a", "b", "c"):
        sender.send(logs(line))
    sender.client.hincrby(trials_key(STREAM), "begun", 1)
    assert drain(resources).stored == 3


def test_a_drain_of_a_redis_without_trials(resources: Resources, sender: Sender) -> None:
    """A hash that cannot be written, as in a full Redis, stops no drain."""
    sender.client.set(trials_key(STREAM), "no hash")
    sender.send(logs("a"))
    assert Drain(resources.engine, IngestStream(sender.client, "logs", 1), resources.settings).run().stored == 1
