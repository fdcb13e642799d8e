"""Runs the provenance collector as a background process, and passes its result to the runs of this process."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.process.daemon_pool import message_of, start_daemon
from trainwire.ingest.process.forks import importing, renew_in_children
from trainwire.schemas.wire.messages import PROVENANCE_ITEMS

logger = logging.getLogger("trainwire.ingest")

COLLECTOR: Final = Path(__file__).with_name("collector.py")
IN_BACKGROUND: Final = 'exec 3<&0; "$0" "$@" <&3 3<&- &'
"""Shell script that starts the collector and exits at once.

The collector becomes a child of init, so that `os.wait()` in the training never returns it.
"""
TIMEOUT_S: Final = 60.0
"""Timeout of the collector. git and nvidia-smi have their own limits.

A file system that does not respond has none.
"""
MAX_ANSWER_BYTES: Final = 1024 * 1024
OF_INTERPRETER: Final = ("python", "packages")
"""Provenance items about the Python of the training.

Under `trainwire run`, the training sends only these items; the launcher sends all others.
"""

Provenance = dict[str, Any]


class Recorder:
    """Collects the provenance of this process once, for all its runs."""

    def __init__(self) -> None:
        self.renew_after_fork()
        renew_in_children(self)

    def renew_after_fork(self) -> None:
        """Discard the parent's results in a forked child, where the parent's collecting thread does not exist."""
        self._lock = threading.Lock()
        self._known: dict[tuple[str, ...], _Collection] = {}

    def record(
        self, items: frozenset[str], send: Callable[[Provenance], object], command: Sequence[str] | None = None
    ) -> threading.Event:
        """Call `send` with the provenance values named in `items`, from a thread if they are not yet collected.

        `send` is not called if nothing could be collected. Return an event that is set after the call, or when the
        collection has failed. In the launcher, `command` is the command that it runs; if it is None, the
        provenance of this process is collected.
        """
        wanted = tuple(item for item in PROVENANCE_ITEMS if item in items)
        with self._lock:
            collection = self._known.setdefault(wanted, _Collection(wanted, command))
        return collection.deliver(send)


class _Collection:
    """One execution of the collector (a process), and the callbacks that wait for its result."""

    def __init__(self, items: Sequence[str], command: Sequence[str] | None) -> None:
        self._items, self._command = items, command
        self._begun = False
        self._lock = threading.Lock()
        self._answer: Provenance | None = None
        self._waiting: list[tuple[Callable[[Provenance], object], threading.Event]] = []

    def deliver(self, send: Callable[[Provenance], object]) -> threading.Event:
        """Call `send` with the result of the collector: at once if it has finished, or else from a thread.

        Return an event that is set after the call, or when the collector has failed.
        """
        done = threading.Event()
        with self._lock:
            is_first, self._begun = not self._begun, True
            if self._answer is None:
                self._waiting.append((send, done))
        if self._answer is not None:
            send(self._answer)
            done.set()
        elif is_first:
            try:
                start_daemon(self._collect, "trainwire-provenance")
            except RuntimeError:  # the system refuses a thread: this run has no provenance
                self._take({})
        return done

    def _collect(self) -> None:
        answer: Provenance = {}
        try:
            answer = collected(self._items, self._command)
        except (OSError, ValueError) as exc:
            logger.debug("the provenance of this run cannot be collected: %s", message_of(exc))
        finally:
            self._take(answer)

    def _take(self, answer: Provenance) -> None:
        with self._lock:
            self._answer = answer
            waiting, self._waiting = self._waiting, []
        for send, done in waiting:
            if answer:
                send(answer)
            done.set()


def collected(items: Sequence[str], command: Sequence[str] | None) -> Provenance:
    """Run the collector, and return the collected values by item.

    If `command` does not run under Python, the values about Python are left out. Raises `OSError` or `ValueError`
    if the collector cannot be started, does not answer within `TIMEOUT_S` or gives an invalid answer.
    """
    with importing():  # in a thread: see trainwire.ingest.process.forks
        import json  # noqa: PLC0415 - costs the training its start
        import subprocess  # noqa: PLC0415
    interpreter = sys.executable if command is None else interpreter_of(command)
    if interpreter is None:
        interpreter, items = sys.executable, [item for item in items if item not in OF_INTERPRETER]
    request = {
        "items": list(items),
        "command": list(command if command is not None else sys.orig_argv),
        "folder": os.getcwd(),
        "sys_path": sys.path if command is None else None,
    }
    isolated = ("-I", "-S") if command is None else ()
    process = subprocess.Popen(  # noqa: S603 - our own file
        ["/bin/sh", "-c", IN_BACKGROUND, interpreter, *isolated, str(COLLECTOR)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # no signal of the terminal ends it
    )
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    with process.stdin, process.stdout:
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        try:
            process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired as exc:
            process.kill()
            raise TimeoutError(str(exc)) from exc
        answer = json.loads(_read(process.stdout.fileno()))
    return {item: answer[item] for item in items if item in answer}


def _read(descriptor: int) -> bytes:
    deadline, answer = monotonic_s() + TIMEOUT_S, b""
    poll = select.poll()  # `select.select` refuses descriptors above 1023
    poll.register(descriptor, select.POLLIN)
    while len(answer) <= MAX_ANSWER_BYTES:
        if not poll.poll(1000 * max(0.0, deadline - monotonic_s())):
            raise TimeoutError(f"the collector has not answered within {TIMEOUT_S:.0f} s")
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return answer
        answer += chunk
    raise ValueError(f"the collector's answer is larger than {MAX_ANSWER_BYTES:,} bytes")


def interpreter_of(command: Sequence[str]) -> str | None:
    """Return the path of the Python that runs a command: the program, or the interpreter in its `#!` line.

    A `#!` line may begin with `/usr/bin/env`, and have options. Returns None if the command is not found, or if no
    Python is recognized.
    """
    import shutil  # noqa: PLC0415 - loads the compression modules

    program = shutil.which(command[0])
    if program is None or _is_python(program):
        return program
    try:
        with open(program, "rb") as file:
            first = file.readline(500).decode(errors="replace")
    except OSError:
        return None
    words = first[2:].split() if first.startswith("#!") else []
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    found = shutil.which(words[0]) if words else None
    return found if found is not None and _is_python(found) else None


def _is_python(program: str) -> bool:
    return os.path.basename(program).startswith(("python", "pypy"))


recorder: Final = Recorder()
