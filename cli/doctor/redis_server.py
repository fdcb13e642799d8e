"""Checks of the Redis server of the Celery broker, and of the servers in STREAMS_URL if it is set."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import redis

from trainwire.schemas.keys import HOLD_KEY, SHARDS_KEY
from trainwire.schemas.streams.broker import broker_at
from trainwire.schemas.streams.clients import STREAM_ERRORS, servers_of
from trainwire.schemas.streams.tls import redis_trouble
from trainwire.schemas.streams.urls import cluster_tls, is_cluster
from trainwire.workers.findings import Finding, Findings, Part, clock
from trainwire.workers.settings import Settings

PART: Final = Part("redis")
STREAMS: Final = Part("streams")
_TOO_MANY: Final = "max number of clients reached"
MORE_CLIENTS: Final = (
    "redis-cli config set maxclients 20000, and in its file; raise its limit of open files with it "
    "(ulimit -n, LimitNOFILE in systemd)"
)
Info = Mapping[str, Any]
"""The reply to INFO as parsed by redis-py."""

NEEDED: Final = {"redis": (6, 2), "valkey": (7, 2)}
FULL: Final = 0.97
BUSY: Final = 0.8
"""Share of `maxclients` above which a warning is given.

It leaves room for restarts, during which trainers and workers briefly hold both their old and new connections.
"""
OWN_FILES: Final = 32
"""Number of file descriptors that Redis reserves for itself (CONFIG_MIN_RESERVED_FDS)."""


def check(client: redis.Redis, settings: Settings, streams: redis.Redis | None = None) -> Findings:
    """Yield the findings about the Redis servers.

    `streams` is a client of the server or cluster in STREAMS_URL; None if that is not set. Servers are examined
    with INFO, TIME and reads of two keys only, which the Redis user of workers may run.
    """
    try:
        before_s = time.time()
        seconds, micros = client.time()
        after_s = time.time()
        info = client.info()
        published = _published(client) if streams is None else None
    except STREAM_ERRORS as exc:
        yield _no_answer(PART, exc, "REDIS_URL", settings.redis_url.get_secret_value())
    else:
        yield from _tls(PART, settings.redis_url.get_secret_value(), "REDIS_URL")
        yield from _server(PART, info, settings, has_streams=streams is None)
        if info.get("role") != "master":
            yield PART.error("role", "is a replica, which takes no writes", "point REDIS_URL to the primary")
        yield clock(PART, seconds + micros / 1e6, before_s, after_s)
        if published is not None:
            yield from _published_settings(PART, published, settings.ingest_shards)
    if streams is not None:
        yield from _check_streams(streams, settings)


def _check_streams(client: redis.Redis, settings: Settings) -> Findings:
    """Yield the findings about each server of the streams, even if some of them do not answer."""
    try:
        servers = servers_of(client)
    except STREAM_ERRORS as exc:
        yield _no_answer(STREAMS, exc, "STREAMS_URL", settings.streams_address)
        return
    are_many = is_cluster(settings.streams_address)
    for name, server in servers.items():
        part = Part(STREAMS.name, name) if are_many else STREAMS
        try:
            info = server.info()
        except STREAM_ERRORS as exc:
            yield _no_answer(part, exc, "STREAMS_URL", settings.streams_address)
            continue
        yield from _server(part, info, settings)
        if info.get("role") != "master" and not are_many:
            yield part.error("role", "is a replica, which takes no writes", "point STREAMS_URL to the primary")
    yield from _tls(STREAMS, settings.streams_address, "STREAMS_URL")
    try:
        yield from _published_settings(STREAMS, _published(client), settings.ingest_shards)
    except STREAM_ERRORS as exc:
        text = f"the settings published for trainers cannot be read: {redis_trouble(exc)}"
        yield STREAMS.error("shards", text, "start the server that has it")


def _server(part: Part, info: Info, settings: Settings, *, has_streams: bool = True) -> Findings:
    yield _version(part, info)
    yield _eviction(part, info)
    yield from _persistence(part, info, has_streams=has_streams)
    yield _memory(part, info, settings.redis_high_water)
    yield from _connections(part, info)


def _version(part: Part, info: Info) -> Finding:
    """Check that the server's version is supported."""
    kind = "valkey" if "valkey_version" in info else "redis"
    installed = str(info.get(f"{kind}_version", "0"))
    numbers = tuple(int(number) for number in installed.split(".")[:2] if number.isdigit())
    if numbers < NEEDED[kind]:
        wanted = ".".join(map(str, NEEDED[kind]))
        return part.error("version", f"is {kind} {installed}", f"install {kind} {wanted} or newer")
    return part.ok("version", f"is {kind} {installed}")


def _eviction(part: Part, info: Info) -> Finding:
    """Check that a full server rejects writes instead of evicting keys."""
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        return part.ok("eviction", "evicts no keys when it is full")
    text = f"evicts messages when it is full: maxmemory-policy is {policy}"
    return part.error("eviction", text, "redis-cli config set maxmemory-policy noeviction, and in its file")


def _persistence(part: Part, info: Info, *, has_streams: bool = True) -> Findings:
    """Check that the server's data survives a restart, and that the server can write to its disk.

    A server without streams (`has_streams` is False) needs no append-only file.
    """
    if info.get("aof_enabled"):
        yield part.ok("persistence", "has an append-only file")
    elif has_streams:
        text = "loses its streams at a restart: no append-only file (trainers that still run send them again)"
        yield part.warning("persistence", text, "redis-cli config set appendonly yes, and in its file")
    else:
        yield part.ok("persistence", "has no append-only file, and needs none: work orders are sent again")
    failed = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(name, "ok") != "ok"]
    if failed:
        text = f"cannot write to its disk ({', '.join(failed)}), and may refuse all writes"
        yield part.error("disk", text, "free space on its disk, and read its log")


def _memory(part: Part, info: Info, high_water: float) -> Finding:
    """Check the server's memory use; above the share `high_water`, trainers keep messages in their spools."""
    used, limit = int(info["used_memory"]), int(info["maxmemory"])
    if not limit:
        text = "has no maxmemory: it grows until the machine kills it, and trainers never hold messages back"
        return part.warning("memory", text, "redis-cli config set maxmemory 1gb (or what the machine can spare)")
    text = f"uses {used / limit:.0%} of its {limit / 2**20:,.0f} MiB"
    if used > FULL * limit:
        return part.error("memory", text, "start workers that drain it, or raise maxmemory")
    if used > high_water * limit:
        return part.warning("memory", text, "drain faster (docs/runbook.md), or raise maxmemory")
    return part.ok("memory", text)


def _connections(part: Part, info: Info) -> Findings:
    """Check the number of connections against `maxclients`; yield nothing if INFO does not report it."""
    if "maxclients" not in info:
        return
    limit = int(info["maxclients"])
    used = int(info["connected_clients"]) + int(info.get("cluster_connections", 0))
    refused = int(info.get("rejected_connections", 0))
    text = f"{used:,} of {limit:,} connections are in use"
    text += f"; {refused:,} were refused since its start" if refused else ""
    if used <= BUSY * limit:
        yield part.ok("clients", text)
        return
    files = limit + OWN_FILES
    # At start a server reduces maxclients to its limit of open files, which is usually a power of two.
    if files & (files - 1) == 0:
        text += f"; its limit of open files, {files:,}, seems to determine it"
    yield part.warning("clients", text, MORE_CLIENTS)


def _no_answer(part: Part, exc: BaseException, setting: str, url: str) -> Finding:
    remedy = MORE_CLIENTS if _TOO_MANY in str(exc) else f"start it, or correct {setting}"
    return part.error("answers", f"does not answer: {redis_trouble(exc, url)}", remedy)


def _tls_of(url: str) -> Mapping[str, Any] | None:
    """Return the TLS parameters of a Redis URL; None if it does not use TLS."""
    if not is_cluster(url):
        return broker_at(url).ssl
    return cluster_tls(url) if url.startswith("rediss") else None


def _tls(part: Part, url: str, setting: str) -> Findings:
    tls = _tls_of(url)
    if tls is not None and tls.get("ssl_cert_reqs", "required") != "required":
        text = "its certificate is not verified: anyone on the network path can read and change all data"
        yield part.warning("tls", text, f"take ssl_cert_reqs out of {setting}, and name its CA with ssl_ca_certs")
    elif tls is not None:
        yield part.ok("tls", "uses TLS with a trusted certificate")


def _published(client: redis.Redis) -> tuple[Any, bool]:
    """Return the number of shards that workers publish for trainers, and whether HOLD_KEY stops the trainers.

    The number is None if no worker has published it.
    """
    return client.get(SHARDS_KEY), bool(client.exists(HOLD_KEY))


def _published_settings(part: Part, published: tuple[Any, bool], wanted: int) -> Findings:
    shards, must_hold = published
    if must_hold:
        remedy = "drain faster (docs/runbook.md), or raise maxmemory"
        yield part.warning("hold", "trainers keep messages in their spools until memory is free", remedy)
    if shards is None:
        yield part.warning(
            "shards", "no worker has ever started here", "start one: python -m trainwire.workers worker"
        )
    elif not shards.isdigit():
        text = f"the key {SHARDS_KEY} is {shards.decode(errors='replace')[:100]!r}, which is no number of shards"
        remedy = f"find the client that wrote it, then DEL {SHARDS_KEY} and start a worker again"
        yield part.error("shards", text, remedy)
    elif int(shards) != wanted:
        text = f"workers published {int(shards)} shards, INGEST_SHARDS here is {wanted}"
        yield part.error("shards", text, "give all workers the same INGEST_SHARDS while the streams are empty")
    else:
        yield part.ok("shards", f"{wanted} shards")
