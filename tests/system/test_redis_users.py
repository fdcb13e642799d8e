"""The users of deploy/users.acl.template on a real server: they can do their work, and nothing else."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError
from sqlalchemy import Engine, text

from tests.hostile_client import attack
from tests.processes import END_S, ROOT, wait_until, workers_running
from trainwire import Run
from trainwire.schemas.keys import (
    HOLD_KEY,
    INGEST_QUEUE,
    NOTIFY_QUEUE,
    SHARDS_KEY,
    acks_key,
    alive_key,
    behind_key,
    events_channel,
    ordered_key,
    stream_key,
)
from trainwire.stack.persisted_config import usable_port
from trainwire.stack.valkey import binary
from trainwire.workers.settings import Settings, load_settings

TEMPLATE = ROOT / "deploy" / "users.acl.template"
JOB = 42
STREAM = stream_key("logs", 2)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A server with only the users of the template; each one's password is its name."""
    acl = TEMPLATE.read_text()
    for name in ("worker", "trainer"):
        acl = acl.replace(f"@{name.upper()}_SHA256@", hashlib.sha256(name.encode()).hexdigest())
    (tmp_path / "users.acl").write_text(acl)
    port = usable_port(tmp_path, "valkey")
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--aclfile", str(tmp_path / "users.acl")]
    server = subprocess.Popen([str(binary()), *options], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(user(port, "worker")), "the server's start")
        yield port
    finally:
        server.terminate()
        server.wait(END_S)


def user(port: int, name: str) -> redis.Redis:
    """Return a connection of one of the users."""
    return redis.Redis.from_url(url_of(port, name))


def url_of(port: int, name: str) -> str:
    """Return the address for one of the users."""
    return f"redis://{name}:{name}@127.0.0.1:{port}/0"


def try_as(client: Any, command: tuple[Any, ...]) -> None:
    """Send a command unchanged."""
    client.execute_command(*command)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_the_users_can_do_their_work(
    port: int, session_settings: Settings, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers store a trainer's messages, each through its own user, and the trainer gets the acknowledgements."""
    database_url = session_settings.database_url.get_secret_value()
    settings = load_settings(database_url=database_url, redis_url=url_of(port, "worker"))
    monkeypatch.setenv("REDIS_URL", url_of(port, "trainer"))
    monkeypatch.setenv("TRAINWIRE_SETTLE_S", "60")
    with workers_running(settings, tmp_path) as workers:
        with Run(JOB, name="digits") as run:
            run.log("said")
            run.metric(loss=0.0)
            run.checkpoint("s3://bucket/last.pt")
        receipt = run.finish()
        assert "NOPERM" not in workers[0].output
        assert "o permission" not in workers[0].output
    assert receipt.stored == receipt.produced
    with engine.connect() as connection:
        assert connection.execute(text("SELECT content FROM training_logs")).scalars().all() == ["said"]
        assert connection.execute(text("SELECT status FROM training_jobs")).scalar_one() == "completed"


@pytest.mark.parametrize(
    "command",
    [
        ("XREAD", "STREAMS", STREAM, "0"),
        ("XRANGE", STREAM, "-", "+"),
        ("XTRIM", STREAM, "MAXLEN", "0"),
        ("DEL", STREAM),
        ("SET", STREAM, "1"),
        ("XADD", "elsewhere", "*", "v", "1"),
        ("SET", SHARDS_KEY, "1"),
        ("SET", HOLD_KEY, "1"),
        ("SET", behind_key("logs", 2), "1"),
        ("HSET", acks_key(JOB), "0-a:logs", "9"),
        ("LPUSH", NOTIFY_QUEUE, "{}"),
        ("LPUSH", INGEST_QUEUE, "{}"),
        ("SET", ordered_key(STREAM), "1"),
        ("SET", f"{STREAM}:bell", "1"),
        ("HGETALL", alive_key(2)),
        ("XINFO", "STREAM", STREAM),
        ("XSETID", STREAM, "9-9"),
        ("LRANGE", INGEST_QUEUE, "0", "-1"),
        ("PUBLISH", events_channel(JOB), "{}"),
        ("SUBSCRIBE", events_channel(JOB)),
        ("EVAL", "return 1", "0"),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("FLUSHALL",),
        ("SHUTDOWN",),
    ],
    ids=" ".join,
)
def test_a_trainer_can_do_nothing_else(port: int, command: tuple[Any, ...]) -> None:
    """It reads no stream, forges no ack, sets no hold, subscribes to nothing and empties nothing."""
    with pytest.raises(NoPermissionError):
        try_as(user(port, "trainer"), command)


@pytest.mark.parametrize(
    "command", [("FLUSHALL",), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("SHUTDOWN",)], ids=" ".join
)
def test_a_worker_does_not_administer(port: int, command: tuple[Any, ...]) -> None:
    """A worker may use the data, and not administer the server."""
    with pytest.raises(NoPermissionError):
        try_as(user(port, "worker"), command)


HONEST = """
import sys, time
from trainwire import Run
job, until = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
with Run(job, name="honest") as run:
    number = 0
    while time.monotonic() < until:
        number += 1
        run.log(f"line {number}")
        if number % 10 == 0:
            run.metric(step=number, loss=1 / number)
        time.sleep(0.05)
    source = run.source
receipt = run.finish(timeout_s=120)
print(source, number, receipt.stored == receipt.produced)
"""


def test_honest_trainers_beside_a_hostile_client(
    port: int, session_settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    """It tries all that it may with every odd argument: nothing of the others is lost, doubled, forged or late.

    The claims that it reads contain no name of a source, and nothing that it may not do is done.
    """
    seconds, jobs = 25, (41, 42, 43)
    database_url = session_settings.database_url.get_secret_value()
    settings = load_settings(database_url=database_url, redis_url=url_of(port, "worker"))
    env = os.environ | {
        "REDIS_URL": url_of(port, "trainer"),
        "TRAINWIRE_HEARTBEAT_S": "1",
        "TRAINWIRE_SETTLE_S": "60",
    }
    with workers_running(settings, tmp_path) as workers:
        honest = [
            subprocess.Popen(
                [sys.executable, "-c", HONEST, str(job), str(seconds)], cwd=ROOT, env=env, stdout=subprocess.PIPE
            )
            for job in jobs
        ]
        report = attack(url_of(port, "trainer"), seconds, seed=7, victims=jobs, per_s=60, jams_every_s=3)
        ends = [trainer.communicate(timeout=240)[0].split() for trainer in honest]
        assert workers[0].process.poll() is None
    assert not report.forbidden_but_taken
    assert report.claims_read
    for job, (source, number, is_complete) in zip(jobs, ends, strict=True):
        assert is_complete == b"True"
        assert not [claim for claim in report.claims_read if source in claim]
        with engine.connect() as connection:
            found = text(
                "SELECT content, logged_at, created_at FROM training_logs WHERE job_id = :job ORDER BY seq"
            )
            lines = connection.execute(found, {"job": job}).all()
        # Sent again, a line may come after later ones.
        assert sorted(line.content for line in lines) == sorted(f"line {n}" for n in range(1, int(number) + 1))
        assert max((line.created_at - line.logged_at).total_seconds() for line in lines) < seconds, (
            "a line waited for the end of the attack"
        )


def test_the_default_user_is_off(port: int) -> None:
    """The default user is off."""
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port).ping()
