"""Stories about the streams: entries that cannot be stored, and entries of others before those of the training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from tests.certify.stories.story import NewWorker, Step, WorkersCondition, arm, has, number, signal, trainwire
from tests.certify.trainings import LINES
from trainwire.schemas.keys import HALTED_KEY, stream_key
from trainwire.schemas.wire.entries import encode_entry
from trainwire.schemas.wire.messages import Logs, Message

if TYPE_CHECKING:
    from tests.certify.world import World

SHARD: Final = 3
"""The shard of the jobs of all runs, with four shards."""
OTHER_JOB: Final = 4_000_000
"""The difference between the number of the job of a run and that of another job in the same shard."""
BROKEN: Final = 150
"""Number of entries that cannot be decoded: a drain stops before so many."""
MANY: Final = 400
"""Number of entries of another job, which take several transactions."""
MANY_CHARS: Final = 200
LETTERS: Final = "SELECT count(*) FROM dead_letters"


def refuse_message(world: World) -> Iterator[Step]:
    """Postgres refuses a message for a time; an operator replays all dead letters, and discards a broken one."""
    yield has(world, 2)
    arm(world)
    check = f"CONSTRAINT refused CHECK (content <> '{LINES[2]}')"
    _execute(world, f"ALTER TABLE training_logs ADD {check}")
    _append(world, [{"v": "1", "job": str(world.job), "body": b"broken"}])
    signal(world, "refusing")
    yield WorkersCondition(lambda: number(world, LETTERS) > 0)
    yield lambda: number(world, LETTERS) > 1
    _execute(world, "ALTER TABLE training_logs DROP CONSTRAINT refused")
    # A killed drain has committed the broken entry, but not deleted it: replayed before the next drain does, it
    # would be dead-lettered twice, because it has no message number.
    yield WorkersCondition(lambda: not world.redis.xlen(_stream()))
    yield trainwire("dead-letters", "list", words=2)
    yield trainwire("dead-letters", "show", str(number(world, "SELECT min(id) FROM dead_letters")), words=2)
    yield trainwire("dead-letters", "replay", "--all", words=2)
    # The broken one comes back.
    yield WorkersCondition(lambda: not world.redis.xlen(_stream()) and number(world, LETTERS) == 1)
    yield trainwire("dead-letters", "discard", "--all", words=2, is_done=lambda: _has_no_letters(world))


def halt_stream(world: World) -> Iterator[Step]:
    """Another job sends broken entries: the drain stops there until an operator lets workers dead-letter them."""
    yield has(world, 2)
    arm(world)
    broken = [_entry(world, seq, "") | {"body": b"broken"} for seq in range(1, BROKEN + 1)]
    _append(world, [*broken, _entry(world, BROKEN + 1, "valid")])
    signal(world, "broken")
    yield has(world, len(LINES))  # while the stream is halted
    yield WorkersCondition(lambda: world.redis.hexists(HALTED_KEY, _stream()))
    yield NewWorker({"DRAIN_MAX_INVALID_RATIO": "1"})
    yield WorkersCondition(lambda: number(world, LETTERS) == BROKEN and _others(world) == 1)
    yield trainwire("dead-letters", "discard", "--all", words=2, is_done=lambda: _has_no_letters(world))


def crowd_stream(world: World) -> Iterator[Step]:
    """Another job has many entries before those of the training, which are read ahead."""
    yield has(world, 2)
    arm(world)
    _append(world, [_entry(world, seq, f"{seq} {'x' * MANY_CHARS}") for seq in range(1, MANY + 1)])
    signal(world, "crowded")
    yield has(world, len(LINES))
    yield WorkersCondition(lambda: _others(world, "AND content LIKE seq || ' x%'") == MANY == _others(world))


def _entry(world: World, seq: int, line: str) -> dict[str, Any]:
    body = Logs(log_type="stdout", lines=[line], ts=[time.time_ns()])
    return encode_entry(Message("logs", world.job + OTHER_JOB, 1, "0-other", seq, body))


def _append(world: World, entries: list[dict[str, Any]]) -> None:
    pipeline = world.redis.pipeline()
    for entry in entries:
        pipeline.xadd(_stream(), entry)
    pipeline.execute()


def _stream() -> str:
    return stream_key("logs", SHARD)


def _others(world: World, condition: str = "") -> int:
    query = f"SELECT count(*) FROM training_logs WHERE job_id = {world.job + OTHER_JOB} {condition}"
    return number(world, query)


def _has_no_letters(world: World) -> bool:
    return number(world, f"SELECT CAST(NOT EXISTS ({LETTERS.replace('count(*)', '1')}) AS int)") == 1


def _execute(world: World, statement: str) -> None:
    with world.engine.begin() as connection:
        connection.execute(text(statement))
