"""`trainwire run`: any command as a training job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trainwire.cli.commands.options import DataDir, job_number
from trainwire.cli.numbers import seconds_option, whole_option
from trainwire.cli.terminal import warn
from trainwire.ingest.hooks.hooks import CatchOptions
from trainwire.ingest.hooks.printed import MetricPattern
from trainwire.ingest.launcher.launch import DEFAULT_FINISH_TIMEOUT_S, launch
from trainwire.ingest.settings import DEFAULT_REDIS_URL, JOB_ID_VARIABLE, REDIS_URL_VARIABLE
from trainwire.schemas.validation import MAX_ATTEMPT
from trainwire.stack.errors import Problem
from trainwire.stack.locate import locate


def run(
    *,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="What to run.")],
    job_id: Annotated[
        int,
        typer.Option(
            "--job-id", envvar=JOB_ID_VARIABLE, parser=job_number, metavar="JOB", help="The job's number."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What people call the job.")] = None,
    attempt: Annotated[
        int | None, whole_option(0, MAX_ATTEMPT, "Which try this is; default: the next one.")
    ] = None,
    finish_timeout_s: Annotated[
        float, seconds_option(0, 86_400, "How long the last messages may take at the end.")
    ] = DEFAULT_FINISH_TIMEOUT_S,
    tty: Annotated[bool, typer.Option("--tty", help="Give it a terminal, so that progress bars behave.")] = False,
    fold_repeats: Annotated[
        bool, typer.Option("--fold-repeats", help="Log equal lines in a row once, and count them.")
    ] = False,
    hooks: Annotated[
        bool,
        typer.Option(
            "--hooks/--no-hooks", help="Take what the command logs to TensorBoard or W&B as metrics too."
        ),
    ] = True,
    metrics_regex: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Take metrics from printed lines, such as 'loss=(?P<loss>[0-9.]+)'."),
    ] = None,
    tensorboard: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Take metrics from the event files that appear below DIR; repeatable."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Run COMMAND: its stdout and stderr become log messages, its exit code the completion, and ours.

    It needs Redis only, and runs the command whether or not there is one.
    """
    try:
        code = launch(
            command,
            job_id=job_id,
            name=name,
            attempt=attempt,
            redis_url=redis_url_or_fallback(data_dir),
            finish_timeout_s=finish_timeout_s,
            tty=tty,
            fold_repeats=fold_repeats,
            catch=CatchOptions(
                hooks=hooks,
                pattern=None if metrics_regex is None else MetricPattern(metrics_regex),
                tensorboard=tuple(tensorboard or ()),
            ),
        )
    except ValueError as exc:
        raise Problem(str(exc)) from exc
    raise typer.Exit(code)


def redis_url_or_fallback(data_dir: Path | None) -> str:
    """Return the Redis to use; where none can be found, warn and name the usual one: training goes on."""
    try:
        return known_redis_url(data_dir)
    except Problem as exc:
        warn(f"{exc}; running the command all the same, its messages wait for {DEFAULT_REDIS_URL}")
        return DEFAULT_REDIS_URL


def known_redis_url(data_dir: Path | None) -> str:
    """Return the Redis to use; the database is not needed, so one variable alone is enough."""
    named = os.environ.get(REDIS_URL_VARIABLE) if data_dir is None else None
    return named or locate(data_dir, os.environ).need_redis_url()
