"""Default names of jobs: the name of the script, and two words and two digits computed from the job number."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Final

from trainwire.ingest.settings.trainer_settings import TrainerSettings

_FIRST: Final = (
    "amber bold brave brisk bright calm clear clever cool cosy crisp dapper early eager fair fancy fine fleet "
    "fond free fresh gentle glad golden grand green happy hardy ideal jolly keen kind light lively lucky "
    "mellow merry mild neat nimble noble plain proud quick quiet rapid ready royal sharp shiny silent silver "
    "smart smooth snug solid steady sunny swift tidy vivid warm wise witty"
)
_SECOND: Final = (
    "badger bear beaver bee bison boar cat condor cougar crane crow deer dolphin dove duck eagle elk falcon "
    "ferret finch fox frog gecko goose hare hawk hedgehog heron horse ibis jay kestrel koala lark lemur lion "
    "lizard lynx magpie marten mole moose newt otter owl panda pigeon pony puffin quail rabbit raven robin "
    "salmon seal sparrow stork swan tern tiger toad trout turtle walrus"
)
_NO_SCRIPT: Final = "python"
_NOTEBOOKS: Final = ("ipykernel_launcher", "colab_kernel_launcher")
_SHELLS: Final = (".sh", ".bash", ".zsh")
_LONGEST: Final = 60


def default_name(script: str, job_id: int) -> str:
    """Return the default name of a job, such as `train-brisk-otter-42`, the same in all processes of the job.

    Words are easier to read and remember than hex digits. Of 100 jobs of a script, two have the same name with
    a probability of 1.2%.
    """
    return f"{script}{_ending(job_id)}"


def named(settings: TrainerSettings, name: str | None, job_id: int) -> tuple[str | None, TrainerSettings]:
    """Return the name and the settings for a run of job `job_id` that was given `name`, or no name (None).

    If `settings` are of the same job, a run without a name gets their `job_name`. One with a name gets it too, if
    a user has chosen it (`trainwire run --name`), but not if it is a default name. If the run has another job or
    name than `settings`, `launcher_logs_outages` is False in the result: the server may refuse this run and not
    its launcher, so this process logs the refusal itself. Settings without a job id fit any job.
    """
    if settings.job_id == job_id and settings.job_name and not settings.job_name.endswith(_ending(job_id)):
        return settings.job_name, settings
    if settings.job_id not in (None, job_id) or name not in (None, settings.job_name):
        return name, replace(settings, launcher_logs_outages=False)
    return (settings.job_name if settings.job_id == job_id else name), settings


def script_of_process() -> str:
    """Return the name of this process's script (without folder and suffix).

    Return `notebook` in a notebook, and `python` if there is no script.
    """
    return _stem(sys.argv[0] if sys.argv else "")


def script_of_command(command: Sequence[str]) -> str:
    """Return the name of the script in a command, such as `train` for `torchrun --nproc-per-node 2 train.py`.

    If there is none, return the name of the module after `-m`, or else of the program.
    """
    for before, argument in zip(("", *command), command, strict=False):
        if argument.endswith((".py", *_SHELLS)):
            return _stem(argument)
        if before == "-m" and not argument.startswith("-") and "torch.distributed" not in argument:
            return argument.rpartition(".")[2] or _NO_SCRIPT
    return _stem(command[0])


def _ending(job_id: int) -> str:
    digest = int.from_bytes(hashlib.blake2b(str(job_id).encode(), digest_size=8).digest())
    words = []
    for choice in (_FIRST.split(), _SECOND.split()):
        digest, index = divmod(digest, len(choice))
        words.append(choice[index])
    return f"-{'-'.join(words)}-{digest % 100:02}"


def _stem(path: str) -> str:
    name = PurePath(path)
    stem = name.parent.name if name.stem == "__main__" else name.stem
    if stem in _NOTEBOOKS:
        return "notebook"
    printable = "".join(char for char in stem if char.isprintable())[:_LONGEST]
    return _NO_SCRIPT if not printable or printable.startswith(("-", _NO_SCRIPT)) else printable
