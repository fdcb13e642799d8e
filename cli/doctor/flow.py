"""Checks of the data flow: lag of streams and sinks, stopped drains, repaired Redis keys, dead letters."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import redis
from sqlalchemy import Connection

from trainwire.cli.redis_clients import halted_streams
from trainwire.schemas import prometheus_metrics as names
from trainwire.schemas.streams.clients import STREAM_ERRORS
from trainwire.stack.database import sinks_for
from trainwire.workers.drain.stream_repair import recent_repairs
from trainwire.workers.findings import Findings, Part
from trainwire.workers.operations.measures import postgres_samples, redis_samples, unreachable_shards
from trainwire.workers.settings import Settings

STREAM_LATE_S: Final = 60.0
STREAM_STUCK_S: Final = 600.0
SINK_LATE_S: Final = 900.0
REPAIRED_WITHIN_S: Final = 3600.0
PART: Final = Part("flow")


def check_streams(client: redis.Redis, settings: Settings, streams: redis.Redis | None = None) -> Findings:
    """Yield findings about the Redis streams: drains that have stopped, repaired keys, and lag.

    Yields nothing if Redis cannot be reached, because `redis_server.check` reports that.
    """
    with suppress(*STREAM_ERRORS):
        samples = list(redis_samples(client, settings.ingest_shards, streams))
        late = [
            (sample.value, " of shard ".join(sample.labels))
            for sample in samples
            if sample.metric is names.STREAM_LAG_SECONDS and sample.value > STREAM_LATE_S
        ]
        unreachable = unreachable_shards(samples)
        for server, shards in unreachable.items():
            text = f"{server} does not answer: messages of shard {', '.join(shards)} stay in the trainers' spools"
            yield PART.error("server", text, "start it, or promote a replica; see CLUSTER NODES")
        for stream, reason in halted_streams(settings.streams_address).items():
            remedy = "fix the client that writes it (docs/runbook.md, TrainwireStreamHalted)"
            yield PART.error("halted", f"the drain of {stream} has stopped: {reason}", remedy)
        yield from _repairs(client if streams is None else streams)
        if not late:
            which = "no stream that could be read" if unreachable else "no stream"
            yield PART.ok("streams", f"{which} waits for longer than {STREAM_LATE_S:.0f} s")
            return
        age_s, which = max(late)
        text = f"{len(late)} streams wait to be stored; the {which} for {age_s:,.0f} s"
        remedy = "start workers, or more of them (docs/runbook.md, TrainwireStreamLag)"
        finding = PART.error if age_s > STREAM_STUCK_S else PART.warning
        yield finding("streams", text, remedy)


def _repairs(streams: redis.Redis) -> Findings:
    """Yield a warning for each Redis key that workers have repaired within the last REPAIRED_WITHIN_S seconds."""
    repairs: dict[str, str] = {}
    with suppress(*STREAM_ERRORS):  # in a cluster, the server that has the list may not answer
        repairs = recent_repairs(streams, REPAIRED_WITHIN_S)
    for key, how in repairs.items():
        remedy = "nothing to do now; if it happens again, find the client that causes it (SECURITY.md)"
        yield PART.warning("repaired", f"{key}: {how}", remedy)


def check_rows(connection: Connection, settings: Settings) -> Findings:
    """Yield findings about sinks that do not answer or lag behind, and about dead letters."""
    letters = 0.0
    for sample in postgres_samples(connection, [sink.name for sink in sinks_for(settings)]):
        which = ", ".join(sample.labels)
        if sample.metric is names.SINK_DOWN_SECONDS and sample.value:
            text = f"{which} has not answered the workers for {sample.value:,.0f} s"
            remedy = "trainwire deliveries shows its last error; rows wait in Postgres"
            yield PART.warning(f"sink-{which}", text, remedy)
        elif sample.metric is names.SINK_LAG_SECONDS and sample.value > SINK_LATE_S:
            text = f"{which} is {sample.value:,.0f} s behind"
            yield PART.warning(f"lag-{which}", text, "see docs/runbook.md, TrainwireSinkLag")
        elif sample.metric is names.SINK_LAG_SECONDS:
            yield PART.ok(f"lag-{which}", f"{which} is {sample.value:,.0f} s behind")
        elif sample.metric is names.DEAD_LETTERS:
            letters += sample.value
    if letters:
        remedy = "trainwire dead-letters list, then replay or discard"
        yield PART.warning("dead-letters", f"{letters:,.0f} dead letters", remedy)
