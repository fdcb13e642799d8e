"""Clients of the Redis that stores the streams: a single server, or a Redis Cluster (decision 17)."""

from __future__ import annotations

from typing import Any, Final, cast
from urllib.parse import unquote

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from trainwire.schemas.streams.urls import cluster_nodes, cluster_tls, is_cluster

STREAM_ERRORS: Final = (redis.RedisError, RedisClusterException)
"""Errors of a server that does not respond or refuses a command.

In redis-py, RedisClusterException is not a subclass of RedisError.
"""


def open_streams(url: str, *, retry: Retry, **options: Any) -> redis.Redis:
    """Return a client for the streams at `url`, which connects at its first command.

    Commands raise one of `STREAM_ERRORS`. `retry` and `options`, such as timeouts, are passed to redis-py. Raises
    `ValueError` for an invalid URL.
    """
    if not is_cluster(url):
        return redis.Redis.from_url(url, retry=retry, **options)
    return cast("redis.Redis", Cluster(url, retry=retry, **options))


class Cluster:
    """A Redis Cluster client that discovers the servers at its first command, and again after `close`."""

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
                # A server that does not answer must affect only its own shards.
                "require_full_coverage": False,
            }
        )
        self._client: RedisCluster | None = None
        self.resting: dict[str, tuple[float, str]] = {}
        """Server that did not respond -> (monotonic time until which it is not tried again, its error)."""

    def __getattr__(self, name: str) -> Any:
        if self._client is None:
            node = cast("Any", ClusterNode)  # redis-py has no types here
            nodes = [node(host, port) for host, port in self._nodes]
            self._client = RedisCluster(startup_nodes=nodes, **self._options)
        return getattr(self._client, name)

    def close(self) -> None:
        """Close all connections to the servers of the cluster."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


def drop_connections(client: redis.Redis) -> None:
    """Close the client's connections; the next command resolves the host name again and reconnects."""
    client.close()
    if not isinstance(client, Cluster):
        client.connection_pool.disconnect()


def servers_of(client: redis.Redis) -> dict[str, redis.Redis]:
    """Return `host:port` -> client for each server of a cluster; for a single Redis, "" -> `client`.

    Raises one of `STREAM_ERRORS` if no server of the cluster responds.
    """
    if not isinstance(client, Cluster):
        return {"": client}
    cluster = cast("Any", client)
    nodes = sorted(cluster.get_nodes(), key=lambda node: (node.host, node.port))
    return {f"{node.host}:{node.port}": cluster.get_redis_connection(node) for node in nodes}


def server_options(client: redis.Redis, key: str) -> dict[str, Any]:
    """Return redis-py options that send a keyless command, such as TIME, to the cluster server that has `key`.

    Return {} for a single Redis.
    """
    return {"target_nodes": [cast("Any", client).get_node_from_key(key)]} if isinstance(client, Cluster) else {}
