"""`trainwire run`: runs a command as a training job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainwire.cli.commands.options import DataDir, job_number
from trainwire.cli.numbers import seconds_option, whole_option
from trainwire.ingest.hooks.hooks import CatchOptions, wandb_mode
from trainwire.ingest.launcher.launch import DEFAULT_FINISH_TIMEOUT_S, LaunchOptions, launch
from trainwire.ingest.launcher.stopping import DEFAULT_STOP_GRACE_S
from trainwire.ingest.settings.variables import JOB_ID_VARIABLE, WANDB_VARIABLE
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID
from trainwire.stack.errors import Problem


def run(
    *,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="The command to run.")],
    job_id: Annotated[
        int | None,
        typer.Option(
            "--job-id",
            parser=job_number,
            metavar="NUMBER",
            help=f"A number of your own; default: {JOB_ID_VARIABLE}, or a new job.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The job's name; default: the script's, with two words.")
    ] = None,
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
            "--hooks/--no-hooks", help="Also record metrics that the command logs to TensorBoard, W&B or MLflow."
        ),
    ] = True,
    metrics_regex: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Take metrics from printed lines, such as 'loss=(?P<loss>[0-9.]+)'; repeatable.",
        ),
    ] = None,
    tensorboard: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Read metrics from new event files below DIR; repeatable."),
    ] = None,
    upload_artifacts: Annotated[
        bool,
        typer.Option(
            "--upload-artifacts", help="Upload files and models logged with MLflow to the bucket for checkpoints."
        ),
    ] = False,
    wandb: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="mirror copies values logged to W&B; replace also disables W&B, so no account is needed; off; "
            f"default: {WANDB_VARIABLE}, or mirror.",
        ),
    ] = None,
    resume_from_step: Annotated[
        int | None, whole_option(0, MAX_ID, "Go on with the job from a checkpoint of this step, in a new attempt.")
    ] = None,
    parent: Annotated[
        int | None, whole_option(1, MAX_ID, "Number of the job that this one is forked from, with --fork-step.")
    ] = None,
    fork_step: Annotated[int | None, whole_option(0, MAX_ID, "Step of the parent to go on from.")] = None,
    on_stop: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="When a user stops the job: sigterm, sent to COMMAND; none, for run.should_stop.",
        ),
    ] = "sigterm",
    stop_grace_s: Annotated[
        float, seconds_option(0, 86_400, "Time before the SIGTERM for a COMMAND that reads run.should_stop.")
    ] = DEFAULT_STOP_GRACE_S,
    data_dir: DataDir = None,
) -> None:
    """Run COMMAND as a job: its output becomes log lines; its exit code is recorded, and returned by this command.

    COMMAND also runs while Redis is not available: its messages wait in the spool until `trainwire up` runs.
    """
    try:
        catch = CatchOptions(
            hooks=hooks,
            patterns=tuple(metrics_regex or ()),
            tensorboard=tuple(tensorboard or ()),
            upload_artifacts=upload_artifacts,
            wandb=wandb_mode(wandb, hooks=hooks),
        )
        options = LaunchOptions(
            job_id=job_id,
            name=name,
            attempt=attempt,
            data_dir=data_dir,
            finish_timeout_s=finish_timeout_s,
            tty=tty,
            fold_repeats=fold_repeats,
            catch=catch,
            resume_from_step=resume_from_step,
            parent=parent,
            fork_step=fork_step,
            on_stop=on_stop,
            stop_grace_s=stop_grace_s,
        )
        code = launch(command, options)
    except ValueError as exc:
        raise Problem(str(exc)) from exc
    raise typer.Exit(code)
