"""Identities of launches, from the variables that launchers give to each rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwire.ingest.identity.open_runs import OpenRuns
from trainwire.ingest.process.launches import UnknownLaunch, find_launch
from trainwire.ingest.process.ranks import Place, find_place
from trainwire.ingest.settings.trainer_settings import TrainerSettings

UUID = "3f2a9c1e-7b42-4d0e-9a55-0123456789ab"
TORCH = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}
STANDALONE = {**TORCH, "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": UUID}
STATIC = {**TORCH, "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
SLURM = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "812", "SLURM_STEP_NUM_NODES": "2"}
STEP = {**SLURM, "SLURM_STEP_ID": "0"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_NAMESPACE": "prterun-node-0-77@1"}


def launch(environ: dict[str, str], proc: Path = Path("/nowhere")) -> str | None:
    """Return the identity with this environment; without /proc."""
    return find_launch(environ, find_place(environ), proc)


def of_rank(environ: dict[str, str], rank: int) -> dict[str, str]:
    """Return the environment of another rank of the same launch."""
    return {name: str(rank) if name.endswith(("RANK", "PROCID")) else value for name, value in environ.items()}


@pytest.mark.parametrize("environ", [STANDALONE, STEP, {**STEP, **STATIC}, {**SLURM, **MPI}])
def test_ranks_compute_one_identity(environ: dict[str, str]) -> None:
    """All ranks of a launch that can be identified have the same identity, with its own number."""
    identities = {launch(of_rank(environ, rank)) for rank in range(4)}
    assert len(identities) == 1
    assert None not in identities


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_STEP_ID": "1"},
        {"SLURM_JOB_ID": "813"},
        {"SLURM_CLUSTER_NAME": "other"},
        {"TORCHELASTIC_RUN_ID": "second"},
    ],
)
def test_another_launch_has_another_identity(change: dict[str, str]) -> None:
    """Another step, job, cluster or rendezvous is another launch."""
    assert launch({**STEP, **STATIC}) != launch({**STEP, **STATIC, **change})


@pytest.mark.parametrize("environ", [TORCH, STATIC, {**STATIC, "TORCHELASTIC_RUN_ID": "100"}, MPI, SLURM])
def test_variables_that_repeat_identify_nothing(environ: dict[str, str]) -> None:
    """A fixed port, a chosen rendezvous id or a process id comes again: such ranks get one clear sentence."""
    assert launch(environ) is None
    with pytest.raises(UnknownLaunch, match=r"rank 1 of 4 ranks has no job number.*export TRAINWIRE_JOB_ID"):
        OpenRuns().number_for(TrainerSettings(), find_place(environ))


def test_a_process_that_is_alone_has_no_launch() -> None:
    """Without ranks, and as the only one, a process makes a number for itself."""
    assert launch({}) is None
    assert launch({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": UUID}) is None


def test_further_runs_of_ranks_agree_too() -> None:
    """The second run of each rank is the same new job, with and without a number in the environment."""
    place = Place(1, 4)
    for settings in (TrainerSettings(launch="torch:x"), TrainerSettings(job_id=7)):
        ranks = [OpenRuns(), OpenRuns()]
        numbers = []
        for runs in ranks:
            first = runs.number_for(settings, place).job_id
            runs._used.add(first)
            numbers.append((first, runs.number_for(settings, place).job_id))
        assert numbers[0] == numbers[1]
        assert numbers[0][0] != numbers[0][1]
