"""Heartbeats of real runs in a real Redis, and the claims of those that are the same rank."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from trainwire import Run, TrainerSettings
from trainwire.ingest.settings.setting_groups import SpoolSettings, Vitals
from trainwire.schemas.keys import HOLD_KEY, alive_key
from trainwire.schemas.wire.heartbeats import Heartbeat, decode_heartbeat

Until = Callable[..., None]
ROOT: Final = Path(__file__).parents[3]
SHARD: Final = 2  # of job 42, with the default number of shards
RIVALS: Final = "two live "
WARNING: Final = f"{RIVALS}trainers are job 42"
SPEAKS: Final = "run = Run.from_env()\nrun.log('here')\nsys.stdin.read()\nrun.finish()\n"


class Trainer:
    """A process for job 42 with frequent heartbeats, which lives until `end`."""

    def __init__(self, arguments: list[str], redis_url: str, said: Path) -> None:
        self._said = said
        env = {"REDIS_URL": redis_url, "TRAINWIRE_JOB_ID": "42", "TRAINWIRE_HEARTBEAT_S": "1"}
        # Without workers nothing is acked, and the second trainer would send what the first has left.
        env |= {"TRAINWIRE_SETTLE_S": "0", "TRAINWIRE_SPOOL_DIR": "off", "PYTHONPATH": str(ROOT)}
        with said.open("wb") as stderr:
            self.process = subprocess.Popen(
                arguments, env=os.environ | env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr
            )

    @property
    def said(self) -> str:
        """Return the output on stderr so far."""
        return self._said.read_text()

    def end(self) -> None:
        """Let it end, and see that it ends well."""
        self.process.communicate(timeout=120)
        assert self.process.returncode == 0, self.said

    def kill(self) -> None:
        """SIGKILL it, if it still lives."""
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def beating(settings: TrainerSettings) -> TrainerSettings:
    """Give settings with quick heartbeats."""
    return replace(settings, vitals=Vitals(interval_s=0.05, stall_after_s=90))


def heartbeats(valkey: Any) -> list[Heartbeat]:
    """Return the newest heartbeat of each source."""
    return [decode_heartbeat(data) for data in valkey.client.hgetall(alive_key(SHARD)).values()]


def command(script: str) -> list[str]:
    """Return a command that runs a script which may make runs."""
    return [sys.executable, "-c", f"import os, sys\nfrom trainwire import Run\n{script}"]


@pytest.fixture
def start(valkey: Any, tmp_path: Path) -> Iterator[Callable[[list[str]], Trainer]]:
    """Give a function that starts trainers; those that live are killed at the end."""
    started: list[Trainer] = []

    def start_one(arguments: list[str]) -> Trainer:
        started.append(Trainer(arguments, valkey.url, tmp_path / f"said-{len(started)}"))
        return started[-1]

    yield start_one
    for trainer in started:
        trainer.kill()


def test_an_idle_run_beats_and_says_goodbye(valkey: Any, beating: TrainerSettings, until: Until) -> None:
    """Without a word of the training, by the clock of Redis; after `finish` nothing is left."""
    run = Run(42, attempt=3, rank=1, settings=beating)
    until(lambda: heartbeats(valkey))
    (first,) = heartbeats(valkey)
    until(lambda: heartbeats(valkey)[0].at > first.at)
    (beat,) = heartbeats(valkey)
    assert (beat.job, beat.attempt, beat.rank, beat.source) == (42, 3, 1, run.source)
    assert (beat.pid, beat.stall_after_s) == (os.getpid(), 90)
    assert abs(beat.at / 1000 - valkey.client.time()[0]) < 60
    until(lambda: heartbeats(valkey)[0].quiet_s > 0.2)
    until(lambda: run.log("a word") or heartbeats(valkey)[0].quiet_s < 0.2)
    run.finish()
    until(lambda: not heartbeats(valkey))


def test_a_trainer_that_holds_back_still_lives(valkey: Any, beating: TrainerSettings, until: Until) -> None:
    """While Redis has no room for messages, and after an outage."""
    valkey.client.set(HOLD_KEY, 1)
    run = Run(42, settings=beating)
    until(lambda: heartbeats(valkey))
    assert not valkey.entries("metrics")
    valkey.client.delete(HOLD_KEY)
    valkey.stop()
    valkey.start()
    until(lambda: heartbeats(valkey))
    run.finish()


def test_a_trainer_that_holds_back_says_how_much(
    valkey: Any, beating: TrainerSettings, until: Until, tmp_path: Path
) -> None:
    """Spooled and dropped counts; sent messages are no longer unsent, and on the disk until acknowledged."""
    valkey.client.set(HOLD_KEY, 1)
    run = Run(42, settings=replace(beating, spool=SpoolSettings(tmp_path / "spool")))
    run.log("waits")
    run.metric(values={"loss": "none"})  # type: ignore[dict-item]
    until(lambda: heartbeats(valkey) and heartbeats(valkey)[0].unsent == 2)  # the start, and the line
    (held,) = heartbeats(valkey)
    assert held.dropped == 1
    assert held.spooled_bytes
    valkey.client.delete(HOLD_KEY)
    until(lambda: heartbeats(valkey)[0].unsent == 0)
    assert heartbeats(valkey)[0].spooled_bytes == held.spooled_bytes
    run.finish()


def test_a_redis_that_refuses_heartbeats_gets_the_messages(
    valkey: Any, beating: TrainerSettings, until: Until
) -> None:
    """A Redis user without the right to write the hash, or to read the time, can send messages."""
    for refused in ("-hset", "-time"):
        valkey.client.acl_setuser("default", enabled=True, commands=[refused])
        run = Run(42, settings=beating)
        run.log(f"without {refused}")
        until(lambda line=f"without {refused}": line in valkey.lines("stdout"))
        run.finish()
    assert not heartbeats(valkey)


def test_both_of_two_trainers_are_told_of_each_other(
    valkey: Any, start: Callable[[list[str]], Trainer], until: Until
) -> None:
    """Two processes are job 42: both warn once, with both pids, and all of both is sent."""
    first = start(command(SPEAKS))
    until(partial(is_claimed_by, valkey, first))
    second = start(command(SPEAKS))
    until(lambda: WARNING in second.said and WARNING in first.said)
    for _ in range(3):
        until(partial(have_gone_on, valkey, 2, heartbeats(valkey)))
    assert is_claimed_by(valkey, first)
    for trainer in (first, second):
        trainer.end()
        assert trainer.said.count(WARNING) == 1
        assert f"pid {first.process.pid}," in trainer.said
        assert f"pid {second.process.pid}," in trainer.said
    assert valkey.lines("stdout") == ["here", "here"]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            [sys.executable, "-m", "trainwire.ingest", "--", *command(SPEAKS)], id="a launcher and its script"
        ),
        pytest.param(
            command(
                "run = Run.from_env()\n"
                "if os.fork() == 0:\n    run.log('child')\n    sys.stdin.read()\n    os._exit(0)\n"
                "os.wait()\nrun.finish()\n"
            ),
            id="a forked child",
        ),
        pytest.param(
            command("runs = [Run(42, rank=0), Run(42, rank=1)]\nsys.stdin.read()\n[run.finish() for run in runs]"),
            id="two ranks",
        ),
    ],
)
def test_those_who_belong_together_are_no_rivals(
    arguments: list[str], valkey: Any, start: Callable[[list[str]], Trainer], until: Until
) -> None:
    """Both send heartbeats at the same time, without a warning."""
    trainer = start(arguments)
    until(lambda: len(heartbeats(valkey)) == 2)
    for _ in range(3):  # a rival is known by its second heartbeat
        until(partial(have_gone_on, valkey, 2, heartbeats(valkey)))
    trainer.end()
    assert WARNING not in trainer.said


def launcher_on(node: str, script: str) -> list[str]:
    """Return a launcher with a script, on a machine of this name."""
    return command(
        "names = os.uname()\n"
        f"os.uname = lambda: os.uname_result((names[0], {node!r}, *names[2:]))\n"
        "from trainwire.ingest.__main__ import main\n"
        f"sys.exit(main(['--', *{command(script)!r}]))"
    )


def test_launchers_on_two_machines_are_no_rivals(
    valkey: Any, start: Callable[[list[str]], Trainer], until: Until
) -> None:
    """Each captures its node of one job, and a rank runs under it, without a warning."""
    ranks = [SPEAKS.replace("from_env()", f"from_env(rank={rank})") for rank in range(2)]
    trainers = [start(launcher_on(f"node-{rank}", script)) for rank, script in enumerate(ranks)]
    until(lambda: len(heartbeats(valkey)) == 4)
    for _ in range(3):  # a rival is known by its second heartbeat
        until(partial(have_gone_on, valkey, 4, heartbeats(valkey)))
    for trainer in trainers:
        trainer.end()
        assert RIVALS not in trainer.said


@pytest.mark.parametrize(
    ("nodes", "script", "warning"),
    [
        pytest.param(("node-0", "node-1"), SPEAKS, WARNING, id="two scripts of one rank"),
        pytest.param(("node", "node"), "sys.stdin.read()", "two live launchers are job 42", id="one machine"),
    ],
)
def test_rivals_under_launchers_are_told(
    nodes: tuple[str, str], script: str, warning: str, start: Callable[[list[str]], Trainer], until: Until
) -> None:
    """Two scripts that claim one rank on two machines, and two launchers of one job on one machine."""
    trainers = [start(launcher_on(node, script)) for node in nodes]
    until(lambda: all(warning in trainer.said for trainer in trainers))
    for trainer in trainers:
        trainer.end()
    assert [trainer.said.count(RIVALS) for trainer in trainers] == [1, 1]


def test_trainers_that_overlap_for_less_than_a_heartbeat_are_told(
    valkey: Any, start: Callable[[list[str]], Trainer], until: Until
) -> None:
    """On one machine, the second one warns at its start, and the first one at its end."""
    first = start(["env", "TRAINWIRE_HEARTBEAT_S=20", *command(SPEAKS)])
    until(partial(is_claimed_by, valkey, first))
    second = start(["env", "TRAINWIRE_HEARTBEAT_S=20", *command(SPEAKS)])
    until(partial(is_claimed_by, valkey, second))
    for trainer in (first, second):
        trainer.end()
        assert trainer.said.count(WARNING) == 1


def test_a_trainer_that_is_started_again_at_once_warns_nobody(
    valkey: Any, start: Callable[[list[str]], Trainer], until: Until
) -> None:
    """The claim of the killed one expires; the next takes it and keeps it."""
    killed = start(command(SPEAKS))
    until(partial(is_claimed_by, valkey, killed))
    killed.kill()
    again = start(command(SPEAKS))
    until(partial(is_claimed_by, valkey, again))
    again.end()
    assert WARNING not in again.said


def is_claimed_by(valkey: Any, trainer: Trainer) -> bool:
    """Return whether the rank of the job is claimed by this process."""
    claims = [valkey.client.get(key) for key in valkey.client.keys("ingest:claims:*")]
    return trainer.process.pid in [decode_heartbeat(claim).pid for claim in claims if claim]


def have_gone_on(valkey: Any, count: int, before: list[Heartbeat]) -> bool:
    """Return whether so many sources have each sent another heartbeat since."""
    known = {beat.source: beat.at for beat in before}
    return sum(beat.at > known.get(beat.source, beat.at) for beat in heartbeats(valkey)) == count


REDRAWS: Final = (
    "import select, sys\n"
    "while not select.select([sys.stdin], [], [], 0.02)[0]:\n"
    "    sys.stdout.write('\\r 7 of 10'); sys.stdout.flush()\n"
)


def _has_just_moved(beat: Heartbeat) -> bool:
    return beat.at / 1000 - (beat.since or 0) > 3 and beat.quiet_s < 2


@pytest.mark.parametrize("where", ["launcher", "capture"])
def test_a_progress_bar_that_is_redrawn_is_a_sign_of_life(
    valkey: Any, start: Callable[[list[str]], Trainer], until: Until, where: str
) -> None:
    """Output that completes no line is no silence, under the launcher and where a run captures it."""
    if where == "launcher":
        arguments = [sys.executable, "-m", "trainwire.ingest", "--", sys.executable, "-c", REDRAWS]
    else:
        arguments = command(f"with Run.from_env() as run, run.capture_output():\n    exec({REDRAWS!r})")
    trainer = start(arguments)
    # Without a sign of life it is quiet since its start.
    until(lambda: list(filter(_has_just_moved, heartbeats(valkey))))
    assert valkey.lines("stdout") == []
    trainer.end()
    assert valkey.lines("stdout") == [" 7 of 10"]
