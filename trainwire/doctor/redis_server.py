"""Redis: does it keep what it was given, and has it room?"""

from __future__ import annotations

import time
from typing import Any, Final

import redis

from schemas.broker import broker_at
from schemas.routes import HOLD_KEY, SHARDS_KEY
from schemas.stream_clients import STREAM_ERRORS
from schemas.stream_servers import fullest_memory
from schemas.tls import redis_trouble
from trainwire.doctor.finding import Findings, Part, clock
from workers.settings import Settings

NEEDED: Final = {"redis": (6, 2), "valkey": (7, 2)}
FULL: Final = 0.97
PART: Final = Part("redis")
_REMEDY: Final = "start it, or correct REDIS_URL (or STREAMS_URL, where that is set)"


def look(client: redis.Redis, settings: Settings, streams: redis.Redis | None = None) -> Findings:
    """Yield what is found; only INFO is asked, which the workers' user may.

    Where another server has the `streams`, it is asked for what trainers read there, and for its memory.
    """
    try:
        before_s = time.time()
        seconds, micros = client.time()
        after_s = time.time()
        info: dict[str, Any] = client.info()
    except STREAM_ERRORS as exc:
        yield PART.error("answers", f"does not answer: {redis_trouble(exc)}", _REMEDY)
        return
    yield from _tls(settings.redis_url.get_secret_value())
    yield _version(info)
    yield from _keeping(info)
    yield clock(PART, seconds + micros / 1e6, before_s, after_s)
    yield from _what_trainers_read(streams or client, settings)


def _what_trainers_read(client: redis.Redis, settings: Settings) -> Findings:
    try:
        shards, hold = client.get(SHARDS_KEY), client.exists(HOLD_KEY)
        used, limit = fullest_memory(client)
    except STREAM_ERRORS as exc:
        yield PART.error("answers", f"does not say what all trainers ask for: {redis_trouble(exc)}", _REMEDY)
        return
    yield from _memory(used, limit, settings.redis_high_water)
    if hold:
        yield PART.warning(
            "hold", "trainers are told to hold back", "drain faster (docs/runbook.md), or raise maxmemory"
        )
    yield _shards(shards, settings.ingest_shards)


def _tls(url: str) -> Findings:
    tls = broker_at(url).ssl
    if tls is not None and tls["ssl_cert_reqs"] != "required":
        says = "its certificate is not verified: anybody in between can read and change everything"
        yield PART.warning("tls", says, "take ssl_cert_reqs out of REDIS_URL, and name its CA with ssl_ca_certs")
    elif tls is not None:
        yield PART.ok("tls", "speaks TLS, with a certificate that is trusted")


def _version(info: dict[str, Any]) -> Any:
    kind = "valkey" if "valkey_version" in info else "redis"
    version = str(info.get(f"{kind}_version", "0"))
    numbers = tuple(int(number) for number in version.split(".")[:2] if number.isdigit())
    if numbers < NEEDED[kind]:
        wanted = ".".join(map(str, NEEDED[kind]))
        return PART.error("version", f"is {kind} {version}", f"install {kind} {wanted} or newer")
    return PART.ok("version", f"is {kind} {version}")


def _keeping(info: dict[str, Any]) -> Findings:
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        yield PART.ok("eviction", "throws nothing away when it is full")
    else:
        says = f"throws messages away when it is full: maxmemory-policy is {policy}"
        yield PART.error("eviction", says, "redis-cli config set maxmemory-policy noeviction, and in its file")
    if info.get("role") != "master":
        yield PART.error("role", "is a replica, which takes no writes", "point REDIS_URL to the primary")
    if info.get("aof_enabled"):
        yield PART.ok("persistence", "has an append-only file")
    else:
        says = "forgets its streams at a restart: no append-only file (trainers that still run send them again)"
        yield PART.warning("persistence", says, "redis-cli config set appendonly yes, and in its file")
    failed = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(name, "ok") != "ok"]
    if failed:
        says = f"cannot write to its disk ({', '.join(failed)}), and may refuse all writes"
        yield PART.error("disk", says, "make room on its disk, and look at its log")


def _memory(used: int, limit: int, high_water: float) -> Findings:
    if not limit:
        says = "has no maxmemory: it grows until the machine kills it, and trainers are never told to hold back"
        yield PART.warning("memory", says, "redis-cli config set maxmemory 1gb (or what the machine can spare)")
        return
    says = f"uses {used / limit:.0%} of its {limit / 2**20:,.0f} MiB"
    if used > FULL * limit:
        yield PART.error("memory", says, "start workers that drain it, or raise maxmemory")
    elif used > high_water * limit:
        yield PART.warning("memory", says, "drain faster (docs/runbook.md), or raise maxmemory")
    else:
        yield PART.ok("memory", says)


def _shards(published: Any, wanted: int) -> Any:
    if published is None:
        return PART.warning("shards", "no worker has ever started here", "start one: python -m workers worker")
    if int(published) != wanted:
        says = f"workers published {int(published)} shards, INGEST_SHARDS here is {wanted}"
        return PART.error("shards", says, "give all workers the same INGEST_SHARDS while the streams are empty")
    return PART.ok("shards", f"{wanted} shards")
