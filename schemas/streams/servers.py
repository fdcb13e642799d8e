"""Asks each server that has streams for what it has, and collects who is away (decision 17)."""

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

REST_S: Final = 5.0
"""For so long a server that did not answer is left alone: to try a host that is down takes seconds."""
NOBODY: Final = "no server of the cluster"

Topic = TypeVar("Topic", bound=Hashable)
Commands = Sequence[tuple[Any, ...]]
"""Of one question: name and arguments, the first of them a key; all keys are of one server."""


@dataclass
class Answers(Generic[Topic]):
    """What was said on each topic, one reply a command, and by which server's clock.

    A topic without replies is one of a server that is `away` (host:port -> why) or refused.
    """

    replies: dict[Topic, list[Any]] = field(default_factory=dict)
    now_ms: dict[Topic, int] = field(default_factory=dict)
    servers: dict[Topic, str] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)


def ask_each(client: redis.Redis, questions: Mapping[Topic, Commands]) -> Answers[Topic]:
    """Put each question to the server that has its keys.

    One Redis is asked in one round trip, and what it raises is raised. Of a cluster each server is asked for
    itself: one that is away or refuses is named in the answers; raised is only that no server was found at all.
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
        answers.servers |= dict.fromkeys(theirs, NOBODY if node is None else node.name)
        try:
            # By itself, before the rest: whether it answers is found out once, not with each command.
            now = _alone(client, node, "TIME")
            replies = _run(cast("Any", client).pipeline(transaction=False), theirs)
        except STREAM_ERRORS as exc:
            answers.away[NOBODY if node is None else node.name] = redis_trouble(exc)
        else:
            _take(answers, theirs, now, replies)
    return answers


def fullest_memory(client: redis.Redis) -> tuple[int, int]:
    """Return `used_memory` and `maxmemory` in bytes; of a cluster, of the fullest server that answers."""
    infos: list[Mapping[str, Any]] = []
    if isinstance(client, Cluster):
        for node in cast("Any", client).get_primaries():
            with suppress(*STREAM_ERRORS):
                infos.append(_alone(client, node, "INFO", "memory"))
    if not infos:
        infos = [client.info("memory")]
    sizes = [(int(memory["used_memory"]), int(memory["maxmemory"])) for memory in infos]
    return max(sizes, key=lambda size: size[0] / (size[1] or 2**63))


def _by_server(
    client: Cluster, questions: Mapping[Topic, Commands]
) -> Mapping[ClusterNode | None, dict[Topic, Commands]]:
    found: dict[ClusterNode | None, dict[Topic, Commands]] = defaultdict(dict)
    get_node = client.get_node_from_key  # connects where nobody has yet, and raises where no server is found
    for topic, commands in questions.items():
        node = None
        with suppress(RedisClusterException):
            node = get_node(commands[0][1])
        found[node][topic] = commands
    return found


def _alone(client: Cluster, node: ClusterNode | None, *command: str) -> Any:
    """Send a command to one server, unless it did not answer a moment ago."""
    if node is None:
        raise RedisClusterException("no server has these slots")
    until, why = client.resting.get(node.name, (0.0, ""))
    if time.monotonic() < until:
        raise redis.ConnectionError(why)
    try:
        return client.execute_command(*command, target_nodes=[node])
    except (redis.ConnectionError, redis.TimeoutError) as exc:
        client.resting[node.name] = (time.monotonic() + REST_S, str(exc))
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
    said = client.get_connection_kwargs()
    return str(said.get("path") or f"{said.get('host', 'localhost')}:{said.get('port', DEFAULT_PORT)}")
