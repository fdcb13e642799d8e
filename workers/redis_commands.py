"""Executes many Redis commands in one round trip, with less processor time than a redis-py pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from hiredis import pack_command
from redis.exceptions import ResponseError

from trainwire.schemas.streams.clients import Cluster

Command = tuple[str | bytes | int, ...]


def execute_all(client: redis.Redis, commands: Sequence[Command]) -> None:
    """Execute Redis commands in one round trip, and discard their replies.

    Commands behind one that fails are executed as well.

    If any command fails, the first error is raised once all replies are read. Errors are those of redis-py, and
    commands are sent again after a lost connection, as in a pipeline. This takes a third of the processor time of
    a pipeline, which would be most of the time of a transaction with thousands of jobs. In a cluster a pipeline is
    used.
    """
    if isinstance(client, Cluster):
        pipeline: Any = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        pipeline.execute()
        return
    if not commands:
        return
    pack: Any = pack_command  # its type has no commands of several arguments
    packed = [b"".join(map(pack, commands))]
    pool: Any = client.connection_pool
    connection = pool.get_connection()  # not by `client.client()`, which copies all settings of the client
    try:
        connection.retry.call_with_retry(
            lambda: _exchange(connection, packed, len(commands)), lambda _: connection.disconnect()
        )
    finally:
        pool.release(connection)


def _exchange(connection: Any, packed: list[bytes], replies: int) -> None:
    connection.send_packed_command(packed)
    first: ResponseError | None = None
    for _ in range(replies):
        try:
            connection.read_response()
        except ResponseError as exc:
            first = first or exc
    if first is not None:
        raise first
