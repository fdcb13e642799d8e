"""The output of a child, read, shown and handed on."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from trainwire.ingest.launcher.keeper import Output
from trainwire.ingest.output.pipes import OutputPipe, await_ends
from trainwire.ingest.output.relay import Relay
from trainwire.ingest.sending import cutter


def test_a_person_who_watches_slowly_costs_no_line(tell: Callable[..., Any]) -> None:
    """All output before the end of the command is shown and logged, however long a pager holds it up."""
    told = tell()
    (read, written), (seen, shown) = os.pipe(), os.pipe()
    printed = b"x" * 60_000 + b"\n" + b"y" * 60_000 + b"\n"  # more than a pipe holds: the person's is full
    with open(read, "rb") as output, open(seen, "rb") as person, open(shown, "w", encoding="utf-8") as terminal:
        pipe = OutputPipe(output, terminal, "stdout", told.run)
        with open(written, "wb") as command:
            command.write(printed)
            command.flush()
            deadline = time.monotonic() + 10
            while len(person.peek()) == 0 or not pipe.is_busy:
                assert time.monotonic() < deadline
            command.write(b"last\n")
        waiting = threading.Thread(target=await_ends, args=([pipe], 0.1))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert person.read(len(printed) + 5) == printed + b"last\n"
        waiting.join(10)
    assert told.lines() == ["x" * 60_000, "y" * 60_000, "last"]


def test_a_slow_pattern_is_waited_for(tell: Callable[..., Any]) -> None:
    """The search of metrics in the last lines is no process that keeps the output open."""
    told = tell()
    searching, found = threading.Event(), threading.Event()

    def search(_lines: Sequence[str], _ts: int) -> None:
        searching.set()
        assert found.wait(10)

    read, written = os.pipe()
    ended: list[bool] = []
    with open(read, "rb") as output:
        pipe = OutputPipe(output, None, "stdout", told.run, on_lines=search)
        os.write(written, b"last\n")
        os.close(written)
        assert searching.wait(10)
        waiting = threading.Thread(target=lambda: ended.append(await_ends([pipe], 0.05)))
        waiting.start()
        waiting.join(0.5)
        found.set()
        waiting.join(10)
    assert (ended, told.lines()) == ([True], ["last"])


def test_a_process_that_keeps_the_output_open_is_not_waited_for(tell: Callable[..., Any]) -> None:
    """After the grace the unfinished line is taken, and nothing that comes later."""
    told = tell()
    read, written = os.pipe()
    with open(read, "rb") as output, open(written, "wb", buffering=0) as grandchild:
        pipe = OutputPipe(output, None, "stdout", told.run)
        grandchild.write(b"first\nunfinished")
        deadline = time.monotonic() + 10
        while not told.lines():
            assert time.monotonic() < deadline
        assert not await_ends([pipe], 0.1)
        grandchild.write(b" late\n")
        grandchild.close()
        assert pipe.has_ended(10)
    assert told.lines() == ["first", "unfinished"]


def test_a_disk_that_hangs_holds_up_no_output_for_ever(
    tell: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Output waits for it once, for a limited time; when it goes on, everything is logged."""
    monkeypatch.setattr(cutter, "HUNG_DISK_S", 0.3)
    told = tell()
    outbox, goes_on = told.run._session.outbox, threading.Event()
    cut = outbox.cut
    monkeypatch.setattr(outbox, "cut", lambda: goes_on.wait() and cut())
    lines = ["x" * 60_000] * 100
    began_s = time.monotonic()
    for _ in range(5):
        told.run.log_lines(lines, "stdout", time.time_ns())
    held_up_s = time.monotonic() - began_s
    goes_on.set()
    assert 0.3 <= held_up_s < 10
    assert len(told.lines()) == 500
    assert [record.message for record in caplog.records if "disk" in record.message] == [
        "the disk has taken nothing for 0 s: output is no longer held up for it"
    ]


def _launcher(tell: Callable[..., Any], source: int, shown: int) -> None:
    with open(shown, "w", closefd=False) as terminal, open(source, "rb", buffering=0, closefd=False) as output:
        assert await_ends([OutputPipe(output, terminal, "stdout", tell().run)], 10)


def _relay(_tell: Callable[..., Any], source: int, shown: int) -> None:
    (read, copy), (woken, wake) = os.pipe(), os.pipe()
    Relay(source, shown, copy, threading.Event(), woken).run()
    for descriptor in (read, woken, wake):
        os.close(descriptor)


def _keeper(_tell: Callable[..., Any], source: int, shown: int) -> None:
    Output(source, shown).drain()


@pytest.mark.parametrize("copy_output", [_launcher, _relay, _keeper])
def test_a_slow_reader_of_a_descriptor_above_1023_is_awaited(
    tell: Callable[..., Any], copy_output: Callable[..., None], high_descriptor: int
) -> None:
    """A training may have thousands of open files, and inherit a non-blocking output."""
    (source, written), (seen, shown) = os.pipe(), os.pipe()
    os.set_blocking(shown, False)
    fcntl.fcntl(shown, fcntl.F_SETPIPE_SZ, 4096)
    os.dup2(shown, high_descriptor)
    os.close(shown)
    printed = b"x" * 50_000 + b"\n"  # more than this pipe holds

    def print_it() -> None:
        with open(written, "wb") as command:
            command.write(printed)

    def copy_it() -> None:
        copy_output(tell, source, high_descriptor)
        os.close(high_descriptor)

    threads = [threading.Thread(target=each, daemon=True) for each in (print_it, copy_it)]
    for thread in threads:
        thread.start()
    with open(seen, "rb") as reader:
        assert reader.read() == printed
    for thread in threads:
        thread.join(60)
    os.close(source)


@pytest.mark.parametrize("copy_output", [_launcher, _relay, _keeper])
def test_a_full_disk_stops_the_shown_output_for_a_while_only(
    tell: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, copy_output: Callable[..., None]
) -> None:
    """One chunk is not shown; later ones are, as without trainwire."""
    (source, written), (seen, shown) = os.pipe(), os.pipe()
    refused, write = threading.Event(), os.write

    def write_unless_full(descriptor: int, data: bytes) -> int:
        if descriptor == shown and not refused.is_set():
            refused.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_unless_full)
    copying = threading.Thread(target=copy_output, args=(tell, source, shown))
    copying.start()
    os.write(written, b"not shown\n")
    assert refused.wait(10)
    os.write(written, b"shown\n")
    os.close(written)
    copying.join(10)
    os.close(shown)
    with open(seen, "rb") as person:
        assert person.read() == b"shown\n"
    os.close(source)
