"""What lies where it should not: streams, sinks, dead letters."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import redis
from sqlalchemy import Connection

from trainwire.cli.halted import halted_streams
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


def look_at_streams(client: redis.Redis, settings: Settings, streams: redis.Redis | None = None) -> Findings:
    """Yield which streams are halted or late; nothing where Redis is away, which another part says."""
    with suppress(*STREAM_ERRORS):
        samples = list(redis_samples(client, settings.ingest_shards, streams))
        late = [
            (sample.value, " of shard ".join(sample.labels))
            for sample in samples
            if sample.metric is names.STREAM_LAG_SECONDS and sample.value > STREAM_LATE_S
        ]
        away = unreachable_shards(samples)
        for server, shards in away.items():
            says = f"{server} does not answer: what is said in shard {', '.join(shards)} waits at the trainers"
            yield PART.error("server", says, "start it, or have a replica take over; look at CLUSTER NODES")
        for stream, reason in halted_streams(settings.streams_address).items():
            remedy = "mend what writes it (docs/runbook.md, TrainwireStreamHalted)"
            yield PART.error("halted", f"the drain of {stream} refuses to go on: {reason}", remedy)
        yield from _repairs(client if streams is None else streams)
        if not late:
            which = "no stream that could be seen" if away else "no stream"
            yield PART.ok("streams", f"{which} waits for longer than {STREAM_LATE_S:.0f} s")
            return
        age_s, which = max(late)
        says = f"{len(late)} streams wait to be stored; the {which} for {age_s:,.0f} s"
        remedy = "start workers, or more of them (docs/runbook.md, TrainwireStreamLag)"
        yield (
            PART.error("streams", says, remedy)
            if age_s > STREAM_STUCK_S
            else PART.warning("streams", says, remedy)
        )


def _repairs(streams: redis.Redis) -> Findings:
    """Yield which keys of the streams' server workers have mended lately."""
    repairs: dict[str, str] = {}
    with suppress(*STREAM_ERRORS):  # of a cluster, the server that has the list may be away
        repairs = recent_repairs(streams, REPAIRED_WITHIN_S)
    for key, how in repairs.items():
        remedy = "nothing is to be done now; where it comes again, find the client that does it (SECURITY.md)"
        yield PART.warning("repaired", f"{key}: {how}", remedy)


def look_at_rows(connection: Connection, settings: Settings) -> Findings:
    """Yield which sinks are down or late, and whether there are dead letters."""
    letters = 0.0
    for sample in postgres_samples(connection, [sink.name for sink in sinks_for(settings)]):
        which = ", ".join(sample.labels)
        if sample.metric is names.SINK_DOWN_SECONDS and sample.value:
            says = f"{which} has not answered the workers for {sample.value:,.0f} s"
            yield PART.warning(
                f"sink-{which}", says, "trainwire deliveries shows its last words; rows wait in Postgres"
            )
        elif sample.metric is names.SINK_LAG_SECONDS and sample.value > SINK_LATE_S:
            says = f"{which} is {sample.value:,.0f} s behind"
            yield PART.warning(f"lag-{which}", says, "see docs/runbook.md, TrainwireSinkLag")
        elif sample.metric is names.SINK_LAG_SECONDS:
            yield PART.ok(f"lag-{which}", f"{which} is {sample.value:,.0f} s behind")
        elif sample.metric is names.DEAD_LETTERS:
            letters += sample.value
    if letters:
        says = f"{letters:,.0f} dead letters"
        yield PART.warning("dead-letters", says, "trainwire dead-letters list, then replay or discard")
