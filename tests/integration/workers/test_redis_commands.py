"""Many commands in one round trip."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from trainwire.stores.postgres.connections import open_redis
from trainwire.workers.redis_commands import execute_all
from trainwire.workers.resources import Resources


def test_all_commands_are_executed_and_the_first_error_is_raised(resources: Resources) -> None:
    """An error keeps no later command from its execution, and the connection has no reply left over."""
    client = resources.redis
    client.set("text", "a")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        execute_all(client, [("HSET", "text", "a", 1), ("NOSUCHCOMMAND",), ("HSET", "map", "a", 1, "b", b"\x00")])
    assert client.hgetall("map") == {b"a": b"1", b"b": b"\x00"}
    assert client.get("text") == b"a"


def test_a_closed_connection_is_opened_again(resources: Resources) -> None:
    """Commands after a restart of the server are sent on a new connection."""
    client = resources.redis
    connection_id = client.client_id()
    other = open_redis(resources.settings)
    assert other.client_kill_filter(_id=str(connection_id)) == 1  # no other: tests in parallel share the server
    other.close()
    execute_all(client, [("SET", f"key-{number}", number) for number in range(1000)])
    assert client.get("key-999") == b"999"


def test_no_command_needs_no_server(resources: Resources) -> None:
    """Without commands nothing is sent."""
    resources.redis.connection_pool.disconnect()
    execute_all(resources.redis, [])
