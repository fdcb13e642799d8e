"""Replays and deletes dead letters, on the request of operators."""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec
import redis
from sqlalchemy import Connection, Engine, RowMapping, delete

from trainwire.schemas.keys import ordered_key
from trainwire.schemas.tables import dead_letters
from trainwire.workers.drain import job_rows, positions, store
from trainwire.workers.drain.stream import redis_errors

SINK_PREFIX: Final = "sink:"
"""The `stream` of a dead letter that a sink refused is this prefix, followed by the name of the sink."""


def replay(engine: Engine, client: redis.Redis, letter_id: int) -> None:
    """Append the unchanged entry of a dead letter to its stream again; the drain then stores or dead-letters it.

    Deletes the dead letter. Raises `LookupError` if there is no such dead letter, or if it is a row that a sink
    refused: such a row is in Postgres and has no entry. Raises `Unavailable` if Postgres or Redis does not answer:
    the dead letter is then not deleted.
    """
    with store.postgres_errors(), engine.begin() as connection:
        letter = _take(connection, letter_id)
        if letter["stream"].startswith(SINK_PREFIX):
            raise LookupError(_resending(letter))
        if letter["job_id"] is not None and letter["source"] is not None:
            _reopen(connection, letter)
        fields = msgspec.msgpack.decode(letter["raw"], type=dict[bytes, bytes])
        # Sent before the commit, but read after it: the drain waits for the lock on the job, held until then.
        with redis_errors(), client.pipeline(transaction=False) as pipeline:
            pipeline.xadd(letter["stream"], cast("Any", fields))
            # Makes the sweep order a drain at once, even if the stream is halted.
            pipeline.delete(ordered_key(letter["stream"]))
            pipeline.execute()


def discard(engine: Engine, letter_id: int) -> None:
    """Delete a dead letter.

    The job's sum (produced = stored + dead-lettered + …) still counts the message as dead-lettered. Raises
    `LookupError` if there is no such dead letter, and `Unavailable` if Postgres does not answer.
    """
    with store.postgres_errors(), engine.begin() as connection:
        _take(connection, letter_id)


def _take(connection: Connection, letter_id: int) -> RowMapping:
    taken = connection.execute(
        delete(dead_letters).where(dead_letters.c.id == letter_id).returning(*dead_letters.c)
    )
    letter = taken.mappings().first()
    if letter is None:
        raise LookupError(f"there is no dead letter {letter_id}: `trainwire dead-letters list` shows all")
    return letter


def _resending(letter: RowMapping) -> str:
    sink = letter["stream"].removeprefix(SINK_PREFIX)
    return (
        f"dead letter {letter['id']} is a row that {sink} refused, and Postgres has it: to send it again use "
        f"`trainwire replay {letter['job_id']} --sink {sink} --from {letter['seq']}`"
    )


def _reopen(connection: Connection, letter: RowMapping) -> None:
    """Mark the message of a dead letter as missing, so that the drain does not take the replay for a duplicate.

    Does nothing for a deleted job, or if the source's position does not count the message as dead-lettered.
    """
    job_id, source, kind, seq = letter["job_id"], letter["source"], letter["kind"], letter["seq"]
    if not job_rows.lock_jobs(connection, [job_id]):
        return  # the job was deleted: the drain discards the entry
    row = positions.load_positions(connection, [(job_id, source)]).get((job_id, source, kind))
    if row is not None and row.dead_lettered and seq is not None and row.position.reopen(seq):
        row.dead_lettered -= 1
        positions.save_positions(connection, {(job_id, source, kind): row})
