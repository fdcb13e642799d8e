"""Several beats at once: one is active, another takes over, and no tick is sent twice."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import redis

from tests.processes import Process, wait_until
from trainwire.schemas.keys import BEAT_LEASE_KEY, BEAT_QUEUE, BEAT_TICKS_KEY, CHECKPOINT_QUEUE
from trainwire.stack.valkey import EmbeddedValkey
from trainwire.workers.beat import MIN_GAP_SHARE
from trainwire.workers.schedule import SCHEDULE
from trainwire.workers.settings import Settings, load_settings


@contextmanager
def beats_running(settings: Settings, folder: Path, number: int = 2) -> Iterator[list[Process]]:
    """Run beats and no worker, so that their ticks stay in the queues."""
    beats = [Process(settings, folder / f"beat{n}.log", "beat") for n in range(number)]
    try:
        for beat in beats:
            beat.start()
        yield beats
    finally:
        for beat in beats:
            beat.stop()


def ticks(client: redis.Redis) -> list[tuple[str, str]]:
    """Return the id and the sender of every tick that was sent, oldest first."""
    found = []
    for queue in (BEAT_QUEUE, CHECKPOINT_QUEUE):
        for raw in reversed(client.lrange(queue, 0, -1)):
            headers = json.loads(raw)["headers"]
            found.append((headers["id"], headers["origin"]))
    return found


def active_of(beats: list[Process]) -> Process:
    """Return the beat that has logged that it is active, once all others have logged that they are standby."""
    wait_until(lambda: sum("beat.active" in beat.output for beat in beats) == 1, "an active beat")
    wait_until(lambda: sum("beat.standby" in beat.output for beat in beats) == len(beats) - 1, "the standbys")
    return next(beat for beat in beats if "beat.active" in beat.output)


def assert_no_tick_is_doubled(client: redis.Redis) -> None:
    """Every tick's id, which contains its time by Redis' clock, is unique and far enough after the last one."""
    times: dict[str, list[int]] = defaultdict(list)
    sent = [tick for tick, _ in ticks(client)]
    assert len(set(sent)) == len(sent)
    for tick in sent:
        name, _, at_ms = tick.rpartition("-")
        times[name].append(int(at_ms))
    for name, at in times.items():
        least_ms = MIN_GAP_SHARE * SCHEDULE[name]["schedule"] * 1000
        assert all(after - before >= least_ms for before, after in pairwise(at)), (name, at)


def test_when_the_active_beat_is_killed_another_takes_over(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    """Of three beats one sends ticks; after SIGKILL another one continues, and no tick is sent twice."""
    with beats_running(settings, tmp_path, number=3) as beats:
        first = active_of(beats)
        wait_until(lambda: len(ticks(client)) >= 6, "ticks of the first")
        first.kill()
        others = [beat for beat in beats if beat is not first]
        wait_until(lambda: any("beat.active" in beat.output for beat in others), "the second beat")
        before = len(ticks(client))
        wait_until(lambda: len(ticks(client)) >= before + 6, "ticks of the second")
        senders = [origin for _, origin in ticks(client)]
        outputs = [beat.output for beat in beats]
    assert len(set(senders)) == 2
    assert_no_tick_is_doubled(client)
    assert sum(text.count("beat.standby") for text in outputs) == 2, "each standby logs it once"


def test_a_beat_that_is_stopped_hands_over_at_once(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    """A beat that is stopped releases its lease, and another takes over without waiting for its expiry."""
    with beats_running(settings, tmp_path) as beats:
        first = active_of(beats)
        first.process.terminate()
        first.process.wait(60)
        second = next(beat for beat in beats if beat is not first)
        wait_until(lambda: "beat.active" in second.output, "the second beat")
        assert client.get(BEAT_LEASE_KEY) is not None
    assert_no_tick_is_doubled(client)
    assert client.get(BEAT_LEASE_KEY) is None


def test_a_beat_that_is_frozen_does_not_tick_beside_its_successor(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    """A beat that was suspended beyond its lease becomes a standby when it continues."""
    with beats_running(settings, tmp_path) as beats:
        first = active_of(beats)
        psutil.Process(first.process.pid).suspend()
        second = next(beat for beat in beats if beat is not first)
        wait_until(lambda: "beat.active" in second.output, "the second beat")
        psutil.Process(first.process.pid).resume()
        wait_until(lambda: "beat.standby" in first.output, "the first to stand by")
        before = len(ticks(client))
        wait_until(lambda: len(ticks(client)) >= before + 4, "more ticks")
    assert_no_tick_is_doubled(client)


def test_a_long_tick_is_not_sent_anew_by_every_new_beat(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    """A tick with an interval of five minutes keeps its time when another beat becomes active."""
    now_ms = int(client.time()[0]) * 1000
    client.hset(BEAT_TICKS_KEY, mapping={"retain-checkpoints": now_ms - 298_000, "verify-due-checkpoints": now_ms})
    with beats_running(settings, tmp_path, number=1):
        wait_until(lambda: any(tick.startswith("retain") for tick, _ in ticks(client)), "the tick that was due")
    assert_no_tick_is_doubled(client)


def test_a_full_redis_is_one_line_in_the_log_of_beat(settings: Settings, tmp_path: Path) -> None:
    """While Redis is full beat logs that once, without a traceback, and once more when it can send again."""
    with EmbeddedValkey(tmp_path / "valkey", maxmemory="64mb") as server, redis.Redis.from_url(server.url) as full:
        database_url = settings.database_url.get_secret_value()
        own = load_settings(database_url=database_url, redis_url=server.url)
        with beats_running(own, tmp_path, number=1) as (beat,):
            wait_until(lambda: full.llen(BEAT_QUEUE) >= 2, "ticks")
            full.config_set("maxmemory", 1)
            wait_until(lambda: "beat.unavailable" in beat.output, "the log line")
            time.sleep(3)  # several ticks, in which no further line may be logged
            full.config_set("maxmemory", 0)
            wait_until(lambda: "beat.sends_again" in beat.output, "the end of it")
            before = full.llen(BEAT_QUEUE)
            wait_until(lambda: full.llen(BEAT_QUEUE) > before, "ticks again")
            outputs = beat.output
    assert outputs.count("beat.unavailable") == 1
    assert "Traceback" not in outputs
    assert "maxmemory" in outputs
