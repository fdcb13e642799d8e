"""Orders a drain as soon as a stream has entries, in threads of each worker's main process (decision 21)."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

import redis
import structlog

from trainwire.schemas.keys import Kind, jammed_key, stream_key
from trainwire.schemas.streams.clients import STREAM_ERRORS, drop_connections, server_options
from trainwire.schemas.streams.urls import is_cluster
from trainwire.stores.postgres.connections import open_redis, open_stream_client
from trainwire.workers.errors import Unavailable
from trainwire.workers.resources import Resources
from trainwire.workers.streams.linger import MOST_LINGER_S
from trainwire.workers.streams.sweep import all_streams

log = structlog.get_logger("trainwire.workers.streams.watch")

Stream = tuple[Kind, int]
Order = Callable[[Resources, Kind, int], float]
"""Function that orders the drain of a stream unless one is ordered.

It returns 0 if it sent an order, otherwise the seconds until the key of the pending order expires.
"""

BLOCK_S: Final = 1.0
"""Timeout in seconds of a blocking read: short enough for `stop`, and below the timeout of the socket."""
LEAST_PAUSE_S: Final = 0.01
MOST_PAUSE_S: Final = 0.1
"""Longest pause in seconds before the next read of a stream whose drain is ordered or running already."""
BYTES_PER_S: Final = 8 * 1024 * 1024
"""The pause after a read grows with the size of the first entry, at this rate.

A blocking read returns that entry, although it is not needed here.
"""
RETRY_S: Final = 0.2
WRONG_TYPE_PAUSE_S: Final = 5.0


class StreamWatch:
    """Watches all streams: with one thread on a single Redis, with one thread per shard on a cluster.

    A server of a cluster that does not answer therefore delays only its own shards.
    """

    def __init__(self, resources: Resources, order: Order) -> None:
        self._resources = resources
        streams = all_streams(resources.settings.ingest_shards)
        shard_of_group: dict[int, list[Stream]] = defaultdict(list)
        for kind, shard in streams:
            shard_of_group[shard].append((kind, shard))
        are_apart = is_cluster(resources.settings.streams_address)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(group, order), name="stream-watch", daemon=True)
            for group in (shard_of_group.values() if are_apart else [streams])
        ]

    def start(self) -> None:
        """Start the threads that watch the streams."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Request the threads to stop; they need about `BLOCK_S` seconds if their server answers."""
        self._stop.set()

    def _run(self, streams: Sequence[Stream], order: Order) -> None:
        settings = self._resources.settings
        # Connections of its own: no other thread has to wait for a server that does not answer.
        own = replace(self._resources, redis=open_redis(settings), stream_client=open_stream_client(settings))
        watcher = Watcher(own.streams, streams, partial(order, own))
        trouble = None
        while not self._stop.is_set():
            try:
                watcher.order_drains()
            except (*STREAM_ERRORS, Unavailable) as exc:
                if trouble is None:
                    log.warning("stream_watch.unavailable", reason=str(exc))
                trouble = str(exc)
                drop_connections(own.streams)
                self._stop.wait(RETRY_S)
            else:
                if trouble is not None:
                    log.info("stream_watch.back", after=trouble)
                trouble = None


class Watcher:
    """Waits for entries in a group of streams on one server, and orders their drains.

    Reads from the start of each stream, not from a last id: committed entries are trimmed, so each stream that has
    any entry needs a drain.
    """

    def __init__(
        self, client: redis.Redis, streams: Sequence[Stream], order: Callable[[Kind, int], float]
    ) -> None:
        self._client = client
        self._streams = {key(*stream): stream for stream in streams for key in (jammed_key, stream_key)}
        self._order = order
        self._resume_at = dict.fromkeys(self._streams, 0.0)
        self._pause_s = dict.fromkeys(self._streams, LEAST_PAUSE_S)

    def order_drains(self) -> None:
        """Wait at most `BLOCK_S` seconds for entries, and order the drains of the streams that have some."""
        now = time.monotonic()
        awake = [key for key, at in self._resume_at.items() if at <= now]
        pauses = [at - now for at in self._resume_at.values() if at > now]
        wait_s = min([BLOCK_S, *pauses])
        if not awake:
            time.sleep(wait_s)
            return
        for key, size_bytes in self._read(awake, wait_s):
            ordered_s = self._order(*self._streams[key])
            pause_s = min(2 * self._pause_s[key], MOST_PAUSE_S) if ordered_s else LEAST_PAUSE_S
            self._pause_s[key] = pause_s
            if 0 < ordered_s <= MOST_LINGER_S:  # the stream collects messages, and no drain runs
                pause_s = ordered_s
            self._resume_at[key] = time.monotonic() + max(pause_s, size_bytes / BYTES_PER_S)

    def _read(self, keys: Collection[str], wait_s: float) -> list[tuple[str, int]]:
        """Wait up to `wait_s` seconds for entries in the streams `keys`.

        Returns (key, size in bytes of the first entry) for each stream that has entries.
        """
        try:
            # Not by `xread`: on a cluster redis-py sends two commands before each read to find the keys in it.
            found = cast("Any", self._client).execute_command(
                *(
                    "XREAD",
                    "COUNT",
                    1,
                    "BLOCK",
                    max(1, int(wait_s * 1000)),
                    "STREAMS",
                    *keys,
                    *("0-0" for _ in keys),
                ),
                **server_options(self._client, next(iter(keys))),
            )
        except redis.ResponseError as exc:
            if not str(exc).startswith("WRONGTYPE"):
                raise
            self._leave_wrong_types(keys)
            return []
        pairs = found.items() if isinstance(found, dict) else cast("list[Any]", found or [])
        return [(cast("bytes", key).decode(), _size_bytes(entries)) for key, entries in pairs]

    def _leave_wrong_types(self, keys: Collection[str]) -> None:
        """Stop reading Redis keys that are not streams for a few seconds; the watchdog repairs such keys."""
        for key in keys:
            if self._client.type(key) not in {b"stream", b"none"}:
                self._resume_at[key] = time.monotonic() + WRONG_TYPE_PAUSE_S


def _size_bytes(entries: Any) -> int:
    return sum(len(name) + len(value) for _, fields in entries for name, value in (fields or {}).items())
