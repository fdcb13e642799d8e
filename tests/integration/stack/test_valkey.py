"""The embedded Valkey as a process."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from trainwire.stack.errors import PartFailed
from trainwire.stack.valkey import NO_RETRY, EmbeddedValkey


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """Give a running server in a folder whose name needs quoting."""
    with EmbeddedValkey(tmp_path / 'a "b', maxmemory="64mb") as running:
        yield running


@pytest.fixture
def client(server: EmbeddedValkey) -> Iterator[redis.Redis]:
    """Give a client of the server."""
    with redis.Redis.from_url(server.url) as connected:
        yield connected


def test_data_survives_a_restart(server: EmbeddedValkey, client: redis.Redis) -> None:
    """Written data survives a stop, at the same address."""
    url = server.url
    client.xadd("stream", {"field": "value"})
    server.stop()
    server.start()
    assert client.xlen("stream") == 1
    assert server.url == url


def test_it_comes_back_after_a_kill(server: EmbeddedValkey, client: redis.Redis) -> None:
    """After SIGKILL the server starts again on its port."""
    server.kill()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    server.start()
    assert client.ping()


def test_it_refuses_instead_of_forgetting(client: redis.Redis) -> None:
    """Memory is bounded, nothing is evicted, and all writes are in the append-only file."""
    wanted = {"maxmemory": "67108864", "maxmemory-policy": "noeviction", "appendonly": "yes"}
    assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_it_accepts_many_trainers(client: redis.Redis) -> None:
    """Thousands of trainers can connect, as far as the limit of open files allows."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert client.config_get("maxclients") == {"maxclients": str(min(50_000, files - 32))}


def test_the_password_is_asked_for_and_hidden(server: EmbeddedValkey) -> None:
    """Connections need the password, which `ps` does not show."""
    with redis.Redis(port=server.port, retry=NO_RETRY) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    assert server.child.pid is not None
    password = server.url.split("@")[0].rpartition(":")[2]
    assert password not in " ".join(psutil.Process(server.child.pid).cmdline())


def test_a_wrong_setting_is_reported_with_the_servers_log(tmp_path: Path) -> None:
    """The error of a server that does not start has the last lines of its log."""
    with pytest.raises(PartFailed, match=r"valkey ended at once(.|\n)*appendfsync"):
        EmbeddedValkey(tmp_path, settings={"appendfsync": "sometimes"}).start()
