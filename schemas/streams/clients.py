"""The client of the server that carries the streams: one Redis, or a Redis Cluster (decision 17)."""

from __future__ import annotations

from typing import Any, Final, cast
from urllib.parse import unquote

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from trainwire.schemas.streams.urls import cluster_nodes, cluster_tls, is_cluster

STREAM_ERRORS: Final = (redis.RedisError, RedisClusterException)
"""What a server that is away, or refuses, looks like; redis-py does not count the second among the first."""


def open_streams(url: str, *, retry: Retry, **options: Any) -> redis.Redis:
    """Return a client; nothing is connected before its first command, which raises one of `STREAM_ERRORS`.

    `options` are timeouts and the like, as redis-py takes them.
    """
    if not is_cluster(url):
        return redis.Redis.from_url(url, retry=retry, **options)
    return cast("redis.Redis", Cluster(url, retry=retry, **options))


class Cluster:
    """A client of a cluster that looks for its servers with the first command, and again after `close`."""

    def __init__(self, url: str, *, retry: Retry, **options: Any) -> None:
        self._nodes = cluster_nodes(url)
        user, _, password = url.partition("?")[0].partition("://")[2].rpartition("@")[0].partition(":")
        self._options = (
            options
            | cluster_tls(url)
            | {
                "username": unquote(user) or None,
                "password": unquote(password) or None,
                "ssl": url.startswith("rediss"),
                "retry": retry,
                # A server that is away is the trouble of its own shards alone.
                "require_full_coverage": False,
            }
        )
        self._client: RedisCluster | None = None
        self.resting: dict[str, tuple[float, str]] = {}
        """Servers that did not answer: until when they are left alone, and what the matter was."""

    def __getattr__(self, name: str) -> Any:
        if self._client is None:
            node = cast("Any", ClusterNode)  # redis-py does not say its types
            nodes = [node(host, port) for host, port in self._nodes]
            self._client = RedisCluster(startup_nodes=nodes, **self._options)
        return getattr(self._client, name)

    def close(self) -> None:
        """Drop all connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


def drop_connections(client: redis.Redis) -> None:
    """Drop a client's connections; its next command makes new ones and looks the host up again."""
    client.close()
    if not isinstance(client, Cluster):
        client.connection_pool.disconnect()


def servers_of(client: redis.Redis) -> dict[str, redis.Redis]:
    """Return a client for each server by `host:port`, those that are away included; for one Redis, itself.

    Raises one of `STREAM_ERRORS` where no server of a cluster tells which others there are.
    """
    if not isinstance(client, Cluster):
        return {"": client}
    cluster = cast("Any", client)
    nodes = sorted(cluster.get_nodes(), key=lambda node: (node.host, node.port))
    return {f"{node.host}:{node.port}": cluster.get_redis_connection(node) for node in nodes}


def beside(client: redis.Redis, key: str) -> dict[str, Any]:
    """Return the options that send a command without a key to the server that has this one."""
    return {"target_nodes": [cast("Any", client).get_node_from_key(key)]} if isinstance(client, Cluster) else {}
