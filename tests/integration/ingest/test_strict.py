"""Strict runs against a real Redis: their errors, and the calls that raise none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from trainwire import NotStored, RankTaken, RedisAway, Run, StrictError, TrainerSettings
from trainwire.ingest import strict
from trainwire.ingest.launcher.launch import STRICT_FAILED
from trainwire.ingest.settings.setting_groups import Vitals
from trainwire.schemas.keys import claim_key

Until = Callable[..., None]
ROOT = Path(__file__).parents[3]
NOBODY = "redis://127.0.0.1:9/0"


@pytest.fixture
def beating(settings: TrainerSettings) -> TrainerSettings:
    """Give settings with quick heartbeats, though not so quick that a slow machine misses two."""
    return replace(settings, vitals=Vitals(interval_s=2))


def claims(valkey: Any) -> list[bytes]:
    """Return the claims in Redis."""
    return [claim for key in valkey.client.keys("ingest:claims:*") if (claim := valkey.client.get(key))]


def test_a_strict_run_without_redis_does_not_begin(settings: TrainerSettings) -> None:
    """One sentence has the server and the remedy; without strict nothing raises."""
    with pytest.raises(RedisAway, match=r"Redis at 127\.0\.0\.1:9 does not answer: .*REDIS_URL"):
        Run(42, strict=True, redis_url=NOBODY, settings=settings)
    Run(42, redis_url=NOBODY, settings=settings).finish(timeout_s=0)
    Run(42, strict=False, redis_url=NOBODY, settings=replace(settings, strict=True)).finish(timeout_s=0)


def test_the_second_of_two_strict_trainers_does_not_begin(beating: TrainerSettings) -> None:
    """The error has the process with the rank, and the remedy; another rank and another attempt are free."""
    first = Run(42, strict=True, settings=beating)
    with pytest.raises(RankTaken, match=r"two live trainers are job 42 rank 0: .*TRAINWIRE_RANK"):
        Run(42, strict=True, settings=beating)
    free = [Run(42, strict=True, rank=1, settings=beating), Run(42, strict=True, attempt=2, settings=beating)]
    for run in free:
        with pytest.raises(NotStored):
            run.finish(timeout_s=0.1)
    with pytest.raises(NotStored):
        first.finish(timeout_s=0.1)


def test_the_rank_of_one_that_ended_or_died_is_free(valkey: Any, beating: TrainerSettings, until: Until) -> None:
    """A run that ends gives its rank back; the claim of a killed one is taken when it has missed two beats."""
    ended = Run(42, settings=beating)
    until(lambda: claims(valkey))
    ended.finish(timeout_s=0.5)
    until(lambda: not claims(valkey))
    script = "from trainwire import Run\nrun = Run(42, strict=True)\nprint('claimed', flush=True)\ninput()"
    env = os.environ | {"REDIS_URL": valkey.url, "TRAINWIRE_HEARTBEAT_S": "3"}
    killed = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"claimed\n"
    killed.kill()
    killed.communicate(timeout=120)
    assert claims(valkey)
    run = Run(42, strict=True, settings=beating)
    assert [sha256(run.source.encode()).hexdigest().encode() in claim for claim in claims(valkey)] == [True]
    with pytest.raises(NotStored):
        run.finish(timeout_s=0.1)


def test_a_strict_end_says_what_is_not_stored(settings: TrainerSettings) -> None:
    """No worker acks: one error with the receipt, by the deadline, and none from a second call."""
    run = Run(42, strict=True, settings=settings)
    run.log("a")
    with pytest.raises(NotStored, match=r"job 42: 3 messages are not stored; nothing keeps them") as caught:
        run.finish(timeout_s=5)
    assert caught.value.receipt.sent == {"logs": 1, "metrics": 1, "completions": 1}
    assert run.finish() is caught.value.receipt


def test_a_strict_end_waits_for_the_workers(valkey: Any, until: Until) -> None:
    """Unlike another run's, it outlasts workers that are slow to begin: `settle_s` is no end of it."""
    script = (
        "from trainwire import Run\nrun = Run(42, strict=True)\nprint(run.source, flush=True)\n"
        "print(run.finish(timeout_s=240).complete)"
    )
    env = os.environ | {"REDIS_URL": valkey.url, "TRAINWIRE_SETTLE_S": "0"}
    trainer = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    source = trainer.stdout.readline().strip()
    until(valkey.completions)
    with pytest.raises(subprocess.TimeoutExpired):
        trainer.wait(1)
    for kind in ("metrics", "completions"):
        valkey.ack(source, kind, 1)
    said, _ = trainer.communicate(timeout=120)
    assert (trainer.returncode, said) == (0, "True\n")


def test_no_other_call_of_a_strict_run_raises(valkey: Any, settings: TrainerSettings) -> None:
    """In an outage log, metric and checkpoint go on, and an error of the block is raised as it is."""

    def train() -> None:
        with Run(42, strict=True, settings=settings) as run:
            valkey.stop()
            run.log("a")
            run.metric(loss=1)
            run.checkpoint("s3://bucket/last.pt")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train()
    valkey.start()


def test_a_block_that_ends_well_and_is_not_stored_raises(settings: TrainerSettings) -> None:
    """Leaving the block is `finish`; after an error was handled in the block it raises no second one."""
    with Run(42, strict=True, settings=settings) as run, pytest.raises(StrictError):
        run.finish(timeout_s=0.1)
    with pytest.raises(NotStored), Run(42, strict=True, rank=1, settings=settings) as run:
        run.log("nobody stores it")


def launched(redis_url: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command under a launcher that is strict."""
    env = os.environ | {"REDIS_URL": redis_url, "TRAINWIRE_STRICT": "on", "TRAINWIRE_SETTLE_S": "0"}
    launcher = [
        sys.executable,
        "-m",
        "trainwire.ingest",
        "--job-id",
        "42",
        "--finish-timeout-s",
        "0.5",
        "--",
        *command,
    ]
    return subprocess.run(launcher, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=180)


def test_a_strict_launcher(valkey: Any) -> None:
    """Without Redis the command is not started; one that ended well and is not stored fails; a code stays."""
    refused = launched(NOBODY, "echo", "started")
    assert (refused.returncode, refused.stdout) == (STRICT_FAILED, "")
    assert "does not answer" in refused.stderr
    assert "the command was not started" in refused.stderr
    unstored = launched(valkey.url, "echo", "started")
    assert (unstored.returncode, unstored.stdout) == (STRICT_FAILED, "started\n")
    assert "messages are not stored" in unstored.stderr
    assert launched(valkey.url, "false").returncode == 1


def forged(**said: Any) -> str:
    """Return a claim as anyone can write it."""
    return json.dumps({"job": 42, "source": "x" * 64, "at": 2**62, "every_s": 10.0, **said})


FORGED: dict[str, Callable[[Any, str], object]] = {
    "a time in the future": lambda redis, key: redis.set(key, forged()),
    "a huge interval": lambda redis, key: redis.set(
        key, forged(at=int(time.time() * 1000) - 3_600_000, every_s=1e9)
    ),
    "a killed trainer's long interval": lambda redis, key: redis.set(
        key, forged(at=int(time.time() * 1000), every_s=20.0)
    ),
    "wrong fields": lambda redis, key: redis.set(key, forged(at="now", every_s=-1)),
    "deep nesting": lambda redis, key: redis.set(key, '{"x":' + "[" * 3000),
    "a huge value": lambda redis, key: redis.set(key, b"[" * 50_000_000),
    "another type": lambda redis, key: redis.rpush(key, "x"),
}


@pytest.mark.parametrize("name", FORGED)
def test_no_claim_keeps_a_strict_run_from_beginning(
    valkey: Any, settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever a claim contains, a run without a rival begins within the stated time, and has the rank."""
    monkeypatch.setattr(strict, "MOST_WAIT_S", 1.0)
    FORGED[name](valkey.client, claim_key(42, 0, 0, ""))
    began = time.monotonic()
    run = Run(42, strict=True, settings=settings)
    assert time.monotonic() - began < 30
    assert [sha256(run.source.encode()).hexdigest().encode() in claim for claim in claims(valkey)] == [True]
    with pytest.raises(NotStored):
        run.finish(timeout_s=0.1)


@pytest.mark.parametrize("name", FORGED)
def test_no_claim_stops_the_heartbeats_of_another_run(
    valkey: Any, settings: TrainerSettings, until: Until, name: str
) -> None:
    """A run that is not strict sends messages and heartbeats, whatever the claim of its rank contains."""
    FORGED[name](valkey.client, claim_key(42, 0, 0, ""))
    run = Run(42, settings=settings)
    until(lambda: valkey.client.keys("ingest:*:alive"))
    run.finish(timeout_s=60)
    assert valkey.completions()
