"""Runs commands on all servers that have streams, and records the servers that do not respond (decision 17)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast

import redis
from redis.cluster import ClusterNode
from redis.exceptions import RedisClusterException

from trainwire.schemas.streams.clients import STREAM_ERRORS, Cluster
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.schemas.streams.urls import DEFAULT_PORT

RETRY_AFTER_S: Final = 5.0
"""Seconds for which a server that did not respond is not tried again, because each timeout takes seconds."""
NO_SERVER: Final = "no server of the cluster"

Topic = TypeVar("Topic", bound=Hashable)
Commands = Sequence[tuple[Any, ...]]
"""Commands as tuples of name and arguments; the first argument is a key, and all keys are on the same server."""


@dataclass
class Answers(Generic[Topic]):
    """The results of `ask_each` by topic: the replies (one per command), the server's clock and the server's name.

    A topic whose server did not respond or refused has no replies; `unavailable` maps such servers (host:port, or
    NO_SERVER if no server has the topic's keys) to the error.
    """

    replies: dict[Topic, list[Any]] = field(default_factory=dict)
    now_ms: dict[Topic, int] = field(default_factory=dict)
    servers: dict[Topic, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)


def ask_each(client: redis.Redis, questions: Mapping[Topic, Commands]) -> Answers[Topic]:
    """Run the commands of each topic on the server that has their keys.

    It takes one round trip for a single Redis, and two for each server of a cluster. A topic is any value that
    identifies a group of commands, such as a shard number. Errors of a single Redis are raised. In a cluster, the
    errors of servers are collected in `Answers.unavailable`; an error is raised only if no server of the cluster
    can be found.
    """
    answers: Answers[Topic] = Answers()
    if not isinstance(client, Cluster):
        answers.servers = dict.fromkeys(questions, _name(client))
        pipe = client.pipeline(transaction=False)
        pipe.time()
        now, *replies = _run(pipe, questions)
        _take(answers, questions, now, replies)
        return answers
    for node, theirs in _by_server(client, questions).items():
        answers.servers |= dict.fromkeys(theirs, NO_SERVER if node is None else node.name)
        try:
            # A separate command first: a server that does not answer then costs one timeout, not one per command.
            now = _on_server(client, node, "TIME")
            replies = _run(cast("Any", client).pipeline(transaction=False), theirs)
        except STREAM_ERRORS as exc:
            answers.unavailable[NO_SERVER if node is None else node.name] = redis_trouble(exc)
        else:
            _take(answers, theirs, now, replies)
    return answers


def fullest_memory(client: redis.Redis) -> tuple[int, int]:
    """Return Redis' `used_memory` and `maxmemory` in bytes; for a cluster, those of the fullest primary.

    Primaries that do not respond are ignored, unless none responds: then the error is raised, as for a single
    Redis. A server without `maxmemory` (0) counts as less full than any other.
    """
    infos: list[Mapping[str, Any]] = []
    if isinstance(client, Cluster):
        for node in cast("Any", client).get_primaries():
            with suppress(*STREAM_ERRORS):
                infos.append(_on_server(client, node, "INFO", "memory"))
    if not infos:
        infos = [client.info("memory")]
    sizes = [(int(memory["used_memory"]), int(memory["maxmemory"])) for memory in infos]
    return max(sizes, key=lambda size: size[0] / (size[1] or 2**63))


def _by_server(
    client: Cluster, questions: Mapping[Topic, Commands]
) -> Mapping[ClusterNode | None, dict[Topic, Commands]]:
    found: dict[ClusterNode | None, dict[Topic, Commands]] = defaultdict(dict)
    get_node = client.get_node_from_key  # connects if necessary, and raises if no server is found
    for topic, commands in questions.items():
        node = None
        with suppress(RedisClusterException):
            node = get_node(commands[0][1])
        found[node][topic] = commands
    return found


def _on_server(client: Cluster, node: ClusterNode | None, *command: str) -> Any:
    """Run a command on one server of the cluster; raise `RedisClusterException` if `node` is None.

    If the server did not respond in the last RETRY_AFTER_S seconds, raise `ConnectionError` with the text of its
    last error, without another try.
    """
    if node is None:
        raise RedisClusterException("no server has these slots")
    until, error = client.resting.get(node.name, (0.0, ""))
    if time.monotonic() < until:
        raise redis.ConnectionError(error)
    try:
        return client.execute_command(*command, target_nodes=[node])
    except (redis.ConnectionError, redis.TimeoutError) as exc:
        client.resting[node.name] = (time.monotonic() + RETRY_AFTER_S, str(exc))
        raise


def _run(pipe: Any, questions: Mapping[Topic, Commands]) -> list[Any]:
    for commands in questions.values():
        for command in commands:
            pipe.execute_command(*command)
    return list(pipe.execute())


def _take(answers: Answers[Topic], questions: Mapping[Topic, Commands], now: Any, replies: Sequence[Any]) -> None:
    seconds, micros = now
    rest: Iterator[Any] = iter(replies)
    for topic, commands in questions.items():
        answers.now_ms[topic] = seconds * 1000 + micros // 1000
        answers.replies[topic] = [next(rest) for _ in commands]


def _name(client: redis.Redis) -> str:
    options = client.get_connection_kwargs()
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', DEFAULT_PORT)}")
