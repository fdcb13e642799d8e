"""Measures the time of a command that prints continuously, under the launcher and into a plain pipe."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks import load
from benchmarks.processes import ROOT
from trainwire.schemas.keys import DEFAULT_SHARDS, shard_of, stream_key
from trainwire.schemas.wire.body_decoding import decode_body
from trainwire.schemas.wire.entries import open_envelope
from trainwire.schemas.wire.messages import Completion
from trainwire.workers.resources import Resources

_PRINT = "date +%s.%N >{began}; yes '{line}' | head -c {size_bytes}; date +%s.%N >{ended}"


@dataclass(frozen=True)
class Case:
    """The output of a command (`megabytes` of a repeated `line`), and the options of the launcher for it."""

    name: str
    line: str
    megabytes: int
    options: tuple[str, ...] = ()
    lines_per_s: str = ""


CASES = (
    Case("2 bytes (`yes`)", "y", 5),
    Case("100 bytes", load.LINE[:99], 200),
    Case("1000 bytes", (load.LINE * 10)[:999], 200),
    Case("100 bytes, `--tty`", load.LINE[:99], 50, ("--tty",)),
    Case("2 bytes, `--fold-repeats`", "y", 200, ("--fold-repeats",)),
    Case("2 bytes, at most 1000 lines/s", "y", 200, lines_per_s="1000"),
)


@dataclass(frozen=True)
class Printed:
    """Seconds of the command into a pipe and under the launcher, and the numbers of lines printed and dropped."""

    plain_s: float
    seconds: float
    lines: int
    left_out: int


def measure(resources: Resources, case: Case, scale: float) -> Printed:
    """Measure the command with a pipe into `cat`, then under the launcher."""
    size_bytes = int(case.megabytes * 1e6 * scale)
    plain_s = _time(case, size_bytes, ["sh", "-c", '"$@" | cat', "sh"], {})
    launcher = [sys.executable, "-m", "trainwire.ingest", "--job-id", str(load.JOB), *case.options, "--"]
    env = {
        "PYTHONPATH": str(ROOT),
        "REDIS_URL": resources.settings.redis_url.get_secret_value(),
        "TRAINWIRE_LOG_LINES_PER_S": case.lines_per_s,
    }
    seconds = _time(case, size_bytes, launcher, env)
    return Printed(plain_s, seconds, size_bytes // (len(case.line) + 1), _left_out(resources))


def _time(case: Case, size_bytes: int, runner: Sequence[str], env: dict[str, str]) -> float:
    """Return the seconds in which the command prints its output.

    The start of the command and of `runner` is excluded.
    """
    with tempfile.TemporaryDirectory(prefix="trainwire-bench-") as folder:
        began, ended = Path(folder) / "began", Path(folder) / "ended"
        script = _PRINT.format(began=began, ended=ended, line=case.line, size_bytes=size_bytes)
        subprocess.run(
            [*runner, "sh", "-c", script],
            env={**os.environ, "TRAINWIRE_SPOOL_DIR": f"{folder}/spool", **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return float(ended.read_text()) - float(began.read_text())


def _left_out(resources: Resources) -> int:
    stream = stream_key("completions", shard_of(load.JOB, DEFAULT_SHARDS))
    ((_, fields),) = cast("Any", resources.redis.xrange(stream))
    completion = cast("Completion", decode_body("completions", open_envelope(fields)))
    return (completion.dropped or {}).get("logs", 0)
