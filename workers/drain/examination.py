"""Decodes entries in a child process first: what kills or hangs there does no harm."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from trainwire.schemas.keys import Kind
from trainwire.workers.drain.decoding import RawEntry, decode
from trainwire.workers.drain.weights import weight_of

TRIAL_CPU_S: Final = 5
"""How much processor time one entry may take; the largest takes half a second."""
TRIAL_S: Final = 25
"""How long one entry may take; on a busy machine it waits for the processor most of the time."""
TRIAL_MEMORY_BYTES: Final = 1024**3
"""What the child may take besides the memory that it is born with."""
_MAX_ROUNDS: Final = 5
_DEFAULT_SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR1,
    signal.SIGHUP,
    signal.SIGALRM,
    signal.SIGPROF,
)
_RAISED: Final = 3
"""Exit code of a child whose decoder raised."""


@dataclass(frozen=True, slots=True)
class Culprit:
    """Which entry ends a decoder, as an index, and how."""

    index: int
    reason: str
    detail: str


def examine(kind: Kind, entries: Sequence[RawEntry]) -> Culprit | None:
    """Return the first entry that ends two child processes, in the second alone; None where none does."""
    start = 0
    for _ in range(_MAX_ROUNDS):
        sound, _ = _trial(kind, entries[start:])
        at = start + sound
        if at >= len(entries):
            return None
        # Once more, alone: that somebody killed the first child is no fault of the entry.
        alone, status = _trial(kind, entries[at : at + 1])
        if not alone:
            return Culprit(at, *_verdict(status))
        start = at + 1
    return None


def _trial(kind: Kind, entries: Sequence[RawEntry]) -> tuple[int, int]:
    """Decode the entries in a child; return how many it got through, and its wait status."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _decode_all(kind, entries, writing)
    os.close(writing)
    sound = 0
    try:
        while progress := os.read(reading, 65536):
            sound += len(progress)
    finally:
        os.close(reading)
        _, status = os.waitpid(pid, 0)
    return sound, status


def _decode_all(kind: Kind, entries: Sequence[RawEntry], progress: int) -> NoReturn:
    """Decode in the child, which never returns: what it shares with its parent is not its own to close."""
    try:
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_address_space_bytes() + TRIAL_MEMORY_BYTES, most))
        for entry in entries:
            signal.alarm(TRIAL_S)
            signal.setitimer(signal.ITIMER_PROF, TRIAL_CPU_S)
            weight_of(*decode(kind, entry))
            os.write(progress, b".")
        os._exit(0)
    except BaseException:  # noqa: BLE001 - shown by the exit code
        os._exit(_RAISED)


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _verdict(status: int) -> tuple[str, str]:
    code = os.waitstatus_to_exitcode(status)
    if code in {-signal.SIGALRM, -signal.SIGPROF}:
        return (
            "timed-out",
            f"its decoding takes over {TRIAL_CPU_S} s of processor time, or {TRIAL_S} s, seen twice",
        )
    if code == _RAISED:
        return "crashes-decoder", f"its decoding fails within {TRIAL_MEMORY_BYTES:,} bytes of memory, seen twice"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return "kills-decoder", f"its decoding ends the process with {how}, seen twice"
