"""All Redis keys and channels, and all names of queues and tasks."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

from trainwire.schemas.sinks import SINKS

Kind = Literal["logs", "metrics", "checkpoints", "completions"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

DEFAULT_SHARDS: Final = 4
SHARDS_KEY: Final = "ingest:shards"
"""Number of shards, a decimal integer, published by the workers and read by trainers."""

HOLD_KEY: Final = "ingest:hold"
"""Exists while Redis is above its high-water mark: trainers keep messages in their spools meanwhile."""

HALTED_KEY: Final = "ingest:halted"
"""Hash stream -> reason why its drain has stopped (nearly all entries are invalid)."""

ORDERED_TTL_S: Final = 5
"""Time during which a delivery or verification that is ordered is not ordered again."""
DRAIN_ORDERED_TTL_MS: Final = 1000
"""The same for a drain, which renews it while it runs: the longest delay of a message by a lost order."""
ORDER_TTL_S: Final = 30
"""Work orders expire after this time, so that restarted workers do not run old ones first."""

REPAIRS_KEY: Final = "ingest:repairs"
"""Hash key -> time and kind of the last repair of a key that had the wrong type or was unusable."""

INGEST_QUEUE: Final = "ingest"
NOTIFY_QUEUE: Final = "notify"
BEAT_QUEUE: Final = "beat"

CHECKPOINT_QUEUE: Final = "checkpoints"
"""Work orders that use the object store, or are not urgent: a queue of their own, because they may be slow."""
DELIVERY_QUEUES: Final = tuple(sink.queue for sink in SINKS.values())
ALERT_QUEUE: Final = "alerts"
"""Work orders that send alerts: addresses outside, which may hang."""
QUEUES: Final = (INGEST_QUEUE, BEAT_QUEUE, *DELIVERY_QUEUES, NOTIFY_QUEUE, CHECKPOINT_QUEUE, ALERT_QUEUE)
"""All queues of work orders; a worker consumes all of them by default."""

DRAIN_TASK: Final = "trainwire.drain"
NOTIFY_TASK: Final = "trainwire.notify"
DELIVER_TASK: Final = "trainwire.deliver"
DELIVER_TICK_TASK: Final = "trainwire.deliver_what_is_due"
VERIFY_TASK: Final = "trainwire.verify_checkpoints"
RETENTION_TASK: Final = "trainwire.retain_checkpoints"
ROW_RETENTION_TASK: Final = "trainwire.retain_rows"
ROLLUP_TASK: Final = "trainwire.roll_up_metrics"
DELETE_TASK: Final = "trainwire.delete_jobs"
LINK_TASK: Final = "trainwire.link_mlflow_runs"
LINK_QUEUE: Final = SINKS["mlflow"].queue
LINK_TICK_TASK: Final = "trainwire.link_mlflow_runs_now"
SWEEP_TASK: Final = "trainwire.sweep"
STRAYS_TASK: Final = "trainwire.drain_strays"
LIVENESS_TASK: Final = "trainwire.watch_trainers"
ALERT_TASK: Final = "trainwire.alert"
ALERT_TICK_TASK: Final = "trainwire.alert_now"
ECHO_TASK: Final = "trainwire.echo"


VERIFY_ORDERED_KEY: Final = "verify:ordered"
"""Exists while an order to verify checkpoint files is queued."""

ALERTS_ORDERED_KEY: Final = "alerts:ordered"
"""Exists while an order to apply alert rules is queued."""
BEAT_LEASE_KEY: Final = "{beat}:lease"
"""Name of the active beat; expires some seconds after it ends. The braces put it into the slot of the next key."""
BEAT_TICKS_KEY: Final = "{beat}:ticks"
"""Hash tick -> when it was last sent, in milliseconds since 1970 by Redis' clock."""

JOBS_CHANNEL: Final = "events:jobs"
"""Pub/sub channel for lists of jobs: all events except those about log lines."""


def read_shards(published: bytes | None) -> int:
    """Return the number of shards in a value of `SHARDS_KEY`, or the default if it is not a positive number."""
    return int(published) if published and published.isdigit() and int(published) else DEFAULT_SHARDS


def shard_of(job_id: int, shards: int) -> int:
    """Return the shard of a job, of `shards` in all."""
    return job_id % shards


def stream_key(kind: Kind, shard: int) -> str:
    """Return the Redis stream of one kind and shard; the braces are a Redis Cluster hash tag."""
    return f"ingest:{{{shard}}}:{kind}"


def jammed_key(kind: Kind, shard: int) -> str:
    """Return the key to which workers rename an unusable stream of this kind and shard.

    Trainers have no right to write to keys of this form.
    """
    return f"ingest:{{{shard}}}:jammed:{kind}"


def ordered_key(stream: str) -> str:
    """Return the key that exists while a drain of `stream` is ordered or runs; only workers write it."""
    return f"{stream}:ordered"


def trials_key(stream: str) -> str:
    """Return the hash with the outcomes of drains of `stream`; trainers have no right to write it."""
    return f"drains:{stream.removeprefix('ingest:')}"


def ahead_key(stream: str) -> str:
    """Return the key of the position up to which a backlog was examined; trainers have no right to write it."""
    return f"{trials_key(stream)}:ahead"


ACKS_PREFIX: Final = "ingest:acks:"
CALLBACK_SOURCE: Final = "callback-"
"""Prefix of the sources of the gateway's callbacks; they keep no copy of messages that are in Redis."""


def acks_key(job_id: int) -> str:
    """Return the hash of a job's acknowledgements: the drain writes it after each commit, trainers read it."""
    return f"{ACKS_PREFIX}{job_id}"


AckFields: TypeAlias = tuple[bytes | None, bytes | None, bytes | None]
"""The values of `ack_field`, `missing_field` and `lost_field` of one source and kind."""


def ack_field(source: str, kind: Kind) -> str:
    """Return the field with the highest contiguous `seq` that is committed for one source and kind."""
    return f"{source}:{kind}"


def missing_field(source: str, kind: Kind) -> str:
    """Return the name of the hash field that holds the missing `seq` ranges (`3-5,9-9`) of a source.

    The hash has no such field while nothing is missing.
    """
    return f"{source}:{kind}:missing"


def lost_field(source: str, kind: Kind) -> str:
    """Return the field with the number of messages that the source declared lost; absent if there are none."""
    return f"{source}:{kind}:lost"


def stop_field(source: str) -> str:
    """Return the field with the request to stop one source, in the hash of its job's acknowledgements."""
    return f"{source}:stop"


JOB_DELETED_FIELD: Final = "deleted"
"""Field of the acks hash of a deleted job: its messages are acknowledged and not stored."""


def keys_of_job(job_id: int) -> tuple[str, ...]:
    """Return the patterns (SCAN MATCH) of all keys of one job except its acks and heartbeats."""
    callbacks = (f"ingest:{{*}}:callbacks:{job_id}:*", f"ingest:{{*}}:callback:{job_id}:*")
    return (f"ingest:claims:{job_id}:*", f"ingest:{{*}}:name:{job_id}", *callbacks)


def alive_key(shard: int) -> str:
    """Return the hash with the newest heartbeat of each source of one shard."""
    return f"ingest:{{{shard}}}:alive"


def listening_key(shard: int) -> str:
    """Return the hash with the time of the last check of a shard's heartbeats, and since when checks have run."""
    return f"ingest:{{{shard}}}:listening"


def alive_field(job_id: int, source: str) -> str:
    """Return the field of one source's heartbeat."""
    return f"{job_id}:{source}"


def claim_key(job_id: int, attempt: int, rank: int, launcher: str) -> str:
    """Return the claim of a rank of an attempt, or of its launcher; the value is the owner's heartbeat."""
    return f"ingest:claims:{job_id}:{attempt}:{rank}:{launcher}"


def callback_counters_key(shard: int, job_id: int, attempt: int) -> str:
    """Return the hash that numbers a job's messages from HTTP callbacks: `source`, a count per kind, paths."""
    return f"ingest:{{{shard}}}:callbacks:{job_id}:{attempt}"


def callback_answer_key(shard: int, job_id: int, digest: str) -> str:
    """Return the key that exists once a callback with this idempotency key was accepted."""
    return f"ingest:{{{shard}}}:callback:{job_id}:{digest}"


def new_name_key(shard: int, job_id: int) -> str:
    """Return the key with the name of a job that Postgres may not have yet; only the gateway uses it."""
    return f"ingest:{{{shard}}}:name:{job_id}"


def delivery_ordered_key(sink: str) -> str:
    """Return the key that exists while an order to deliver to `sink` is queued."""
    return f"deliver:{sink}:ordered"


def events_channel(job_id: int) -> str:
    """Return the pub/sub channel with all events of one job."""
    return f"events:{job_id}"


def echo_key(worker: str) -> str:
    """Return the key that a worker's own test order writes when it is executed."""
    return f"workers:echo:{worker}"


def echo_queue(worker: str) -> str:
    """Return the queue that only this worker consumes."""
    return f"echo.{worker}"
