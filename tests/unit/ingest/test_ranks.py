"""Rank and world size, as each launcher puts them into the environment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trainwire.ingest.process import ranks
from trainwire.ingest.process.ranks import Place
from trainwire.ingest.settings.trainer_settings import TrainerSettings


@pytest.fixture(autouse=True)
def _forget_warnings() -> Iterator[None]:
    """Warn anew in each test."""
    ranks._warned.clear()
    yield
    ranks._warned.clear()


def place(**environ: str) -> Place:
    """Return rank and world size with this environment."""
    settings = TrainerSettings.from_env(environ)
    return Place(settings.rank, settings.world_size)


TORCH = {"RANK": "5", "WORLD_SIZE": "8"}
STEP = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, Place()),
        (TORCH, Place(5, 8)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, Place(1, 4)),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, Place(1, 4)),
        (STEP, Place(1, 2)),
        ({"TRAINWIRE_RANK": "1", "TRAINWIRE_WORLD_SIZE": "4"}, Place(1, 4)),
        ({"RANK": "3"}, Place(3)),
        ({"RANK": "", "WORLD_SIZE": " "}, Place()),
    ],
)
def test_each_launcher_is_understood(environ: dict[str, str], found: Place) -> None:
    """torchrun, Open MPI, MPICH, Slurm and our own variables."""
    assert place(**environ) == found


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        (STEP | TORCH, Place(5, 8)),  # srun starts torchrun on each machine
        (BATCH | {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, Place(3, 4)),
        (STEP | {"PMI_RANK": "1", "PMI_SIZE": "2"}, Place(1, 2)),
        (STEP | {"WORLD_SIZE": "2"}, Place(1, 2)),
        (TORCH | {"TRAINWIRE_RANK": "0"}, Place(0, 8)),
        (TORCH | {"RANK": "0", "TRAINWIRE_WORLD_SIZE": "1"}, Place(0, 1)),
        ({"TRAINWIRE_RANK": "1", "WORLD_SIZE": "2"}, Place(1, 2)),
        ({"TRAINWIRE_WORLD_SIZE": "2"}, Place(None, 2)),
        ({"WORLD_SIZE": "2"}, Place()),
    ],
)
def test_the_innermost_launcher_counts(environ: dict[str, str], found: Place) -> None:
    """The user's own values take precedence over all launchers; a size without a rank counts other processes."""
    assert place(**environ) == found


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        (BATCH, Place(0)),
        (BATCH | {"SLURM_STEP_ID": "batch"}, Place(0)),
        (BATCH | {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "9"}, Place(0)),
        (BATCH | {"SLURM_STEP_ID": "0"}, Place(0, 8)),
        (BATCH | {"SLURM_PROCID": "3"}, Place(3, 8)),
        (STEP | {"SLURM_NTASKS": "8"}, Place(1, 2)),  # a step of fewer tasks than the job
    ],
)
def test_an_sbatch_script_is_one_process(environ: dict[str, str], found: Place) -> None:
    """Only `srun` starts as many as there are tasks."""
    assert place(**environ) == found


@pytest.mark.parametrize("rank", ["x", "1.5", "-1", "²", str(2**40), "9" * 5000])
def test_a_rank_of_others_is_ignored(rank: str, caplog: pytest.LogCaptureFixture) -> None:
    """RANK belongs to everybody: where it is no rank, there is none, with one warning that names the value."""
    assert place(RANK=rank, WORLD_SIZE="4") == place(RANK=rank, WORLD_SIZE="4") == Place()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"RANK={rank[:100]!r} is not a number from 0 to ")


@pytest.mark.parametrize("size", ["0", "-4", "many", "1000001", str(2**31)])
def test_a_world_size_of_others_is_ignored(size: str, caplog: pytest.LogCaptureFixture) -> None:
    """The rank is kept."""
    assert place(RANK="3", WORLD_SIZE=size) == Place(3)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"WORLD_SIZE={size!r} is not a number from 1 to 1000000: ignored")


def test_a_rank_outside_of_its_world_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """The rank is kept, and how many there are is not known."""
    assert place(RANK="4", WORLD_SIZE="4") == place(RANK="4", WORLD_SIZE="4") == Place(4)
    (record,) = caplog.records
    assert record.getMessage().startswith("rank 4 is not one of 4 ranks (0 to 3): ")
    assert "TRAINWIRE_WORLD_SIZE" in record.getMessage()
