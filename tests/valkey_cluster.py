"""A Redis Cluster of three processes, without replicas, for tests that carry the streams on one."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from schemas.stream_clients import open_streams
from tests.processes import wait_until
from trainwire.remembered import FILE_NAME, write_private
from trainwire.valkey import EmbeddedValkey

NODES: Final = 3
SLOTS: Final = 16384
SETTINGS: Final = {
    "cluster-enabled": "yes",
    "cluster-node-timeout": "2000",
    "cluster-require-full-coverage": "no",
    "appendfsync": "always",
}


class ValkeyCluster:
    """Three servers that share the slots; each keeps its append-only file."""

    def __init__(self, folder: Path) -> None:
        password = secrets.token_urlsafe(24)
        self.nodes = []
        for number in range(NODES):
            data_dir = folder / f"node{number}"
            data_dir.mkdir(parents=True)
            write_private(data_dir / FILE_NAME, json.dumps({"valkey_password": password}))
            self.nodes.append(EmbeddedValkey(data_dir, settings=SETTINGS))
        self._password = password

    @property
    def url(self) -> str:
        """What STREAMS_URL says of it."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"redis+cluster://:{self._password}@{hosts}"

    def misses_slots(self) -> bool:
        """Tell whether the servers that live have found out that one does not."""
        counts = []
        for node in self.nodes:
            if node.child.is_running():
                with redis.Redis.from_url(node.url) as client:
                    counts.append(int(cast("Any", client).execute_command("CLUSTER INFO")["cluster_slots_fail"]))
        return min(counts) > 0

    @contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """Give a client of the streams, as workers have it."""
        client = open_streams(self.url, retry=Retry(NoBackoff(), 1), socket_timeout=5)
        try:
            yield client
        finally:
            client.close()

    def __enter__(self) -> Self:
        for node in self.nodes:
            node.start()
        clients = [cast("Any", redis.Redis.from_url(node.url)) for node in self.nodes]
        bounds = [SLOTS * number // NODES for number in range(NODES + 1)]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", node.port)
        for client in clients:
            wait_until(partial(is_whole, client), "the cluster")
            client.close()
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.stop()


def is_whole(client: Any) -> bool:
    """Tell whether this server knows all others, and who has which slots."""
    info = client.execute_command("CLUSTER INFO")
    return bool(
        info["cluster_known_nodes"] == str(NODES)
        and info["cluster_slots_ok"] == str(SLOTS)
        and info["cluster_state"] == "ok"
    )
