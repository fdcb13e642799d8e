"""Names of jobs that are given none."""

from __future__ import annotations

import re

import pytest

from trainwire.ingest.identity.default_names import default_name, script_of_command
from trainwire.ingest.identity.job_numbers import make_number


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("python train.py --lr 0.1", "train"),
        ("/usr/bin/python3.11 -u src/my train.py", "train"),
        ("torchrun --nproc-per-node 2 finetune.py --config a.yaml", "finetune"),
        ("python -m torch.distributed.run --nproc-per-node 2 train.py", "train"),
        ("python -m project.training.main --lr 1", "main"),
        ("bash run_all.sh", "run_all"),
        ("./simulate --steps 3", "simulate"),
        ("python -c pass", "python"),
        ("python", "python"),
        ("\x1b[31mred.py", "[31mred"),
    ],
)
def test_the_script_of_a_command(command: str, script: str) -> None:
    """A command is called after the script that it runs, else after its program."""
    assert script_of_command(command.split(" ")) == script


def test_runs_of_one_script_differ_at_first_sight() -> None:
    """Twenty runs have twenty names, and all processes of a job find the same."""
    numbers = [make_number() for _ in range(20)]
    names = [default_name("train", number) for number in numbers]
    assert len(set(names)) == 20
    assert names == [default_name("train", number) for number in numbers]
    assert all(re.fullmatch(r"train-[a-z]+-[a-z]+-\d\d", name) for name in names)
