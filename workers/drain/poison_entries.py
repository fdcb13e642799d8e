"""Finds poison entries: entries whose drain is killed, exceeds its time limit or crashes each time.

Each transaction increments a counter in Redis when it begins, and resets it when it ends normally. So the next
drain can detect that a transaction was interrupted. After one interrupted transaction, the next one decodes its
batch in a child process first (`find_poison_entry`). After two, entries are also stored in smaller and smaller
pieces, until the poison entry is alone in its transaction. Poison entries are dead-lettered.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import redis
import structlog

from trainwire.schemas.keys import Kind, trials_key
from trainwire.schemas.wire.entries import read_origin
from trainwire.workers.drain.decoding import RawEntry, Rejected, decode, memory_bytes, rejected
from trainwire.workers.drain.stream import redis_errors
from trainwire.workers.errors import DrainsEnd, Unavailable
from trainwire.workers.redis_commands import Command

log = structlog.get_logger("trainwire.workers.drain.poison_entries")

FIRST_PIECE: Final = 1000
"""Maximum number of entries in the next transaction after two transactions in a row were interrupted."""
PIECE_DIVISOR: Final = 8
MAX_BATCH_ENTRIES: Final = 40_000
"""Upper bound for the entries of a batch.

Once as many are committed without a poison entry, the search ends: none is in the stream any more.
"""
TRIES_ALONE: Final = 2
MAX_POISON_ENTRIES: Final = 5
"""If this number of entries in a row fail alone, the cause probably lies outside the entries."""
_TTL_S: Final = 24 * 3600

CHILD_CPU_S: Final = 5
"""Limit of processor time to decode one entry; the largest valid entry takes half a second."""
CHILD_TIMEOUT_S: Final = 25
"""Limit of elapsed time to decode one entry; on a busy machine, most of it is spent waiting for the processor."""
CHILD_MEMORY_BYTES: Final = 1024**3
"""Memory that the child may allocate in addition to that of its parent."""
_MAX_ROUNDS: Final = 5
_DEFAULT_SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR1,
    signal.SIGHUP,
    signal.SIGALRM,
    signal.SIGPROF,
)
_DECODER_RAISED: Final = 3
"""Exit code of a child whose decoder raised an exception."""


@dataclass(slots=True)
class TransactionLimits:
    """The limits of the next transaction of a drain, and the ids of the poison entries found so far."""

    decode_in_child: bool = False
    max_entries: int | None = None
    poison_ids: list[str] = field(default_factory=list)
    """Ids of entries whose drains were interrupted while each was alone in its transaction."""
    first_is_poison: bool = False
    """Whether the first entry that is not in `poison_ids` is a poison entry too.

    It was alone in the last transactions, all of which were interrupted.
    """


class PoisonSearch:
    """The search for poison entries in one stream; its state is a Redis hash.

    If Redis fails, drains run without a search.
    """

    def __init__(self, client: redis.Redis, kind: Kind, stream: str) -> None:
        self._client = client
        self._kind = kind
        self._stream = stream
        self._key = trials_key(stream)
        self._limits = TransactionLimits()
        self._left = 0
        self._is_open = False
        self._last_crash: Exception | None = None

    def begin_commands(self) -> list[Command]:
        """Return the Redis commands that count a transaction as started; `begin` takes their replies."""
        self._is_open = True
        return [("HINCRBY", self._key, "begun", 1), ("EXPIRE", self._key, _TTL_S), ("HGETALL", self._key)]

    def begin(self, replies: Sequence[Any]) -> TransactionLimits:
        """Return the limits of the transaction that begins.

        `replies` are those of `begin_commands`. If one is an exception, for example in a full Redis, the
        transaction has no limits.
        """
        has_failed = any(isinstance(reply, Exception) for reply in replies)
        state: dict[bytes, bytes] = {} if has_failed else replies[-1]
        self._limits = self._next(
            int(state.get(b"begun", 1)),
            int(state.get(b"piece", 0)),
            [entry_id for entry_id in state.get(b"convicts", b"").decode().split(",") if entry_id],
            int(state.get(b"left", MAX_BATCH_ENTRIES)),
        )
        return self._limits

    def _next(self, begun: int, piece: int, poison_ids: list[str], left: int) -> TransactionLimits:
        """Return the limits of the next transaction.

        `begun` is the number of transactions, including this one, that have started and not ended.
        """
        self._left = left
        if not piece and begun <= 2:
            return TransactionLimits(decode_in_child=begun == 2)
        first_is_poison = False
        if not piece:
            piece, self._left = FIRST_PIECE, MAX_BATCH_ENTRIES
            self._save(begun=1, piece=piece, left=self._left)
        elif begun > 1 and piece > 1:
            self._left, piece = piece, max(1, piece // PIECE_DIVISOR)
            self._save(begun=1, piece=piece, left=self._left)
        elif begun > TRIES_ALONE:
            first_is_poison = True
        max_entries = piece + len(poison_ids) + first_is_poison
        return TransactionLimits(True, max_entries, poison_ids, first_is_poison)

    def _add_poison(self, entry_id: str) -> None:
        """Record the id of a poison entry: its drains were interrupted while it was alone in the transaction."""
        self._limits.poison_ids.append(entry_id)
        self._save(begun=1, convicts=",".join(self._limits.poison_ids))

    def examined(self, entries: Sequence[RawEntry]) -> tuple[Sequence[RawEntry], dict[str, Rejected]]:
        """Return the entries to decode, and rejections of the poison entries among them by entry id.

        Entries behind a poison entry that the child process has just found are left for the next transaction,
        because the child has not tested them. Raises `DrainsEnd` if `MAX_POISON_ENTRIES` entries are known.
        """
        limits = self._limits
        others = [entry for entry in entries if entry.entry_id not in limits.poison_ids]
        if limits.first_is_poison and others:
            self._add_poison(others.pop(0).entry_id)
        rejections = {
            entry.entry_id: rejected(entry, "ends-drain", self._crash_detail())
            for entry in entries
            if entry.entry_id in limits.poison_ids
        }
        found = find_poison_entry(self._kind, others) if limits.decode_in_child and others else None
        if found is not None:
            entry = others[found.index]
            job_id, _ = read_origin(entry.fields) or (None, None)
            log.error(
                "drain.poison_entry",
                stream=self._stream,
                entry_id=entry.entry_id,
                job_id=job_id,
                reason=found.reason,
            )
            rejections[entry.entry_id] = rejected(entry, found.reason, found.detail)
            entries = entries[: entries.index(entry) + 1]
        if len(limits.poison_ids) >= MAX_POISON_ENTRIES:
            self.check(0)
        return entries, rejections

    def check(self, arrivals: int) -> None:
        """Raise `DrainsEnd` if the transaction contains nothing but entries that crash or kill their drain.

        `arrivals` is the number of its entries; with 0, `DrainsEnd` is raised if any such entry is known. As long
        as no other entry can be stored, the cause may lie in our code or servers instead of the entries.
        """
        poison_ids = self._limits.poison_ids
        if not poison_ids or arrivals > len(poison_ids):
            return
        if len(poison_ids) >= MAX_POISON_ENTRIES:
            self.reset()
        else:
            self.record_rollback()
        raise DrainsEnd(
            f"{len(poison_ids)} entries of {self._stream} end their drains, the first "
            f"({poison_ids[0]}): {self._crash_detail()}. Nothing was taken from the stream: they become dead "
            "letters once another entry can be stored"
        ) from self._last_crash

    def record_crash(self, crash: Exception) -> None:
        """Record the exception that has ended a transaction, for the dead letter; log the first one."""
        if self._last_crash is None:
            log.error("drain.crashed", stream=self._stream, exc_info=crash)
        self._last_crash = crash

    def _crash_detail(self) -> str:
        crash = self._last_crash
        failure = "was killed or timed out" if crash is None else f"failed with {type(crash).__name__}: {crash}"
        return f"each drain of this entry alone {failure}"

    def commit_commands(self, entries: int, *, found_poison: bool, is_all: bool) -> list[Command]:
        """Return the Redis commands that record that the transaction was committed.

        Args:
            entries: number of entries in the transaction.
            found_poison: whether one of these entries was a poison entry.
            is_all: whether the stream had no further entries.
        """
        left = self._left - entries
        if self._limits.max_entries is not None and left > 0 and not found_poison and not is_all:
            return [("HSET", self._key, "begun", 0, "left", left)]
        ended: list[Command] = [("DEL", self._key)]
        if found_poison and not is_all:  # there may be another one: decode the next batch in a child at once
            ended.append(("HSET", self._key, "begun", 1))
        return ended

    def record_end(self) -> None:
        """Record that the commands of `commit_commands` were executed."""
        self._is_open = False

    def record_rollback(self) -> None:
        """Record that the transaction was rolled back and its process is alive. The search continues."""
        if self._is_open:
            self._is_open = False
            self._save(begun=0)

    def reset(self) -> None:
        """End the search: delete its state in Redis."""
        self._is_open = False
        with suppress(Unavailable), redis_errors():
            self._client.delete(self._key)

    def _save(self, **values: int | str) -> None:
        with suppress(Unavailable), redis_errors():
            self._client.hset(self._key, mapping=cast("Any", values))


@dataclass(frozen=True, slots=True)
class PoisonEntry:
    """An entry that ended its child process twice: its index in the list of decoded entries.

    Reason and detail are for its dead letter.
    """

    index: int
    reason: str
    detail: str


def find_poison_entry(kind: Kind, entries: Sequence[RawEntry]) -> PoisonEntry | None:
    """Decode entries in a child process; return the first one that ends its child twice, or None.

    The second time, it is decoded alone. After `_MAX_ROUNDS` entries that ended their child only once, the rest is
    not examined.
    """
    start = 0
    for _ in range(_MAX_ROUNDS):
        decoded, _ = _decode_in_child(kind, entries[start:])
        at = start + decoded
        if at >= len(entries):
            return None
        # Again, alone: the first child may have been killed by something other than the entry.
        decoded_alone, status = _decode_in_child(kind, entries[at : at + 1])
        if not decoded_alone:
            return PoisonEntry(at, *_reason_of(status))
        start = at + 1
    return None


def _decode_in_child(kind: Kind, entries: Sequence[RawEntry]) -> tuple[int, int]:
    """Decode the entries in a child process; return how many it decoded, and its wait status."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _run_child(kind, entries, writing)
    os.close(writing)
    decoded = 0
    try:
        while progress := os.read(reading, 65536):
            decoded += len(progress)
    finally:
        os.close(reading)
        _, status = os.waitpid(pid, 0)
    return decoded, status


def _run_child(kind: Kind, entries: Sequence[RawEntry], progress: int) -> NoReturn:
    """Decode the entries in the child process, and write one byte to the pipe `progress` for each.

    Exits by `os._exit`, so that the inherited connections are not closed.
    """
    try:
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_address_space_bytes() + CHILD_MEMORY_BYTES, most))
        for entry in entries:
            signal.alarm(CHILD_TIMEOUT_S)
            signal.setitimer(signal.ITIMER_PROF, CHILD_CPU_S)
            memory_bytes(*decode(kind, entry))
            os.write(progress, b".")
        os._exit(0)
    except BaseException:  # noqa: BLE001 - reported by the exit code
        os._exit(_DECODER_RAISED)


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _reason_of(status: int) -> tuple[str, str]:
    """Return reason and detail of the dead letter for an entry whose child ended with wait status `status`."""
    code = os.waitstatus_to_exitcode(status)
    if code in {-signal.SIGALRM, -signal.SIGPROF}:
        limits = f"{CHILD_CPU_S} s of processor time, or {CHILD_TIMEOUT_S} s"
        return "timed-out", f"its decoding takes over {limits}, seen twice"
    if code == _DECODER_RAISED:
        return "crashes-decoder", f"its decoding fails within {CHILD_MEMORY_BYTES:,} bytes of memory, seen twice"
    cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return "kills-decoder", f"its decoding ends the process with {cause}, seen twice"
