"""`trainwire run`: runs a command as a training job."""

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
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="The command to run.")],
    job_id: Annotated[
        int,
        typer.Option(
            "--job-id", envvar=JOB_ID_VARIABLE, parser=job_number, metavar="JOB", help="The job's number."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the job.")] = None,
    attempt: Annotated[
        int | None, whole_option(0, MAX_ATTEMPT, "Number of the attempt; default: the next one.")
    ] = None,
    finish_timeout_s: Annotated[
        float, seconds_option(0, 86_400, "Time limit for sending the last messages.")
    ] = DEFAULT_FINISH_TIMEOUT_S,
    tty: Annotated[bool, typer.Option("--tty", help="Run it in a pseudo-terminal, for progress bars.")] = False,
    fold_repeats: Annotated[
        bool, typer.Option("--fold-repeats", help="Log consecutive equal lines once, with their number.")
    ] = False,
    hooks: Annotated[
        bool,
        typer.Option(
            "--hooks/--no-hooks", help="Also record metrics that the command logs to TensorBoard or W&B."
        ),
    ] = True,
    metrics_regex: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Parse metrics in printed lines, such as 'loss=(?P<loss>[0-9.]+)'."),
    ] = None,
    tensorboard: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Read metrics from new event files below DIR; repeatable."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Run COMMAND; its stdout and stderr become log messages, its exit code the completion and that of `run`.

    Only Redis is needed; without it the command runs all the same, and messages wait in the spool.
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
    """Return the address of Redis; if none is found, warn and return the default: the training must run."""
    try:
        return known_redis_url(data_dir)
    except Problem as exc:
        warn(f"{exc}; the command runs, and its messages wait for {DEFAULT_REDIS_URL}")
        return DEFAULT_REDIS_URL


def known_redis_url(data_dir: Path | None) -> str:
    """Return the address of Redis; REDIS_URL alone is enough, because no database is needed."""
    named = os.environ.get(REDIS_URL_VARIABLE) if data_dir is None else None
    return named or locate(data_dir, os.environ).need_redis_url()
