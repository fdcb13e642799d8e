"""Every Redis key, queue, channel and task name of trainwire. Nowhere else are they spelled."""

from __future__ import annotations

from typing import Final, Literal, get_args

from trainwire.schemas.sinks import SINKS

Kind = Literal["logs", "metrics", "checkpoints", "completions"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

DEFAULT_SHARDS: Final = 4
SHARDS_KEY: Final = "ingest:shards"
"""Number of shards, a decimal integer, published by the workers and read by trainers."""

HOLD_KEY: Final = "ingest:hold"
"""Exists while Redis is above its high-water mark: trainers keep their messages until it is gone."""

HALTED_KEY: Final = "ingest:halted"
"""Hash stream -> why its drain refuses to go on (nearly all entries invalid)."""

ORDERED_TTL_S: Final = 5
"""How long nobody orders again a delivery or verification that is ordered already."""
DRAIN_ORDERED_TTL_MS: Final = 1000
"""The same of a drain, which renews it while it is at work: the longest that a lost order delays a message."""
ORDER_TTL_S: Final = 30
"""A work order nobody took for this long is dropped: stopped workers come back to news, not to old orders."""

REPAIRS_KEY: Final = "ingest:repairs"
"""Hash key -> time and kind of the last repair of a key that workers could not go on with."""

INGEST_QUEUE: Final = "ingest"
NOTIFY_QUEUE: Final = "notify"
BEAT_QUEUE: Final = "beat"

CHECKPOINT_QUEUE: Final = "checkpoints"
"""What is asked of the object store: however slow it is, nothing else waits behind it."""
DELIVERY_QUEUES: Final = tuple(sink.queue for sink in SINKS.values())
QUEUES: Final = (INGEST_QUEUE, BEAT_QUEUE, *DELIVERY_QUEUES, NOTIFY_QUEUE, CHECKPOINT_QUEUE)
"""Of work orders; a worker reads all of them unless it is told which."""

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
"""Exists while an order to verify checkpoint files is on its way."""

BEAT_LEASE_KEY: Final = "{beat}:lease"
"""Name of the beat that is active; gone some seconds after it dies. The braces put it beside the next key."""
BEAT_TICKS_KEY: Final = "{beat}:ticks"
"""Hash tick -> when it was last sent, in milliseconds since 1970 by Redis' clock."""

JOBS_CHANNEL: Final = "events:jobs"
"""Pub/sub channel of what a list of jobs shows: all events but those about log lines."""


def read_shards(published: bytes | None) -> int:
    """Return the number of shards that a value of `SHARDS_KEY` states; the default one where it states none."""
    return int(published) if published and published.isdigit() and int(published) else DEFAULT_SHARDS


def shard_of(job_id: int, shards: int) -> int:
    """Return the shard that carries `job_id` when there are `shards` of them."""
    return job_id % shards


def stream_key(kind: Kind, shard: int) -> str:
    """Return the Redis stream for one kind and shard; the braces are a Redis Cluster hash tag."""
    return f"ingest:{{{shard}}}:{kind}"


def jammed_key(kind: Kind, shard: int) -> str:
    """Return the stream to which workers rename the one of this kind and shard when a client has jammed it.

    Trainers may not write to a key of this form.
    """
    return f"ingest:{{{shard}}}:jammed:{kind}"


def ordered_key(stream: str) -> str:
    """Return the key that exists while a drain of `stream` is ordered or at work; only workers write it."""
    return f"{stream}:ordered"


def trials_key(stream: str) -> str:
    """Return the hash of how the drains of `stream` end: under a name that trainers may not write."""
    return f"drains:{stream.removeprefix('ingest:')}"


def ahead_key(stream: str) -> str:
    """Return the key of how far a backlog was looked through: under a name that trainers may not write."""
    return f"{trials_key(stream)}:ahead"


ACKS_PREFIX: Final = "ingest:acks:"
CALLBACK_SOURCE: Final = "callback-"
"""What the sources of the gateway's callbacks begin with: nobody keeps their messages once Redis has them."""


def acks_key(job_id: int) -> str:
    """Return the hash in which the drain tells a job's trainers what is committed in Postgres."""
    return f"{ACKS_PREFIX}{job_id}"


def ack_field(source: str, kind: Kind) -> str:
    """Return the field of the highest contiguous `seq` that is committed for one source and kind."""
    return f"{source}:{kind}"


def missing_field(source: str, kind: Kind) -> str:
    """Return the field of the `seq` ranges that never arrived (`3-5,9-9`); absent when there are none."""
    return f"{source}:{kind}:missing"


def lost_field(source: str, kind: Kind) -> str:
    """Return the field of how many `seq` the source has declared lost; absent where it is none."""
    return f"{source}:{kind}:lost"


JOB_DELETED_FIELD: Final = "deleted"
"""Field of the acks hash that exists once the job was deleted: its messages are acked and not stored."""


def keys_of_job(job_id: int) -> tuple[str, ...]:
    """Return the patterns (SCAN MATCH) of all keys of one job but its acks and its heartbeats."""
    callbacks = (f"ingest:{{*}}:callbacks:{job_id}:*", f"ingest:{{*}}:callback:{job_id}:*")
    return (f"ingest:claims:{job_id}:*", *callbacks)


def alive_key(shard: int) -> str:
    """Return the hash of the newest heartbeat of each trainer of one shard."""
    return f"ingest:{{{shard}}}:alive"


def listening_key(shard: int) -> str:
    """Return the hash of when a shard's heartbeats were last looked at, and since when without a break."""
    return f"ingest:{{{shard}}}:listening"


def alive_field(job_id: int, source: str) -> str:
    """Return the field of one trainer's heartbeat."""
    return f"{job_id}:{source}"


def claim_key(job_id: int, attempt: int, rank: int, launcher: str) -> str:
    """Return the key of the heartbeat of the one trainer that is this rank, or of the launcher of that name."""
    return f"ingest:claims:{job_id}:{attempt}:{rank}:{launcher}"


def callback_counters_key(shard: int, job_id: int, attempt: int) -> str:
    """Return the hash that numbers what is said of a job over HTTP: `source`, a count per kind, paths."""
    return f"ingest:{{{shard}}}:callbacks:{job_id}:{attempt}"


def callback_answer_key(shard: int, job_id: int, digest: str) -> str:
    """Return the key that exists once a callback with this idempotency key has been taken."""
    return f"ingest:{{{shard}}}:callback:{job_id}:{digest}"


def delivery_ordered_key(sink: str) -> str:
    """Return the key that exists while an order to deliver to `sink` is on its way."""
    return f"deliver:{sink}:ordered"


def events_channel(job_id: int) -> str:
    """Return the pub/sub channel of everything that happens to one job."""
    return f"events:{job_id}"


def echo_key(worker: str) -> str:
    """Return the key in which a worker finds that an order it sent to itself came back."""
    return f"workers:echo:{worker}"


def echo_queue(worker: str) -> str:
    """Return the queue that only this worker reads."""
    return f"echo.{worker}"
