"""`python -m trainwire.ingest -- python train.py`: the launcher, for installs without the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainwire.ingest.hooks.hooks import WANDB_MODES, CatchOptions, wandb_mode
from trainwire.ingest.launcher.launch import DEFAULT_FINISH_TIMEOUT_S, LaunchOptions, launch
from trainwire.ingest.launcher.stopping import DEFAULT_STOP_GRACE_S, STOP_MODES
from trainwire.ingest.settings.variables import JOB_ID_VARIABLE, WANDB_VARIABLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse `arguments` (default: those of this process), run the command after `--`, and return its exit code.

    Invalid arguments end this process with a message and exit code 2, as usual with argparse.
    """
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    command, hooks = options.pop("command"), options.pop("hooks")
    try:
        catch = CatchOptions(
            hooks=hooks,
            patterns=tuple(options.pop("metrics_regex")),
            tensorboard=tuple(options.pop("tensorboard")),
            upload_artifacts=options.pop("upload_artifacts"),
            wandb=wandb_mode(options.pop("wandb"), hooks=hooks),
        )
        return launch(command[1:] if command[:1] == ["--"] else command, LaunchOptions(**options, catch=catch))
    except ValueError as exc:
        parser.error(str(exc))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainwire.ingest", description=launch.__doc__, allow_abbrev=False
    )
    parser.add_argument("--job-id", type=int, help=f"the job's number; default: {JOB_ID_VARIABLE}, or a new one")
    parser.add_argument("--name", help="the job's name; default: the script's, with two words")
    parser.add_argument("--attempt", type=int, help="1, 2, 3 ...; default: counted by the workers")
    parser.add_argument("--resume-from-step", type=int, metavar="STEP", help="go on from a checkpoint")
    parser.add_argument("--parent", type=int, metavar="JOB", help="the job that this one is forked from")
    parser.add_argument("--fork-step", type=int, metavar="STEP", help="the step of the parent to go on from")
    parser.add_argument("--redis-url", help="redis://host:port/0; default: REDIS_URL")
    parser.add_argument("--finish-timeout-s", type=float, default=DEFAULT_FINISH_TIMEOUT_S)
    parser.add_argument("--tty", action="store_true", help="give the command a terminal, for progress bars")
    parser.add_argument(
        "--fold-repeats", action="store_true", help="log equal lines in a row once, and count them"
    )
    parser.add_argument("--no-hooks", dest="hooks", action="store_false", help="take no metrics from libraries")
    parser.add_argument(
        "--metrics-regex", metavar="PATTERN", action="append", default=[], help="take metrics from printed lines"
    )
    parser.add_argument(
        "--tensorboard", metavar="DIR", type=Path, action="append", default=[], help="follow event files below DIR"
    )
    parser.add_argument(
        "--upload-artifacts", action="store_true", help="upload artifacts of MLflow to the bucket for checkpoints"
    )
    parser.add_argument(
        "--wandb",
        metavar="MODE",
        help=f"{', '.join(WANDB_MODES)}: also take values logged to W&B, disable W&B itself, leave it alone; "
        f"default: {WANDB_VARIABLE}, or the first",
    )
    parser.add_argument(
        "--on-stop", choices=STOP_MODES, default="sigterm", help="sent to the command when a user asks it to stop"
    )
    parser.add_argument(
        "--stop-grace-s",
        type=float,
        default=DEFAULT_STOP_GRACE_S,
        help="before that, for one that reads should_stop",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command to run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
