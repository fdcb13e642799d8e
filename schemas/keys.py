"""All Redis keys and channels, and all names of queues and tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias, get_args

from trainwire.schemas.sinks import SINKS

Kind = Literal["logs", "metrics", "checkpoints", "completions"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

DEFAULT_SHARDS: Final = 4
SHARDS_KEY: Final = "ingest:shards"
"""Number of shards as a decimal integer; workers write it and trainers read it."""

HOLD_KEY: Final = "ingest:hold"
"""Key that exists while Redis is above its high-water mark; trainers then keep messages in their spools."""

BEHIND_FROM_S: Final = 0.5
"""Seconds that messages may wait in a stream before workers publish it, and trainers send less often."""
FREQUENT_KINDS: Final[tuple[Kind, ...]] = ("logs", "metrics")
"""The kinds with many messages, which may be collected while workers are busy; the others are few and urgent."""
BEHIND_TTL_MS: Final = 3000
"""Milliseconds after which a published wait expires: then the workers have room, or there are none."""

HALTED_KEY: Final = "ingest:halted"
"""Hash: stream -> the reason why its drain has stopped, for example that nearly all of its entries are invalid."""

ORDERED_TTL_S: Final = 5
"""Seconds during which a second work order for the same delivery, verification or alert rules is suppressed."""
DRAIN_ORDERED_TTL_MS: Final = 1000
"""Milliseconds during which a second work order for the same drain is suppressed; a running drain renews the time.

This time is also the longest delay of messages after a lost work order.
"""
ORDER_TTL_S: Final = 30
"""Seconds after which a work order expires, so that a restarted worker does not first execute old orders."""

REPAIRS_KEY: Final = "ingest:repairs"
"""Hash: Redis key -> time and kind of its last repair; a key is repaired if it has the wrong type or is unusable.
"""

INGEST_QUEUE: Final = "ingest"
NOTIFY_QUEUE: Final = "notify"
BEAT_QUEUE: Final = "beat"

CHECKPOINT_QUEUE: Final = "checkpoints"
"""Queue of the work orders that use the object store or are not urgent; it is separate because they may be slow.
"""
DELIVERY_QUEUES: Final = tuple(sink.queue for sink in SINKS.values())
ALERT_QUEUE: Final = "alerts"
"""Queue of the work orders that send alerts; it is separate because external addresses may not respond."""
QUEUES: Final = (INGEST_QUEUE, BEAT_QUEUE, *DELIVERY_QUEUES, NOTIFY_QUEUE, CHECKPOINT_QUEUE, ALERT_QUEUE)
"""All queues of work orders; by default a worker consumes all of them."""

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
"""Key that exists while a work order to verify checkpoint files is queued."""

ALERTS_ORDERED_KEY: Final = "alerts:ordered"
"""Key that exists while a work order to apply alert rules is queued."""
BEAT_LEASE_KEY: Final = "{beat}:lease"
"""Name of the active beat process; the key expires some seconds after that process ends.

The braces are a Redis Cluster hash tag: they put this key into the same slot as BEAT_TICKS_KEY.
"""
BEAT_TICKS_KEY: Final = "{beat}:ticks"
"""Hash: name of a periodic task -> time of its last work order, in milliseconds since 1970 by the clock of Redis.
"""

JOBS_CHANNEL: Final = "events:jobs"
"""Pub/sub channel with the events of all jobs except `training_log`; lists of jobs subscribe to it."""


def read_shards(published: bytes | None) -> int:
    """Return the number of shards from a value of SHARDS_KEY, or DEFAULT_SHARDS if it is not a positive number."""
    return int(published) if published and published.isdigit() and int(published) else DEFAULT_SHARDS


def shard_of(job_id: int, shards: int) -> int:
    """Return the number of the job's shard if there are `shards` shards."""
    return job_id % shards


def stream_key(kind: Kind, shard: int) -> str:
    """Return the key of the Redis stream of one kind and shard; the braces are a Redis Cluster hash tag."""
    return f"ingest:{{{shard}}}:{kind}"


def behind_key(kind: Kind, shard: int) -> str:
    """Return the key with the milliseconds that messages of one kind and shard wait, absent while they are few."""
    return f"ingest:{{{shard}}}:behind:{kind}"


def read_behind_s(published: Iterable[object]) -> float:
    """Return the longest of the waits that are `published` (values of `behind_key`), in seconds.

    A missing or invalid value counts as none.
    """
    waits = [value for value in published if isinstance(value, bytes) and value.isdigit() and len(value) < 10]
    return max(map(int, waits), default=0) / 1000


def jammed_key(kind: Kind, shard: int) -> str:
    """Return the key to which workers rename a stream whose last id is so high that Redis refuses further XADDs.

    Trainers have no write permission for keys of this form.
    """
    return f"ingest:{{{shard}}}:jammed:{kind}"


def ordered_key(stream: str) -> str:
    """Return the key that exists while a drain of `stream` is queued or runs; only workers write it."""
    return f"{stream}:ordered"


def trials_key(stream: str) -> str:
    """Return the key of the hash that counts the transactions that drains of `stream` began and did not end.

    Trainers have no write permission for it.
    """
    return f"drains:{stream.removeprefix('ingest:')}"


def ahead_key(stream: str) -> str:
    """Return the key with the state of the look-ahead: the last entry of `stream` that a drain has read ahead.

    Trainers have no write permission for it.
    """
    return f"{trials_key(stream)}:ahead"


ACKS_PREFIX: Final = "ingest:acks:"
CALLBACK_SOURCE: Final = "callback-"
"""Prefix of the source names for messages that the gateway receives by HTTP callback.

Such a source has no spool, so a message that Redis loses is not sent again.
"""


def acks_key(job_id: int) -> str:
    """Return the key of the hash of a job's acknowledgements, which drains write after each commit."""
    return f"{ACKS_PREFIX}{job_id}"


AckFields: TypeAlias = tuple[bytes | None, bytes | None, bytes | None]
"""The values of `ack_field`, `missing_field` and `lost_field` of one source and kind."""


def ack_field(source: str, kind: Kind) -> str:
    """Return the hash field with the highest contiguous `seq` of one source and kind that is in Postgres."""
    return f"{source}:{kind}"


def missing_field(source: str, kind: Kind) -> str:
    """Return the name of the field with the ranges of missing `seq`, such as `3-5,9-9`, of one source and kind.

    It is a field of the hash of the job's acknowledgements, which has no such field while nothing is missing.
    """
    return f"{source}:{kind}:missing"


def lost_field(source: str, kind: Kind) -> str:
    """Return the hash field with the number of messages that the source declared lost; absent if there is none."""
    return f"{source}:{kind}:lost"


def stop_field(source: str) -> str:
    """Return the field with the request to stop one source, in the hash of its job's acknowledgements."""
    return f"{source}:stop"


def unknown_resume_field(source: str) -> str:
    """Return the field that a source has if it resumes a job of which no earlier attempt is stored.

    The field is in the hash of the job's acknowledgements.
    """
    return f"{source}:unknown-resume"


JOB_DELETED_FIELD: Final = "deleted"
"""Hash field that marks a deleted job, whose messages are acknowledged but not stored."""


def keys_of_job(job_id: int) -> tuple[str, ...]:
    """Return the SCAN patterns that match all keys of one job, except its acknowledgements and heartbeats."""
    callbacks = (f"ingest:{{*}}:callbacks:{job_id}:*", f"ingest:{{*}}:callback:{job_id}:*")
    return (f"ingest:claims:{job_id}:*", f"ingest:{{*}}:name:{job_id}", *callbacks)


def alive_key(shard: int) -> str:
    """Return the key of the hash with the newest heartbeat of each source of one shard."""
    return f"ingest:{{{shard}}}:alive"


def listening_key(shard: int) -> str:
    """Return the key of the hash in which workers record when they read the heartbeats of a shard.

    Its fields are the time of the last read, and the start of the period in which reads have been regular.
    """
    return f"ingest:{{{shard}}}:listening"


def alive_field(job_id: int, source: str) -> str:
    """Return the field of one source's heartbeat in the hash `alive_key`."""
    return f"{job_id}:{source}"


def claim_key(job_id: int, attempt: int, rank: int, launcher: str) -> str:
    """Return the key of the claim of a rank, or of a launcher if `launcher` is not empty.

    Its value is a heartbeat.
    """
    return f"ingest:claims:{job_id}:{attempt}:{rank}:{launcher}"


def callback_counters_key(shard: int, job_id: int, attempt: int) -> str:
    """Return the key of the hash that numbers the messages from a job's HTTP callbacks.

    Its fields are the source name, the last number of each kind, and the paths of checkpoints.
    """
    return f"ingest:{{{shard}}}:callbacks:{job_id}:{attempt}"


def callback_answer_key(shard: int, job_id: int, digest: str) -> str:
    """Return the key that exists once an HTTP callback with the idempotency key of hash `digest` was accepted."""
    return f"ingest:{{{shard}}}:callback:{job_id}:{digest}"


def new_name_key(shard: int, job_id: int) -> str:
    """Return the key in which the gateway stores the name of a new job that may not be in Postgres yet."""
    return f"ingest:{{{shard}}}:name:{job_id}"


def delivery_ordered_key(sink: str) -> str:
    """Return the key that exists while a work order to deliver to `sink` is queued."""
    return f"deliver:{sink}:ordered"


def events_channel(job_id: int) -> str:
    """Return the name of the pub/sub channel with all events of one job."""
    return f"events:{job_id}"


def echo_key(worker: str) -> str:
    """Return the key that a worker writes when it executes the test order that it sent to itself."""
    return f"workers:echo:{worker}"


def echo_queue(worker: str) -> str:
    """Return the name of the queue that only the worker `worker` consumes, for its own test orders."""
    return f"echo.{worker}"
