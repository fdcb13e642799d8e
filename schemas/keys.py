"""The names of all Redis keys, queues, channels and tasks; no other module contains any of them."""

from __future__ import annotations

from typing import Final, Literal, get_args

from trainwire.schemas.sinks import SINKS

Kind = Literal["logs", "metrics", "checkpoints", "completions"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

DEFAULT_SHARDS: Final = 4
SHARDS_KEY: Final = "ingest:shards"
"""Number of shards, a decimal integer, published by the workers and read by trainers."""

HOLD_KEY: Final = "ingest:hold"
"""Exists while Redis is above its high-water mark: meanwhile trainers keep their messages."""

HALTED_KEY: Final = "ingest:halted"
"""Hash stream -> reason why its drain is halted (nearly all entries are invalid)."""

ORDERED_TTL_S: Final = 5
"""TTL of the keys that mark a delivery or verification as ordered."""
DRAIN_ORDERED_TTL_MS: Final = 1000
"""The same for a drain, which renews it while it runs: the longest delay by a lost order."""
ORDER_TTL_S: Final = 30
"""Expiry of work orders, so that workers that were stopped do not start with a pile of old ones."""

REPAIRS_KEY: Final = "ingest:repairs"
"""Hash key -> time and description of its last repair."""

INGEST_QUEUE: Final = "ingest"
NOTIFY_QUEUE: Final = "notify"
BEAT_QUEUE: Final = "beat"

CHECKPOINT_QUEUE: Final = "checkpoints"
"""Tasks that use the object store, in a queue of their own because it may be slow."""
DELIVERY_QUEUES: Final = tuple(sink.queue for sink in SINKS.values())
QUEUES: Final = (INGEST_QUEUE, BEAT_QUEUE, *DELIVERY_QUEUES, NOTIFY_QUEUE, CHECKPOINT_QUEUE)
"""The queues of work orders; a worker reads all of them unless it has the option `--queues`."""

DRAIN_TASK: Final = "trainwire.drain"
NOTIFY_TASK: Final = "trainwire.notify"
DELIVER_TASK: Final = "trainwire.deliver"
DELIVER_TICK_TASK: Final = "trainwire.deliver_what_is_due"
VERIFY_TASK: Final = "trainwire.verify_checkpoints"
RETENTION_TASK: Final = "trainwire.retain_checkpoints"
ROW_RETENTION_TASK: Final = "trainwire.retain_rows"
DELETE_TASK: Final = "trainwire.delete_jobs"
LINK_TASK: Final = "trainwire.link_mlflow_runs"
LINK_QUEUE: Final = SINKS["mlflow"].queue
LINK_TICK_TASK: Final = "trainwire.link_mlflow_runs_now"
SWEEP_TASK: Final = "trainwire.sweep"
STRAYS_TASK: Final = "trainwire.drain_strays"
LIVENESS_TASK: Final = "trainwire.watch_trainers"
ECHO_TASK: Final = "trainwire.echo"


VERIFY_ORDERED_KEY: Final = "verify:ordered"
"""Exists while a verification of checkpoint files is ordered."""

BEAT_LEASE_KEY: Final = "{beat}:lease"
"""Name of the active beat, with a TTL. By its braces it is on the same server as the next key."""
BEAT_TICKS_KEY: Final = "{beat}:ticks"
"""Hash tick -> time when it was last sent, in milliseconds since 1970 by the clock of Redis."""

JOBS_CHANNEL: Final = "events:jobs"
"""Pub/sub channel for lists of jobs: the events of all jobs, without those of log lines."""


def read_shards(published: bytes | None) -> int:
    """Return the number of shards by a value of `SHARDS_KEY`; the default if it is missing or invalid."""
    return int(published) if published and published.isdigit() and int(published) else DEFAULT_SHARDS


def shard_of(job_id: int, shards: int) -> int:
    """Return the shard of a job, of `shards`."""
    return job_id % shards


def stream_key(kind: Kind, shard: int) -> str:
    """Return the Redis stream for one kind and shard; the braces are a Redis Cluster hash tag."""
    return f"ingest:{{{shard}}}:{kind}"


def jammed_key(kind: Kind, shard: int) -> str:
    """Return the key to which workers rename a stream that a client has jammed.

    The Redis user of trainers may not write to it.
    """
    return f"ingest:{{{shard}}}:jammed:{kind}"


def ordered_key(stream: str) -> str:
    """Return the key that exists while a drain of `stream` is ordered or running; only workers write it."""
    return f"{stream}:ordered"


def trials_key(stream: str) -> str:
    """Return the hash with the state of the search for poison entries; trainers may not write it."""
    return f"drains:{stream.removeprefix('ingest:')}"


def ahead_key(stream: str) -> str:
    """Return the key with the state of the look-ahead; trainers may not write it."""
    return f"{trials_key(stream)}:ahead"


ACKS_PREFIX: Final = "ingest:acks:"
CALLBACK_SOURCE: Final = "callback-"
"""Prefix of the sources of the gateway's callbacks, whose messages are in no spool once Redis has them."""


def acks_key(job_id: int) -> str:
    """Return the hash of acknowledgements to the trainers of a job."""
    return f"{ACKS_PREFIX}{job_id}"


def ack_field(source: str, kind: Kind) -> str:
    """Return the field of the highest contiguous `seq` that is committed for one source and kind."""
    return f"{source}:{kind}"


def missing_field(source: str, kind: Kind) -> str:
    """Return the field of the missing `seq` ranges (`3-5,9-9`); absent if there are none."""
    return f"{source}:{kind}:missing"


def lost_field(source: str, kind: Kind) -> str:
    """Return the field of the number of `seq` that the source has declared lost; absent for none."""
    return f"{source}:{kind}:lost"


JOB_DELETED_FIELD: Final = "deleted"
"""Field of the acks hash that exists once the job was deleted: its messages are acknowledged but not stored."""


def keys_of_job(job_id: int) -> tuple[str, ...]:
    """Return the patterns (SCAN MATCH) of all keys of one job except its acks and its heartbeats."""
    callbacks = (f"ingest:{{*}}:callbacks:{job_id}:*", f"ingest:{{*}}:callback:{job_id}:*")
    return (f"ingest:claims:{job_id}:*", *callbacks)


def alive_key(shard: int) -> str:
    """Return the hash of the newest heartbeat of each trainer of one shard."""
    return f"ingest:{{{shard}}}:alive"


def listening_key(shard: int) -> str:
    """Return the hash of the last read of a shard's heartbeats, and of the first one without a break since."""
    return f"ingest:{{{shard}}}:listening"


def alive_field(job_id: int, source: str) -> str:
    """Return the field of one trainer's heartbeat."""
    return f"{job_id}:{source}"


def claim_key(job_id: int, attempt: int, rank: int, launcher: str) -> str:
    """Return the key by which one trainer claims this rank of an attempt; `launcher` is the name of a launcher."""
    return f"ingest:claims:{job_id}:{attempt}:{rank}:{launcher}"


def callback_counters_key(shard: int, job_id: int, attempt: int) -> str:
    """Return the hash for callbacks of a job over HTTP: `source`, the last number of each kind, paths."""
    return f"ingest:{{{shard}}}:callbacks:{job_id}:{attempt}"


def callback_answer_key(shard: int, job_id: int, digest: str) -> str:
    """Return the key that exists once a callback with this idempotency key was accepted."""
    return f"ingest:{{{shard}}}:callback:{job_id}:{digest}"


def delivery_ordered_key(sink: str) -> str:
    """Return the key that exists while a delivery to `sink` is ordered."""
    return f"deliver:{sink}:ordered"


def events_channel(job_id: int) -> str:
    """Return the pub/sub channel of the events of one job."""
    return f"events:{job_id}"


def echo_key(worker: str) -> str:
    """Return the key that exists once a worker has executed an order that it sent to itself."""
    return f"workers:echo:{worker}"


def echo_queue(worker: str) -> str:
    """Return the queue that only this worker reads."""
    return f"echo.{worker}"
