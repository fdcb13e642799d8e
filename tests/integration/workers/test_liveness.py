"""Lost and stalled jobs, with real trainers, Redis and Postgres, and short times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from sqlalchemy import RowMapping

from tests.factories import NOW_NS, Sender, checkpoint, completion, drain, logs, metrics, one
from tests.processes import ROOT, wait_until
from trainwire.schemas.keys import alive_field, alive_key, listening_key, stream_key
from trainwire.schemas.tables import training_attempts, training_jobs
from trainwire.schemas.wire.heartbeats import Heartbeat, encode_heartbeat
from trainwire.schemas.wire.messages import Metrics, Point
from trainwire.stack.valkey import EmbeddedValkey
from trainwire.stores.postgres.connections import open_redis
from trainwire.workers.drain.changes import StatusChange
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.stream import IngestStream
from trainwire.workers.errors import MostlyInvalid, Unavailable
from trainwire.workers.events.notify import status_events
from trainwire.workers.liveness.heartbeat_reader import FORGET_AFTER_S, read_heartbeats, record_writable
from trainwire.workers.liveness.job_status import LostRule, update_statuses
from trainwire.workers.resources import Resources
from trainwire.workers.settings import load_settings
from trainwire.workers.streams.sweep import drain_everything

LOST_AFTER_S: Final = 5.0
"""Longer than heartbeats of a trainer on a busy machine may be delayed."""
GAP_S: Final = 2.0
"""Longer than a busy machine may take for one look."""
SHARDS: Final = 4
TRAINER: Final = """
import sys, time
from dataclasses import replace
from trainwire import Run, TrainerSettings
settings = TrainerSettings.from_env()
settings = replace(settings, timing=replace(settings.timing, longest_backoff_s=0.2))
run = Run(job_id=int(sys.argv[1]), name="alive", settings=settings)
time.sleep(600)
"""


@dataclass
class Watch:
    """Workers and beat: they drain and check heartbeats until a test stops them."""

    resources: Resources
    lost_after_s: float = LOST_AFTER_S
    _heartbeat_age_s: dict[int, float] = field(default_factory=dict)

    def look(self) -> list[StatusChange]:
        """Drain all streams and check heartbeats once, if Redis is available."""
        with suppress(Unavailable, redis.RedisError):
            drain_everything(self.resources)
            heard = read_heartbeats(self.resources.redis, SHARDS, GAP_S)
            self._heartbeat_age_s = {job: min(map(heard.age_s, beats)) for job, beats in heard.beats.items()}
            return update_statuses(self.resources.engine, heard, LostRule(self.lost_after_s))
        return []

    def status(self, job: int = 1) -> str | None:
        """Check heartbeats once; return the status of the job."""
        self.look()
        with suppress(Exception):
            return str(self.job(job)["status"])
        return None

    def becomes(self, status: str, job: int = 1) -> None:
        """Check heartbeats until the job has this status."""
        wait_until(lambda: self.status(job) == status, f"job {job} {status}", timeout_s=120)

    def watches(self, *jobs: int) -> None:
        """Check heartbeats until each job is running and sends them regularly: its first message may take long."""
        for job in jobs:
            self.becomes("running", job)
            wait_until(partial(self._has_heartbeat, job, 0), f"a heartbeat of job {job}")
            wait_until(partial(self._has_heartbeat, job, self._now_ms() + 500), f"more of job {job}")
        self.look()

    def _has_heartbeat(self, job: int, after_ms: int) -> bool:
        beats = read_heartbeats(self.resources.redis, SHARDS, GAP_S).beats.get(job, [])
        return any(beat.at > after_ms for beat in beats)

    def _now_ms(self) -> int:
        return read_heartbeats(self.resources.redis, SHARDS, GAP_S).now_ms[0]

    def stays(self, status: str, jobs: list[int], for_s: float) -> None:
        """Check heartbeats for some seconds; fail if one of the jobs has another status."""
        deadline = time.monotonic() + for_s
        while time.monotonic() < deadline:
            assert {job: self.status(job) for job in jobs} == dict.fromkeys(jobs, status)
            time.sleep(0.05)

    def stay_running(self, jobs: list[int], for_s: float) -> None:
        """Check heartbeats for some seconds; fail if a job whose trainer sends some is not running.

        A busy machine may not run a trainer for longer than the limit. Then its job is lost, and the time starts
        again once it is back.
        """
        began = time.monotonic()
        deadline, give_up = began + for_s, began + 120
        while time.monotonic() < deadline:
            found: dict[int, str | None] = {}
            ages_s = []
            for job in jobs:
                found[job] = self.status(job)
                if found[job] == "lost":  # its age at this moment: the next look may see it back
                    ages_s.append(self._heartbeat_age_s.get(job, time.monotonic() - began))
            if ages_s and time.monotonic() < give_up and min(ages_s) > self.lost_after_s:
                deadline = time.monotonic() + for_s
            else:
                assert found == dict.fromkeys(jobs, "running")
            time.sleep(0.05)

    def job(self, job: int = 1) -> RowMapping:
        """Return the row of a job in Postgres."""
        return one(self.resources.engine, training_jobs, id=job)


@pytest.fixture
def watching(resources: Resources) -> Watch:
    """Workers on the test servers."""
    return Watch(resources)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Give a function that starts a trainer with quick heartbeats; those that live are killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(job: int, resources: Resources) -> subprocess.Popen[bytes]:
        url = resources.settings.redis_url.get_secret_value()
        env = os.environ | {"REDIS_URL": url, "TRAINWIRE_HEARTBEAT_S": "0.1"}
        process = subprocess.Popen([sys.executable, "-c", TRAINER, str(job)], cwd=ROOT, env=env)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.wait(60)


def send_heartbeat(client: redis.Redis, ago_s: float = 0.0, **fields: Any) -> None:
    """Send a heartbeat like a client in another language."""
    seconds, micros = client.time()
    at = int(seconds * 1000 + micros // 1000 - ago_s * 1000)
    beat = Heartbeat(**{"job": 1, "source": "0-test", "at": at, **fields})
    client.hset(alive_key(beat.job % SHARDS), alive_field(beat.job, beat.source), encode_heartbeat(beat))


def test_a_killed_trainer_is_lost_and_a_stopped_one_comes_back(
    watching: Watch, sender: Sender, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """After SIGKILL and SIGSTOP both jobs are lost, and SIGCONT brings one back; one without heartbeats is not."""
    killed, stopped = start(1, watching.resources), start(2, watching.resources)
    sender.send(logs("only XADD"), job=3)
    watching.watches(1, 2)
    watching.becomes("running", 3)
    watching.stay_running([1, 2, 3], LOST_AFTER_S)
    killed.kill()
    stopped.send_signal(signal.SIGSTOP)
    watching.becomes("lost", 1)
    watching.becomes("lost", 2)
    lost = watching.job(1)
    assert f"pid {killed.pid}" in lost["status_reason"]
    assert lost["status_reason"].startswith(f"no heartbeat for {LOST_AFTER_S:.0f} s; the last: host ")
    assert lost["last_seen_at"] < lost["quiet_since"]
    assert one(watching.resources.engine, training_attempts, job_id=1, attempt=1)["status"] == "lost"
    stopped.send_signal(signal.SIGCONT)
    watching.becomes("running", 2)
    assert (watching.job(2)["status_reason"], watching.job(2)["quiet_since"]) == (None, None)
    assert one(watching.resources.engine, training_attempts, job_id=2, attempt=1)["status"] == "running"
    assert (watching.status(1), watching.status(3)) == ("lost", "running")


def test_an_outage_of_ours_makes_no_job_lost(
    resources: Resources, start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """No job is lost because Redis, restarted empty, or the workers were down for longer than the limit."""
    with EmbeddedValkey(tmp_path / "store") as valkey:
        settings = load_settings(
            database_url=resources.settings.database_url.get_secret_value(), redis_url=valkey.url
        )
        watching = Watch(Resources(settings, resources.engine, open_redis(settings)))
        trainers = [start(job, watching.resources) for job in (1, 2)]
        watching.watches(1, 2)
        valkey.kill()
        deadline = time.monotonic() + 1.1 * LOST_AFTER_S
        while time.monotonic() < deadline:
            assert not watching.look()
        valkey.start()
        watching.resources.redis.flushall()
        watching.stay_running([1, 2], 1.1 * LOST_AFTER_S)
        time.sleep(1.1 * LOST_AFTER_S)  # no workers
        watching.stay_running([1, 2], 1.1 * LOST_AFTER_S)
        trainers[0].kill()
        watching.becomes("lost", 1)
        watching.stay_running([2], 0.1)
        watching.resources.redis.close()


def test_a_trainer_that_died_while_workers_were_down_is_lost_after_its_time(watching: Watch) -> None:
    """The time without heartbeats counts from when they could be read again."""
    client = watching.resources.redis
    Sender(client).send(logs("a"))
    send_heartbeat(client)
    watching.becomes("running")
    time.sleep(1.1 * LOST_AFTER_S)
    returned_at = time.monotonic()
    assert watching.status() == "running"
    watching.becomes("lost")
    assert time.monotonic() - returned_at > LOST_AFTER_S


def test_an_unread_completion_is_waited_for(watching: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """While messages of its shard are unread a silent job is not lost: its completion may be among them."""
    client = watching.resources.redis
    sender = Sender(client)
    sender.send(logs("a"))
    send_heartbeat(client)
    watching.becomes("running")
    sender.send(completion())
    with monkeypatch.context() as halted:
        halted.setattr("tests.integration.workers.test_liveness.drain_everything", lambda _: None)
        watching.stays("running", [1], 1.5 * LOST_AFTER_S)
    watching.becomes("completed")


def test_a_killed_trainer_is_lost_beside_a_job_that_floods_its_shard(watching: Watch) -> None:
    """Messages of its shard always wait for longer than two looks may be apart: those after its end are read."""
    client = watching.resources.redis
    Sender(client).send(logs("a"))
    send_heartbeat(client)
    watching.becomes("running")
    key = stream_key("checkpoints", 1)

    def look_in_a_flood() -> bool:
        now_ms = read_heartbeats(client, SHARDS, GAP_S).now_ms[1]
        client.xadd(key, {"flood": 1}, id=f"{now_ms}-*")
        client.xtrim(key, minid=f"{now_ms - 2000 * GAP_S:.0f}", approximate=False)
        heard = read_heartbeats(client, SHARDS, GAP_S)
        update_statuses(watching.resources.engine, heard, LostRule(LOST_AFTER_S))
        return bool(watching.job()["status"] == "lost" and heard.unread_s(1) > GAP_S)

    wait_until(look_in_a_flood, "the loss", timeout_s=120)


def test_a_halted_stream_does_not_keep_killed_trainers_from_being_lost(watching: Watch) -> None:
    """Messages behind the invalid entries that halt a stream do not count as unread once they are stored."""
    client = watching.resources.redis
    sender = Sender(client)
    for job in (1, 5):
        sender.send(Metrics(ts=NOW_NS, heartbeat_s=0.1), job=job)
        watching.becomes("running", job)
    send_heartbeat(client)
    for number in range(300):
        sender.send_raw("checkpoints", 9, {"v": 1, "job": 9, "attempt": 1, "source": f"h{number}", "seq": 1})
    stream = IngestStream(client, "checkpoints", 1)

    def look_while_it_is_halted(job: int) -> bool:
        with pytest.raises(MostlyInvalid):
            Drain(watching.resources.engine, stream, watching.resources.settings).run()
        update_statuses(watching.resources.engine, read_heartbeats(client, SHARDS, GAP_S), LostRule(LOST_AFTER_S))
        return bool(watching.job(job)["status"] == "lost")

    for job in (1, 5):
        wait_until(partial(look_while_it_is_halted, job), f"the loss of job {job}", timeout_s=120)
    assert client.xlen(stream.key) == 300
    sender.send(checkpoint(), job=1)
    time.sleep(0.1)
    assert read_heartbeats(client, SHARDS, GAP_S).unread_s(1) >= 0.1


def test_a_trainer_that_died_before_the_first_check_is_lost(watching: Watch) -> None:
    """A job whose only heartbeat was already old is lost; a heartbeat of another attempt does not count."""
    client = watching.resources.redis
    sender = Sender(client)
    sender.send(logs("a"), job=1)
    sender.send(logs("a"), job=2, attempt=2)
    send_heartbeat(client, ago_s=10 * LOST_AFTER_S)
    send_heartbeat(client, ago_s=10 * LOST_AFTER_S, job=2)
    send_heartbeat(client, ago_s=10 * LOST_AFTER_S, job=2, source="0-first", attempt=1)
    watching.becomes("lost", 1)
    watching.becomes("running", 2)
    send_heartbeat(client, ago_s=10 * LOST_AFTER_S, job=2, source="0-second", attempt=2)
    watching.becomes("lost", 2)


def test_a_trainer_without_stored_heartbeats_is_lost(watching: Watch) -> None:
    """A trainer whose heartbeats are not in Redis is lost, because its first message states that it sends some."""
    Sender(watching.resources.redis).send(Metrics(ts=NOW_NS, heartbeat_s=0.1), job=1)
    Sender(watching.resources.redis).send(Metrics(ts=NOW_NS), job=2)
    watching.becomes("running", 2)
    watching.becomes("lost", 1)
    assert watching.job(1)["status_reason"] == f"no heartbeat for {LOST_AFTER_S:.0f} s"
    assert watching.status(2) == "running"


def test_a_heartbeat_is_found_in_any_shard(watching: Watch) -> None:
    """Heartbeats of a trainer that started with another number of shards are found."""
    client = watching.resources.redis
    Sender(client).send(Metrics(ts=NOW_NS, heartbeat_s=0.1))
    watching.becomes("running")
    beat = Heartbeat(job=1, source="0-test", at=watching._now_ms() + 60_000)
    client.hset(alive_key(3), alive_field(1, "0-test"), encode_heartbeat(beat))
    watching.stays("running", [1], 0.5)
    assert [found.source for found in read_heartbeats(client, SHARDS, GAP_S).beats[1]] == ["0-test"]


def test_a_redis_that_takes_no_writes_makes_no_job_lost(watching: Watch) -> None:
    """While Redis is too full for heartbeats, the workers' own note of a check fails as well."""
    client = watching.resources.redis
    Sender(client).send(logs("a"))
    send_heartbeat(client)
    watching.becomes("running")
    client.config_set("maxmemory", 1)
    try:
        deadline = time.monotonic() + 1.1 * LOST_AFTER_S
        while time.monotonic() < deadline:
            with pytest.raises(Unavailable, match=r"Redis: .*maxmemory"):
                read_heartbeats(client, SHARDS, GAP_S)
            time.sleep(0.05)
    finally:
        client.config_set("maxmemory", 0)
    assert watching.status() == "running"
    watching.becomes("lost")


def test_a_training_that_hangs_has_stalled_until_its_next_message(watching: Watch) -> None:
    """A trainer without messages within its stated pause is stalled, with an event, until its next message."""
    watching.lost_after_s = 600
    client = watching.resources.redis
    sender = Sender(client)
    sender.send(metrics(loss=1.0))
    drain(watching.resources, "metrics")
    send_heartbeat(client, quiet_s=99.0, stall_after_s=60, pid=12)
    (change,) = watching.look()
    (event,) = status_events([change])
    assert (event.job_id, event.attempt) == (1, 1)
    assert (change.before.status, change.after.status) == ("running", "stalled")
    assert change.reason == "alive (pid 12), but it is quiet for more than its stall_after_s of 60 s"
    quiet_since = watching.job()["quiet_since"]
    assert 98 < time.time() - quiet_since.timestamp() < 160
    sender.send(Metrics(points=[Point(ts=NOW_NS, values={"system/cpu_percent": 99.0})]))
    assert watching.status() == "stalled"
    sender.send(logs("on it goes"))
    assert watching.status() == "running"
    assert watching.status() == "running"  # the heartbeat before the word is older news
    assert watching.job()["quiet_since"] is None
    send_heartbeat(client, quiet_s=110.0, stall_after_s=60)
    assert watching.status() == "stalled"
    send_heartbeat(client, quiet_s=0.0, stall_after_s=60)
    assert watching.status() == "running"


def test_a_finished_job_stays_as_it_is(watching: Watch) -> None:
    """Neither missing heartbeats nor those of another process change the status of a finished job."""
    client = watching.resources.redis
    sender = Sender(client)
    sender.send(logs("a"))
    send_heartbeat(client)
    watching.becomes("running")
    sender.send(completion("failed"))
    watching.becomes("failed")
    watching.stays("failed", [1], 1.1 * LOST_AFTER_S)
    send_heartbeat(client)
    assert not watching.look()


def test_old_and_invalid_heartbeats_are_deleted(watching: Watch) -> None:
    """Heartbeats older than an hour and invalid ones are deleted."""
    client = watching.resources.redis
    send_heartbeat(client, ago_s=FORGET_AFTER_S + 1)
    send_heartbeat(client, source="0-young", ago_s=FORGET_AFTER_S - 100)
    client.hset(alive_key(1), "garbage", "garbage")
    heard = read_heartbeats(client, SHARDS, GAP_S)
    assert [beat.source for beat in heard.beats[1]] == ["0-young"]
    assert client.hkeys(alive_key(1)) == [b"1:0-young"]


def test_listening_begins_anew_after_a_gap(watching: Watch) -> None:
    """Consecutive checks add up; after a gap, a flush, or a clock set back the time starts at zero."""
    client = watching.resources.redis
    listened = partial(_listened_s, client)
    assert listened() == 0
    wait_until(lambda: listened() > GAP_S, "a while of looks")
    time.sleep(1.5 * GAP_S)
    assert listened() == 0
    wait_until(lambda: listened() > 0.1, "a while of looks")
    client.hset(listening_key(1), "looked_at", 2**60)
    assert listened() == 0
    wait_until(lambda: listened() > 0.1, "a while of looks")
    client.delete(listening_key(1))
    assert listened() == 0


def test_a_look_that_is_late_begins_nothing_anew(watching: Watch) -> None:
    """While pool processes are busy, the main process of each worker notes that Redis accepts writes."""
    client = watching.resources.redis
    read_heartbeats(client, SHARDS, GAP_S)
    deadline = time.monotonic() + 3 * GAP_S
    while time.monotonic() < deadline:
        record_writable(client, SHARDS, GAP_S)
        time.sleep(0.05)
    assert _listened_s(client) > 2 * GAP_S
    time.sleep(1.5 * GAP_S)
    record_writable(client, SHARDS, GAP_S)
    assert _listened_s(client) < GAP_S


def _listened_s(client: redis.Redis) -> float:
    return read_heartbeats(client, SHARDS, GAP_S).covered_s(1)


def test_a_hostile_heartbeat_is_harmless(watching: Watch) -> None:
    """A NUL in the host of a heartbeat is replaced before it is stored."""
    client = watching.resources.redis
    Sender(client).send(logs("a"))
    watching.look()
    send_heartbeat(client, host="gpu\x007", quiet_s=10**9, stall_after_s=1)
    watching.becomes("stalled")
    assert (
        watching.job()["status_reason"]
        == "alive (host gpu\u24007), but it is quiet for more than its stall_after_s of 1 s"
    )
