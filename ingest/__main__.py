"""`python -m trainwire.ingest --job-id 42 -- python train.py`: the launcher, with the base install alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainwire.ingest.hooks.hooks import CatchOptions
from trainwire.ingest.hooks.printed import MetricPattern
from trainwire.ingest.launcher.launch import DEFAULT_FINISH_TIMEOUT_S, launch
from trainwire.ingest.settings import JOB_ID_VARIABLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command behind `--` and return its exit code."""
    parser = _parser()
    said = parser.parse_args(arguments)
    command = said.command[1:] if said.command[:1] == ["--"] else said.command
    try:
        return launch(
            command,
            job_id=said.job_id,
            name=said.name,
            attempt=said.attempt,
            redis_url=said.redis_url,
            finish_timeout_s=said.finish_timeout_s,
            tty=said.tty,
            fold_repeats=said.fold_repeats,
            catch=CatchOptions(
                hooks=said.hooks,
                pattern=None if said.metrics_regex is None else MetricPattern(said.metrics_regex),
                tensorboard=tuple(said.tensorboard),
            ),
        )
    except ValueError as exc:
        parser.error(str(exc))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainwire.ingest", description=launch.__doc__, allow_abbrev=False
    )
    parser.add_argument("--job-id", type=int, help=f"the job's id; else {JOB_ID_VARIABLE} says it")
    parser.add_argument("--name", help="what the job is called")
    parser.add_argument("--attempt", type=int, help="1, 2, 3 ...; unsaid, the workers count")
    parser.add_argument("--redis-url", help="redis://host:port/0; else REDIS_URL says it")
    parser.add_argument("--finish-timeout-s", type=float, default=DEFAULT_FINISH_TIMEOUT_S)
    parser.add_argument("--tty", action="store_true", help="give the command a terminal: its progress bars behave")
    parser.add_argument(
        "--fold-repeats", action="store_true", help="log equal lines in a row once, and count them"
    )
    parser.add_argument("--no-hooks", dest="hooks", action="store_false", help="take no metrics from libraries")
    parser.add_argument("--metrics-regex", metavar="PATTERN", help="take metrics from printed lines")
    parser.add_argument(
        "--tensorboard", metavar="DIR", type=Path, action="append", default=[], help="follow event files below DIR"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command to run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
